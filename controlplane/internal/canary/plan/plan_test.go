package plan

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/controlplane/internal/canary/analysis"
	"github.com/mics-im/mics/internal/cohort"
)

func spec(steps ...uint32) Spec { return Spec{Steps: steps, Bake: 30 * time.Second} }

// The whole way: every step within a point, nobody moved twice in one (the world
// fails if so), and the new version is stable in the end.
func TestACanaryGoesAllTheWay(t *testing.T) {
	w := newWorld(t, 5000)
	w.begin(spec(500, 5000, 10000))
	for i, weight := range []float64{5, 50, 100} {
		w.until("baking", func(s State) bool { return s.Phase == Baking && s.Step == i })
		w.shared(weight)
		baking := w.now
		w.until("done with the step", func(s State) bool { return s.Step > i || s.Phase == Ready })
		if d := w.now.Sub(baking); d < 30*time.Second || d > 40*time.Second {
			t.Errorf("step %d baked %v", i, d)
		}
	}
	for range 600 {
		w.tick()
	}
	if w.state.Phase != Ready {
		t.Fatal("promoted without being told")
	}
	w.state = must(Apply(w.state, Command{Change: Promote, Actor: "ann"}, w.observe()))
	w.reach(Replacing)
	orders := Give(w.state, w.observe().Nodes)
	if orders.Version != "2" || !slices.Equal(orders.Drain, []string{"s0", "s1", "s2"}) || orders.Weight != cohort.Full {
		t.Errorf("%+v", orders)
	}
	w.tick()
	if !strings.Contains(w.state.Waits, "s0, s1, s2") {
		t.Errorf("does not say whom to replace: %q", w.state.Waits)
	}
	for _, g := range w.nodes[:3] {
		g.version = "2"
	}
	w.reach(Promoted)
	w.shared(0)
	if o := Give(w.state, w.observe().Nodes); o.Version != "" || o.Weight != 0 || len(o.Drain) != 0 {
		t.Errorf("%+v", o)
	}
}

func must(s State, err error) State {
	if err != nil {
		panic(err)
	}
	return s
}

func TestAutoPromote(t *testing.T) {
	w := newWorld(t, 500)
	s := spec(2000)
	s.AutoPromote = true
	w.begin(s)
	w.reach(Replacing)
}

func TestADegradedCanaryIsRolledBack(t *testing.T) {
	w := newWorld(t, 2000)
	w.begin(spec(5000, 10000))
	w.reach(Baking)
	w.bad = true
	w.reach(Aborting)
	if o := Give(w.state, w.observe().Nodes); o.Weight != 0 || o.Rule.Weight != 0 {
		t.Errorf("%+v", o)
	}
	w.reach(Aborted)
	w.shared(0)
	if !strings.HasPrefix(w.state.Reason, "abnormal_closes: ") {
		t.Errorf("reason %q", w.state.Reason)
	}
	if _, err := Apply(w.state, Command{Change: Resume}, w.observe()); err == nil {
		t.Error("goes on after its end")
	}
}

func TestDegradedWhileMoving(t *testing.T) {
	w := newWorld(t, 2000)
	s := spec(5000)
	s.Rate = 1
	w.begin(s)
	w.bad = true
	for range 20 {
		w.tick()
	}
	if w.state.Phase != Aborting && w.state.Phase != Aborted {
		t.Errorf("%s", w.state.Phase)
	}
}

// No data is no reason to go on.
func TestWithoutDataItWaits(t *testing.T) {
	w := newWorld(t, 500)
	w.silent = true
	w.begin(spec(1000, 5000))
	w.reach(Baking)
	for range 1000 {
		w.tick()
	}
	if w.state.Phase != Baking || w.state.Step != 0 || w.state.Waits == "" {
		t.Errorf("%s, step %d, waits %q", w.state.Phase, w.state.Step, w.state.Waits)
	}
	w.silent = false
	w.until("next step", func(s State) bool { return s.Step == 1 })
}

func TestPauseHoldsEverythingButTheWatch(t *testing.T) {
	w := newWorld(t, 2000)
	w.begin(spec(5000))
	w.tick()
	w.state = must(Apply(w.state, Command{Change: Pause, Reason: "lunch", Actor: "ann"}, w.observe()))
	before := Count(w.observe().Nodes, 0).Canary.Sessions
	for range 100 {
		w.tick()
	}
	if got := Count(w.observe().Nodes, 0).Canary.Sessions; got != before || w.state.Phase != Moving {
		t.Errorf("%d sessions moved", got-before)
	}
	w.state = must(Apply(w.state, Command{Change: Resume}, w.observe()))
	w.reach(Baking)
	w.state = must(Apply(w.state, Command{Change: Pause}, w.observe()))
	for range 100 {
		w.tick()
	}
	if w.state.Baked > 3*time.Second {
		t.Errorf("baked %v while paused", w.state.Baked)
	}
	w.bad = true
	w.until("aborted", func(s State) bool { return s.Phase == Aborting || s.Phase == Aborted })
}

