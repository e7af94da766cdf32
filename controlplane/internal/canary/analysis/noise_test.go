package analysis

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestNoiseOf(t *testing.T) {
	for _, k := range []struct {
		gateways []Rate
		want     Noise
	}{
		// 10 and 30 of 1,000 each: 20 are expected, 2 × 10² / (1000 × 0.02 × 0.98).
		{[]Rate{{10, 1000}, {30, 1000}}, Noise{200 / 19.6 / 1.133786848072562, 1}},
		{[]Rate{{20, 1000}, {20, 1000}, {0, 0}}, Noise{0, 1}},
		{[]Rate{{500, 1000}, {0, 1000}}, Noise{maxChi, 1}},
		{[]Rate{{5, 1000}}, Noise{}}, {nil, Noise{}}, {[]Rate{{0, 10}, {0, 10}}, Noise{}}, {[]Rate{{10, 10}, {10, 10}}, Noise{}},
	} {
		if got := noiseOf(k.gateways); math.Abs(got.Chi-k.want.Chi) > 1e-9 || got.Freedom != k.want.Freedom {
			t.Errorf("%v: %+v, want %+v", k.gateways, got, k.want)
		}
	}
}

// What the variance is multiplied with: 1 where nothing is known, at most 4.
func TestDispersion(t *testing.T) {
	for _, k := range []struct {
		n    Noise
		want float64
	}{{Noise{}, 1}, {Noise{20, 20}, 1}, {Noise{1, 20}, 1}, {Noise{110, 50}, 2}, {Noise{9e6, 1e6}, 4}} {
		if got := k.n.dispersion(); math.Abs(got-k.want) > 1e-9 {
			t.Errorf("%+v: %g, want %g", k.n, got, k.want)
		}
	}
	// Of the normal distribution: P(z > 3) with a variance of 2.25 is P(z > 2).
	if p := dispersed(0.0013498980316300933, 2.25); !near(p, 0.022750131948179195, 1e-9) {
		t.Errorf("%g", p)
	}
	for _, z := range []float64{0.001, 0.5, 3, 8, 20, 37} {
		if got := quantile(above(z)); !near(got, z, 1e-9) {
			t.Errorf("quantile %g, want %g", got, z)
		}
	}
	for _, p := range []float64{0, 5e-324, 1e-300, 1e-20, 0.3, 0.5, 0.9, 1} {
		if got := dispersed(p, 3); got < p || got > 1 || p > 0 && p < 0.5 && got == p || math.IsNaN(got) || dispersed(p, 1) != p {
			t.Errorf("of %g: %g", p, got)
		}
	}
}

// Bad events that come in groups abort few canaries that are no worse, where it can
// be seen how stable's gateways differ; without that they abort many.
func TestGroupsOfEventsAreNoDifference(t *testing.T) {
	const canaries = 100
	for _, k := range []struct {
		gateways, group uint64
		least, most     int // aborted
	}{{0, 2, 5, 100}, {4, 2, 0, 5}, {10, 2, 0, 4}, {10, 3, 0, 6}} {
		aborts := 0
		for i := range canaries {
			w := &world{
				rng: rand.New(rand.NewPCG(8, uint64(i))), stable: base(), canary: base(), nStable: 1000, nCanary: 1000, gateways: k.gateways, group: k.group,
			}
			if look, _ := w.run(testConfig(), 2, 3, 20); look > 0 {
				aborts++
			}
		}
		t.Logf("groups of %d, %d gateways: %d of %d canaries without a difference were aborted", k.group, k.gateways, aborts, canaries)
		if aborts < k.least || aborts > k.most {
			t.Errorf("%d of %d, want from %d to %d", aborts, canaries, k.least, k.most)
		}
	}
}

// One bad moment of a stable gateway does not hide a bad canary.
func TestABadStableGatewayHidesNothing(t *testing.T) {
	w := &world{rng: rand.New(rand.NewPCG(9, 9)), stable: base(), canary: base(), nStable: 2000, nCanary: 2000, gateways: 2}
	w.canary.rate[AbnormalCloses] = 0.06
	var h History
	for k := range 6 {
		s := w.sample()
		if k == 0 {
			r := s.Gateways[0].Rates[AbnormalCloses]
			s.Gateways[0].Rates[AbnormalCloses] = Rate{r.Total / 2, r.Total}
		}
		h = h.Add(testConfig(), s)
	}
	if v := Judge(testConfig(), h); v.Outcome != Degraded {
		t.Errorf("%s: %+v", v.Outcome, v.Findings)
	}
	if len(h.Restart(false).Bake().Noise) == 0 {
		t.Error("what is known of the noise is forgotten")
	}
}
