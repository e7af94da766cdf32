package drain

import (
	"fmt"
	"math"
	"time"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

const (
	// acceptLimitMS is the accept latency (95th percentile) that is never called
	// too much; above it, what counts is what it was before the drain.
	acceptLimitMS = 100
	acceptFactor  = 3
	// authLimitMS is two thirds of what a hook may take in all (150 ms).
	authLimitMS = 100
	// enough accepts to speak of a percentile.
	enough = 10
	// gapLimitMS is the gap (95th percentile) that moves may have; the promise is twice
	// that for 99 of 100. Above gapEaseMS the pace rises no more: gaps are queues, which
	// grow faster than what causes them.
	gapLimitMS, gapEaseMS = 25, 15
	// enoughGaps is so many that the 95th percentile is not the largest.
	enoughGaps = 40
	// minStep and minStart are in sessions per second.
	minStep, minStart = 20, 20
	// backOff is how long a decrease is given to show.
	backOff = 2 * time.Second
	// spread is the share of the timeout that the sessions are spread over.
	spread = 0.8
)

// Pace is how fast a gateway is emptied: additive increase, multiplicative decrease
// (as TCP finds its share, RFC 5681), by what the other gateways say.
type Pace struct {
	// Rate is in sessions per second.
	Rate float64 `json:"rate,omitempty"`
	Why  string  `json:"why,omitempty"`
	// Baseline is the accept latency before, in ms; 0: unknown.
	Baseline float64 `json:"baseline,omitempty"`
	// Slowed is when it was decreased last.
	Slowed time.Time `json:"slowed,omitzero"`
}

// Load is what the gateways that stay went through since the last observation.
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

// loadOf compares two inventories; skip tells which gateways do not count.
func loadOf(before, after []fleet.Node, skip func(id string) bool) Load {
	old := make(map[string]fleet.Node, len(before))
	for _, g := range before {
		old[key(g)] = g
	}
	var l Load
	var gaps histogram
	for _, g := range after {
		was, known := old[key(g)]
		if !known || g.Status == nil || was.Status == nil || g.Unreachable || skip(g.ID) {
			continue
		}
		l.Refused += since(was.Status.GetRefusedHandshakesTotal(), g.Status.GetRefusedHandshakesTotal())
		d := difference(histogramOf(was.Status.GetAcceptMs()), histogramOf(g.Status.GetAcceptMs()))
		n := d.total()
		l.Accepts += n
		if p := d.quantile(0.95); n >= enough && p > l.AcceptP95 {
			l.AcceptP95, l.Node = p, g.ID
		}
		gaps = gaps.plus(difference(gapsOf(was.Status), gapsOf(g.Status)))
	}
	l.Gaps, l.GapP95 = gaps.total(), gaps.quantile(0.95)
	return l
}

// gapsOf is a gateway's, wherever the sessions came from.
func gapsOf(s *gatewayv1.StatusResponse) (sum histogram) {
	for _, a := range s.GetArrivals() {
		sum = sum.plus(histogramOf(a.GetGapMs()))
	}
	return sum
}

// begin is the pace at the start.
func (r Rules) begin(op Operation, l Load) Pace {
	if op.Rate > 0 {
		return Pace{Rate: op.Rate, Why: "as asked for"}
	}
	p := Pace{Rate: min(max(needed(op), minStart), r.MaxRate), Why: "begins"}
	if l.Accepts >= enough && !math.IsInf(l.AcceptP95, 0) {
		p.Baseline = l.AcceptP95
	}
	return p
}

// needed is the rate at which the rest is gone in time; it is finite.
func needed(op Operation) float64 {
	left := max(op.Timeout-op.Spent, time.Second).Seconds() * spread
	return float64(op.left()) / left
}

// step is what the rate rises by in a second.
func step(op Operation) float64 { return max(minStep, needed(op)/10) }

// next adjusts a pace, once a second. It is never zero: where even the floor is too
// much it says so, and the timeout decides.
func (r Rules) next(op Operation, l Load, at time.Time) Pace {
	p := op.Pace
	if op.Rate > 0 {
		p.Rate, p.Why = op.Rate, "as asked for"
		return p
	}
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
	floor := max(1, min(needed(op), r.MaxRate)/10)
	// What is left at the timeout loses its connection, which is worse than any gap:
	// for gaps alone the pace is never below what is needed.
	gaps := l.Gaps >= enoughGaps && p.Rate > needed(op)
	late := fmt.Sprintf("moving takes %s (limit %d ms)", ms(l.GapP95), gapLimitMS)
	switch {
	case hot != "" && at.Sub(p.Slowed) < backOff:
		p.Why = "slowed: " + hot
	case hot != "":
		p.Rate, p.Slowed, p.Why = max(p.Rate/2, floor), at, "slowed: "+hot
	case gaps && l.GapP95 > gapLimitMS && at.Sub(p.Slowed) < backOff:
		p.Why = "slowed: " + late
	case gaps && l.GapP95 > gapLimitMS:
		p.Rate, p.Slowed, p.Why = max(p.Rate/2, needed(op)), at, "slowed: "+late
	case gaps && l.GapP95 > gapEaseMS:
		p.Why = "steady: " + late
	case l.Accepts == 0:
		p.Why = "steady: nobody has connected elsewhere since"
	case p.Rate >= r.MaxRate:
		p.Why = "as fast as it may be"
	default:
		p.Rate, p.Why = min(p.Rate+step(op), r.MaxRate), "faster: the others take it"
	}
	if hot != "" && p.Rate <= floor {
		p.Rate = floor
		p.Why = fmt.Sprintf("at its least, %.0f/s: %s", floor, hot)
	}
	if p.Rate < needed(op)*spread {
		p.Why += "; at this pace the timeout comes first"
	}
	return p
}

func ms(v float64) string {
	if math.IsInf(v, 1) {
		return "longer than what is measured"
	}
	return fmt.Sprintf("%.0f ms", v)
}
