package analysis

import (
	"fmt"
	"math"
)

// Outcome is what a look says.
type Outcome string

// The outcomes. Wait: something that must be known is not known yet, and that is
// no reason to go on.
const (
	Wait     Outcome = "wait"
	Pass     Outcome = "pass"
	Degraded Outcome = "degraded"
)

// Finding is what a look says about one signal.
type Finding struct {
	Signal  Signal  `json:"signal"`
	Outcome Outcome `json:"outcome"`
	// Values of the window that says most: a share, the median in milliseconds,
	// bytes per session, or a number of gateways.
	Stable float64 `json:"stable"`
	Canary float64 `json:"canary"`
	// How many events, or sessions, they are from.
	StableSamples uint64 `json:"stable_samples"`
	CanarySamples uint64 `json:"canary_samples"`
	// Confidence that the canary is worse, after the correction for the number of
	// signals and looks: 1 - FalseAborts is the limit. 0 where nothing is tested.
	Confidence float64 `json:"confidence"`
	// Why, for a person.
	Why string `json:"why,omitempty"`
}

// Verdict is what one look says.
type Verdict struct {
	Outcome Outcome `json:"outcome"`
	// Findings of all signals that are looked at, in a fixed order.
	Findings []Finding `json:"findings,omitempty"`
	// Why, for a person: the worst finding, or what is waited for.
	Why string `json:"why,omitempty"`
}

// Judge looks at a history. It passes what has been since the last Restart when
// every signal that must be known is and none is degraded.
func Judge(c Config, h History) Verdict {
	j := judge{c: c, h: h, windows: []Sample{h.Step}}
	if len(h.Recent) == recent {
		j.windows = append(j.windows, h.sum())
	}
	j.alpha = share(c.FalseAborts, h.Looks, c.Horizon, 2*c.tested())
	v := Verdict{Outcome: Pass}
	for _, o := range order {
		l, ok := c.Signals[o.signal]
		if !ok || l.Off {
			continue
		}
		var f Finding
		switch {
		case h.Alone && o.signal != Crashes:
			f = Finding{Signal: o.signal, Outcome: Pass, Why: "nobody is left on stable to compare with"}
		case o.signal == Memory:
			f = j.memory(l)
		case o.signal == Crashes:
			f = j.crashes(l)
		case o.kind == RateKind:
			f = j.widest(func(s Sample) Finding { return j.rate(o.signal, l, s) })
		default:
			f = j.widest(func(s Sample) Finding { return j.latency(o.signal, l, s) })
		}
		v.Findings = append(v.Findings, f)
		switch {
		case f.Outcome == Degraded && v.Outcome != Degraded:
			v.Outcome, v.Why = Degraded, fmt.Sprintf("%s: %s", f.Signal, f.Why)
		case f.Outcome == Wait && v.Outcome == Pass:
			v.Outcome, v.Why = Wait, fmt.Sprintf("%s: %s", f.Signal, f.Why)
		}
	}
	return v
}

// tested is how many signals are tested.
func (c Config) tested() (n int) {
	for _, o := range order {
		if l, ok := c.Signals[o.signal]; ok && !l.Off && o.kind != LimitKind {
			n++
		}
	}
	return n
}

type judge struct {
	c       Config
	h       History
	windows []Sample // the step first
	alpha   float64
}

// widest is the finding of the window in which the canary does worst; whether
// there are enough samples is a matter of the step.
func (j *judge) widest(find func(Sample) Finding) Finding {
	out := find(j.windows[0])
	for _, w := range j.windows[1:] {
		if f := find(w); f.Outcome == Degraded && (out.Outcome != Degraded || f.Confidence > out.Confidence) {
			out = f
		}
	}
	return out
}

