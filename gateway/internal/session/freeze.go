package session

import (
	"context"
	"slices"
	"time"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// Takeover says how a Handover is to be.
type Takeover struct {
	// Code and Reason close the socket.
	Code   int
	Reason string
	// Resume: the device has seen everything up to LastSeq, and goes on after it.
	Resume  bool
	LastSeq uint64
}

// Handed is what a Handover gives.
type Handed struct {
	// Undelivered is what the device has not got, in order; with its seqs if
	// NextSeq is set.
	Undelivered []*gatewayv1.Undelivered
	// Keys are those of what it has got lately, Ages how long ago, in seconds.
	Keys, Ages []byte
	// NextSeq is the seq after the last one given; 0: the session cannot go on.
	NextSeq uint64
	// AckedSeq is the highest seq that the device has acknowledged here, if it can.
	AckedSeq uint64
	// Whole: a Final of the session, if there is one, brings nothing else. Not so
	// when the backlog has not come yet, or never will.
	Whole bool
}

// Freeze is a Handover: it closes the session for good and returns what its
// device has not got. ok is false when there is nothing to hand over: a router has
// taken the window back, or another Handover is under way. A window that is on its
// way back by Final is returned all the same: it would come behind newer messages,
// and the device's next session drops what it then knows by its key.
//
// What has been handed over is handed over again, as it was, and also goes back by
// Final when the socket is closed: the answer may be lost, and so may be the router
// that has it, before the next session's gateway does.
//
// It waits a little for what has just been written to be acknowledged, unless the
// device says what it has seen, and for an OpenSession under way: its answer has a
// backlog that belongs to the window. When ctx ends meanwhile, nobody would get
// what is returned, so nothing is: the next Handover gets the window, or it goes back by
// Final.
func (s *Session) Freeze(ctx context.Context, t Takeover) (h Handed, ok bool) {
	s.mu.Lock()
	if s.handed != nil && !s.final {
		defer s.mu.Unlock()
		return *s.handed, true
	}
	if s.freezing || s.frozen && s.phase == opening || s.final || s.refused && len(s.win.entries) == 0 {
		s.mu.Unlock()
		return Handed{}, false
	}
	if s.phase == ended || s.refused { // nothing comes any more
		defer s.mu.Unlock()
		if ctx.Err() != nil {
			return Handed{}, false
		}
		return s.hand(t), true
	}
	s.frozen, s.freezing, s.shut = true, true, true
	s.wait(ctx, openingTimeout, func() bool { return s.phase != opening })
	switch resumes := t.Resume && s.v2(); {
	case s.phase == opening:
		// Its backlog goes back by Final when it comes.
		s.close(t.Code, t.Reason, true)
	case resumes && s.phase == live && !s.pending:
		s.hold(t.Code, t.Reason)
	default:
		s.stop(t.Code, t.Reason)
		if !resumes {
			s.wait(ctx, freezeTimeout, func() bool { return s.phase == ended || s.idled || !s.win.underWay(s.sent) })
		}
	}
	s.freezing = false
	if s.refused && len(s.win.entries) == 0 || ctx.Err() != nil {
		if s.phase == live { // held
			s.stop(t.Code, t.Reason)
		}
		ended := s.phase == ended
		s.mu.Unlock()
		if ended {
			s.handBack()
		}
		return Handed{}, false
	}
	h = s.hand(t)
	if h.Whole {
		s.handed = &h
	}
	if !s.refused {
		s.handedBack += len(h.Undelivered)
		s.settle()
	}
	ended := s.phase == ended
	s.mu.Unlock()
	if ended {
		s.handBack()
	}
	return h, true
}

// hand is what the next session gets of the window, which stays as it is. The
// session is locked.
func (s *Session) hand(t Takeover) (h Handed) {
	h.Whole = s.phase != opening && !s.refused
	entries := s.win.entries
	seen := 0
	if t.Resume && s.v2() && h.Whole && !s.ahead(t.LastSeq) {
		h.NextSeq, h.AckedSeq = uint64(s.tail)+1, s.ackedSeq
		for seen < len(entries) && entries[seen].end <= int64(t.LastSeq) {
			seen++
		}
	}
	without := make(map[key]bool, len(entries)-seen)
	for i := range entries[seen:] {
		e := &entries[seen+i]
		u := e.d.undelivered()
		if h.NextSeq > 0 {
			u.Seq = uint64(e.end)
		}
		h.Undelivered = append(h.Undelivered, u)
		without[e.d.key] = true
	}
	h.Keys, h.Ages = s.recent.bequeath(s.host.now(), without)
	// They may come back, by a Final or from another router, however old they are.
	known := without // from here on
	for k := range slices.Chunk(h.Keys, len(key{})) {
		known[key(k)] = true
	}
	for i := range entries[:seen] {
		if k := entries[i].d.key; k != (key{}) && !known[k] {
			h.Keys = append(h.Keys, k[:]...)
			h.Ages = append(h.Ages, byte(inheritedAge/time.Second))
		}
	}
	return h
}

// hold keeps the socket for a moment, so that the client has its ConnectAck on the
// next one before this one is closed. Nothing is delivered here any more, but its
// messages are still taken and answered. The session is locked.
func (s *Session) hold(code int, reason string) {
	kept := s.queue[:0]
	for _, i := range s.queue {
		if i.d == nil {
			kept = append(kept, i)
		} else {
			s.queuedBytes -= i.size()
		}
	}
	clear(s.queue[len(kept):])
	s.queue = kept
	s.pend(code, reason, holdTimeout)
	s.notify()
}

// stop closes the session right after the frame that is being written, also when
// a close frame has been queued behind others. The session is locked.
func (s *Session) stop(code int, reason string) {
	switch {
	case s.phase == suspended:
		s.finish(reason)
	case s.phase == live:
		s.pending = false
		s.close(code, reason, true)
	case s.phase == closing && len(s.queue) > 0:
		s.cut()
		s.queueClose()
	}
}

// wait waits for cond, which is called with the session locked, as it is before
// and after.
func (s *Session) wait(ctx context.Context, bound time.Duration, cond func() bool) {
	if cond() {
		return
	}
	t := time.NewTimer(bound)
	defer t.Stop()
	for !cond() {
		changed := s.change()
		s.mu.Unlock()
		var over bool
		select {
		case <-changed:
		case <-t.C:
			over = true
		case <-ctx.Done():
			over = true
		}
		s.mu.Lock()
		if over {
			return
		}
	}
}
