package session

import (
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// accepted is what Deliver returns when the delivery is in the gateway's memory.
const accepted = gatewayv1.Refusal_REASON_UNSPECIFIED

// Deliver takes a delivery or says why not; REASON_UNSPECIFIED means taken. It
// never blocks on the socket. The caller holds the router's Process and calls in
// the order of ids.
func (s *Session) Deliver(d *Delivery) gatewayv1.Refusal_Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	if src := s.win.source(d.router); src != nil && d.id <= src.live {
		// A resend: its answer was lost with a stream, and so may be its confirm.
		src.changedLive = true
		s.win.tell(s.id)
		return accepted
	}
	switch {
	case s.shut:
		return gatewayv1.Refusal_REASON_MOVED
	case s.phase == opening:
		// Open looks for repeats: only it knows the backlog and the keys that the
		// device has had.
		if s.full() {
			return s.overflow()
		}
		s.win.took(d.router, d.id)
		s.win.add(d, unsent)
		s.host.metrics.live.Inc()
		return accepted
	}
	now := s.host.now()
	if s.recent.has(d.key, now) {
		s.repeat(d)
		s.win.tell(s.id)
		return accepted
	}
	if s.full() {
		return s.overflow()
	}
	s.host.metrics.live.Inc()
	s.deliver(d, now)
	s.flushSoon()
	return accepted
}

// repeat takes a delivery that the session knows by its key. The first one may be
// unconfirmed: then this one's router keeps its copy, too.
func (s *Session) repeat(d *Delivery) {
	s.host.metrics.repeats.Inc()
	s.win.took(d.router, d.id)
	if !s.win.join(d) {
		s.win.change(d)
	}
}

// deliver queues a new delivery for writing, or keeps it for the client to come
// back for.
func (s *Session) deliver(d *Delivery, now int64) {
	s.win.took(d.router, d.id)
	if d.key != (key{}) {
		if s.recent == nil {
			s.recent = &recent{}
		}
		s.recent.add(d.key, now)
	}
	switch {
	case s.phase == suspended:
		s.tail++
	case s.v2():
		s.tail++
		s.enqueue(item{d: d, seq: uint64(s.tail)})
	default:
		s.tail += int64(len(d.frame))
		s.enqueue(item{frame: d.frame})
	}
	s.win.add(d, s.tail)
}

// full says that the queue is full, or, for a peer that takes what is written and
// acknowledges nothing, that the window has twice its room. The bytes may exceed
// the limit by one message, so that one alone always fits.
func (s *Session) full() bool {
	c := &s.host.cfg
	most := 2 * c.QueueFrames
	if s.phase == opening || s.phase == suspended {
		most = c.QueueFrames // it is to be queued
	}
	return len(s.queue) >= c.QueueFrames || s.queuedBytes >= c.QueueBytes ||
		len(s.win.entries) >= most || s.win.bytes >= 2*c.QueueBytes
}

// overflow closes the session because of a queue that is full.
func (s *Session) overflow() gatewayv1.Refusal_Reason {
	s.host.metrics.overflow.Inc()
	s.close(CodeSlowConsumer, "slow consumer", true)
	return gatewayv1.Refusal_REASON_FULL
}

// Reconfirm posts what is confirmed to the router, again.
func (s *Session) Reconfirm(r *Router) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if src := s.win.source(r); src != nil {
		src.changedLive, src.changedBacklog = true, true
		s.win.tell(s.id)
		return
	}
	// Nothing of this router is here any more: what it has had an answer for is
	// confirmed, and the backlog if it has come at all. To a session that was refused,
	// because nobody waited for the answer, it never does.
	r.Post(s.id, r.processed.Load())
	if s.epoch > 0 {
		r.Post(s.id, LastBacklog)
	}
}

// confirm drops from the window what ends at the position or before it, and tells
// the routers. Not after the end: then the window is being handed back. The
// session is locked.
func (s *Session) confirm(pos int64) {
	if s.phase == opening || s.phase == ended || !s.win.confirm(pos) {
		return
	}
	s.win.tell(s.id)
	s.notify()
}

// check confirms what the peer's kernel has acknowledged (V1). The session is
// locked.
func (s *Session) check() {
	if s.v2() || len(s.win.entries) == 0 {
		return
	}
	s.confirm(min(s.acknowledged(), s.sent))
}

// mark is a position in the stream below TLS.
type mark struct{ pos, wire int64 }

// maxMarks bounds the marks: beyond it they get coarser.
const maxMarks = 64

// acknowledged is the position up to which the peer's kernel has what was
// written; where that cannot be known, what was written. The session is locked.
func (s *Session) acknowledged() int64 {
	if !s.ackKnown {
		return s.written
	}
	n, ok := s.conn.Acknowledged()
	switch {
	case !ok:
		return 0 // the connection is closed
	case s.conn.Exact():
		return n
	}
	var pos int64
	done := 0
	for done < len(s.marks) && s.marks[done].wire <= n {
		pos = s.marks[done].pos
		done++
	}
	s.marks = append(s.marks[:0], s.marks[done:]...)
	return pos
}

// wrote notes that writing has ended up to what was begun. The session is locked.
func (s *Session) wrote() {
	s.written = s.sent
	if s.v2() || !s.ackKnown || s.conn.Exact() || len(s.win.entries) == 0 {
		return
	}
	m := mark{s.written, s.conn.Written()}
	if len(s.marks) == maxMarks {
		s.marks[maxMarks-1] = m
		return
	}
	s.marks = append(s.marks, m)
}
