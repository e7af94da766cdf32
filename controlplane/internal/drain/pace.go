package drain

import (
	"time"

	"github.com/mics-im/mics/controlplane/internal/pace"
)

const (
	// minStep and minStart are in sessions per second.
	minStep, minStart = 20, 20
	// spread is the share of the timeout that the sessions are spread over.
	spread = 0.8
)

// asAsked is the pace that an operator sets.
func asAsked(p pace.Pace, rate float64) pace.Pace {
	p.Rate, p.Why = rate, "as asked for"
	return p
}

// begin is the pace at the start.
func (r Rules) begin(op Operation, l pace.Load) pace.Pace {
	if op.Rate > 0 {
		return asAsked(pace.Pace{}, op.Rate)
	}
	return pace.Begin(r.goal(op), l)
}

// goal is for a drain that is to be done in time.
func (r Rules) goal(op Operation) pace.Goal {
	n := needed(op)
	return pace.Goal{Start: max(n, minStart), Most: r.MaxRate, Floor: max(1, min(n, r.MaxRate)/10), Step: max(minStep, n/10), Needed: n}
}

// needed is the rate at which the rest is gone in time; it is finite.
func needed(op Operation) float64 {
	left := max(op.Timeout-op.Spent, time.Second).Seconds() * spread
	return float64(op.left()) / left
}

// next adjusts a pace, once a second. Where even the floor is too much the timeout
// decides.
func (r Rules) next(op Operation, l pace.Load, at time.Time) pace.Pace {
	if op.Rate > 0 {
		return asAsked(op.Pace, op.Rate)
	}
	p := op.Pace.Next(r.goal(op), l, at)
	if p.Rate < needed(op)*spread {
		p.Why += "; at this pace the timeout comes first"
	}
	return p
}
