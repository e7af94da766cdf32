package telemetry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func scrape(t *testing.T, tel *Telemetry) string {
	t.Helper()
	rec := httptest.NewRecorder()
	tel.Metrics().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return rec.Body.String()
}

func newTelemetry(t *testing.T) (*Telemetry, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	tel, err := New(t.Context(), Config{Service: "test", NodeID: "n1", LogWriter: &log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tel.Shutdown(t.Context()) })
	return tel, &log
}

func has(t *testing.T, text, line string) {
	t.Helper()
	for l := range strings.SplitSeq(text, "\n") {
		if l == line {
			return
		}
	}
	t.Errorf("no line %q in\n%s", line, text)
}

func TestNamesAreExportedAsGivenFromZero(t *testing.T) {
	tel, _ := newTelemetry(t)
	c := tel.Counter("mics_ws_connected_total", "help")
	v := tel.CounterVec("mics_rate_limited_total", "help", "kind")
	v.With("message_qps")
	tel.Gauge("mics_ws_connections", "help", func() int64 { return 7 })
	rec := tel.Histogram("mics_hook_duration_ms", "help", "op", 1, 10)("auth")
	text := scrape(t, tel)
	has(t, text, "mics_ws_connected_total 0")
	has(t, text, `mics_rate_limited_total{kind="message_qps"} 0`)
	has(t, text, "mics_ws_connections 7")
	c.Add(2)
	c.Inc()
	v.With("message_qps").Inc()
	rec.Record(5)
	text = scrape(t, tel)
	has(t, text, "mics_ws_connected_total 3")
	has(t, text, `mics_rate_limited_total{kind="message_qps"} 1`)
	has(t, text, `mics_hook_duration_ms_bucket{op="auth",le="10"} 1`)
}

func TestSeriesAreBounded(t *testing.T) {
	tel, _ := newTelemetry(t)
	v := tel.CounterVec("x_total", "help", "tenant")
	for i := range maxSeries + 50 {
		v.With(fmt.Sprint("tenant", i)).Inc()
	}
	has(t, scrape(t, tel), `x_total{tenant="other"} 50`)
}

func TestTwoLiveSideBySide(t *testing.T) {
	a, _ := newTelemetry(t)
	b, _ := newTelemetry(t)
	a.Counter("same_total", "help").Inc()
	b.Counter("same_total", "help")
	has(t, scrape(t, a), "same_total 1")
	has(t, scrape(t, b), "same_total 0")
}

func TestLogLinesNameTheNode(t *testing.T) {
	tel, log := newTelemetry(t)
	tel.Log.Info("ws_connected", TenantID, "demo")
	var line map[string]any
	if err := json.Unmarshal(log.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	if line["NodeId"] != "n1" || line["TenantId"] != "demo" || line["msg"] != "ws_connected" {
		t.Errorf("line %v", line)
	}
}

func TestTraceParentSurvivesTheTrip(t *testing.T) {
	const tp = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	if got := TraceParent(WithTraceParent(t.Context(), tp)); got != tp {
		t.Errorf("got %q", got)
	}
	if got := TraceParent(WithTraceParent(t.Context(), "")); got != "" {
		t.Errorf("unsampled carries %q", got)
	}
}

func TestForeignLabelValuesDoNotBreakTheScrape(t *testing.T) {
	tel, _ := newTelemetry(t)
	v := tel.CounterVec("x_total", "help", "tenant")
	v.With("bad\xff").Inc()
	v.With("bad\xff").Inc()
	tel.Histogram("y_ms", "help", "op", 1)("bad\xff").Record(0.5)
	text := scrape(t, tel)
	has(t, text, "x_total{tenant=\"bad\uFFFD\"} 2")
	has(t, text, "y_ms_count{op=\"bad\uFFFD\"} 1")
}

func TestWithLeavesTheCallersValuesAlone(t *testing.T) {
	tel, _ := newTelemetry(t)
	v := tel.CounterVec("x_total", "help", "tenant")
	for i := range maxSeries {
		v.With(fmt.Sprint("tenant", i))
	}
	values := []string{"mine"}
	if v.With(values...).Inc(); values[0] != "mine" {
		t.Errorf("values became %q", values)
	}
}
