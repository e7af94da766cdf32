package pace

import (
	"github.com/mics-im/mics/controlplane/internal/fleet"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// ref names one start of a process.
type ref struct {
	id          string
	incarnation uint64
}

// LoadOf compares two inventories; takes tells which nodes count.
func LoadOf(before, after []fleet.Node, takes func(fleet.Node) bool) Load {
	old := make(map[ref]fleet.Node, len(before))
	for _, g := range before {
		old[ref{g.ID, g.Incarnation}] = g
	}
	var l Load
	var gaps fleet.Buckets
	for _, g := range after {
		was, known := old[ref{g.ID, g.Incarnation}]
		if !known || g.Status == nil || was.Status == nil || g.Unreachable || !takes(g) {
			continue
		}
		if now, then := g.Status.GetRefusedHandshakesTotal(), was.Status.GetRefusedHandshakesTotal(); now > then {
			l.Refused += now - then
		}
		d := fleet.BucketsOf(g.Status.GetAcceptMs()).Since(fleet.BucketsOf(was.Status.GetAcceptMs()))
		n := d.Total()
		l.Accepts += n
		if p := d.Quantile(0.95); n >= enough && p > l.AcceptP95 {
			l.AcceptP95, l.Node = p, g.ID
		}
		gaps = gaps.Plus(gapsOf(g.Status).Since(gapsOf(was.Status)))
	}
	l.Gaps, l.GapP95 = gaps.Total(), gaps.Quantile(0.95)
	return l
}

// gapsOf is a gateway's, wherever the sessions came from.
func gapsOf(s *gatewayv1.StatusResponse) (sum fleet.Buckets) {
	for _, a := range s.GetArrivals() {
		sum = sum.Plus(fleet.BucketsOf(a.GetGapMs()))
	}
	return sum
}

// Auth follows the tenants' auth hooks as the routers see them. The zero Auth has
// seen nothing; it is for one goroutine.
type Auth struct {
	before map[[2]ref]fleet.Buckets // by router and gateway
}

// P95 is the 95th percentile since the call before, in ms, by what the routers say
// that answer; 0 if that is too little.
func (a *Auth) P95(said []*routerv1.SignalsResponse) float64 {
	now := map[[2]ref]fleet.Buckets{}
	var sum fleet.Buckets
	for _, r := range said {
		router := ref{r.GetRouter().GetNodeId(), r.GetRouter().GetIncarnation()}
		for _, g := range r.GetGateways() {
			k := [2]ref{router, {g.GetNodeId(), g.GetIncarnation()}}
			now[k] = fleet.BucketsOf(g.GetAuthMs())
			if was, known := a.before[k]; known {
				sum = sum.Plus(now[k].Since(was))
			}
		}
	}
	a.before = now
	if sum.Total() < enough {
		return 0
	}
	return sum.Quantile(0.95)
}
