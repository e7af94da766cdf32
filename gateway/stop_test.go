package gateway

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/gateway/internal/routertest"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/frame"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// TestStop is a planned stop with a client that has not got everything and one
// that never echoes.
func TestStop(t *testing.T) {
	r, routers := newRig(t, 1, nil)
	r.start()
	p := r.connect("ann", "")
	silent := r.connect("bob", "&v=2") // acks nothing
	d := r.deliver(routers[0])
	d.message(1, 1, "m1")
	d.message(2, 2, "m2")
	if f := p.next().GetDelivery(); f.GetMessage().GetMsgId() != "m1" {
		t.Fatalf("delivery %v", f)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- r.g.Stop(context.Background()) }()
	testkit.Eventually(t, "the gateway is draining", func() bool { return r.ready() == "draining" })
	if res := r.handshake(nil); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Errorf("handshake: %d %q", res.StatusCode, res.body)
	}
	p.closed(4200, "server draining")
	if err := <-stopped; err != nil {
		t.Errorf("Stop: %v", err)
	}
	silent.closed(4200, "server draining") // it was told, but did not look

	stages := map[uint64][]routerv1.ClosedSession_Stage{}
	var undelivered []*gatewayv1.Undelivered
	for _, c := range routers[0].Closed() {
		stages[c.GetSessionId()] = append(stages[c.GetSessionId()], c.GetStage())
		undelivered = append(undelivered, c.GetUndelivered()...)
	}
	want := []routerv1.ClosedSession_Stage{routerv1.ClosedSession_STAGE_RELEASE, routerv1.ClosedSession_STAGE_FINAL}
	if !slices.Equal(stages[1], want) || !slices.Equal(stages[2], want) || len(stages) != 2 {
		t.Errorf("the router was told %v", stages)
	}
	if len(undelivered) != 1 {
		t.Fatalf("handed back: %v", undelivered)
	}
	if h, err := frame.ParseMessage(undelivered[0].GetMessage()); err != nil || h.MsgID != "m2" || len(undelivered[0].GetKey()) != 16 {
		t.Errorf("handed back: %v", undelivered)
	}
	var phases []gatewayv1.Phase
	for _, g := range routers[0].Gateways() {
		phases = append(phases, g.GetPhase())
	}
	phases = slices.Compact(phases)
	if !slices.Equal(phases, []gatewayv1.Phase{gatewayv1.Phase_PHASE_SERVING, gatewayv1.Phase_PHASE_DRAINING, gatewayv1.Phase_PHASE_DRAINED}) {
		t.Errorf("phases %v", phases)
	}
	if r.log.event("shutdown_drain_begin") == nil || r.log.event("shutdown_drain_done")["told"] != 2.0 || r.g.drains.Value() != 1 {
		t.Errorf("drained %d times: %v", r.g.drains.Value(), r.log.event("shutdown_drain_done"))
	}
	if _, err := net.DialTimeout("tcp", r.g.Addr(), time.Second); err == nil {
		t.Error("the listener is still open")
	}
	if err := r.g.Stop(context.Background()); err != nil {
		t.Errorf("the second Stop: %v", err)
	}
}

// TestStopWithoutARouter: what cannot be handed back does not keep the process;
// the routers have copies.
func TestStopWithoutARouter(t *testing.T) {
	r, routers := newRig(t, 1, func(c *Config) { c.DrainTimeout = time.Second })
	r.start()
	p := r.connect("ann", "")
	routers[0].Kill()
	stopped := make(chan error, 1)
	go func() { stopped <- r.g.Stop(context.Background()) }()
	p.closed(4200, "server draining")
	err := <-stopped
	if err == nil || !strings.Contains(err.Error(), "hand-back: 1 ended sessions not handed to a router") {
		t.Errorf("Stop: %v", err)
	}
	if done := r.log.event("shutdown_drain_done"); done["told"] != 1.0 || done["left"] != 1.0 {
		t.Errorf("shutdown_drain_done %v", done)
	}
}

func TestFencedAndBack(t *testing.T) {
	r, routers := newRig(t, 1, nil)
	r.start()
	p := r.connect("ann", "")
	addr := strings.TrimPrefix(routers[0].Info.GetEndpoint(), "http://")
	routers[0].Kill()
	p.closed(4200, "server draining")
	testkit.Eventually(t, "the gateway is fenced", func() bool { return r.ready() == "fenced" })
	if res := r.handshake(nil); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("handshake: %d %q", res.StatusCode, res.body)
	}
	again := r.router("r1", addr)
	r.cluster.Set(again)
	testkit.Eventually(t, "the gateway is back", func() bool { return r.ready() == "" })
	testkit.Eventually(t, "the session is handed back", func() bool { return len(again.Closed()) == 1 })
	r.connect("ann", "")
	g := again.Gateways()
	if g[0].GetPhase() != gatewayv1.Phase_PHASE_FENCED || g[0].GetIncarnation() != r.g.ref.GetIncarnation() {
		t.Errorf("it came back as %v", g[0])
	}
	testkit.Eventually(t, "it says that it serves", func() bool {
		g := again.Gateways()
		return g[len(g)-1].GetPhase() == gatewayv1.Phase_PHASE_SERVING
	})
}

func TestSuperseded(t *testing.T) {
	r, routers := newRig(t, 1, nil)
	ran := make(chan error, 1)
	go func() { ran <- r.g.Run(context.Background()) }()
	testkit.Eventually(t, "the gateway is ready", func() bool { return r.ready() == "" })
	p := r.connect("ann", "")
	routers[0].Do(func(f *routertest.Router) { f.RegisterErr = fault.New(fault.FailedPrecondition, "a newer incarnation") })
	p.closed(4200, "server draining")
	if err := <-ran; !errors.Is(err, ErrSuperseded) {
		t.Errorf("Run: %v", err)
	}
}

func TestRunStopsWithItsContext(t *testing.T) {
	r, _ := newRig(t, 1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- r.g.Run(ctx) }()
	testkit.Eventually(t, "the gateway is ready", func() bool { return r.ready() == "" })
	cancel()
	if err := <-ran; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestStopWithoutStart(t *testing.T) {
	r, _ := newRig(t, 1, nil)
	if err := r.g.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if r.g.drains.Value() != 0 {
		t.Error("a drain of nothing is counted")
	}
}
