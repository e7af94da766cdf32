package session

import (
	"time"

	"github.com/mics-im/mics/internal/telemetry"
)

// Sweep looks after a session that asked for it by Owner.Watch: it confirms what
// has been acknowledged, and keeps the deadlines of closing. False: it need not
// be called until it is asked for again.
func (s *Session) Sweep() bool {
	s.mu.Lock()
	s.check()
	now := s.host.now()
	over := false
	switch {
	case s.phase == live && s.pending && now >= s.deadline:
		s.close(s.code, s.reason, false)
	case s.phase == closing && now >= s.deadline:
		over = true
	case s.phase == closing:
		over = s.closed()
	case s.phase == suspended && now >= s.deadline:
		s.sever()
	}
	if over {
		s.mu.Unlock()
		s.end()
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	s.watched = s.phase == closing || s.phase == suspended && !s.severed || s.phase == live && (s.pending || !s.v2() && len(s.win.entries) > 0)
	return s.watched
}

// Tick keeps the slow deadlines of an open session: silence, a write that does
// not end, keepalive; and of a suspended one. It is called about every second and does not lock unless
// something is due.
func (s *Session) Tick() {
	now := s.host.now()
	if until := s.until.Load(); until != 0 {
		if now >= until {
			s.expire()
		}
		return
	}
	if since := s.writeSince.Load(); since != 0 && now-since > int64(writeTimeout) {
		s.drop()
		return
	}
	quiet := now - s.lastIn.Load()
	interval := int64(s.host.cfg.Keepalive)
	ping := interval > 0 && now-s.lastPing.Load() >= interval
	if quiet < int64(time.Second) && !ping {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != live {
		return
	}
	if quiet > int64(s.tenant.heartbeat) && !s.paused.Load() {
		s.host.metrics.heartbeats.Inc()
		s.host.log.Info("ws_heartbeat_timeout", telemetry.TenantID, s.tenant.name, "UserId", s.user, "DeviceId", s.device,
			"SessionId", s.id, "silent_ms", time.Duration(quiet).Milliseconds())
		if s.resumable() {
			s.suspend(CodeHeartbeat, "heartbeat timeout")
			s.queueClose()
			return
		}
		s.close(CodeHeartbeat, "heartbeat timeout", false)
		return
	}
	if ping {
		s.lastPing.Store(now)
		s.push(pingFrame)
	}
	s.trim(now)
}

// trim gives back what an idle session need not keep. The session is locked.
func (s *Session) trim(now int64) {
	if len(s.queue) == 0 && len(s.win.entries) == 0 {
		s.queue, s.win.entries, s.marks = nil, nil, nil
	}
	if s.recent != nil && s.recent.expired(now) {
		s.recent = nil
	}
}

// Suspect says that the peer is probably dead: a drain need not wait for it.
func (s *Session) Suspect() bool {
	now := s.host.now()
	if since := s.writeSince.Load(); since != 0 && now-since > int64(time.Second) {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase == live && !s.paused.Load() && now-s.lastIn.Load() > int64(s.tenant.heartbeat)
}
