package session

import (
	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/internal/telemetry"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// resumable says that the session can do without its socket for a while. It is
// locked.
func (s *Session) resumable() bool {
	return s.v2() && s.phase == live && !s.shut && !s.pending && !s.released && s.host.cfg.ResumeWindow > 0
}

// drop is called when the socket is dead: nobody has closed it in order.
func (s *Session) drop() {
	s.mu.Lock()
	switch {
	case s.resumable():
		s.suspend(ws.CodeAbnormal, "")
		s.sever()
	case s.phase == suspended:
		s.sever()
	default:
		s.mu.Unlock()
		s.end()
		return
	}
	s.mu.Unlock()
}

// suspend keeps the session for its client to resume: it holds its route and takes
// deliveries into the window, of which nothing more is written. What the client
// has sent and got no answer to it sends again. The caller severs the socket or
// queues a close frame. The session is locked.
func (s *Session) suspend(code int, reason string) {
	s.phase, s.code, s.reason = suspended, code, reason
	s.queue, s.queuedBytes, s.marks = nil, 0, nil
	s.disconnected()
	s.idled = true
	s.host.metrics.idle.Add(1)
	s.until.Store(s.host.now() + int64(s.host.cfg.ResumeWindow))
	s.notify()
}

// sever closes the socket of a suspended session. The session is locked.
func (s *Session) sever() {
	if !s.severed {
		s.severed = true
		_ = s.conn.Close()
		s.notify()
	}
}

// finish ends a suspended session: the sweeper does it, because whoever calls may
// hold locks. The session is locked.
func (s *Session) finish(why string) {
	s.phase, s.shut = closing, true
	s.queue, s.queuedBytes = nil, 0
	s.until.Store(0)
	s.host.metrics.idle.Add(-1)
	s.deadline = s.host.now()
	s.watch()
	s.notify()
	s.host.log.Debug("session_ended", telemetry.TenantID, s.tenant.name, "UserId", s.user, "DeviceId", s.device,
		"SessionId", s.id, "reason", why, "unconfirmed", len(s.win.entries))
}

// expire ends a suspended session whose client has not come back.
func (s *Session) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == suspended {
		s.host.metrics.expired.Inc()
		s.finish("resume window over")
	}
}

// ahead says that a client cannot have seen the seq. The session is locked.
func (s *Session) ahead(seq uint64) bool { return seq > uint64(max(s.sent, s.base)) }

// Resumable tells whether a client that has seen everything up to lastSeq could go
// on with the session; ahead: it cannot have seen that.
func (s *Session) Resumable(lastSeq uint64) (ok, ahead bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.v2() || s.phase == opening || s.frozen || s.refused || s.final {
		return false, false
	}
	ahead = s.ahead(lastSeq)
	return !ahead, ahead
}

// Migrate asks the client to open another connection. False: it cannot be asked.
func (s *Session) Migrate(m *messagev1.Migrate) bool {
	frame := serverFrame(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Migrate{Migrate: m}})
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.v2() || s.phase != live || s.pending || s.frozen {
		return false
	}
	s.push(frame)
	return true
}
