package canary

import (
	"context"
	"fmt"
	"io"
	"strings"
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
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"google.golang.org/protobuf/proto"
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
		for u, at := range c.users {
			if at != n {
				continue
			}
			st.Sessions++
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
		g.rule = cohort.Compile(req.GetRule())
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

func (c *cluster) Promote(_ context.Context, version string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version = version
	for _, n := range c.nodes {
		if n.track == "stable" {
			n.version = version
		}
	}
	return nil
}

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

func (c *cluster) lead(name string) leader {
	tel, err := telemetry.New(c.t.Context(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		c.t.Fatal(err)
	}
	r := New(Config{Store: c.store, Inventory: c, Actuator: c, Drainer: c, Telemetry: tel})
	r.fleet.steerNode, r.fleet.askRouter = c.steer, c.signals
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
		time.Sleep(time.Second)
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
		time.Sleep(time.Second)
	}
	t.Fatal("nobody leads")
}

func TestPromotion(t *testing.T) {
	inTime(t, func(t *testing.T, c *cluster) {
		l := c.lead("a")
		defer l.stop()
		start(t, l.Runner, spec)
		if _, err := l.Start(t.Context(), spec, "ben"); fault.KindOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "one at a time") {
			t.Errorf("a second canary: %v", err)
		}
		until(t, l.Runner, "ready", in(plan.Ready))
		if s := c.share(); s < 0.49 || s > 0.51 {
			t.Errorf("share %.3f", s)
		}
		if _, err := l.Change(t.Context(), "", plan.Command{Change: plan.Promote, Actor: "ann"}); err != nil {
			t.Fatal(err)
		}
		v := until(t, l.Runner, "promoted", in(plan.Promoted))
		time.Sleep(3 * time.Second)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.version != "2" {
			t.Errorf("stable is %q", c.version)
		}
		want := []actuate.Weights{actuate.Of(1000), actuate.Of(5000), actuate.Of(10000), actuate.Of(0)}
		if fmt.Sprint(c.weights) != fmt.Sprint(want) {
			t.Errorf("weights %v, want %v", c.weights, want)
		}
		p := v.Proto()
		if p.GetPhase() != controlv1.CanaryPhase_CANARY_PHASE_PROMOTED || p.GetActuator() != "test" || len(p.GetEvents()) < 6 || p.GetCanary().GetSessions() != 0 {
			t.Errorf("%v", p)
		}
		if past, err := c.store.Tail(t.Context(), log, time.Time{}, 10); err != nil || len(past) != 1 {
			t.Errorf("%d canaries in the log, %v", len(past), err)
		}
	})
}

func TestABadCanaryIsRolledBackByItself(t *testing.T) {
	inTime(t, func(t *testing.T, c *cluster) {
		l := c.lead("a")
		defer l.stop()
		start(t, l.Runner, spec)
		until(t, l.Runner, "baking", in(plan.Baking))
		c.mu.Lock()
		c.bad = true
		c.mu.Unlock()
		began := time.Now()
		v := until(t, l.Runner, "aborted", in(plan.Aborted))
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("took %v", took)
		}
		if !strings.HasPrefix(v.State.Reason, "hook_failures") || c.share() != 0 {
			t.Errorf("reason %q, share %.2f", v.State.Reason, c.share())
		}
		if l.aborts.Value() != 1 {
			t.Errorf("counted %d", l.aborts.Value())
		}
		sig := v.Proto().GetSignals()
		if len(sig) == 0 || sig[0].GetName() != "hook_failures" || sig[0].GetOutcome() != "degraded" || len(sig[0].GetCanaryTrend()) == 0 {
			t.Errorf("%v", sig)
		}
		// The next one has a rule of its own, newer for every gateway.
		c.mu.Lock()
		c.bad = false
		c.mu.Unlock()
		start(t, l.Runner, spec)
		until(t, l.Runner, "ready", in(plan.Ready))
	})
}

// Killed in every phase: the next leader goes on where the last one stopped.
func TestAnotherLeaderGoesOn(t *testing.T) {
	inTime(t, func(t *testing.T, c *cluster) {
		l := c.lead("0")
		s := spec
		s.AutoPromote, s.Rate = true, 20
		start(t, l.Runner, s)
		for i, p := range []plan.Phase{plan.Moving, plan.Baking, plan.Promoting, plan.Returning} {
			until(t, l.Runner, string(p), in(p))
			l.stop()
			time.Sleep(7 * time.Second)
			l = c.lead(fmt.Sprint(i + 1))
		}
		until(t, l.Runner, "promoted", in(plan.Promoted))
		if c.share() != 0 {
			t.Errorf("share %.2f", c.share())
		}
		l.stop()
	})
}

func TestNothingHappensThatIsNotDurable(t *testing.T) {
	inTime(t, func(t *testing.T, c *cluster) {
		l := c.lead("a")
		defer l.stop()
		start(t, l.Runner, spec)
		until(t, l.Runner, "baking", in(plan.Baking))
		c.store.set(true)
		if _, err := l.Change(t.Context(), "", plan.Command{Change: plan.SetWeight, Weight: 9000}); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("accepted without a store: %v", err)
		}
		time.Sleep(time.Minute)
		if v, err := l.Get(t.Context()); err != nil || v.State.Step != 0 || v.State.Phase != plan.Baking {
			t.Errorf("went on: %s, step %d, %v", v.State.Phase, v.State.Step, err)
		}
		c.store.set(false)
		until(t, l.Runner, "ready", in(plan.Ready))
	})
}

func TestWithoutACanary(t *testing.T) {
	inTime(t, func(t *testing.T, c *cluster) {
		l := c.lead("a")
		defer l.stop()
		time.Sleep(5 * time.Second)
		if _, err := l.Get(t.Context()); fault.KindOf(err) != fault.NotFound {
			t.Errorf("%v", err)
		}
		if _, err := l.Change(t.Context(), "", plan.Command{Change: plan.Pause}); fault.KindOf(err) != fault.FailedPrecondition {
			t.Errorf("%v", err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.kept != nil || len(c.weights) != 0 {
			t.Error("gateways or the actuator were told something")
		}
	})
}

func TestChangeNamesTheCanary(t *testing.T) {
	inTime(t, func(t *testing.T, c *cluster) {
		l := c.lead("a")
		defer l.stop()
		start(t, l.Runner, spec)
		if _, err := l.Change(t.Context(), "c-other", plan.Command{Change: plan.Pause}); err == nil || !strings.Contains(err.Error(), "not the one that runs") {
			t.Errorf("%v", err)
		}
		if _, err := l.Start(t.Context(), plan.Spec{}, ""); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%v", err)
		}
	})
}

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
