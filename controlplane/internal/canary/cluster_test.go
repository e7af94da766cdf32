package canary

import (
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/controlplane/internal/canary/actuate"
	"github.com/mics-im/mics/controlplane/internal/canary/plan"
	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/internal/cohort"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// cluster is a fleet whose gateways move sessions as they are told, in fake time.
// It is the inventory of all control planes, the gateways and a router.
type cluster struct {
	t *testing.T

	mu      sync.Mutex
	seq     uint64                  // guarded by mu, like what follows
	nodes   []*node                 // gateways
	users   map[string]*node        // where they are
	bad     bool                    // canary's hooks fail
	slow    bool                    // canary's connects take long
	renewed chan struct{}           // closed with the next snapshot
	weights []actuate.Weights       // that the actuator got, without repeats
	version string                  // that stable was promoted to
	drained map[string]bool         // by the drainer
	hooks   map[string][2]uint64    // ok, failed, by gateway
	store   *flaky                  // shared
	kept    *gatewayv1.SteerRequest // the last one
}

type node struct {
	id, track, version string
	rule               cohort.Rule
	places             bool // are told
}

// flaky is a store that fails when told.
type flaky struct {
	*store.Memory
	mu   sync.Mutex
	fail bool // guarded by mu
}

func (f *flaky) Commit(ctx context.Context, term uint64, b store.Batch) ([]uint64, error) {
	f.mu.Lock()
	fail := f.fail
	f.mu.Unlock()
	if fail {
		return nil, store.ErrUnavailable
	}
	return f.Memory.Commit(ctx, term, b)
}

func (f *flaky) set(fail bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{
		t: t, renewed: make(chan struct{}), users: map[string]*node{}, drained: map[string]bool{}, hooks: map[string][2]uint64{},
		store: &flaky{Memory: store.NewMemory()},
	}
	c.nodes = []*node{{id: "s0", track: "stable", version: "1"}, {id: "s1", track: "stable", version: "1"}, {id: "c0", track: "canary", version: "2"}}
	for i := range 600 {
		c.users[fmt.Sprint("u", i)] = c.nodes[i%2]
	}
	return c
}

// run publishes a snapshot a second until ctx ends.
func (c *cluster) run(ctx context.Context) {
	for {
		c.mu.Lock()
		c.seq++
		close(c.renewed)
		c.renewed = make(chan struct{})
		for _, n := range c.nodes { // clients of every gateway make hooks be called
			h := c.hooks[n.id]
			h[0] += 100
			if c.bad && n.track == "canary" {
				h[1] += 50
			}
			c.hooks[n.id] = h
		}
		c.rollOut()
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

func (c *cluster) Next(ctx context.Context, after uint64) (*fleet.Snapshot, error) {
	for {
		c.mu.Lock()
		if c.seq > after {
			defer c.mu.Unlock()
			return c.snapshot(), nil
		}
		renewed := c.renewed
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-renewed:
		}
	}
}

// snapshot is the fleet as it is now; mu is held.
func (c *cluster) snapshot() *fleet.Snapshot {
	s := &fleet.Snapshot{Seq: c.seq, At: time.Now(), Directory: true}
	for _, n := range c.nodes {
		st := &gatewayv1.StatusResponse{
			RuleGeneration: n.rule.Generation(), ConnectsTotal: c.seq, ResidentBytes: 60 << 20,
			AcceptMs: &gatewayv1.Histogram{Bounds: []float64{10, 100}, Counts: []uint64{10 * c.seq, c.seq, 0}},
		}
		if c.slow && n.track == "canary" {
			st.AcceptMs.Counts[2] = 10 * c.seq
		}
		if n.places {
			st.SessionsByPlace = make([]uint32, cohort.Full)
		}
		for u, at := range c.users {
			if at != n {
				continue
			}
			st.Sessions++
			if n.places {
				st.SessionsByPlace[n.rule.Place("t", u)]++
			}
			st.SessionsV2++
			if n.rule.Canary("t", u) {
				st.SessionsOfCanary++
			}
			if tr := n.rule.Track("t", u); tr != "" && tr != n.track {
				st.SessionsMisplaced++
			}
		}
		s.Nodes = append(s.Nodes, fleet.Node{
			Kind: fleet.Gateway, ID: n.id, Incarnation: 1, Track: n.track, Version: n.version, Phase: gatewayv1.Phase_PHASE_SERVING,
			Sessions: st.GetSessions(), SessionsV2: st.GetSessions(), ClientURL: "ws://" + n.id, Status: st,
		})
	}
	s.Nodes = append(s.Nodes, fleet.Node{Kind: fleet.Router, ID: "r0", Incarnation: 1})
	return s
}

func (c *cluster) steer(_ context.Context, n fleet.Node, req *gatewayv1.SteerRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = req
	for _, g := range c.nodes {
		if g.id != n.ID {
			continue
		}
		if req.GetRule().GetGeneration() < g.rule.Generation() {
			c.t.Errorf("%s got generation %d after %d", g.id, req.GetRule().GetGeneration(), g.rule.Generation())
		}
		g.rule, g.places = cohort.Compile(req.GetRule()), req.GetCountPlaces()
		moves := int(req.GetSessionsPerSecond())
		for u, at := range c.users {
			if tr := g.rule.Track("t", u); at == g && tr != g.track && moves > 0 {
				moves--
				c.users[u] = c.one(tr)
			}
		}
	}
	return nil
}

func (c *cluster) one(track string) *node {
	for _, n := range c.nodes {
		if n.track == track {
			return n
		}
	}
	c.t.Fatalf("no gateway of %s", track)
	return nil
}

func (c *cluster) signals(context.Context, fleet.Node) (*routerv1.SignalsResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := &routerv1.SignalsResponse{Router: &routerv1.RouterInfo{NodeId: "r0", Incarnation: 1}}
	for id, h := range c.hooks {
		out.Gateways = append(out.Gateways, &routerv1.GatewaySignals{NodeId: id, Incarnation: 1, HooksOk: h[0], HooksFailed: h[1]})
	}
	return out, nil
}

func (c *cluster) Name() string { return "test" }

func (c *cluster) Apply(_ context.Context, w actuate.Weights) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.weights); n == 0 || c.weights[n-1] != w {
		c.weights = append(c.weights, w)
	}
	return nil
}