func TestSetWeight(t *testing.T) {
	w := newWorld(t, 4000)
	w.begin(spec(500, 5000, 10000))
	w.reach(Baking)
	for _, weight := range []uint32{3000, 2000, 300, 0, 10000, 5000} {
		w.state = must(Apply(w.state, Command{Change: SetWeight, Weight: weight, Actor: "ann"}, w.observe()))
		for _, u := range w.users {
			u.moved = 0
		}
		w.reach(Baking)
		w.shared(float64(weight) / 100)
	}
	if w.state.Step != 1 {
		t.Errorf("step %d", w.state.Step)
	}
	if s := must(Apply(w.state, Command{Change: SetWeight, Weight: 200}, w.observe())); s.Step != -1 {
		t.Errorf("below the first step: %d", s.Step)
	}
}

// What a person moves away from meanwhile, or who lands on the wrong track, is
// brought back; the bake clock stands still as long as too many are wrong.
func TestBakeCountsOnlyWhenSettled(t *testing.T) {
	w := newWorld(t, 2000)
	w.begin(spec(5000))
	w.reach(Baking)
	w.deaf = "s0" // restarted with an old rule
	w.nodes[0].rule = cohort.Rule{}
	baked := w.state.Baked
	for range 100 {
		w.tick()
	}
	if w.state.Baked != baked || w.state.Phase != Baking {
		t.Errorf("baked %v with a gateway that does not know the rule", w.state.Baked-baked)
	}
	w.deaf = ""
	w.until("done", func(s State) bool { return s.Phase == Ready })
}

// While most people are cut off those who are left say little: the step waits, and
// the rule stays near the weight whatever they are.
func TestTheRuleStaysNearTheWeight(t *testing.T) {
	w := newWorld(t, 2000)
	s := spec(5000)
	s.Rate = 50
	w.begin(s)
	w.tick()
	everybody := w.users
	w.users = nil
	for _, u := range everybody {
		if w.nodes[0].rule.Place(u.tenant, u.name) > 5500 { // half of them are those above 7750
			w.users = append(w.users, u)
		}
	}
	for range 250 {
		w.tick()
	}
	if w.state.Phase != Moving || !strings.Contains(w.state.Waits, "sessions are connected") {
		t.Errorf("%s: %q", w.state.Phase, w.state.Waits)
	}
	for range 250 { // they do not come back
		w.tick()
	}
	if r := w.state.Rule.Weight; w.state.Phase == Moving || r < 5500 || r > 6200 {
		t.Errorf("%s, rule at %d", w.state.Phase, r)
	}
}

// A gap in which nobody looked does not count.
func TestBakeDoesNotCountWhatNobodySaw(t *testing.T) {
	w := newWorld(t, 500)
	s := spec(5000)
	s.Bake = 10 * time.Minute
	w.begin(s)
	w.reach(Baking)
	w.now = w.now.Add(time.Hour)
	w.tick()
	if w.state.Phase != Baking || w.state.Baked > time.Minute {
		t.Errorf("%s, baked %v", w.state.Phase, w.state.Baked)
	}
}

func TestACanaryWithoutGatewaysIsAborted(t *testing.T) {
	w := newWorld(t, 500)
	w.begin(spec(5000))
	w.reach(Baking)
	for _, g := range w.nodes[3:] {
		g.down = true
	}
	for _, u := range w.users { // their clients come back on stable
		if u.at.down {
			u.at = w.nodes[0]
		}
	}
	for range 10 {
		w.tick()
	}
	if w.state.Phase != Baking {
		t.Fatal("a short absence is none")
	}
	w.reach(Aborted)
	if !strings.Contains(w.state.Reason, "no gateway of the canary track") {
		t.Errorf("%q", w.state.Reason)
	}
}

func TestV1StaysUntilItReconnects(t *testing.T) {
	for _, move := range []bool{false, true} {
		w := newWorld(t, 1000)
		for _, u := range w.users[:300] {
			u.v1 = true
		}
		s := spec(5000)
		s.MoveV1 = move
		w.begin(s)
		w.reach(Baking)
		p := Count(w.observe().Nodes, 0)
		if stayed := p.Stable.MisplacedV1 > 0; stayed == move {
			t.Errorf("move-v1 %v: %d V1 sessions are on the wrong track", move, p.Stable.MisplacedV1)
		}
		if n := p.movable(move); n > 10 {
			t.Errorf("%d wait", n)
		}
	}
}

func TestTenants(t *testing.T) {
	w := newWorld(t, 1000)
	s := spec(10000)
	s.Tenants = []string{"acme"}
	w.begin(s)
	w.reach(Baking)
	for _, u := range w.users {
		if (u.tenant == "acme") != (u.at.track == "canary") {
			t.Fatalf("%s of %s is on %s", u.name, u.tenant, u.at.track)
		}
	}
	if w.state.History.Alone {
		t.Error("others are on stable")
	}
	w.state = must(Apply(w.state, Command{Change: Promote}, w.observe()))
	w.reach(Replacing)
	w.shared(100)
}

