package hook

import (
	"container/list"
	"fmt"
	"math"
	"sync"
)

const (
	// DefaultWindow is how far behind the newest event of a node another one may
	// come without being taken for lost. The partitions of a topic are read at
	// different speeds, and an event that is tried again comes later.
	DefaultWindow = 1 << 16
	// DefaultMaxNodes bounds the producers that are kept track of; every start of
	// a router is a new one.
	DefaultMaxNodes = 1024
)

// Arrival is how an event stands in its producer's sequence.
type Arrival int

const (
	// Unnumbered: the event has no tenant_seq, nothing is known.
	Unnumbered Arrival = iota
	// Fresh: seen for the first time.
	Fresh
	// Repeated: seen before.
	Repeated
	// Late: so far behind that it was given up before, or it is a repeat of
	// something long ago.
	Late
)

// String is the arrival in lower case.
func (a Arrival) String() string {
	switch a {
	case Unnumbered:
		return "unnumbered"
	case Fresh:
		return "fresh"
	case Repeated:
		return "repeated"
	case Late:
		return "late"
	}
	return fmt.Sprintf("Arrival(%d)", int(a))
}

// Gap is a run of events that did not come, both ends included.
type Gap struct {
	Tenant, Node string
	From, To     uint64
}

// Len is the number of events in the gap, at most [math.MaxUint64].
func (g Gap) Len() uint64 {
	if n := g.To - g.From; n < math.MaxUint64 {
		return n + 1
	}
	return math.MaxUint64
}

// SequenceOptions configures a Sequence; the zero value is usual.
type SequenceOptions struct {
	// Window in events, rounded up to a multiple of 64; 0 means DefaultWindow. A
	// node costs Window/8 bytes.
	Window int
	// MaxNodes bounds the (tenant, node) pairs; 0 means DefaultMaxNodes. Beyond,
	// the one that was quiet for longest is forgotten, and what it still lacked
	// is reported.
	MaxNodes int
	// FromFirst expects every node to begin with 1: for a consumer that reads its
	// topics from their beginning. Otherwise a node is expected to begin with
	// what is seen first of it.
	FromFirst bool
}

// Sequence finds gaps and repeats in the events of a topic: tenant_seq is
// gapless per tenant and producing node. It is for the consumer of all
// partitions: a group member that reads some of them sees gaps where the others'
// events are. Safe for concurrent use.
type Sequence struct {
	window    uint64
	maxNodes  int
	fromFirst bool

	mu    sync.Mutex
	order *list.List // guarded by mu: of *track, longest quiet first
	nodes map[nodeKey]*list.Element
}

type nodeKey struct{ tenant, node string }

// NewSequence returns one that has seen nothing.
func NewSequence(o SequenceOptions) *Sequence {
	if o.Window <= 0 {
		o.Window = DefaultWindow
	}
	if o.MaxNodes <= 0 {
		o.MaxNodes = DefaultMaxNodes
	}
	return &Sequence{
		window: uint64((o.Window + 63) / 64 * 64), maxNodes: o.MaxNodes, fromFirst: o.FromFirst,
		order: list.New(), nodes: map[nodeKey]*list.Element{},
	}
}

// Observe takes note of an event. The gaps are those that have become certain by
// it: they fell out of the window. Each is reported once.
func (s *Sequence) Observe(e *Event) (Arrival, []Gap) {
	seq := e.GetTenantSeq()
	if seq == 0 {
		return Unnumbered, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := nodeKey{e.GetTenantId(), e.GetNodeId()}
	el := s.nodes[key]
	if el == nil {
		t := &track{key: key, seen: make([]uint64, s.window/64), first: seq, highest: seq}
		if s.fromFirst {
			t.first, t.highest = 1, 0
		} else {
			t.mark(seq)
		}
		el = s.order.PushBack(t)
		s.nodes[key] = el
		gaps := s.forget()
		if !s.fromFirst {
			return Fresh, gaps
		}
		arrival, more := t.observe(seq)
		return arrival, append(gaps, more...)
	}
	s.order.MoveToBack(el)
	return el.Value.(*track).observe(seq)
}

// forget makes room if there are too many nodes.
func (s *Sequence) forget() []Gap {
	if s.order.Len() <= s.maxNodes {
		return nil
	}
	t := s.order.Remove(s.order.Front()).(*track)
	delete(s.nodes, t.key)
	return t.missing()
}

// Missing returns what is not there now and was not reported as a gap: it may
// still come. Where it does not shrink while nothing is being sent, it is lost.
func (s *Sequence) Missing() []Gap {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gaps []Gap
	for el := s.order.Front(); el != nil; el = el.Next() {
		gaps = append(gaps, el.Value.(*track).missing()...)
	}
	return gaps
}

// track is one node's sequence: a bit for each of the last window numbers up to
// the highest that was seen. Bits of other numbers are zero.
type track struct {
	key            nodeKey
	first, highest uint64 // numbers below first are not expected
	seen           []uint64
}

func (t *track) window() uint64 { return uint64(len(t.seen)) * 64 }

// lowest is the least number that has a bit.
func (t *track) lowest() uint64 {
	if t.highest < t.window() {
		return 1
	}
	return t.highest - t.window() + 1
}

func (t *track) bit(seq uint64) (word *uint64, mask uint64) {
	at := seq % t.window()
	return &t.seen[at/64], 1 << (at % 64)
}

func (t *track) has(seq uint64) bool {
	word, mask := t.bit(seq)
	return *word&mask != 0
}

func (t *track) mark(seq uint64) {
	word, mask := t.bit(seq)
	*word |= mask
}

func (t *track) observe(seq uint64) (Arrival, []Gap) {
	if seq > t.highest {
		gaps := t.advance(seq)
		t.mark(seq)
		return Fresh, gaps
	}
	switch {
	case seq < t.lowest():
		return Late, nil
	case t.has(seq):
		return Repeated, nil
	}
	t.mark(seq)
	return Fresh, nil
}

// advance moves the window up to seq and returns what fell out of it unseen. It
// takes time in proportion to the window, not to the step.
func (t *track) advance(seq uint64) []Gap {
	was, low := t.highest, t.lowest()
	t.highest = seq
	newLow := t.lowest()
	gaps := t.unseen(low, min(newLow-1, was)) // newLow is at least 1
	if newLow-1 > was {                       // and what never had a bit
		gaps = t.join(gaps, was+1, newLow-1)
	}
	if newLow > was {
		clear(t.seen)
		return gaps
	}
	for n := low; n < newLow; n++ {
		word, mask := t.bit(n)
		*word &^= mask
	}
	return gaps
}

// missing is what is unseen inside the window.
func (t *track) missing() []Gap { return t.unseen(t.lowest(), t.highest) }

// unseen returns the expected numbers from..to (inside the window) without a
// bit.
func (t *track) unseen(from, to uint64) []Gap {
	var gaps []Gap
	for n := max(from, t.first); n <= to && n != 0; n++ { // 0: went past the largest
		if !t.has(n) {
			gaps = t.join(gaps, n, n)
		}
	}
	return gaps
}

// join appends from..to, as far as it is expected, to the last gap if they meet.
func (t *track) join(gaps []Gap, from, to uint64) []Gap {
	from = max(from, t.first)
	if from > to {
		return gaps
	}
	if last := len(gaps) - 1; last >= 0 && gaps[last].To+1 == from {
		gaps[last].To = to
		return gaps
	}
	return append(gaps, Gap{Tenant: t.key.tenant, Node: t.key.node, From: from, To: to})
}
