package analysis

import "math"

// Worse is the probability of seeing at least as many bad events among b's as
// there are, if a and b had one rate: Fisher's exact test, one-sided (R. A. Fisher,
// The Design of Experiments, 1935; F. Yates, Tests of significance for 2 × 2
// contingency tables, J. R. Statist. Soc. A 147, 1984). It is exact, so it holds
// for small counts and in the far tail, where the pooled z test is too sure of
// itself and where a test that is repeated many times has its limit. It is 1 where
// b is not worse.
func Worse(a, b Rate) float64 {
	if a.Total == 0 || b.Total == 0 || b.value() <= a.value() {
		return 1
	}
	// Of all events, bad ones are as many as they are and b's a random draw: the
	// number of bad ones in it is hypergeometric.
	total, bad, drawn, x := float64(a.Total+b.Total), float64(a.Bad+b.Bad), float64(b.Total), float64(b.Bad)
	term := math.Exp(choose(bad, x) + choose(total-bad, drawn-x) - choose(total, drawn))
	sum := term
	for last := min(bad, drawn); x < last; x++ {
		term *= (bad - x) * (drawn - x) / ((x + 1) * (total - bad - drawn + x + 1))
		if sum += term; term < sum*1e-15 {
			break
		}
	}
	return min(1, sum)
}

// choose is the logarithm of the binomial coefficient.
func choose(n, k float64) float64 {
	l := func(x float64) float64 { v, _ := math.Lgamma(x + 1); return v }
	return l(n) - l(k) - l(n-k)
}

// Slower compares two histograms with the same bounds. effect is the probability
// that one of b's values is above one of a's, ties counting half (0.5: no
// difference), and p that of an effect at least as large if there were none: the
// Mann–Whitney U test, one-sided, with the normal approximation corrected for
// continuity and for ties, which are all values of a bucket (H. B. Mann and D. R.
// Whitney, Ann. Math. Statist. 18, 1947; E. L. Lehmann, Nonparametrics, 1975,
// section 1.4). Without values on either side they are 0.5 and 1.
func Slower(a, b []uint64) (effect, p float64) {
	var na, nb, u, ties float64
	for i := range min(len(a), len(b)) {
		ca, cb := float64(a[i]), float64(b[i])
		u += cb * (na + ca/2)
		na, nb = na+ca, nb+cb
		t := ca + cb
		ties += t * (t*t - 1)
	}
	if na == 0 || nb == 0 {
		return 0.5, 1
	}
	n := na + nb
	effect = u / (na * nb)
	variance := na * nb / 12 * (n + 1 - ties/(n*(n-1)))
	if effect <= 0.5 || variance <= 0 {
		return effect, 1
	}
	z := (u - na*nb/2 - 0.5) / math.Sqrt(variance)
	return effect, above(z)
}