// Promote has a rollout begin, as Kubernetes does: it replaces one gateway after the
// other, and is over long after Promote has returned.
func (c *cluster) Promote(_ context.Context, version string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version = version
	return nil
}

// rollOut replaces one stable gateway, every tenth second of a rollout. Called with
// mu held.
func (c *cluster) rollOut() {
	if c.version == "" || c.seq%10 != 0 {
		return
	}
	for _, n := range c.nodes {
		if n.track == "stable" && n.version != c.version {
			n.version = c.version
			return
		}
	}
}

// bare is a cluster whose actuator replaces nothing.
type bare struct{ c *cluster }

func (b bare) Name() string { return b.c.Name() }

func (b bare) Apply(ctx context.Context, w actuate.Weights) error { return b.c.Apply(ctx, w) }

func (c *cluster) Drain(_ context.Context, node, _ string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drained[node] = true
	return nil
}

// share of the users that are on canary.
func (c *cluster) share() float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, at := range c.users {
		if at.track == "canary" {
			n++
		}
	}
	return float64(n) / float64(len(c.users))
}

// leader is one control plane that campaigns.
type leader struct {
	*Runner
	stop func()
}

func (c *cluster) lead(name string) leader { return c.leadWith(name, c) }

func (c *cluster) leadWith(name string, a actuate.Actuator) leader {
	tel, err := telemetry.New(c.t.Context(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		c.t.Fatal(err)
	}
	r := New(Config{Store: c.store, Inventory: c, Actuator: a, Drainer: c, Telemetry: tel})
	r.fleet.steerNode, r.fleet.signals.Ask = c.steer, c.signals
	ctx, cancel := context.WithCancel(context.Background())
	e := store.NewElector(store.ElectorConfig{Store: c.store, Name: name, Telemetry: tel})
	var wg sync.WaitGroup
	wg.Go(func() { e.Run(ctx, r.Duty) })
	return leader{r, func() { cancel(); wg.Wait(); _ = tel.Shutdown(context.Background()) }}
}

// inTime runs f with a cluster in fake time.
func inTime(t *testing.T, f func(t *testing.T, c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { c.run(ctx) })
		f(t, c)
		cancel()
		wg.Wait()
	})
}

// until waits for the canary to be as wanted.
func until(t *testing.T, r *Runner, what string, ok func(plan.State) bool) View {
	t.Helper()
	var v View
	for range 3000 {
		var err error
		if v, err = r.Get(t.Context()); err == nil && ok(v.State) {
			return v
		}
		time.Sleep(time.Second) // fake time
	}
	t.Fatalf("not %s: %s at %s, waits for %q, reason %q", what, v.State.Phase, plan.Percent(v.State.Target), v.State.Waits, v.State.Reason)
	return v
}

func in(p plan.Phase) func(plan.State) bool { return func(s plan.State) bool { return s.Phase == p } }

var spec = plan.Spec{Steps: []uint32{1000, 5000}, Bake: 20 * time.Second}

// start begins a canary as soon as somebody leads.
func start(t *testing.T, r *Runner, s plan.Spec) {
	t.Helper()
	for range 30 {
		_, err := r.Start(t.Context(), s, "ann")
		if err == nil {
			return
		}
		if fault.KindOf(err) != fault.Unavailable {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // fake time
	}
	t.Fatal("nobody leads")
}
