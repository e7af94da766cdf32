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

// Judge looks at a history. It passes what has been since the last Restart or Bake
// when every signal that must be known is and none is degraded.
func Judge(c Config, h History) Verdict {
	j := judge{c: c, h: h}
	step := j.window(h.Step, c.FalseAborts*h.spend(c))
	var last map[Signal]Finding
	if h.looked() > recent { // until then it is the step
		last = j.window(h.sum(), c.FalseAborts*h.spendRecent(c))
	}
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
		default:
			// Whether there are enough samples is a matter of the step.
			f = step[o.signal]
			if r := last[o.signal]; r.Outcome == Degraded && (f.Outcome != Degraded || r.Confidence > f.Confidence) {
				f = r
			}
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

type judge struct {
	c Config
	h History
}

// window tests all signals over a window. The tests together call one that is no
// worse degraded with the probability alpha at most.
func (j *judge) window(w Sample, alpha float64) map[Signal]Finding {
	var tests []test
	for _, o := range order {
		l, ok := j.c.Signals[o.signal]
		switch {
		case !ok || l.Off || o.kind == LimitKind || j.h.Alone:
		case o.kind == RateKind:
			tests = append(tests, compareRates(o.signal, l, w, j.h.Noise[o.signal].dispersion()))
		default:
			tests = append(tests, compareLatencies(o.signal, l, w))
		}
	}
	out := make(map[Signal]Finding, len(tests))
	for i, level := range allot(alpha, tests) {
		t := tests[i]
		if t.drift > 0 && level > 0 {
			t.Confidence = 1 - min(1, t.p/level*j.c.FalseAborts)
		}
		if t.drift > 0 && t.p < level && t.matters {
			t.Outcome = Degraded
			t.Why = fmt.Sprintf("%s, confidence %.4g %%", t.differs(), 100*t.Confidence)
		}
		out[t.Signal] = t.Finding
	}
	return out
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
