package analysis

import (
	"maps"
	"math"
)

// Noise says how much more the stable gateways' shares of bad events differ from each
// other than those of independent events would: bad events come in groups (a client
// that tries again, an office that goes offline), and so the tracks differ more, too,
// without one being worse. It is Pearson's statistic of the gateways by good and bad,
// one interval after another, and its degrees of freedom.
type Noise struct {
	Chi     float64 `json:"chi"`
	Freedom float64 `json:"freedom"`
}

const (
	// priorFreedom is for how many degrees of freedom events count as independent before
	// anything is known.
	priorFreedom = 10
	// maxChi bounds what one interval says, per degree of freedom, and maxDispersion the
	// outcome: one bad moment of a stable gateway is not to hide a bad canary.
	maxChi, maxDispersion = 9, 4
)

// noiseOf compares gateways in an interval.
func noiseOf(gateways []Rate) Noise {
	var all Rate
	n := Noise{Freedom: -1}
	for _, r := range gateways {
		all.Bad, all.Total = all.Bad+r.Bad, all.Total+r.Total
		if r.Total > 0 {
			n.Freedom++
		}
	}
	if n.Freedom < 1 || all.Bad == 0 || all.Bad >= all.Total {
		return Noise{}
	}
	p := all.value()
	for _, r := range gateways {
		if r.Total > 0 {
			off := float64(r.Bad) - p*float64(r.Total)
			n.Chi += off * off / (p * (1 - p) * float64(r.Total))
		}
	}
	n.Chi = min(n.Chi, maxChi*n.Freedom)
	return n
}

// heard adds an interval's noise to what was before.
func heard(before map[Signal]Noise, c Config, stable []Track) map[Signal]Noise {
	out := maps.Clone(before)
	for _, o := range order {
		l, ok := c.Signals[o.signal]
		if !ok || l.Off || o.kind != RateKind {
			continue
		}
		rates := make([]Rate, len(stable))
		for i, t := range stable {
			rates[i] = t.rate(o.signal, l)
		}
		if n := noiseOf(rates); n.Freedom > 0 {
			if out == nil {
				out = map[Signal]Noise{}
			}
			was := out[o.signal]
			out[o.signal] = Noise{was.Chi + n.Chi, was.Freedom + n.Freedom}
		}
	}
	return out
}

// dispersion is by how much the variance is larger than that of independent events (a
// quasi-binomial model: P. McCullagh and J. A. Nelder, Generalized linear models, 1989,
// section 4.5).
func (n Noise) dispersion() float64 {
	return min(max(1, (priorFreedom+n.Chi)/(priorFreedom+n.Freedom)), maxDispersion)
}

// dispersed is a probability of the tail for a variance that is larger.
func dispersed(p, dispersion float64) float64 {
	if dispersion == 1 || p >= 0.5 || p <= 0 {
		return p
	}
	return above(quantile(p) / math.Sqrt(dispersion))
}

// above is the probability that a normal variable is above z.
func above(z float64) float64 { return math.Erfc(z/math.Sqrt2) / 2 }

// quantile is the z for which above is p, which is below one half: Newton's method on
// logarithms, for which math.Erfcinv is too coarse in the far tail.
func quantile(p float64) float64 {
	z := math.Sqrt(-2 * math.Log(p))
	for range 50 {
		q := above(z)
		if q == 0 {
			break
		}
		step := math.Log(q/p) * q * math.Sqrt(2*math.Pi) * math.Exp(z*z/2)
		if z += step; math.Abs(step) < 1e-12 {
			break
		}
	}
	return z
}
