package analysis

import (
	"fmt"
	"math"
)

// test is a comparison of a signal that waits for its level: the probability with
// which it may be wrong.
type test struct {
	Finding
	// p is the probability of the difference, if there were none.
	p float64
	// matters: the difference is large enough. differs says how the tracks differ.
	matters bool
	differs func() string
	// What follows depends on both tracks together, and on how stable's gateways differ,
	// but not on what is whose: so levels that depend on it keep their promise. drift is
	// how many standard deviations the difference is expected to be if the canary is as
	// bad as is to be found; 0: it cannot be tested. least is the least p that is possible.
	drift, least float64
	latency      bool
}

// enough completes a finding whose tracks have too few samples; false: they have.
func enough(f *Finding, l Limit) bool {
	if f.StableSamples >= l.MinSamples && f.CanarySamples >= l.MinSamples {
		return true
	}
	f.Outcome = Pass
	f.Why = fmt.Sprintf("%d samples of stable and %d of canary, %d are needed", f.StableSamples, f.CanarySamples, l.MinSamples)
	if l.Required || f.StableSamples >= l.MinSamples {
		f.Outcome = Wait
	}
	return false
}

// compareRates compares shares of events whose variance is dispersion times that of
// independent ones.
func compareRates(s Signal, l Limit, w Sample, dispersion float64) test {
	a, b := w.Stable.rate(s, l), w.Canary.rate(s, l)
	t := test{Finding: Finding{Signal: s, Outcome: Pass, Stable: a.value(), Canary: b.value(), StableSamples: a.Total, CanarySamples: b.Total}}
	if !enough(&t.Finding, l) {
		return t
	}
	t.p = dispersed(Worse(a, b), dispersion)
	t.matters = t.Canary >= l.Ratio*t.Stable && t.Canary-t.Stable >= l.Difference
	t.differs = func() string {
		return fmt.Sprintf("%.3g %% of %d on canary, %.3g %% of %d on stable", 100*b.value(), b.Total, 100*a.value(), a.Total)
	}
	t.drift, t.least = doubled(a, b, l)/math.Sqrt(dispersion), dispersed(clearest(a, b), dispersion)
	return t
}

// doubled is the drift of a canary with twice stable's rate, or one that is worse by
// the least difference that matters.
func doubled(a, b Rate, l Limit) float64 {
	na, nb := float64(a.Total), float64(b.Total)
	pooled := float64(a.Bad+b.Bad) / (na + nb)
	if pooled <= 0 || pooled >= 1 {
		return 0
	}
	difference := max(pooled*(na+nb)/(na+2*nb), l.Difference)
	return difference / math.Sqrt(pooled*(1-pooled)*(1/na+1/nb))
}

// clearest is the p if all bad events were the canary's, as far as it has so many.
func clearest(a, b Rate) float64 {
	bad := a.Bad + b.Bad
	on := min(bad, b.Total)
	return Worse(Rate{bad - on, a.Total}, Rate{on, b.Total})
}

func compareLatencies(s Signal, l Limit, w Sample) test {
	a, b := Align(w.Stable.Latencies[s], w.Canary.Latencies[s])
	t := test{latency: true, Finding: Finding{
		Signal: s, Outcome: Pass, Stable: a.median(), Canary: b.median(), StableSamples: a.total(), CanarySamples: b.total(),
	}}
	if !enough(&t.Finding, l) {
		return t
	}
	effect, p := Slower(a.Counts, b.Counts)
	t.p, t.matters = p, effect >= l.Effect && t.Canary >= l.Ratio*t.Stable
	t.differs = func() string {
		return fmt.Sprintf("median %.3g ms on canary, %.3g ms on stable; a canary's value is the larger one in %.0f %% of pairs",
			b.median(), a.median(), 100*effect)
	}
	na, nb := float64(t.StableSamples), float64(t.CanarySamples)
	t.drift = (l.Effect - 0.5) / math.Sqrt((na+nb+1)/(12*na*nb))
	return t
}
