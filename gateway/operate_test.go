package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/cohort"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/testkit"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
)

// operator returns what the control plane calls the gateway with.
func (r *rig) operator() gatewayv1connect.GatewayServiceClient {
	hc := rpc.NewClient()
	r.t.Cleanup(hc.CloseIdleConnections)
	return gatewayv1connect.NewGatewayServiceClient(hc, "http://"+r.g.InternalAddr(), rpc.ClientOptions()...)
}

func (r *rig) drains(op string) (*gatewayv1.DrainProgress, error) {
	r.t.Helper()
	res, err := r.operator().Drain(r.t.Context(), connect.NewRequest(&gatewayv1.DrainRequest{
		OperationId: op, GatewayIncarnation: r.g.ref.GetIncarnation(), TimeoutMs: 60_000, SessionsPerSecond: 1000,
	}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetProgress(), nil
}

// TestDrainedAndBack: a gateway that has drained lives, keeps its lease, and serves
// again when it is told to.
func TestDrainedAndBack(t *testing.T) {
	r, routers := newRig(t, 1, nil)
	r.start()
	p := r.connect("ann", "")
	if _, err := r.operator().Drain(t.Context(), connect.NewRequest(&gatewayv1.DrainRequest{OperationId: "op", GatewayIncarnation: 1})); fault.KindOf(err) != fault.FailedPrecondition {
		t.Errorf("another incarnation: %v", err)
	}
	if got, err := r.drains("op"); err != nil || got.GetSessions() != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	p.closed(4200, "server draining")
	testkit.Eventually(t, "the drain is done", func() bool {
		got, err := r.drains("op")
		return err == nil && got.GetDone() && got.GetClosed() == 1 && got.GetEchoed() == 1
	})
	testkit.Eventually(t, "the gateway has drained", func() bool { return r.ready() == "drained" })
	if res := r.handshake(nil); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Errorf("handshake: %d %q", res.StatusCode, res.body)
	}
	if s := r.status(); s.GetGateway().GetPhase() != gatewayv1.Phase_PHASE_DRAINED || s.GetDrain().GetOperationId() != "op" || !s.GetDrain().GetDone() {
		t.Errorf("status %v", s)
	}
	if _, err := r.operator().Undrain(t.Context(), connect.NewRequest(&gatewayv1.UndrainRequest{OperationId: "op"})); err != nil {
		t.Fatal(err)
	}
	if why := r.ready(); why != "" {
		t.Errorf("not ready: %s", why)
	}
	r.connect("ann", "")
	testkit.Eventually(t, "the router knows that it serves", func() bool {
		g := routers[0].Gateways()
		return g[len(g)-1].GetPhase() == gatewayv1.Phase_PHASE_SERVING
	})
	for _, g := range routers[0].Gateways() {
		if g.GetPhase() == gatewayv1.Phase_PHASE_DRAINED {
			t.Error("the router was told to forget it")
		}
	}
	if r.g.drains.Value() != 0 {
		t.Error("it has not stopped")
	}
}

// slots is a control plane that lets gateways drain.
type slots struct {
	controlv1connect.UnimplementedNodeServiceHandler
	asked chan *controlv1.TerminateRequest
	grant chan *controlv1.TerminateResponse
	told  chan *gatewayv1.DrainProgress
}

func (s *slots) Terminate(_ context.Context, req *connect.Request[controlv1.TerminateRequest]) (*connect.Response[controlv1.TerminateResponse], error) {
	if p := req.Msg.GetDrained(); p != nil {
		s.told <- p
		return connect.NewResponse(&controlv1.TerminateResponse{}), nil
	}
	s.asked <- req.Msg
	return connect.NewResponse(<-s.grant), nil
}

func newSlots(t *testing.T) (*slots, string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &slots{
		asked: make(chan *controlv1.TerminateRequest, 10), grant: make(chan *controlv1.TerminateResponse, 10),
		told: make(chan *gatewayv1.DrainProgress, 10),
	}
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewNodeServiceHandler(s, rpc.HandlerOptions()...))
	srv := rpc.NewServer(ln, mux, nil, slog.New(slog.DiscardHandler))
	srv.Start()
	t.Cleanup(func() { _ = srv.Stop(context.Background()) })
	return s, "http://" + srv.Addr()
}

