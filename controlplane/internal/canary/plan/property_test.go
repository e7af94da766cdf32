package plan

import (
	"fmt"
	"math"
	"testing"

	"github.com/mics-im/mics/internal/cohort"
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

// However many there are, and whichever the canary's salt: at every step the share
// is as near to the weight as whole users allow, and never off by more than a point
// where those are enough.
func TestTheShareIsTheWeight(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t, rapid.IntRange(100, 1500).Draw(rt, "users"))
		most := rapid.IntRange(1, 4).Draw(rt, "devices at most")
		salt := rapid.IntRange(0, 1<<30).Draw(rt, "salt")
		for _, u := range w.users {
			u.name += fmt.Sprint("-", salt)
			u.devices = rapid.IntRange(1, most).Draw(rt, "devices")
		}
		steps := []uint32{rapid.Uint32Range(1, 3000).Draw(rt, "first"), rapid.Uint32Range(3001, 9000).Draw(rt, "second")}
		w.begin(spec(steps...))
		for i, weight := range steps {
			w.until("baking", func(s State) bool { return s.Phase == Baking && s.Step == i })
			p := Count(w.observe().Nodes, w.state.Rule.Generation)
			off := math.Abs(float64(p.Canary.Sessions) - float64(weight)/cohort.Full*float64(p.Total()))
			// Users at the same place come together: one of two, or the other.
			most := uint64(0)
			for _, n := range p.Places {
				most = max(most, n)
			}
			if allowed := max(float64(most)/2, near*float64(p.Total())) + 1e-9; off > allowed {
				rt.Fatalf("at %s: %d of %d sessions, off by %.1f, %.1f at most", Percent(weight), p.Canary.Sessions, p.Total(), off, allowed)
			}
		}
	})
}

// Gateways that do not tell places get the weight itself.
func TestOldGateways(t *testing.T) {
	w := newWorld(t, 2000)
	w.old = true
	w.begin(spec(500, 5000))
	w.until("baking at 50 %", func(s State) bool { return s.Phase == Baking && s.Step == 1 })
	if got := w.state.Rule.Weight; got != 5000 {
		t.Errorf("weight %d", got)
	}
}

// A gateway that is busy for a moment is waited for: the share is that of all
// sessions, not of those of the others.
func TestASilentGatewayIsWaitedFor(t *testing.T) {
	for n := range 20 {
		w := newWorld(t, 300+n)
		w.mute = "s1"
		w.begin(spec(500, 5000))
		w.tick()
		w.tick()
		if !w.state.Aiming || w.state.Rule.Weight != 0 {
			t.Fatalf("%d users: aims at %d without a third of the sessions", 300+n, w.state.Rule.Weight)
		}
		w.mute = ""
		w.until("baking", func(s State) bool { return s.Phase == Baking })
		p := Count(w.observe().Nodes, w.state.Rule.Generation)
		if off := math.Abs(p.Share() - 0.05); off > near {
			t.Errorf("%d users: share %.4f", 300+n, p.Share())
		}
	}
	// One that does not come back is not waited for for ever.
	w := newWorld(t, 300)
	w.begin(spec(500, 5000))
	w.mute = "s1"
	began := w.now
	w.until("baking", func(s State) bool { return s.Phase == Baking })
	if waited := w.now.Sub(began); waited < silence || waited > 3*silence {
		t.Errorf("waited %v", waited)
	}
}
