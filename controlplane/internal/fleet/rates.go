package fleet

import "time"

// rateWindow is what rates are taken over: long enough that a figure stands
// still while one reads it, short enough to see a change happen.
const rateWindow = 5 * time.Second

// Rates are per second, over the last few seconds.
type Rates struct {
	Connects, MessagesIn, Deliveries float64
}

// sample is a gateway's counters at a time.
type sample struct {
	at                               time.Time
	connects, messagesIn, deliveries uint64
}

// addSample appends s and drops what the window does not need: samples older
// than it, except the youngest of those, so that the window is always covered.
// It leaves samples as they are. Counters that fell mean another process:
// nothing before counts.
func addSample(samples []sample, s sample) []sample {
	if n := len(samples); n > 0 {
		last := samples[n-1]
		if s.connects < last.connects || s.messagesIn < last.messagesIn || s.deliveries < last.deliveries {
			samples = nil
		}
	}
	first := 0
	for i, old := range samples {
		if s.at.Sub(old.at) >= rateWindow {
			first = i
		}
	}
	out := make([]sample, 0, len(samples)-first+1)
	return append(append(out, samples[first:]...), s)
}

// rates are taken from the first sample to the last; zero with less than two.
func rates(samples []sample) Rates {
	if len(samples) < 2 {
		return Rates{}
	}
	a, b := samples[0], samples[len(samples)-1]
	seconds := b.at.Sub(a.at).Seconds()
	if seconds <= 0 {
		return Rates{}
	}
	return Rates{
		Connects:   float64(b.connects-a.connects) / seconds,
		MessagesIn: float64(b.messagesIn-a.messagesIn) / seconds,
		Deliveries: float64(b.deliveries-a.deliveries) / seconds,
	}
}