// TestStopInItsSlot: a gateway that is told to end serves until it may drain, and
// tells what came of it.
func TestStopInItsSlot(t *testing.T) {
	s, url := newSlots(t)
	r, _ := newRig(t, 1, func(c *Config) { c.ControlPlaneEndpoints, c.DrainTimeout = []string{url}, 8*time.Second })
	r.start()
	p := r.connect("ann", "")
	stopped := make(chan error, 1)
	go func() { stopped <- r.g.Stop(context.Background()) }()
	req := <-s.asked
	if req.GetNodeId() != "g1" || req.GetIncarnation() != r.g.ref.GetIncarnation() || req.GetSessions() != 1 || req.GetTimeoutMs() == 0 {
		t.Errorf("asked %v", req)
	}
	if why := r.ready(); why != "" {
		t.Errorf("not ready while it waits: %s", why)
	}
	r.connect("bob", "")
	s.grant <- &controlv1.TerminateResponse{Granted: true, OperationId: "rollout-1", SessionsPerSecond: 100}
	p.closed(4200, "server draining")
	if err := <-stopped; err != nil {
		t.Errorf("Stop: %v", err)
	}
	if e := r.log.event("drain_begin"); e["operation"] != "rollout-1" || e["sessions_per_second"] != 100.0 {
		t.Errorf("drain_begin %v", e)
	}
	if r.log.event("shutdown_drain_done")["told"] != 2.0 {
		t.Errorf("shutdown_drain_done %v", r.log.event("shutdown_drain_done"))
	}
	if p := <-s.told; p.GetOperationId() != "rollout-1" || p.GetSessions() != 2 || p.GetClosed() != 2 || !p.GetDone() || len(s.told) != 0 {
		t.Errorf("told %v, and %d more", p, len(s.told))
	}
}

// TestStopIsDirectedWhileItWaits: the control plane need not grant what it begins.
func TestStopIsDirectedWhileItWaits(t *testing.T) {
	s, url := newSlots(t)
	r, _ := newRig(t, 1, func(c *Config) { c.ControlPlaneEndpoints, c.DrainTimeout = []string{url}, 60*time.Second })
	r.start()
	p := r.connect("ann", "")
	stopped := make(chan error, 1)
	go func() { stopped <- r.g.Stop(context.Background()) }()
	<-s.asked
	s.grant <- &controlv1.TerminateResponse{Reason: "wait"}
	if _, err := r.drains("rollout-2"); err != nil {
		t.Fatal(err)
	}
	p.closed(4200, "server draining")
	if err := <-stopped; err != nil {
		t.Errorf("Stop: %v", err)
	}
	if e := r.log.event("drain_begin"); e["operation"] != "rollout-2" {
		t.Errorf("drain_begin %v", e)
	}
}

// TestStopOfADrainedGateway ends at once and asks nobody.
func TestStopOfADrainedGateway(t *testing.T) {
	s, url := newSlots(t)
	r, routers := newRig(t, 1, func(c *Config) { c.ControlPlaneEndpoints = []string{url} })
	r.start()
	p := r.connect("ann", "")
	if _, err := r.drains("op"); err != nil {
		t.Fatal(err)
	}
	p.closed(4200, "server draining")
	testkit.Eventually(t, "the gateway has drained", func() bool { return r.ready() == "drained" })
	told := func() (phases []gatewayv1.Phase) {
		for _, g := range routers[0].Gateways() {
			phases = append(phases, g.GetPhase())
		}
		return phases
	}
	const drained = gatewayv1.Phase_PHASE_DRAINED
	if before := told(); slices.Contains(before, drained) {
		t.Errorf("drained while it can be undrained: %v", before)
	}
	if err := r.g.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if len(s.asked) != 0 || len(s.told) != 0 || r.g.drains.Value() != 1 {
		t.Errorf("asked %d times, told %d, %d drains", len(s.asked), len(s.told), r.g.drains.Value())
	}
	// A heartbeat may say it a second time.
	if phases := told(); phases[len(phases)-1] != drained || slices.ContainsFunc(phases[slices.Index(phases, drained):], func(p gatewayv1.Phase) bool { return p != drained }) {
		t.Errorf("phases %v", phases)
	}
}

// TestSteer: the rule is kept, and Status tells who is on the wrong track.
func TestSteer(t *testing.T) {
	r, _ := newRig(t, 1, nil)
	r.start()
	r.connect("ann", "")
	rule := func(incarnation uint64) *connect.Request[gatewayv1.SteerRequest] {
		return connect.NewRequest(&gatewayv1.SteerRequest{
			GatewayIncarnation: incarnation, Rule: &gatewayv1.CanaryRule{Generation: 7, Salt: "c", Weight: 10_000}, CountPlaces: true,
		})
	}
	if _, err := r.operator().Steer(t.Context(), rule(1)); fault.KindOf(err) != fault.FailedPrecondition {
		t.Errorf("another incarnation: %v", err)
	}
	res, err := r.operator().Steer(t.Context(), rule(r.g.ref.GetIncarnation()))
	if err != nil || res.Msg.GetGeneration() != 7 || res.Msg.GetMisplaced() != 1 {
		t.Fatalf("%v, %v", res, err)
	}
	st, err := r.operator().Status(t.Context(), connect.NewRequest(&gatewayv1.StatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if m := st.Msg; m.GetRuleGeneration() != 7 || m.GetSessionsMisplaced() != 1 || m.GetSessionsMisplacedV1() != 1 || m.GetSessionsOfCanary() != 1 {
		t.Errorf("%v", m)
	} else if places := m.GetSessionsByPlace(); len(places) != cohort.Full || places[cohort.Compile(rule(1).Msg.GetRule()).Place("t", "u-ann")] != 1 {
		t.Errorf("u-ann is at another of %d places", len(places))
	}
}
