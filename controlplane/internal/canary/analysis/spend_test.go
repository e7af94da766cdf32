package analysis

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// However often sessions move and bake, and however long, no more is spent than
// there is; an ordinary canary spends most of it.
func TestNoMoreIsSpentThanThereIs(t *testing.T) {
	c := testConfig()
	play := func(steps, moving, baking int) (sum float64) {
		var h History
		look := func() {
			h.Looks++
			sum += h.spend(c)
			if h.looked() > recent {
				sum += h.spendRecent(c)
			}
		}
		for range steps {
			h = h.Restart(false)
			for range moving {
				look()
			}
			h = h.Bake()
			for range baking {
				look()
			}
		}
		return sum
	}
	if sum := play(4, 3, 20); sum < 0.6 || sum > 0.7 {
		t.Errorf("by default %g of it is spent", sum)
	}
	for _, k := range [][3]int{{1, 0, 3}, {1, 10_000, 10_000}, {200, 50, 50}, {10_000, 1, 0}} {
		if sum := play(k[0], k[1], k[2]); sum > 0.7+1e-9 {
			t.Errorf("%v: %g of it is spent", k, sum)
		}
	}
	// A state of a version that did not count trials.
	if s := (History{Looks: 57}).spend(c); s <= 0 || s > 0.01 {
		t.Errorf("an old state spends %g at once", s)
	}
}

// The figures are of Lan's and DeMets' function with the approximation of O'Brien's
// and Fleming's boundary: 2 - 2 Φ(z/√t).
func TestSpent(t *testing.T) {
	const alpha = 0.05
	for k, want := range map[int]float64{0: 0, 1: early * 0.000687 / alpha, 2: early * 0.016378 / alpha, 3: early, 6: 0.925, 60: 0.9925} {
		if got := spent(k, alpha); math.Abs(got-want) > 1e-4 {
			t.Errorf("after %d looks: %g, want %g", k, got, want)
		}
	}
}

func TestLevelsAreTogetherWhatThereIs(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		alpha := math.Pow(10, rapid.Float64Range(-12, -1).Draw(rt, "log alpha"))
		tests := make([]test, rapid.IntRange(0, 12).Draw(rt, "tests"))
		for i := range tests {
			tests[i].drift = rapid.OneOf(rapid.Just(0.0), rapid.Float64Range(0.01, 3000)).Draw(rt, "drift")
			tests[i].latency = rapid.IntRange(0, 4).Draw(rt, "kind") == 0
			if rapid.IntRange(0, 4).Draw(rt, "coarse") == 0 {
				tests[i].least = rapid.Float64Range(0, 1).Draw(rt, "least")
			}
		}
		sum, rates := 0.0, 0
		for i, l := range allot(alpha, tests) {
			can := tests[i].drift > 0 && tests[i].least < alpha
			if can != (l > 0) || l < 0 || math.IsNaN(l) {
				rt.Fatalf("%+v gets %g", tests[i], l)
			}
			if can && !tests[i].latency {
				rates++
			}
			sum += l
		}
		if sum > alpha*(1+1e-9) || rates > 0 && sum < 0.999*alpha {
			rt.Fatalf("%g of %g is given away", sum, alpha)
		}
	})
}

// What is certain anyway, and what is hopeless, leaves its level to what is between.
func TestWhatNeedsItGetsIt(t *testing.T) {
	l := allot(0.004, []test{{drift: 11}, {drift: 3}, {drift: 0.5}})
	if l[1] < 0.7*0.004 || l[0] > 0.1*0.004 || l[2] > 0.1*0.004 {
		t.Errorf("%v", l)
	}
}
