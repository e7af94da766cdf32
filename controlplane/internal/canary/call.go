package canary

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/canary/analysis"
	"github.com/mics-im/mics/controlplane/internal/canary/plan"
	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/controlplane/internal/pace"
	"github.com/mics-im/mics/internal/cohort"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

const (
	// callTimeout leaves a look with a dead gateway in it inside a second.
	callTimeout = 800 * time.Millisecond
	// maxRouters bounds how many are asked.
	maxRouters = 256
)

// caller asks gateways and routers.
type caller struct {
	steerNode      func(context.Context, fleet.Node, *gatewayv1.SteerRequest) error
	signals        fleet.Signals
	steered        *telemetry.Counter
	failed, silent *telemetry.Counter
}

func newCaller(c *http.Client, t *telemetry.Telemetry) *caller {
	calls := t.CounterVec("mics_canary_steers_total", "Gateways told the canary's rule.", "result")
	return &caller{
		steerNode: func(ctx context.Context, n fleet.Node, req *gatewayv1.SteerRequest) error {
			_, err := gatewayv1connect.NewGatewayServiceClient(c, n.Endpoint, rpc.ClientOptions()...).Steer(ctx, connect.NewRequest(req))
			return err
		},
		signals: fleet.Signals{Ask: fleet.AskOver(c), Most: maxRouters, Timeout: callTimeout},
		steered: calls.With("ok"), failed: calls.With("failed"),
		silent: t.Counter("mics_canary_signals_failed_total", "Routers that did not tell what they had counted."),
	}
}

// steer tells the gateways the rule, and how fast to move whom where. When the
// canary is over only those that have not heard of it, or have sessions to move.
func (c *caller) steer(ctx context.Context, snap *fleet.Snapshot, o plan.Orders, over bool) {
	var nodes []fleet.Node
	for _, n := range snap.Nodes {
		if n.Kind != fleet.Gateway || n.Unreachable {
			continue
		}
		if over && n.Status.GetRuleGeneration() == o.Rule.Generation && n.Status.GetSessionsMisplaced() == 0 {
			continue
		}
		nodes = append(nodes, n)
	}
	fleet.Each(nodes, func(n fleet.Node) {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		err := c.steerNode(ctx, n, &gatewayv1.SteerRequest{
			Rule: &gatewayv1.CanaryRule{
				Generation: o.Rule.Generation, Salt: o.Rule.Salt, Weight: o.Rule.Weight, Tenants: o.Tenants, TenantsDenied: o.Denied,
			},
			GatewayIncarnation: n.Incarnation, SessionsPerSecond: o.Pace[n.ID], MoveV1: o.MoveV1, CountPlaces: o.CountPlaces,
			Stable: targets(o.Stable), Canary: targets(o.Canary),
		})
		if err != nil {
			c.failed.Inc() // it goes on as it was told last, and its generation shows that
			return
		}
		c.steered.Inc()
	})
}

func targets(list []plan.Target) (out []*gatewayv1.Target) {
	for _, t := range list {
		out = append(out, &gatewayv1.Target{NodeId: t.Node, Url: t.URL, Weight: t.Weight})
	}
	return out
}

// ask asks the routers what they have counted.
func (c *caller) ask(ctx context.Context, snap *fleet.Snapshot) []*routerv1.SignalsResponse {
	said, silent := c.signals.All(ctx, snap)
	c.silent.Add(int64(silent))
	return said
}

// sampler makes a sample per interval. It is for one goroutine.
type sampler struct {
	canary string
	at     time.Time
	was    baseline
}

// due tells whether an interval of this canary has passed.
func (s *sampler) due(state plan.State, at time.Time) bool {
	return s.canary != state.ID || at.Sub(s.at) >= state.Spec.Analysis.Interval
}

// take returns what has happened since it was called last; nil for the first time of
// a canary or of a leader, to which it is not known.
func (s *sampler) take(id string, snap *fleet.Snapshot, said []*routerv1.SignalsResponse) *analysis.Sample {
	is, was := gather(snap, said, s.was), s.was
	first := s.canary != id
	s.canary, s.at, s.was = id, snap.At, is
	if first {
		return nil
	}
	out := between(was, is)
	return &out
}

// follower tells how the gateways of a track take the sessions that move there. It is
// for one goroutine.
type follower struct {
	before *fleet.Snapshot // of the last call; nil: nobody was followed
	auth   pace.Auth
}

// take returns what has happened since it was called last, nothing the first time. After
// a while in which no session moved that is what is usual.
func (f *follower) take(track string, snap *fleet.Snapshot, said []*routerv1.SignalsResponse) pace.Load {
	before := f.before
	f.before = snap
	auth := f.auth.P95(said)
	if before == nil || before.Seq == snap.Seq {
		return pace.Load{}
	}
	l := pace.LoadOf(before.Nodes, snap.Nodes, func(n fleet.Node) bool {
		return n.Kind == fleet.Gateway && (n.Track == cohort.Canary) == (track == cohort.Canary)
	})
	l.AuthP95 = auth
	return l
}
