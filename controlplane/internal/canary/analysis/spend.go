package analysis

import "math"

// The allowed probability of a false abort is spent in parts, each of which is
// divided over the looks by a spending function (K. K. G. Lan and D. L. DeMets,
// Discrete sequential boundaries for clinical trials, Biometrika 70, 1983). A look's
// level is what the function grows by: by Bonferroni's inequality the sum holds
// whatever looks, windows and signals have to do with each other, with tests that are
// exact and without an assumption about their joint distribution. That costs little
// here, because nearly all that is spent on the first looks is spent on the third.
const (
	// bakePart is for what a step has shown since it bakes, movingPart for the same
	// while sessions move, recentPart for the last intervals alone. The rest is held
	// back: events of life come in groups, and the tests take each for one by itself.
	bakePart, movingPart, recentPart = 0.6, 0.05, 0.05
	// firstStep is for the first step, of what is left for the second, and so on: a
	// version that is bad is so from the begin, and later steps have more events.
	firstStep = 0.7
	// early is for the first looks of a step, as many as the recent window has.
	early = 0.85
	// latencyPart is for each latency: where there are enough values, how large an
	// effect is matters more than its level.
	latencyPart = 0.05
	// evenPart is what signals share evenly; the rest goes to where it finds most.
	evenPart = 0.25
)

// spend is which part of the allowed probability this look's step window may use.
func (h History) spend(c Config) float64 {
	part := bakePart
	if h.Moving {
		part = movingPart
	}
	part *= firstStep * math.Pow(1-firstStep, float64(max(0, h.Trial-1)))
	k := h.looked()
	return part * (spent(k, part*c.FalseAborts) - spent(k-1, part*c.FalseAborts))
}

// spent is the share of a step's part that its first k looks use: early with Lan's and
// DeMets' function of O'Brien's and Fleming's kind, which leaves nearly all of it to
// the last one, the rest in inverse proportion to the looks, however many there are.
func spent(k int, alpha float64) float64 {
	switch {
	case k <= 0:
		return 0
	case k < recent:
		return early * math.Erfc(math.Erfcinv(alpha)/math.Sqrt(float64(k)/recent)) / alpha
	}
	return early + (1-early)*(1-recent/float64(k))
}

// spendRecent is the same for the recent window, to which every look is alike: half
// of its part over the looks that are planned, a quarter over as many more, and so on.
func (h History) spendRecent(c Config) float64 {
	horizon := max(1, c.Horizon)
	block := (max(1, h.Looks) - 1) / horizon
	return recentPart / math.Exp2(float64(block+1)) / float64(horizon)
}

// allot divides alpha among the tests. The levels depend on nothing that says which
// track is worse, so their sum is a bound whatever the outcome (Bonferroni's
// inequality with weights). Those tests get most whose power grows most by it: one
// whose drift is c standard deviations gets what is above c/2 + λ/c, with the λ for
// which all get alpha (E. Spjøtvoll, On the optimality of some multiple comparison
// procedures, Ann. Math. Statist. 43, 1972; K. Roeder and L. Wasserman, Genome-wide
// significance levels and weighted hypothesis testing, Statist. Sci. 24, 2009). Those
// that could not be significant at any outcome get nothing (R. E. Tarone, A modified
// Bonferroni method for discrete data, Biometrics 46, 1990).
func allot(alpha float64, tests []test) []float64 {
	levels := make([]float64, len(tests))
	rest := alpha
	var rates []int
	for i, t := range tests {
		switch {
		case t.drift <= 0 || t.least >= alpha:
		case t.latency:
			levels[i] = latencyPart * alpha
			rest -= levels[i]
		default:
			rates = append(rates, i)
		}
	}
	if len(rates) == 0 {
		return levels
	}
	widest := 0.0
	for _, i := range rates {
		widest = max(widest, tests[i].drift)
	}
	level := func(i int, lambda float64) float64 {
		c := tests[i].drift
		return above(c/2 + lambda/c)
	}
	best := (1 - evenPart) * rest
	low, high := -widest*widest, 50*widest // too much, and nearly nothing
	for range 60 {
		lambda, sum := (low+high)/2, 0.0
		for _, i := range rates {
			sum += level(i, lambda)
		}
		if sum > best {
			low = lambda
		} else {
			high = lambda
		}
	}
	for _, i := range rates {
		levels[i] = level(i, high) + evenPart*rest/float64(len(rates))
	}
	return levels
}
