package drain

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// Tally is what the gateways have counted of the sessions that came to them from
// the drained one, by node/incarnation.
type Tally map[string]Count

// Count is one gateway's, at the beginning and now: what it counts from its start
// contains what earlier drains of the same gateway moved.
type Count struct {
	Node string `json:"node"`
	Base Totals `json:"base,omitzero"`
	Last Totals `json:"last,omitzero"`
	// Late: it was there before the drain and its counts were not.
	Late bool `json:"late,omitempty"`
	// Gone: it did not answer when it was asked last.
	Gone bool `json:"gone,omitempty"`
}

// Totals count from a gateway's start.
type Totals struct {
	Connects uint64    `json:"connects,omitempty"`
	Migrated uint64    `json:"migrated,omitempty"`
	Resumed  uint64    `json:"resumed,omitempty"`
	Lost     uint64    `json:"lost,omitempty"`
	Repeated uint64    `json:"repeated,omitempty"`
	GapMax   float64   `json:"gapMax,omitempty"`
	Bounds   []float64 `json:"bounds,omitempty"`
	Gaps     []uint64  `json:"gaps,omitempty"`
}

func totalsOf(s *gatewayv1.StatusResponse, from string, incarnation uint64) Totals {
	t := Totals{Connects: s.GetConnectsTotal()}
	for _, a := range s.GetArrivals() {
		if a.GetFromNodeId() != from || a.GetFromIncarnation() != incarnation {
			continue
		}
		t.Migrated += a.GetMigrated()
		t.Resumed += a.GetResumed()
		t.Lost += a.GetLost()
		t.Repeated += a.GetRepeatedDeliveries()
		t.GapMax = max(t.GapMax, a.GetGapMaxMs())
		t.Bounds, t.Gaps = a.GetGapMs().GetBounds(), a.GetGapMs().GetCounts()
	}
	return t
}

// arrived is what stands still when nobody arrives any more.
func (t Tally) arrived() (n uint64) {
	for _, c := range t {
		n += c.Last.Migrated + c.Last.Resumed
	}
	return n
}

// baseline begins a tally.
func baseline(op Operation, gateways []fleet.Node) Tally {
	t := Tally{}
	for _, g := range gateways {
		if g.ID != op.Node && g.Status != nil {
			now := totalsOf(g.Status, op.Node, op.Incarnation)
			t[key(g)] = Count{Node: g.ID, Base: now, Last: now}
		}
	}
	return t
}

func key(g fleet.Node) string { return fmt.Sprintf("%s/%d", g.ID, g.Incarnation) }

// count returns the tally brought up to what the gateways say now. A gateway that
// is gone keeps what it said last.
func count(op Operation, gateways []fleet.Node) Tally {
	t := maps.Clone(op.Tally)
	if t == nil {
		t = Tally{}
	}
	for k, c := range t {
		c.Gone = true
		t[k] = c
	}
	for _, g := range gateways {
		if g.ID == op.Node || g.Status == nil {
			continue
		}
		c, known := t[key(g)]
		c.Node, c.Gone = g.ID, g.Unreachable
		c.Last = totalsOf(g.Status, op.Node, op.Incarnation)
		if !known && g.StartedAtMS < op.Started.UnixMilli() {
			c.Late, c.Base.Connects = true, c.Last.Connects
		}
		t[key(g)] = c
	}
	return t
}

// Receipt is what came of a drain, see controlv1.DrainReceipt.
type Receipt struct {
	Sessions          uint64        `json:"sessions"`
	Moved             uint64        `json:"moved"`
	Reconnected       uint64        `json:"reconnected"`
	Closed            uint64        `json:"closed"`
	Echoed            uint64        `json:"echoed"`
	GaveUp            uint64        `json:"gaveUp"`
	Suspended         uint64        `json:"suspended"`
	Unaccounted       uint64        `json:"unaccounted"`
	ConnectsElsewhere uint64        `json:"connectsElsewhere"`
	HandedOver        uint64        `json:"handedOver"`
	Lost              uint64        `json:"lost"`
	Repeated          uint64        `json:"repeated"`
	NotTakenBack      uint64        `json:"notTakenBack"`
	GapP50            float64       `json:"gapP50Ms"`
	GapP99            float64       `json:"gapP99Ms"`
	GapMax            float64       `json:"gapMaxMs"`
	Gaps              uint64        `json:"gaps"`
	Duration          time.Duration `json:"duration"`
	Incomplete        []string      `json:"incomplete,omitempty"`
}

// receipt sums up what is known.
func (op *Operation) receipt() Receipt {
	p := op.Progress
	r := Receipt{
		Sessions: max(op.Sessions, p.Sessions), Moved: p.Moved, Closed: p.Closed, Echoed: p.Echoed, GaveUp: p.GaveUp,
		Suspended: p.Suspended, HandedOver: p.HandedOver, NotTakenBack: p.NotTakenBack,
	}
	if op.Started.IsZero() { // nothing was done
		r.Sessions = 0
		return r
	}
	if end := op.Ended; !end.IsZero() {
		r.Duration = end.Sub(op.Started)
	} else {
		r.Duration = op.Ticked.Sub(op.Started)
	}
	var gaps fleet.Buckets
	var migrated uint64
	late := map[string]bool{}
	for _, k := range slices.Sorted(maps.Keys(op.Tally)) {
		c := op.Tally[k]
		migrated += since(c.Base.Migrated, c.Last.Migrated)
		r.Reconnected += since(c.Base.Resumed, c.Last.Resumed)
		r.Lost += since(c.Base.Lost, c.Last.Lost)
		r.Repeated += since(c.Base.Repeated, c.Last.Repeated)
		r.ConnectsElsewhere += since(c.Base.Connects, c.Last.Connects)
		d := fleet.Buckets{Bounds: c.Last.Bounds, Counts: c.Last.Gaps}.Since(fleet.Buckets{Bounds: c.Base.Bounds, Counts: c.Base.Gaps})
		if n := d.Total(); n > 0 {
			// A largest gap that was there before is not this drain's.
			if c.Last.GapMax > c.Base.GapMax {
				r.GapMax = max(r.GapMax, c.Last.GapMax)
			} else {
				r.GapMax = max(r.GapMax, min(d.Quantile(1), c.Last.GapMax))
			}
			gaps = gaps.Plus(d)
		}
		if (c.Gone || c.Late) && !late[c.Node] {
			late[c.Node] = true
			r.Incomplete = append(r.Incomplete, c.Node)
		}
	}
	if op.Verdict != "" && !p.Done {
		// It could not tell to the end; those to whom sessions came could.
		r.Moved = max(r.Moved, migrated)
		// What has moved is left for a moment: its socket is kept until the next one is up.
		r.Unaccounted = min(since(r.Moved-p.Moved, op.left()), since(r.Moved+r.Closed+r.GaveUp+r.Suspended, r.Sessions))
	}
	r.Gaps = gaps.Total()
	r.GapP50, r.GapP99 = min(gaps.Quantile(0.5), r.GapMax), min(gaps.Quantile(0.99), r.GapMax)
	return r
}

// since is what a counter has risen by; 0 if it fell.
func since(a, b uint64) uint64 {
	if b < a {
		return 0
	}
	return b - a
}