func TestBeginRefuses(t *testing.T) {
	for want, change := range map[string]func(*world){
		"no gateway of the canary track": func(w *world) { w.nodes[3].down, w.nodes[4].down = true, true },
		"no gateway of the stable track": func(w *world) { w.nodes = w.nodes[3:] },
		"2 versions: 2, 3":               func(w *world) { w.nodes[3].version = "3" },
	} {
		w := newWorld(t, 10)
		change(w)
		p, err := spec(100).Prepare()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Begin("c", p, 0, w.observe(), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	for want, s := range map[string]Spec{
		"want 1 to 20":             {},
		"and rise":                 spec(500, 500),
		"above 0":                  spec(0),
		"at most 100":              spec(10001),
		"bake: must":               {Steps: []uint32{1}, Bake: time.Millisecond},
		"both allowed and denied":  {Steps: []uint32{1}, Tenants: []string{"a"}, Denied: []string{"a"}},
		"sessions per second":      {Steps: []uint32{1}, Rate: -1},
		"analysis: signals: hooks": {Steps: []uint32{1}, File: "signals: {hooks: {off: true}}"},
	} {
		if _, err := s.Prepare(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	s, err := spec(500, 10000).Prepare()
	if err != nil || s.Analysis.Interval != 3*time.Second || s.Analysis.Horizon != 20 {
		t.Errorf("%+v, %v", s.Analysis, err)
	}
}

func TestAbortHasToSayWhy(t *testing.T) {
	w := newWorld(t, 10)
	w.begin(spec(5000))
	if _, err := Apply(w.state, Command{Change: Abort}, w.observe()); err == nil {
		t.Error("no reason asked")
	}
	s := must(Apply(w.state, Command{Change: Abort, Reason: "smells", Actor: "ann"}, w.observe()))
	if s.Phase != Aborting || s.Reason != "smells" || s.Events[len(s.Events)-1].Actor != "ann" {
		t.Errorf("%+v", s)
	}
	if again := must(Apply(s, Command{Change: Abort, Reason: "again"}, w.observe())); len(again.Events) != len(s.Events) {
		t.Error("aborted twice")
	}
	for _, c := range []Change{Pause, Promote, SetWeight} {
		if _, err := Apply(s, Command{Change: c, Weight: 1}, w.observe()); err == nil {
			t.Errorf("change %d while aborting", c)
		}
	}
}

// A new leader reads the state from the store, at any moment, and goes on the same
// way.
func TestTheStateSurvivesItsLeader(t *testing.T) {
	w := newWorld(t, 1000)
	w.begin(spec(500, 5000))
	for i := range 200 {
		w.tick()
		if i%7 == 0 {
			raw, err := json.Marshal(w.state)
			if err != nil {
				t.Fatal(err)
			}
			if len(raw) > 64<<10 {
				t.Fatalf("%d bytes", len(raw))
			}
			w.state = State{}
			if err := json.Unmarshal(raw, &w.state); err != nil {
				t.Fatal(err)
			}
		}
	}
	if w.state.Phase != Ready {
		t.Errorf("%s: %s", w.state.Phase, w.state.Waits)
	}
}

func TestTargets(t *testing.T) {
	nodes := []Node{
		{ID: "c0", Track: "canary", Serving: true, Sessions: 100, ClientURL: "ws://c0"},
		{ID: "c1", Track: "canary", Serving: true, Sessions: 0, ClientURL: "ws://c1"},
		{ID: "c2", Track: "canary", ClientURL: "ws://c2"},
		{ID: "s0", Track: "stable", Serving: true, Sessions: 5},
		{ID: "s1", Serving: true, ClientURL: "ws://s1"},
	}
	c := targets(nodes, cohort.Canary)
	if len(c) != 2 || c[0].Weight >= c[1].Weight || c[1].URL != "ws://c1" {
		t.Errorf("%v", c)
	}
	if s := targets(nodes, cohort.Stable); len(s) != 1 || s[0].URL != "?track=stable" {
		t.Errorf("%v: one cannot be reached by itself", s)
	}
}

func TestTrendIsBounded(t *testing.T) {
	var trend map[analysis.Signal][]Point
	for i := range 100 {
		trend = extend(trend, map[analysis.Signal][2]float64{analysis.Memory: {float64(i), 1}})
	}
	if p := trend[analysis.Memory]; len(p) != maxTrend || *p[maxTrend-1].Stable != 99 {
		t.Errorf("%d points", len(p))
	}
	s := State{}
	for i := range 100 {
		s = s.say(time.Time{}, "", "%s", fmt.Sprint(i))
	}
	if len(s.Events) != maxEvents {
		t.Errorf("%d events", len(s.Events))
	}
}
