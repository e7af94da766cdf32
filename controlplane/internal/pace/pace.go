// Package pace decides how fast sessions are moved, by what the gateways that take
// them say. Deciding is pure; what is decided by is read from two inventories.
package pace

import (
	"fmt"
	"math"
	"time"
)

const (
	// acceptLimitMS is the accept latency (95th percentile) that is never called
	// too much; above it, what counts is what it was before.
	acceptLimitMS = 100
	acceptFactor  = 3
	// authLimitMS is two thirds of what a hook may take in all (150 ms).
	authLimitMS = 100
	// enough accepts to speak of a percentile.
	enough = 10
	// gapLimitMS is the gap (95th percentile) that moves may have: the promise is 50 ms for
	// 99 of 100, and gateways do not see all of it. Above gapEaseMS the pace rises no more:
	// gaps are queues, which grow faster than what causes them.
	gapLimitMS, gapEaseMS = 20, 10
	// enoughGaps is so many that the 95th percentile is not the largest.
	enoughGaps = 40
	// backOff is how long a decrease is given to show.
	backOff = 2 * time.Second
)

// Pace is how fast sessions are moved: additive increase, multiplicative decrease
// (as TCP finds its share, RFC 5681), by what the gateways that take them say. The
// zero Pace has not begun.
type Pace struct {
	// Rate is in sessions per second.
	Rate float64 `json:"rate,omitempty"`
	Why  string  `json:"why,omitempty"`
	// Baseline is the accept latency before, in ms; 0: unknown.
	Baseline float64 `json:"baseline,omitempty"`
	// Slowed is when it was decreased last.
	Slowed time.Time `json:"slowed,omitzero"`
}

// Load is what the gateways that take sessions went through since the last
// observation.
type Load struct {
	Accepts uint64
	// AcceptP95 is the worst gateway's, in ms, and Node its name.
	AcceptP95 float64
	Node      string
	// Refused handshakes, of all of them.
	Refused uint64
	// AuthP95 is the tenants' auth hooks', in ms; 0: not known.
	AuthP95 float64
	// Gaps is how many sessions went on at these gateways, GapP95 for how long nothing
	// could be delivered to them, in ms: of all together, because the client that waits
	// does not care where.
	Gaps   uint64
	GapP95 float64
}

// Goal is what bounds a pace, in sessions per second.
type Goal struct {
	// Start is where it begins, Most and Floor are what it never passes; Floor is
	// above 0.
	Start, Most, Floor float64
	// Step is what it rises by from one observation to the next.
	Step float64
	// Needed is what a deadline takes; 0: there is none.
	Needed float64
}

// Begin is the pace at the start.
func Begin(g Goal, l Load) Pace {
	p := Pace{Rate: min(g.Start, g.Most), Why: "begins"}
	if l.Accepts >= enough && !math.IsInf(l.AcceptP95, 0) {
		p.Baseline = l.AcceptP95
	}
	return p
}

// Next adjusts a pace to an observation. It is never zero: where even the floor is too
// much it says so.
func (p Pace) Next(g Goal, l Load, at time.Time) Pace {
	limit := max(acceptLimitMS, acceptFactor*p.Baseline)
	var hot string
	switch {
	case l.AcceptP95 > limit:
		hot = fmt.Sprintf("connects take %s at %s (limit %.0f ms)", ms(l.AcceptP95), l.Node, limit)
	case l.Refused > 0:
		hot = fmt.Sprintf("the others refused %d handshakes", l.Refused)
	case l.AuthP95 > authLimitMS:
		hot = fmt.Sprintf("auth hooks take %s (limit %d ms)", ms(l.AuthP95), authLimitMS)
	}
	// What is left at a deadline loses its connection, which is worse than any gap:
	// for gaps alone the pace is never below what is needed, and rises there. Without a
	// deadline it may stay at its floor.
	least := max(g.Needed, g.Floor)
	gaps := l.Gaps >= enoughGaps && (p.Rate > least || g.Needed <= g.Floor)
	late := fmt.Sprintf("moving takes %s (limit %d ms)", ms(l.GapP95), gapLimitMS)
	switch {
	case hot != "" && at.Sub(p.Slowed) < backOff:
		p.Why = "slowed: " + hot
	case hot != "":
		p.Rate, p.Slowed, p.Why = max(p.Rate/2, g.Floor), at, "slowed: "+hot
	case gaps && l.GapP95 > gapLimitMS && at.Sub(p.Slowed) < backOff:
		p.Why = "slowed: " + late
	case gaps && l.GapP95 > gapLimitMS:
		p.Rate, p.Slowed, p.Why = max(p.Rate/2, least), at, "slowed: "+late
	case gaps && l.GapP95 > gapEaseMS:
		p.Why = "steady: " + late
	case l.Accepts == 0:
		p.Why = "steady: nobody has connected elsewhere since"
	case p.Rate >= g.Most:
		p.Why = "as fast as it may be"
	default:
		p.Rate, p.Why = min(p.Rate+g.Step, g.Most), "faster: the others take it"
	}
	if hot != "" && p.Rate <= g.Floor {
		p.Rate = g.Floor
		p.Why = fmt.Sprintf("at its least, %.0f/s: %s", g.Floor, hot)
	}
	return p
}

func ms(v float64) string {
	if math.IsInf(v, 1) {
		return "longer than what is measured"
	}
	return fmt.Sprintf("%.0f ms", v)
}