// confidence corrects a probability for the number of tests and looks.
func (j *judge) confidence(p float64) float64 {
	return 1 - min(1, p/j.alpha*j.c.FalseAborts)
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

func (j *judge) rate(s Signal, l Limit, w Sample) Finding {
	a, b := w.Stable.rate(s, l), w.Canary.rate(s, l)
	f := Finding{Signal: s, Outcome: Pass, Stable: a.value(), Canary: b.value(), StableSamples: a.Total, CanarySamples: b.Total}
	if !enough(&f, l) {
		return f
	}
	p := Worse(a, b)
	f.Confidence = j.confidence(p)
	if p < j.alpha && f.Canary >= l.Ratio*f.Stable && f.Canary-f.Stable >= l.Difference {
		f.Outcome = Degraded
		f.Why = fmt.Sprintf("%.3g %% of %d on canary, %.3g %% of %d on stable, confidence %.4g %%",
			100*f.Canary, b.Total, 100*f.Stable, a.Total, 100*f.Confidence)
	}
	return f
}

func (j *judge) latency(s Signal, l Limit, w Sample) Finding {
	a, b := Align(w.Stable.Latencies[s], w.Canary.Latencies[s])
	f := Finding{
		Signal: s, Outcome: Pass, Stable: a.median(), Canary: b.median(), StableSamples: a.total(), CanarySamples: b.total(),
	}
	if !enough(&f, l) {
		return f
	}
	effect, p := Slower(a.Counts, b.Counts)
	f.Confidence = j.confidence(p)
	if p < j.alpha && effect >= l.Effect && f.Canary >= l.Ratio*f.Stable {
		f.Outcome = Degraded
		f.Why = fmt.Sprintf("median %.3g ms on canary, %.3g ms on stable; a canary's value is the larger one in %.0f %% of pairs, confidence %.4g %%",
			f.Canary, f.Stable, 100*effect, 100*f.Confidence)
	}
	return f
}

// memory: a process's memory today says much about that of tomorrow, so its values
// are no independent samples and no test is made: the canary may have Ratio times
// stable's memory per session and some slack, and must be over that in several
// looks in a row.
func (j *judge) memory(l Limit) Finding {
	f := Finding{Signal: Memory, Outcome: Pass}
	if len(j.h.Recent) == 0 {
		return f
	}
	s := j.h.Recent[len(j.h.Recent)-1]
	f.StableSamples, f.CanarySamples = s.Stable.Sessions, s.Canary.Sessions
	_, f.Stable, f.Canary = j.c.overMemory(s)
	if j.h.OverMemory >= l.Looks {
		f.Outcome = Degraded
		f.Why = fmt.Sprintf("%.0f bytes per session on canary, %.0f on stable, over the limit in the last %d looks", f.Canary, f.Stable, j.h.OverMemory)
	}
	return f
}

// overMemory tells whether the canary is over its limit, and both tracks' memory
// per session, without what a process needs by itself.
func (c Config) overMemory(s Sample) (over bool, stable, canary float64) {
	l, ok := c.Signals[Memory]
	if !ok || l.Off || s.Stable.Sessions == 0 || s.Canary.Sessions == 0 {
		return false, 0, 0
	}
	const mib = 1 << 20
	own := func(t Track) float64 { return max(0, float64(t.Bytes)-l.BaseMiB*mib*float64(t.Nodes)) }
	stable, canary = own(s.Stable)/float64(s.Stable.Sessions), own(s.Canary)/float64(s.Canary.Sessions)
	if s.Stable.Sessions < l.MinSamples || s.Canary.Sessions < l.MinSamples {
		return false, stable, canary
	}
	limit := l.Ratio*stable*float64(s.Canary.Sessions) + l.SlackMiB*mib*float64(s.Canary.Nodes)
	return own(s.Canary) > limit, stable, canary
}

// crashes: a machine may die under any version, but not one after another under
// the canary alone.
func (j *judge) crashes(l Limit) Finding {
	a, b := j.h.Step.Stable.Crashes, j.h.Step.Canary.Crashes
	f := Finding{Signal: Crashes, Outcome: Pass, Stable: float64(a), Canary: float64(b), StableSamples: j.h.Step.Stable.Nodes, CanarySamples: j.h.Step.Canary.Nodes}
	if b > l.Max && b > a {
		f.Outcome = Degraded
		f.Why = fmt.Sprintf("%d gateways of canary ended without a drain, %d of stable", b, a)
	}
	return f
}

// Points are the values of both tracks in one interval, stable first, NaN where
// there was nothing.
func Points(c Config, s Sample) map[Signal][2]float64 {
	out := map[Signal][2]float64{}
	value := func(n uint64, v float64) float64 {
		if n == 0 {
			return math.NaN()
		}
		return v
	}
	for _, o := range order {
		l, ok := c.Signals[o.signal]
		if !ok || l.Off {
			continue
		}
		switch {
		case o.signal == Memory:
			_, a, b := c.overMemory(s)
			out[o.signal] = [2]float64{value(s.Stable.Sessions, a), value(s.Canary.Sessions, b)}
		case o.signal == Crashes:
			out[o.signal] = [2]float64{float64(s.Stable.Crashes), float64(s.Canary.Crashes)}
		case o.kind == RateKind:
			a, b := s.Stable.rate(o.signal, l), s.Canary.rate(o.signal, l)
			out[o.signal] = [2]float64{value(a.Total, a.value()), value(b.Total, b.value())}
		default:
			a, b := s.Stable.Latencies[o.signal], s.Canary.Latencies[o.signal]
			out[o.signal] = [2]float64{value(a.total(), a.median()), value(b.total(), b.median())}
		}
	}
	return out
}
