package session

import (
	"context"
	"time"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// Freeze is a Handover: it closes the session for good and returns what its
// device has not got, in order, and the keys of what it has got. ok is false when
// there is nothing to hand over: a router has taken the window back, or another
// Handover was first. A window that is on its way back by Final is returned all
// the same: it would come behind newer messages, and the device's next session
// drops what it then knows by its key.
//
// It waits a little for what has just been written to be acknowledged, and for an
// OpenSession under way: its answer has a backlog that belongs to the window.
// When ctx ends meanwhile, nobody would get what is returned, so nothing is: the
// window goes back by Final.
func (s *Session) Freeze(ctx context.Context, code int, reason string) (out []*gatewayv1.Undelivered, keys []byte, ok bool) {
	s.mu.Lock()
	if s.frozen || s.refused || s.final {
		s.mu.Unlock()
		return nil, nil, false
	}
	if s.phase == ended {
		defer s.mu.Unlock()
		if ctx.Err() != nil {
			return nil, nil, false
		}
		out, without := undelivered(s.win.entries)
		return out, s.recent.bequeath(s.host.now(), without), true
	}
	s.frozen, s.freezing, s.shut = true, true, true
	s.wait(ctx, openingTimeout, func() bool { return s.phase != opening })
	if s.phase == opening {
		// Its backlog goes back by Final when it comes.
		s.close(code, reason, true)
	} else {
		s.stop(code, reason)
		s.wait(ctx, freezeTimeout, func() bool { return s.phase == ended || !s.win.underWay(s.sent) })
	}
	s.freezing = false
	if s.refused || ctx.Err() != nil {
		ended := s.phase == ended
		s.mu.Unlock()
		if ended {
			s.handBack()
		}
		return nil, nil, false
	}
	s.handed = s.phase != opening
	out, without := undelivered(s.win.take())
	keys = s.recent.bequeath(s.host.now(), without)
	s.handedBack += len(out)
	s.settle()
	ended := s.phase == ended
	s.mu.Unlock()
	if ended {
		s.handBack()
	}
	return out, keys, true
}

// stop closes the session right after the frame that is being written, also when
// a close frame has been queued behind others. The session is locked.
func (s *Session) stop(code int, reason string) {
	switch {
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
