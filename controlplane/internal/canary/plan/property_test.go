package plan

import (
	"testing"

	"pgregory.net/rapid"
)

// Whatever operators do, within a step nobody moves twice (the world fails), the
// generation never falls, and a canary that is over moves nobody any more.
func TestWhateverOperatorsDo(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t, 120)
		w.begin(spec(500, 2500, 10000))
		for range rapid.IntRange(1, 12).Draw(rt, "commands") {
			for range rapid.IntRange(0, 40).Draw(rt, "seconds") {
				before := w.state
				w.tick()
				if w.state.Rule.Generation < before.Rule.Generation {
					rt.Fatal("the generation fell")
				}
			}
			c := Command{Change: Change(rapid.IntRange(1, 5).Draw(rt, "change")), Weight: rapid.Uint32Range(0, 10000).Draw(rt, "weight"), Reason: "r"}
			if rapid.Bool().Draw(rt, "bad") {
				w.bad = rapid.Bool().Draw(rt, "how")
			}
			if next, err := Apply(w.state, c, w.observe()); err == nil {
				if next.Target != w.state.Target || next.Rule != w.state.Rule {
					for _, u := range w.users {
						u.moved = 0
					}
				}
				w.state = next
			}
		}
		w.bad = true
		if w.state.Phase == Replacing {
			for _, g := range w.nodes[:3] {
				g.version = "2"
			}
		}
		if next, err := Apply(w.state, Command{Change: Resume}, w.observe()); err == nil {
			w.state = next
		}
		for range 400 {
			w.tick()
			if w.state.Phase == Replacing {
				for _, g := range w.nodes[:3] {
					g.version = "2"
				}
			}
		}
		if !w.state.Phase.Over() && w.state.Phase != Ready && !w.state.alone() {
			rt.Fatalf("still %s at %s: %s", w.state.Phase, Percent(w.state.Target), w.state.Waits)
		}
	})
}
