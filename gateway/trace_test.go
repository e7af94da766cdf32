package gateway

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mics-im/mics/internal/telemetry"
)

func TestMessageTrace(t *testing.T) {
	spans := make(chan struct{}, 10)
	collector := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { spans <- struct{}{} }))
	defer collector.Close()
	tel, err := telemetry.New(t.Context(), telemetry.Config{OTLPEndpoint: collector.URL, TraceRatio: 0})
	if err != nil {
		t.Fatal(err)
	}
	begin := messageTrace(telemetry.Config{OTLPEndpoint: collector.URL, TraceRatio: 1}, tel.Tracer)
	parent, end := begin("t")
	if !strings.HasPrefix(parent, "00-") || !strings.HasSuffix(parent, "-01") {
		t.Errorf("traceparent %q is not sampled", parent)
	}
	if other, _ := begin("t"); other[3:35] == parent[3:35] {
		t.Error("two messages share a trace")
	}
	end()
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(spans) != 1 {
		t.Errorf("%d exports", len(spans))
	}
	seldom := messageTrace(telemetry.Config{OTLPEndpoint: collector.URL, TraceRatio: 1e-12}, tel.Tracer)
	if parent, end := seldom("t"); parent != "" || end != nil {
		t.Error("a message that is not sampled has a trace")
	}
	if n := testing.AllocsPerRun(100, func() { seldom("t") }); n != 0 {
		t.Errorf("%v allocations for a message that is not sampled", n)
	}
	if messageTrace(telemetry.Config{TraceRatio: 1}, tel.Tracer) != nil || messageTrace(telemetry.Config{OTLPEndpoint: collector.URL}, tel.Tracer) != nil {
		t.Error("traces that go nowhere")
	}
}
