// Package analysis judges a canary: the same signals of both tracks over the same
// interval, standard tests with their sources named, and a bound on how often a
// canary that is no worse is aborted over its whole life, however often it is
// looked at. It is pure: no clock, no I/O.
package analysis

import (
	"maps"
	"slices"
)

// Signal names what is compared.
type Signal string

// The signals. For all of them more is worse.
const (
	HookFailures      Signal = "hook_failures"
	ForwardFailures   Signal = "forward_failures"
	HeartbeatTimeouts Signal = "heartbeat_timeouts"
	RateLimited       Signal = "rate_limited"
	AbnormalCloses    Signal = "abnormal_closes"
	ResumeFailures    Signal = "resume_failures"
	SlowAccepts       Signal = "slow_accepts"
	SlowAcks          Signal = "slow_acks"
	AcceptLatency     Signal = "accept_ms"
	AckLatency        Signal = "ack_ms"
	Memory            Signal = "memory"
	Crashes           Signal = "crashes"
)

// Kind is how a signal is compared.
type Kind uint8

// The kinds: the share of bad events; the values of a histogram; a limit that must
// not be passed for some looks in a row.
const (
	RateKind Kind = iota + 1
	LatencyKind
	LimitKind
)

// order is the order in which signals are reported.
var order = []struct {
	signal Signal
	kind   Kind
}{
	{HookFailures, RateKind},
	{ForwardFailures, RateKind},
	{HeartbeatTimeouts, RateKind},
	{RateLimited, RateKind},
	{AbnormalCloses, RateKind},
	{ResumeFailures, RateKind},
	{SlowAccepts, RateKind},
	{SlowAcks, RateKind},
	{AcceptLatency, LatencyKind},
	{AckLatency, LatencyKind},
	{Memory, LimitKind},
	{Crashes, LimitKind},
}

// tail names the share of slow values that is taken from a histogram.
var tail = map[Signal]Signal{SlowAccepts: AcceptLatency, SlowAcks: AckLatency}

// Rate counts events and the bad ones among them.
type Rate struct {
	Bad   uint64 `json:"bad"`
	Total uint64 `json:"total"`
}

func (r Rate) value() float64 {
	if r.Total == 0 {
		return 0
	}
	return float64(r.Bad) / float64(r.Total)
}

// Histogram has one count more than bounds; bounds are upper and rise.
type Histogram struct {
	Bounds []float64 `json:"bounds"`
	Counts []uint64  `json:"counts"`
}

func (h Histogram) total() (n uint64) {
	for _, c := range h.Counts {
		n += c
	}
	return n
}

// median interpolates within a bucket; what is above all bounds counts as the last
// one.
func (h Histogram) median() float64 {
	rank, below, low := float64(h.total())/2, 0.0, 0.0
	for i, c := range h.Counts {
		if i == len(h.Bounds) {
			break
		}
		if n := float64(c); n > 0 && below+n >= rank {
			return low + (h.Bounds[i]-low)*max(0, rank-below)/n
		}
		below, low = below+float64(c), h.Bounds[i]
	}
	return low
}

// above counts the values that are above limit for certain: those of buckets that
// begin at or above it.
func (h Histogram) above(limit float64) Rate {
	r := Rate{Total: h.total()}
	for i, c := range h.Counts {
		if i == 0 || h.Bounds[i-1] < limit {
			continue
		}
		r.Bad += c
	}
	return r
}

// at returns the histogram over other bounds, which must all be among its own.
func (h Histogram) at(bounds []float64) Histogram {
	out := Histogram{Bounds: bounds, Counts: make([]uint64, len(bounds)+1)}
	i := 0
	for k, c := range h.Counts {
		for i < len(bounds) && (k == len(h.Bounds) || h.Bounds[k] > bounds[i]) {
			i++
		}
		out.Counts[i] += c
	}
	return out
}

// Merge adds histograms over the bounds that they share: two versions may have
// different ones. One without counts changes nothing.
func Merge(a, b Histogram) Histogram {
	if len(a.Counts) == 0 {
		return b
	}
	if len(b.Counts) == 0 {
		return a
	}
	a, b = Align(a, b)
	out := Histogram{Bounds: a.Bounds, Counts: slices.Clone(a.Counts)}
	for i, c := range b.Counts {
		out.Counts[i] += c
	}
	return out
}

// Align brings two histograms to the bounds that they share.
func Align(a, b Histogram) (Histogram, Histogram) {
	if slices.Equal(a.Bounds, b.Bounds) {
		return a, b
	}
	var common []float64
	for _, x := range a.Bounds {
		if slices.Contains(b.Bounds, x) {
			common = append(common, x)
		}
	}
	return a.at(common), b.at(common)
}

