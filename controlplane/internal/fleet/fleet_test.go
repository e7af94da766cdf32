package fleet

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// world is a Source whose facts a test changes. Safe for concurrent use.
type world struct {
	mu       sync.Mutex
	dir      *routerv1.DirectoryResponse          // nil: no router answers
	statuses map[string]*gatewayv1.StatusResponse // by endpoint; missing: no answer
	delay    time.Duration
	busy     int
	busiest  int
}

func (w *world) set(f func(*world)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

func (w *world) Directory(context.Context) (*routerv1.DirectoryResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dir == nil {
		return nil, errors.New("connection refused")
	}
	return w.dir, nil
}

func (w *world) Status(ctx context.Context, endpoint string) (*gatewayv1.StatusResponse, error) {
	var delay time.Duration
	w.set(func(w *world) {
		w.busy++
		w.busiest = max(w.busiest, w.busy)
		delay = w.delay
	})
	defer w.set(func(w *world) { w.busy-- })
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.statuses[endpoint]
	if s == nil {
		return nil, context.DeadlineExceeded
	}
	return s, nil
}

func status(id string, connects uint64) *gatewayv1.StatusResponse {
	return &gatewayv1.StatusResponse{Gateway: info(id, 1, serving), Sessions: 3, ConnectsTotal: connects, RoutersLinked: 1}
}

// start runs a Fleet over w until the test ends, inside a bubble. Its rounds
// are one second apart; what is gone is forgotten after 30.
func start(t *testing.T, w *world) (*Fleet, *telemetry.Telemetry) {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "test", LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	f := New(Config{Source: w, Interval: time.Second, ForgetAfter: 30 * time.Second, Telemetry: tel})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = tel.Shutdown(context.Background())
	})
	return f, tel
}

// at lets d pass and returns the newest snapshot.
func at(t *testing.T, f *Fleet, d time.Duration) *Snapshot {
	t.Helper()
	time.Sleep(d) // the bubble's clock
	synctest.Wait()
	s, err := f.Next(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFleetFollowsTheCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			dir:      &routerv1.DirectoryResponse{Gateways: []*gatewayv1.GatewayInfo{info("a", 1, serving)}, Routers: []*routerv1.RouterInfo{{NodeId: "r", Incarnation: 1}}},
			statuses: map[string]*gatewayv1.StatusResponse{"http://a": status("a", 100)},
		}
		f, tel := start(t, w)
		s := at(t, f, time.Millisecond)
		if s.Seq != 1 || len(s.Nodes) != 2 || !s.Directory || len(s.Warnings) != 0 || f.NotReady() != nil {
			t.Fatalf("first: %+v", s)
		}
		w.set(func(w *world) { w.statuses["http://a"] = status("a", 110) })
		if s = at(t, f, time.Second); s.Nodes[0].Rates.Connects != 10 {
			t.Fatalf("10 connects in a second: %+v", s.Nodes[0])
		}
		// The gateway falls silent: last figures, a reason.
		w.set(func(w *world) { delete(w.statuses, "http://a") })
		s = at(t, f, time.Second)
		if n := s.Nodes[0]; !n.Unreachable || n.Reason != "no answer in time" || n.Sessions != 3 {
			t.Fatalf("silent: %+v", n)
		}
		// Its lease ends 3 s later; 30 s from then it is forgotten.
		w.set(func(w *world) { w.dir.Gateways = nil })
		if s = at(t, f, 30*time.Second); len(s.Nodes) != 2 {
			t.Fatalf("forgotten too soon: %+v", s.Nodes)
		}
		if s = at(t, f, 2*time.Second); len(s.Nodes) != 1 || s.Nodes[0].Kind != Router {
			t.Fatalf("not forgotten: %+v", s.Nodes)
		}
		// No router answers: what was known stays, and says that it may be old.
		w.set(func(w *world) { w.dir = nil })
		s = at(t, f, time.Hour)
		if len(s.Nodes) != 1 || s.Nodes[0].Unreachable || s.Directory || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "connection refused") {
			t.Fatalf("without a directory: %+v", s)
		}
		if r := f.NotReady(); len(r) != 1 || r[0] != "no router reachable" {
			t.Fatalf("not ready: %v", r)
		}
		metrics := scrape(tel)
		for _, want := range []string{
			"mics_controlplane_gateways 0", "mics_controlplane_routers 1", "mics_controlplane_nodes_unreachable 0",
			`mics_controlplane_polls_total{result="ok"} 2`, "mics_controlplane_directory_failed_total 3600",
		} {
			if !strings.Contains(metrics, want) {
				t.Errorf("metrics lack %s:\n%s", want, metrics)
			}
		}
	})
}

func scrape(tel *telemetry.Telemetry) string {
	rec := httptest.NewRecorder()
	tel.Metrics().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return rec.Body.String()
}

func TestFleetKeepsAGatewayThatRoutersLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			dir:      dir(info("a", 1, serving)),
			statuses: map[string]*gatewayv1.StatusResponse{"http://a": status("a", 0)},
		}
		f, _ := start(t, w)
		at(t, f, time.Millisecond)
		w.set(func(w *world) { w.dir = dir() })
		s := at(t, f, time.Hour)
		if len(s.Nodes) != 1 || s.Nodes[0].Unreachable || len(s.Warnings) != 1 || s.Warnings[0] != "gateway a answers, but no router knows it" {
			t.Fatalf("%+v", s)
		}
	})
}

func TestNextSkipsToTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := start(t, &world{dir: dir()})
		first := at(t, f, time.Millisecond)
		newest := at(t, f, 10*time.Second)
		got, err := f.Next(t.Context(), first.Seq)
		if err != nil || got != newest || got.Seq != first.Seq+10 {
			t.Fatalf("got %+v, %v; want %+v", got, err, newest)
		}
		// Waits for the next, and no longer than its caller does.
		began := time.Now()
		if got, err = f.Next(t.Context(), newest.Seq); err != nil || got.Seq != newest.Seq+1 {
			t.Fatalf("got %+v, %v", got, err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("woken after %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err = f.Next(ctx, got.Seq); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestPollsAreConcurrentAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 3 * pollers
		w := &world{dir: dir(), statuses: map[string]*gatewayv1.StatusResponse{}, delay: 100 * time.Millisecond}
		for i := range n {
			id := "gw" + string(rune('A'+i/26/26)) + string(rune('A'+i/26%26)) + string(rune('A'+i%26))
			w.dir.Gateways = append(w.dir.Gateways, info(id, 1, serving))
			w.statuses["http://"+id] = status(id, 0)
		}
		f, _ := start(t, w)
		began := time.Now()
		s, err := f.Next(t.Context(), 0)
		if err != nil || len(s.Nodes) != n {
			t.Fatalf("%d nodes, %v", len(s.Nodes), err)
		}
		if d := time.Since(began); d != 300*time.Millisecond { // the bubble's clock
			t.Errorf("%d gateways of 100 ms each took %v", n, d)
		}
		w.set(func(w *world) {
			if w.busiest != pollers {
				t.Errorf("%d at a time, want %d", w.busiest, pollers)
			}
		})
	})
}

func TestNotReadyBeforeTheFirstRound(t *testing.T) {
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "test", LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer tel.Shutdown(context.Background()) //nolint:errcheck // nothing is exported
	f := New(Config{Source: &world{}, Interval: time.Second, Telemetry: tel})
	if r := f.NotReady(); len(r) != 1 {
		t.Errorf("not ready: %v", r)
	}
}
