package pace

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Without a deadline only the floor holds a pace up.
func TestWithoutADeadline(t *testing.T) {
	g := Goal{Start: 200, Most: 1000, Floor: 10, Step: 40}
	at := time.Unix(1000, 0)
	p := Begin(g, Load{})
	run := func(seconds int, l Load) {
		for range seconds {
			at = at.Add(time.Second)
			p = p.Next(g, l, at)
		}
	}
	if p.Rate != 200 {
		t.Errorf("begins with %+v", p)
	}
	run(50, Load{Accepts: 100, AcceptP95: 5, Gaps: 100, GapP95: 10})
	if p.Rate != 1000 || p.Why != "as fast as it may be" {
		t.Errorf("nobody minds: %+v", p)
	}
	run(1, Load{Accepts: 100, Gaps: 100, GapP95: 30})
	if p.Rate != 500 || !strings.Contains(p.Why, "moving takes 30 ms") {
		t.Errorf("long gaps: %+v", p)
	}
	run(60, Load{Accepts: 100, Gaps: 100, GapP95: 30})
	if p.Rate != 10 {
		t.Errorf("long gaps all the time: %+v", p)
	}
	run(1, Load{Accepts: 10, AcceptP95: math.Inf(1), Node: "b"})
	if p.Rate != 10 || !strings.Contains(p.Why, "at its least") {
		t.Errorf("slow connects besides: %+v", p)
	}
	run(3, Load{Accepts: 10})
	if p.Rate != 130 {
		t.Errorf("does not recover: %+v", p)
	}
	if p := Begin(Goal{Start: 500, Most: 100}, Load{}); p.Rate != 100 {
		t.Errorf("begins above the most: %+v", p)
	}
}

func TestAPaceStaysWithinItsBounds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		g := Goal{
			Floor: rapid.Float64Range(1, 50).Draw(rt, "floor"), Start: rapid.Float64Range(50, 500).Draw(rt, "start"),
			Most: rapid.Float64Range(50, 5000).Draw(rt, "most"), Step: rapid.Float64Range(0, 100).Draw(rt, "step"),
		}
		g.Needed = rapid.OneOf(rapid.Just(0.0), rapid.Float64Range(0, g.Most)).Draw(rt, "needed")
		p, at := Begin(g, Load{}), time.Unix(1000, 0)
		for range rapid.IntRange(1, 60).Draw(rt, "looks") {
			at = at.Add(time.Duration(rapid.IntRange(0, 3000).Draw(rt, "ms")) * time.Millisecond)
			was := p
			p = p.Next(g, Load{
				Accepts: rapid.Uint64Range(0, 50).Draw(rt, "accepts"), AcceptP95: rapid.Float64Range(0, 300).Draw(rt, "p95"),
				Refused: rapid.Uint64Range(0, 1).Draw(rt, "refused"), Gaps: rapid.Uint64Range(0, 80).Draw(rt, "gaps"), GapP95: rapid.Float64Range(0, 60).Draw(rt, "gap"),
			}, at)
			switch {
			case p.Rate < g.Floor || p.Rate > g.Most:
				rt.Fatalf("%v is not within %+v", p.Rate, g)
			case p.Rate > was.Rate+g.Step || p.Rate < was.Rate/2:
				rt.Fatalf("from %v to %v", was.Rate, p.Rate)
			case p.Rate < was.Rate && at.Sub(was.Slowed) < backOff:
				rt.Fatalf("slowed again after %v", at.Sub(was.Slowed))
			case p.Why == "":
				rt.Fatal("does not say why")
			}
		}
	})
}
