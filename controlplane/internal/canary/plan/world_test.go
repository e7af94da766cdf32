package plan

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/mics-im/mics/controlplane/internal/canary/analysis"
	"github.com/mics-im/mics/controlplane/internal/pace"
	"github.com/mics-im/mics/internal/cohort"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// world is a fleet of gateways with users, in fake time.
type world struct {
	t     *testing.T
	rng   *rand.Rand
	now   time.Time
	nodes []*gw
	users []*user
	state State
	// bad makes samples in which the canary is worse; silent makes none.
	bad, silent bool
	looked      time.Time
	deaf        string // a gateway that does not take rules
	mute        string // a gateway that does not answer the inventory
	old         bool   // gateways do not know how to tell places
	load        pace.Load
}

type gw struct {
	id, track, version string
	down               bool
	rule               cohort.Rule
	places             bool // are told
}

type user struct {
	name    string
	tenant  string
	v1      bool
	at      *gw
	devices int
	moved   int // in this step
}

func newWorld(t *testing.T, users int) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(9, uint64(users))), now: time.Unix(1_700_000_000, 0)}
	for i := range 3 {
		w.nodes = append(w.nodes, &gw{id: fmt.Sprint("s", i), track: "stable", version: "1"})
	}
	for i := range 2 {
		w.nodes = append(w.nodes, &gw{id: fmt.Sprint("c", i), track: "canary", version: "2"})
	}
	for i := range users {
		w.users = append(w.users, &user{name: fmt.Sprint("u", i), tenant: []string{"acme", "demo"}[i%2], at: w.nodes[i%3], devices: 1})
	}
	return w
}

func (w *world) observe() Observation {
	o := Observation{At: w.now}
	by := map[*gw]*Node{}
	for _, g := range w.nodes {
		if g.down {
			continue
		}
		by[g] = &Node{ID: g.id, Track: g.track, Version: g.version, Serving: true, Reached: true, Generation: g.rule.Generation(), ClientURL: "ws://" + g.id}
		if g.places {
			by[g].Places = make([]uint32, cohort.Full)
		}
	}
	for _, u := range w.users {
		n := by[u.at]
		if n == nil {
			continue
		}
		d := uint64(u.devices)
		n.Sessions += d
		if !u.v1 {
			n.SessionsV2 += d
		}
		if n.Places != nil {
			n.Places[u.at.rule.Place(u.tenant, u.name)] += uint32(u.devices)
		}
		if u.at.rule.Canary(u.tenant, u.name) {
			n.OfCanary += d
		}
		if tr := u.at.rule.Track(u.tenant, u.name); tr != "" && tr != u.at.track {
			n.Misplaced += d
			if u.v1 {
				n.MisplacedV1 += d
			}
		}
	}
	for _, g := range w.nodes {
		if g.id == w.mute { // the inventory has its last figures
			by[g] = &Node{ID: g.id, Track: g.track, Version: g.version, Sessions: by[g].Sessions, Generation: by[g].Generation}
		}
		if by[g] != nil {
			o.Nodes = append(o.Nodes, *by[g])
		}
	}
	return o
}

// tick is one second.
func (w *world) tick() {
	w.now = w.now.Add(time.Second)
	o := w.observe()
	o.Load = w.load
	if !w.silent && w.now.Sub(w.looked) >= w.state.Spec.Analysis.Interval {
		w.looked = w.now
		o.Sample = w.sample()
	}
	before := w.state
	w.state = Next(w.state, o)
	if w.state.Target != before.Target {
		for _, u := range w.users {
			u.moved = 0
		}
	}
	orders := Give(w.state, o.Nodes)
	rule := cohort.Compile(&gatewayv1.CanaryRule{
		Generation: orders.Rule.Generation, Salt: orders.Rule.Salt, Weight: orders.Rule.Weight, Tenants: orders.Tenants, TenantsDenied: orders.Denied,
	})
	left := map[*gw]float64{}
	for _, g := range w.nodes {
		if g.id != w.deaf {
			g.rule, g.places = rule, orders.CountPlaces && !w.old
		}
		left[g] = orders.Pace[g.id]
	}
	for _, u := range w.users {
		track := u.at.rule.Track(u.tenant, u.name)
		if track == "" || track == u.at.track || left[u.at] < 1 || u.v1 && !orders.MoveV1 || u.at.down {
			continue
		}
		left[u.at]--
		u.at = w.one(track)
		u.moved++
		if u.moved > 1 {
			w.t.Fatalf("%s moved twice toward %s", u.name, Percent(w.state.Target))
		}
	}
}

func (w *world) one(track string) *gw {
	for {
		if g := w.nodes[w.rng.IntN(len(w.nodes))]; g.track == track && !g.down {
			return g
		}
	}
}

func (w *world) sample() *analysis.Sample {
	track := func(bad float64) analysis.Track {
		return analysis.Track{Rates: map[analysis.Signal]analysis.Rate{
			analysis.HeartbeatTimeouts: {Bad: 10, Total: 1000}, analysis.AbnormalCloses: {Bad: uint64(1000 * bad), Total: 1000},
		}}
	}
	s := &analysis.Sample{Stable: track(0.02), Canary: track(0.02)}
	if w.bad {
		s.Canary = track(0.2)
	}
	return s
}

func (w *world) begin(spec Spec) {
	w.t.Helper()
	spec, err := spec.Prepare()
	if err != nil {
		w.t.Fatal(err)
	}
	if w.state, err = Begin("c-7", spec, 0, w.observe(), "ann"); err != nil {
		w.t.Fatal(err)
	}
	w.looked = w.now
}

// until ticks until the state is as wanted.
func (w *world) until(what string, ok func(State) bool) {
	w.t.Helper()
	for range 3000 {
		if ok(w.state) {
			return
		}
		w.tick()
	}
	w.t.Fatalf("not %s: %s at %s, waits for %q", what, w.state.Phase, Percent(w.state.Target), w.state.Waits)
}

func (w *world) reach(p Phase) {
	w.t.Helper()
	w.until(string(p), func(s State) bool { return s.Phase == p })
}

// shared fails when the share is not the weight, within one percentage point, or a
// user is on the wrong track.
func (w *world) shared(weight float64) {
	w.t.Helper()
	p := Count(w.observe().Nodes, 0)
	if d := math.Abs(100*p.Share() - weight); d > 1 {
		w.t.Errorf("at %g %% the share is %.2f %%", weight, 100*p.Share())
	}
}
