package canary

import (
	"fmt"
	"testing"

	"github.com/mics-im/mics/controlplane/internal/canary/plan"
	"github.com/mics-im/mics/controlplane/internal/fleet"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"google.golang.org/protobuf/proto"
)

// What is counted between two looks.
func TestBetween(t *testing.T) {
	status := func(sessions, connects, abnormal uint64, accept ...uint64) *gatewayv1.StatusResponse {
		return &gatewayv1.StatusResponse{
			Sessions: sessions, ConnectsTotal: connects, AbnormalClosesTotal: abnormal, ResidentBytes: 1000,
			AcceptMs: &gatewayv1.Histogram{Bounds: []float64{1, 2}, Counts: accept},
		}
	}
	gw := func(id string, inc uint64, track string, st *gatewayv1.StatusResponse) fleet.Node {
		return fleet.Node{Kind: fleet.Gateway, ID: id, Incarnation: inc, Track: track, Status: st, Phase: gatewayv1.Phase_PHASE_SERVING}
	}
	router := fleet.Node{Kind: fleet.Router, ID: "r", Incarnation: 1}
	sig := func(ok, failed uint64) *routerv1.SignalsResponse {
		return &routerv1.SignalsResponse{Router: &routerv1.RouterInfo{NodeId: "r", Incarnation: 1}, Gateways: []*routerv1.GatewaySignals{
			{NodeId: "a", Incarnation: 1, HooksOk: ok, HooksFailed: failed},
		}}
	}
	leaving := gw("left", 1, "canary", status(5, 5, 0, 0, 0, 0))
	leaving.Phase = gatewayv1.Phase_PHASE_DRAINING
	one := gather(&fleet.Snapshot{Nodes: []fleet.Node{
		gw("a", 1, "stable", status(100, 1000, 7, 5, 5, 5)), gw("b", 1, "canary", status(10, 20, 0, 1, 1, 1)),
		gw("empty", 1, "canary", status(0, 0, 0, 0, 0, 0)), leaving, router,
	}}, []*routerv1.SignalsResponse{sig(50, 5)}, nil)
	// The router does not answer, b has started anew, three are gone.
	two := gather(&fleet.Snapshot{Nodes: []fleet.Node{
		gw("a", 1, "stable", status(90, 1010, 9, 6, 5, 8)), gw("b", 2, "canary", status(4, 4, 1, 4, 0, 0)), router,
	}}, nil, one)
	s := between(one, two)
	if r := s.Stable.Rates["abnormal_closes"]; r.Bad != 2 || r.Total != 110 {
		t.Errorf("stable: %v", r)
	}
	if h := s.Stable.Latencies["accept_ms"]; fmt.Sprint(h.Counts) != "[1 0 3]" {
		t.Errorf("accepts: %v", h)
	}
	if r := s.Canary.Rates["abnormal_closes"]; r.Bad != 1 || r.Total != 4 || s.Canary.Crashes != 1 || s.Stable.Crashes != 0 {
		t.Errorf("canary: %v, %d crashes", r, s.Canary.Crashes)
	}
	if r := s.Stable.Rates["hook_failures"]; r.Total != 0 {
		t.Errorf("a router that says nothing: %v", r)
	}
	if len(s.Gateways) != 1 || s.Gateways[0].Rates["abnormal_closes"] != s.Stable.Rates["abnormal_closes"] {
		t.Errorf("stable's gateways: %v", s.Gateways)
	}
	// It answers again: what happened meanwhile counts, and nothing twice.
	three := gather(&fleet.Snapshot{Nodes: []fleet.Node{gw("a", 1, "stable", status(90, 1010, 9, 6, 5, 8)), router}}, []*routerv1.SignalsResponse{sig(60, 7)}, two)
	if r := between(two, three).Stable.Rates["hook_failures"]; r.Bad != 2 || r.Total != 12 {
		t.Errorf("after its silence: %v", r)
	}
}

func TestProtoRoundTrip(t *testing.T) {
	in := &controlv1.CanarySpec{
		Steps: []uint32{500, 10000}, BakeMs: 60_000, Tenants: []string{"a"}, TenantsDenied: []string{"b"}, AutoPromote: true, MoveV1: true,
		Analysis: "interval: 5s", SessionsPerSecond: 7,
	}
	if out := (View{State: plan.State{Spec: SpecOf(in)}}).Proto().GetSpec(); !proto.Equal(in, out) {
		t.Errorf("%v", out)
	}
	if s := SpecOf(&controlv1.CanarySpec{BakeMs: 1<<64 - 1}); s.Bake <= 0 {
		t.Errorf("bake %v", s.Bake)
	}
}
