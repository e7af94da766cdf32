package analysis

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func near(got, want, relative float64) bool { return math.Abs(got-want) <= relative*want }

// The values are sums of exact fractions.
func TestWorseIsExact(t *testing.T) {
	for _, c := range []struct {
		a, b Rate
		want float64
	}{
		{Rate{1, 4}, Rate{3, 4}, 0.24285714285714285}, // Fisher's tea
		{Rate{10, 1000}, Rate{25, 1000}, 0.007874852761073211},
		{Rate{50, 1000}, Rate{100, 1000}, 1.3737490260834429e-05},
		{Rate{5, 20000}, Rate{18, 1000}, 3.671881393172255e-20},
		{Rate{0, 500}, Rate{6, 500}, 0.015391096100561179},
		{Rate{100, 1000}, Rate{100, 1000}, 1}, {Rate{100, 1000}, Rate{20, 1000}, 1}, {Rate{}, Rate{5, 10}, 1}, {Rate{5, 10}, Rate{}, 1},
	} {
		if got := Worse(c.a, c.b); !near(got, c.want, 1e-9) {
			t.Errorf("%v against %v: %g, want %g", c.b, c.a, got, c.want)
		}
	}
	if p := Worse(Rate{1_000_000, 100_000_000}, Rate{1_003_000, 100_000_000}); p < 0.005 || p > 0.03 {
		t.Errorf("large counts: %g, the normal approximation says 0.017", p)
	}
}

// Values by the same formula in another program; the exact permutation
// distribution gives 0.0206 for the first.
func TestSlower(t *testing.T) {
	for _, c := range []struct {
		a, b      []uint64
		effect, p float64
	}{
		{[]uint64{5, 3, 2, 0}, []uint64{1, 3, 4, 2}, 0.78, 0.01511935424994964},
		{[]uint64{100, 50, 10}, []uint64{80, 60, 20}, 0.5703125, 0.006922276902119923},
		{[]uint64{7, 7}, []uint64{7, 7}, 0.5, 1}, {[]uint64{9, 0}, []uint64{9, 0}, 0.5, 1},
		{nil, []uint64{1}, 0.5, 1}, {[]uint64{0, 9}, []uint64{9, 0}, 0, 1},
	} {
		effect, p := Slower(c.a, c.b)
		if !near(effect, c.effect, 1e-12) || !near(p, c.p, 1e-9) {
			t.Errorf("%v against %v: %g, %g; want %g, %g", c.b, c.a, effect, p, c.effect, c.p)
		}
	}
}

func TestProbabilitiesAreProbabilities(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) Rate {
			n := rapid.Uint64Range(0, 100_000).Draw(t, name)
			return Rate{rapid.Uint64Range(0, n).Draw(t, name+" bad"), n}
		}
		a, b := draw("a"), draw("b")
		p := Worse(a, b)
		if p < 0 || p > 1 || math.IsNaN(p) {
			t.Fatalf("%v, %v: %g", a, b, p)
		}
		if b.Bad < b.Total {
			if more := Worse(a, Rate{b.Bad + 1, b.Total}); more > p*(1+1e-9) {
				t.Fatalf("%v, %v: %g, with one more bad %g", a, b, p, more)
			}
		}
	})
}
