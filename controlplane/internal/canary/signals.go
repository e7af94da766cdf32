package canary

import (
	"github.com/mics-im/mics/controlplane/internal/canary/analysis"
	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/internal/cohort"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// ref names one start of a process.
type ref struct {
	id          string
	incarnation uint64
}

// totals are what one gateway and the routers have counted of it, since they
// started.
type totals struct {
	track     string
	status    *gatewayv1.StatusResponse
	signals   map[ref]*routerv1.GatewaySignals // by router
	leaving   bool
	unreached bool
}

// baseline is all there was at the last look.
type baseline map[ref]totals

// gather makes a baseline of a snapshot. What does not answer keeps what it said
// last, in was.
func gather(s *fleet.Snapshot, signals []*routerv1.SignalsResponse, was baseline) baseline {
	out := baseline{}
	routers := map[ref]bool{}
	for _, n := range s.Nodes {
		if n.Kind == fleet.Router {
			routers[ref{n.ID, n.Incarnation}] = true
		}
		if n.Kind != fleet.Gateway || n.Status == nil {
			continue
		}
		leaving := n.Phase == gatewayv1.Phase_PHASE_DRAINING || n.Phase == gatewayv1.Phase_PHASE_DRAINED
		out[ref{n.ID, n.Incarnation}] = totals{
			track: n.Track, status: n.Status, leaving: leaving, unreached: n.Unreachable, signals: map[ref]*routerv1.GatewaySignals{},
		}
	}
	for _, r := range signals {
		router := ref{r.GetRouter().GetNodeId(), r.GetRouter().GetIncarnation()}
		for _, g := range r.GetGateways() {
			if t, ok := out[ref{g.GetNodeId(), g.GetIncarnation()}]; ok {
				t.signals[router] = g
			}
		}
	}
	for key, t := range out {
		for router, g := range was[key].signals {
			if _, told := t.signals[router]; !told && routers[router] {
				t.signals[router] = g
			}
		}
	}
	return out
}

// between is what happened from one look to the next. A gateway or router that is
// new counts from its start, one that is gone no more: of its last moments nobody
// has told. A gateway that had sessions and is gone, or has started anew, without
// having drained, has crashed.
func between(was, is baseline) analysis.Sample {
	var s analysis.Sample
	for key, now := range is {
		if now.track == cohort.Canary {
			add(&s.Canary, was[key], now)
			continue
		}
		add(&s.Stable, was[key], now)
		var alone analysis.Track
		add(&alone, was[key], now)
		s.Gateways = append(s.Gateways, alone)
	}
	for key, before := range was {
		if _, stays := is[key]; stays || before.leaving || before.status.GetSessions() == 0 {
			continue
		}
		if before.track == cohort.Canary {
			s.Canary.Crashes++
		} else {
			s.Stable.Crashes++
		}
	}
	return s
}

// since is a counter's growth; one that fell has started anew.
func since(was, is uint64) uint64 {
	if is < was {
		return is
	}
	return is - was
}

// add counts one gateway's interval.
func add(t *analysis.Track, was, is totals) {
	if t.Rates == nil {
		t.Rates, t.Latencies = map[analysis.Signal]analysis.Rate{}, map[analysis.Signal]analysis.Histogram{}
	}
	a, b := was.status, is.status
	if !is.unreached {
		t.Nodes++
		t.Sessions += b.GetSessions()
		t.Bytes += b.GetResidentBytes()
	}
	rate := func(s analysis.Signal, bad, total uint64) {
		r := t.Rates[s]
		t.Rates[s] = analysis.Rate{Bad: r.Bad + min(bad, total), Total: r.Total + total}
	}
	connects := since(a.GetConnectsTotal(), b.GetConnectsTotal())
	// Every session that there was may have timed out or broken, once.
	exposed := a.GetSessions() + connects
	rate(analysis.HeartbeatTimeouts, since(a.GetHeartbeatTimeoutsTotal(), b.GetHeartbeatTimeoutsTotal()), exposed)
	rate(analysis.AbnormalCloses, since(a.GetAbnormalClosesTotal(), b.GetAbnormalClosesTotal()), exposed)
	failed := since(a.GetResumesFailedTotal(), b.GetResumesFailedTotal())
	rate(analysis.ResumeFailures, failed, failed+since(a.GetResumesTotal(), b.GetResumesTotal()))
	t.Latencies[analysis.AcceptLatency] = analysis.Merge(t.Latencies[analysis.AcceptLatency], grown(a.GetAcceptMs(), b.GetAcceptMs()))
	t.Latencies[analysis.AckLatency] = analysis.Merge(t.Latencies[analysis.AckLatency], grown(a.GetAckMs(), b.GetAckMs()))
	for router, now := range is.signals {
		old := was.signals[router]
		bad := since(old.GetHooksFailed(), now.GetHooksFailed())
		rate(analysis.HookFailures, bad, bad+since(old.GetHooksOk(), now.GetHooksOk()))
		bad = since(old.GetForwardsFailed(), now.GetForwardsFailed())
		rate(analysis.ForwardFailures, bad, bad+since(old.GetForwardsOk(), now.GetForwardsOk()))
		rate(analysis.RateLimited, since(old.GetRateLimited(), now.GetRateLimited()), since(old.GetMessages(), now.GetMessages()))
	}
	// Connections may be over a limit too.
	r := t.Rates[analysis.RateLimited]
	t.Rates[analysis.RateLimited] = analysis.Rate{Bad: r.Bad, Total: r.Total + connects}
}

// grown is a histogram's growth.
func grown(was, is *gatewayv1.Histogram) analysis.Histogram {
	d := fleet.BucketsOf(is).Since(fleet.BucketsOf(was))
	return analysis.Histogram{Bounds: d.Bounds, Counts: d.Counts}
}
