package pace

import (
	"fmt"
	"testing"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func TestGapsAreThoseOfTheLastSecondAtAllThatStay(t *testing.T) {
	gate := func(id string, counts ...[]uint64) fleet.Node {
		st := &gatewayv1.StatusResponse{}
		for i, c := range counts { // one per origin
			st.Arrivals = append(st.Arrivals, &gatewayv1.Arrivals{
				FromNodeId: fmt.Sprint("from", i), GapMs: &gatewayv1.Histogram{Bounds: []float64{10, 20, 50}, Counts: c},
			})
		}
		return fleet.Node{Kind: fleet.Gateway, ID: id, Incarnation: 1, Status: st}
	}
	before := []fleet.Node{gate("a", []uint64{0, 0, 0, 900}), gate("b", []uint64{500, 0, 300, 0}), gate("c")}
	after := []fleet.Node{
		gate("a", []uint64{0, 0, 0, 999}), // drained itself
		gate("b", []uint64{550, 0, 300, 0}, []uint64{40, 0, 0, 0}),
		gate("c", []uint64{0, 6, 0, 0}),
		gate("d", []uint64{0, 0, 0, 70}), // not there before
	}
	l := LoadOf(before, after, func(g fleet.Node) bool { return g.ID != "a" })
	if l.Gaps != 96 || l.GapP95 != 20 {
		t.Errorf("%d gaps, 95th percentile %v", l.Gaps, l.GapP95)
	}
	if l := LoadOf(after, after, func(fleet.Node) bool { return true }); l.Gaps != 0 || l.GapP95 != 0 {
		t.Errorf("nobody moved: %+v", l)
	}
}

func TestLoadIsOfThoseThatTake(t *testing.T) {
	gate := func(id string, incarnation, refused uint64, accepts ...uint64) fleet.Node {
		return fleet.Node{Kind: fleet.Gateway, ID: id, Incarnation: incarnation, Status: &gatewayv1.StatusResponse{
			RefusedHandshakesTotal: refused, AcceptMs: &gatewayv1.Histogram{Bounds: []float64{10, 100, 1000}, Counts: accepts},
		}}
	}
	silent := gate("silent", 1, 9, 0, 0, 0, 99)
	silent.Unreachable = true
	l := LoadOf(
		[]fleet.Node{gate("fast", 1, 5, 100, 0, 0, 0), gate("slow", 1, 0, 0, 0, 0, 0), gate("few", 1, 0, 0, 0, 0, 0), gate("other", 1, 0, 0, 0, 0, 0), gate("again", 1, 7, 9, 0, 0, 9), silent},
		[]fleet.Node{gate("fast", 1, 7, 190, 10, 0, 0), gate("slow", 1, 0, 0, 0, 20, 0), gate("few", 1, 0, 0, 0, 0, 9), gate("other", 1, 50, 0, 0, 0, 99), gate("again", 2, 9, 0, 0, 0, 99), silent},
		func(g fleet.Node) bool { return g.ID != "other" },
	)
	if l.Accepts != 129 || l.AcceptP95 != 1000 || l.Node != "slow" || l.Refused != 2 {
		t.Errorf("%+v", l)
	}
}

// Of one router that is asked twice, what lies between; of one that is new, nothing.
func TestAuthHooksAreThoseOfTheLastSecond(t *testing.T) {
	said := func(router string, counts ...uint64) *routerv1.SignalsResponse {
		return &routerv1.SignalsResponse{Router: &routerv1.RouterInfo{NodeId: router, Incarnation: 1}, Gateways: []*routerv1.GatewaySignals{
			{NodeId: "gw", Incarnation: 1, AuthMs: &gatewayv1.Histogram{Bounds: []float64{50, 150}, Counts: counts}},
		}}
	}
	var a Auth
	for i, c := range []struct {
		said []*routerv1.SignalsResponse
		want float64
	}{
		{[]*routerv1.SignalsResponse{said("r1", 1000, 0, 0)}, 0},
		{[]*routerv1.SignalsResponse{said("r1", 1000, 20, 0), said("r2", 5000, 0, 0)}, 150},
		{[]*routerv1.SignalsResponse{said("r1", 1009, 20, 0), said("r2", 5000, 0, 0)}, 0},
		{[]*routerv1.SignalsResponse{said("r2", 5100, 0, 0)}, 50},
		{nil, 0},
	} {
		if got := a.P95(c.said); got != c.want {
			t.Errorf("call %d: %v, want %v", i, got, c.want)
		}
	}
}