// Track is what one track did in an interval, over all its gateways.
type Track struct {
	Rates     map[Signal]Rate      `json:"rates,omitempty"`
	Latencies map[Signal]Histogram `json:"latencies,omitempty"`
	// As it is at the end of the interval.
	Bytes    uint64 `json:"bytes,omitempty"`
	Sessions uint64 `json:"sessions,omitempty"`
	Nodes    uint64 `json:"nodes,omitempty"`
	// Gateways that ended without having drained.
	Crashes uint64 `json:"crashes,omitempty"`
}

// plus adds a later interval.
func (t Track) plus(later Track) Track {
	out := Track{
		Rates: maps.Clone(t.Rates), Latencies: maps.Clone(t.Latencies),
		Bytes: later.Bytes, Sessions: later.Sessions, Nodes: later.Nodes, Crashes: t.Crashes + later.Crashes,
	}
	if out.Rates == nil {
		out.Rates = map[Signal]Rate{}
	}
	if out.Latencies == nil {
		out.Latencies = map[Signal]Histogram{}
	}
	for s, r := range later.Rates {
		was := out.Rates[s]
		out.Rates[s] = Rate{was.Bad + r.Bad, was.Total + r.Total}
	}
	for s, h := range later.Latencies {
		out.Latencies[s] = Merge(out.Latencies[s], h)
	}
	return out
}

// rate returns a rate signal of the track.
func (t Track) rate(s Signal, l Limit) Rate {
	if of, ok := tail[s]; ok {
		return t.Latencies[of].above(l.BoundMS)
	}
	r := t.Rates[s]
	return Rate{Bad: min(r.Bad, r.Total), Total: r.Total}
}

// Sample is both tracks over one interval.
type Sample struct {
	Stable Track `json:"stable"`
	Canary Track `json:"canary"`
	// Gateways are stable's, each by itself; what they say is kept in History.Noise.
	Gateways []Track `json:"-"`
}

// recent is how many intervals the shorter window has.
const recent = 3

// History is what a verdict is made from. The zero value is that of a canary
// which has not been looked at; it is a value, Add leaves the old one alone.
type History struct {
	// Looks of the whole canary.
	Looks int `json:"looks"`
	// Trial counts the calls of Restart. Moving: since the last one there was no Bake.
	// Begun is how many looks there were before the last of either.
	Trial  int  `json:"trial,omitempty"`
	Moving bool `json:"moving,omitempty"`
	Begun  int  `json:"begun,omitempty"`
	// Recent are the last intervals, at most 3, oldest first; Step is the sum of
	// all since the last Restart or Bake.
	Recent []Sample `json:"recent,omitempty"`
	Step   Sample   `json:"step"`
	// Alone: the canary has everybody, and there is nothing to compare it with.
	Alone bool `json:"alone,omitempty"`
	// Noise of the whole canary, by signal.
	Noise map[Signal]Noise `json:"noise,omitempty"`
	// OverMemory counts the looks in a row in which the canary was over its limit.
	OverMemory int `json:"over_memory,omitempty"`
}

// Add takes an interval's sample as the next look.
func (h History) Add(c Config, s Sample) History {
	gateways := s.Gateways
	s.Gateways = nil
	window := append(slices.Clone(h.Recent), s)
	out := h
	out.Noise = heard(h.Noise, c, gateways)
	out.Looks, out.Recent, out.OverMemory = h.Looks+1, window[max(0, len(window)-recent):], 0
	out.Step = Sample{Stable: h.Step.Stable.plus(s.Stable), Canary: h.Step.Canary.plus(s.Canary)}
	if over, _, _ := c.overMemory(s); over {
		out.OverMemory = h.OverMemory + 1
	}
	return out
}

// Restart forgets the samples at the begin of a step, in which sessions move: others
// are on the canary now. Looks go on counting. In a step with everybody on the canary
// it is alone.
func (h History) Restart(alone bool) History {
	return History{Looks: h.Looks, Trial: h.Trial + 1, Moving: true, Begun: h.Looks, Alone: alone, Noise: h.Noise}
}

// Bake forgets what was while sessions moved.
func (h History) Bake() History {
	return History{Looks: h.Looks, Trial: h.Trial, Begun: h.Looks, Alone: h.Alone, Noise: h.Noise}
}

// looked is how many looks the step window is of.
func (h History) looked() int { return h.Looks - h.Begun }

// sum of the recent window.
func (h History) sum() Sample {
	var out Sample
	for _, s := range h.Recent {
		out = Sample{Stable: out.Stable.plus(s.Stable), Canary: out.Canary.plus(s.Canary)}
	}
	return out
}
