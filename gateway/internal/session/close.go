package session

import (
	"time"

	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/internal/telemetry"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// Close codes of CONTRACT section 1.3 that a session or its registry uses.
const (
	CodeHeartbeat    = 4100
	CodeDraining     = 4200
	CodeReplaced     = 4201
	CodeSlowConsumer = 4408
	CodeKicked       = 4409
	CodeFlood        = 4429
)

// Close ends the session in good order: what is queued is written, then a close
// frame; what the client sends is still read and published until it answers, two
// seconds at most. It does not wait. A session that is being opened is closed as
// soon as that is over. Only the first Close counts.
func (s *Session) Close(code int, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close(code, reason, false)
}

// Kick closes an open session because somebody asked for it, and tells whether it
// was open.
func (s *Session) Kick(reason string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != live && s.phase != suspended || s.frozen {
		return false
	}
	s.pending = false
	s.close(CodeKicked, reason, false)
	return true
}

// CloseAnswered is Close as soon as the client has an answer to every message
// that it has sent, at the latest after wait.
func (s *Session) CloseAnswered(code int, reason string, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == live && !s.pending && s.unanswered > 0 {
		s.pend(code, reason, wait)
		return
	}
	s.close(code, reason, false)
}

// pend has the session closed later. The session is locked.
func (s *Session) pend(code int, reason string, wait time.Duration) {
	s.pending, s.code, s.reason = true, code, reason
	s.deadline = s.host.now() + int64(wait)
	s.watch()
}

// Shut lets the session refuse deliveries from now on: its route counts as dead,
// and what comes by it could overtake what is kept for the device meanwhile.
func (s *Session) Shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = true
}

// Released says that the session's route has been given back.
func (s *Session) Released() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released = true
}

// close queues a close frame, unless there is one; with cut right after the frame
// that is being written. The session is locked.
func (s *Session) close(code int, reason string, cut bool) {
	switch {
	case s.phase == opening && s.pending:
	case s.phase == opening:
		// Open or Refuse does it.
		s.pending, s.shut, s.code, s.reason = true, true, code, reason
	case s.phase == suspended:
		s.finish(reason)
	case s.phase == live:
		if s.pending {
			code, reason, s.pending = s.code, s.reason, false
		}
		s.phase, s.shut, s.code, s.reason = closing, true, code, reason
		if cut {
			s.cut()
		}
		s.queueClose()
	}
}

// queueClose queues the close frame. The session is locked.
func (s *Session) queueClose() {
	s.enqueueFrame(ws.AppendClose(nil, s.code, s.reason))
	s.closeQueued = true
	s.deadline = s.host.now() + int64(flushTimeout)
	s.watch()
	s.flushSoon()
	s.notify()
}

// closed says that the socket can be closed, now that our close frame has been
// written: the peer has sent its own, and its kernel has all, or we shall not
// hear it any more. The session is locked.
func (s *Session) closed() bool {
	if !s.closeSent || !s.peerClosed && !s.deaf {
		return false
	}
	if s.echoed || s.acknowledgedAll() {
		return true
	}
	// The peer gets what is on its way, as far as it reads; so it must not be
	// handed back before that is known. Its kernel also must have the close frame
	// before the socket is closed with something unread in it.
	s.deadline = min(s.deadline, s.host.now()+int64(lingerTimeout))
	s.watch()
	return false
}

// acknowledgedAll says that the peer's kernel has all that was written, as far as
// it can be known.
func (s *Session) acknowledgedAll() bool {
	n, ok := s.conn.Acknowledged()
	return !ok || n >= s.conn.Written()
}

