package plan

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/controlplane/internal/pace"
)

// A fleet of two gateways of the canary, which begins with 200 sessions a second.
func TestThePaceFollowsTheTakers(t *testing.T) {
	well := pace.Load{Accepts: 100, AcceptP95: 10, Node: "c0"}
	for name, c := range map[string]struct {
		load             pace.Load
		rate             float64 // asked for
		least, most, end float64
		why              string
	}{
		"nobody tells":    {load: pace.Load{}, least: 200, most: 200, end: 200, why: "steady"},
		"they take it":    {load: well, least: 200, most: 1000, end: 400, why: "faster"},
		"slow connects":   {load: pace.Load{Accepts: 100, AcceptP95: 400, Node: "c0"}, least: 10, most: 200, end: 10, why: "connects take 400 ms at c0"},
		"refusals":        {load: pace.Load{Refused: 1}, least: 10, most: 200, end: 10, why: "refused"},
		"slow auth hooks": {load: pace.Load{Accepts: 100, AuthP95: 120}, least: 10, most: 200, end: 10, why: "auth hooks"},
		"long gaps":       {load: pace.Load{Accepts: 100, Gaps: 100, GapP95: 60}, least: 50, most: 200, end: 90, why: ""},
		"as asked for":    {load: pace.Load{Refused: 1}, rate: 70, least: 70, most: 70, end: 70},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3000)
			s := spec(9000)
			s.Rate = c.rate
			w.begin(s)
			if c.rate == 0 {
				w.until("begun", func(s State) bool { return s.Pace.Rate > 0 })
			}
			w.load = c.load
			least, most, last := 1e9, 0.0, 0.0
			w.until("moved", func(s State) bool {
				nodes := w.observe().Nodes
				orders, sum := Give(s, nodes), 0.0
				for _, n := range nodes {
					if n.Track == "stable" && n.Misplaced > 0 {
						sum += orders.Pace[n.ID]
					}
				}
				if sum >= 10 {
					least, most, last = min(least, sum), max(most, sum), sum
				}
				return s.Phase == Baking
			})
			if least < c.least-1e-6 || most > c.most+1e-6 || c.end < 200 && last > c.end+3 || c.end > 200 && last < c.end {
				t.Errorf("from %.1f to %.1f a second, %.1f in the end", least, most, last)
			}
			if !strings.Contains(w.state.Pace.Why, c.why) {
				t.Errorf("says %q", w.state.Pace.Why)
			}
		})
	}
}

// What was too fast for the canary's gateways says nothing of the stable ones.
func TestAnAbortHasItsOwnPace(t *testing.T) {
	w := newWorld(t, 3000)
	w.begin(spec(9000))
	w.load = pace.Load{Refused: 1}
	w.until("slow", func(s State) bool { return s.Pace.Rate == 10 })
	w.load = pace.Load{Accepts: 100}
	w.state = must(Apply(w.state, Command{Change: Abort, Reason: "drill"}, w.observe()))
	for _, u := range w.users {
		u.moved = 0
	}
	if to := w.state.Taking(); to != "stable" {
		t.Errorf("they go to %q", to)
	}
	w.tick() // they are told
	w.tick()
	if r := w.state.Pace.Rate; r != 300 { // three gateways
		t.Errorf("begins with %v", r)
	}
	w.load = pace.Load{Accepts: 100, Gaps: 100, GapP95: 90}
	w.tick()
	if r := w.state.Pace.Rate; r < 300 {
		t.Errorf("gaps slow an abort to %v", r)
	}
	w.reach(Aborted)
}

// A look more often than once a second does not make it rise faster, and one at the
// same inventory changes nothing.
func TestThePaceRisesWithTime(t *testing.T) {
	w := newWorld(t, 3000)
	w.begin(spec(9000))
	w.load = pace.Load{Accepts: 100}
	w.until("begun", func(s State) bool { return s.Pace.Rate > 0 })
	was := w.state.Pace.Rate
	o := w.observe()
	o.Load = w.load
	if again := Next(w.state, o); again.Pace != w.state.Pace {
		t.Errorf("from %+v to %+v in no time", w.state.Pace, again.Pace)
	}
	s := w.state
	for range 4 {
		o.At = o.At.Add(250 * time.Millisecond)
		s = Next(s, o)
	}
	if rise := s.Pace.Rate - was; rise < 39 || rise > 41 {
		t.Errorf("rose by %v in a second", rise)
	}
}

// A state of a version that did not know paces goes on as it was: at 100 a second and
// gateway until something is known.
func TestAnOldStateHasNoPace(t *testing.T) {
	w := newWorld(t, 3000)
	w.begin(spec(9000))
	w.until("moving", func(s State) bool { return s.Rule.Weight > 0 && Count(w.observe().Nodes, s.Rule.Generation).Current })
	w.state.Pace = pace.Pace{}
	text, err := json.Marshal(w.state)
	if err != nil || strings.Contains(string(text), `"pace"`) {
		t.Fatalf("%v: %s", err, text)
	}
	sum := 0.0
	for _, n := range w.observe().Nodes {
		if n.Misplaced > 0 {
			sum += Give(w.state, w.observe().Nodes).Pace[n.ID]
		}
	}
	if sum < 199.9 || sum > 200.1 {
		t.Errorf("%v a second", sum)
	}
}