// peerClose takes the peer's close frame: the answer to ours, or its own.
func (s *Session) peerClose(code int, reason string) {
	s.mu.Lock()
	s.peerClosed = true
	switch {
	case s.phase == suspended:
		if code != s.code {
			s.finish("closed by the client") // no answer to ours
		}
		s.sever()
	case s.phase == live:
		s.pending = false
		// What is queued would not be looked at any more.
		s.close(code, reason, true)
	case s.closeQueued && len(s.queue) == 0 && code == s.code:
		// An answer to ours, which has at least been begun to be written: the client
		// has read all that came before. One with another code may have crossed
		// ours; then it says nothing of what was written.
		s.echoed = true
		s.confirm(s.sent)
	}
	over := s.closed()
	s.mu.Unlock()
	if over {
		s.end()
	}
}

// Abort closes the socket at once. A session that is being opened ends when that
// is over.
func (s *Session) Abort() {
	s.mu.Lock()
	if s.phase == opening {
		s.close(ws.CodeAbnormal, "", false)
		s.mu.Unlock()
		_ = s.conn.Close()
		return
	}
	s.mu.Unlock()
	s.end()
}

// end closes the socket and hands back what has not been confirmed. Only the
// first call does anything, and none while the session is being opened.
func (s *Session) end() {
	s.mu.Lock()
	if s.phase == ended || s.phase == opening {
		s.mu.Unlock()
		return
	}
	if s.phase == suspended {
		s.finish("cut")
	}
	s.check() // the last moment that the kernel can tell
	s.phase, s.shut = ended, true
	s.queue, s.queuedBytes, s.marks = nil, 0, nil
	s.until.Store(0)
	if s.code == 0 {
		s.code = ws.CodeAbnormal
	}
	s.notify()
	if !s.refused && !s.idled {
		s.disconnected()
	}
	s.mu.Unlock()
	_ = s.conn.Close() // what reads or writes fails now
	s.handBack()
}

// disconnected logs and counts the end of the socket. The session is locked.
func (s *Session) disconnected() {
	h, id := s.host, s.identity()
	h.metrics.open.Add(-1)
	h.metrics.disconnected.Inc()
	if !s.closeSent && !s.peerClosed && (s.phase != suspended || s.code == ws.CodeAbnormal) {
		h.metrics.abnormal.Inc()
	}
	h.log.Info("ws_disconnected", telemetry.TenantID, id.Tenant, "UserId", id.User, "DeviceId", id.Device,
		"SessionId", s.id, "code", s.code, "reason", s.reason, "suspended", s.phase == suspended,
		"duration_ms", time.Duration(h.now()-s.since).Milliseconds())
}

// handBack gives the window of an ended session to the user's home, also one that a
// Handover has: who asked for it may have died with it. A Handover that is waiting comes
// first.
func (s *Session) handBack() {
	s.mu.Lock()
	if s.freezing || s.handing {
		s.mu.Unlock()
		return
	}
	s.handing = true
	if s.handed != nil && len(s.handed.Undelivered) == 0 || s.refused && !s.neverOpened && len(s.win.entries) == 0 {
		s.final = true
		s.leave()
		s.mu.Unlock()
		return
	}
	c := &routerv1.ClosedSession{
		SessionId: s.id, TenantId: s.tenant.name, UserId: s.user, DeviceId: s.device, Epoch: s.epoch,
		Stage: routerv1.ClosedSession_STAGE_FINAL, CloseCode: int32(s.code), NeverOpened: s.refused,
	}
	var h Handed
	if s.handed != nil {
		h = *s.handed
	} else {
		h = s.hand(Takeover{})
		s.handedBack += len(h.Undelivered)
	}
	c.Undelivered, c.RecentKeys, c.RecentAges = h.Undelivered, h.Keys, h.Ages
	s.mu.Unlock()
	s.host.metrics.handback.Add(1)
	s.host.cfg.Uplink.Final(c, s.taken)
}

// taken is called when a router has taken the session back.
func (s *Session) taken() {
	s.host.metrics.handback.Add(-1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	s.final = true
	s.leave()
}

// settle confirms everything: a router has the window now. The session is locked.
func (s *Session) settle() {
	s.win.take()
	s.win.changeAll()
	s.win.tell(s.id)
}
