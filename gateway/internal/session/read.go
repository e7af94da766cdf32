package session

import (
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/internal/frame"
	"github.com/mics-im/mics/internal/telemetry"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/encoding/protowire"
)

// rejection is a reason of mics_ws_frames_rejected_total.
type rejection string

const (
	malformed  rejection = "malformed"
	tooLarge   rejection = "too_large"
	noPayload  rejection = "no_payload"
	strangeAck rejection = "strange_ack"
)

// Codes of ServerError.
const (
	errInvalid  = 4400
	errTooLarge = 4413
	errFlood    = 4429
)

const (
	// maxUnanswered bounds a session's messages without an outcome; then it is
	// not read until there is room.
	maxUnanswered = 64
	// floodBurst is how many seconds' worth of frames may come at once.
	floodBurst = 2
	// floodPatience is how long a client may be throttled without a break.
	floodPatience = 10 * time.Second
	bodyTooLarge  = "msg_body_too_large"
)

// read is the reading goroutine.
func (s *Session) read() {
	for {
		f, err := s.conn.Next(s.host.limits)
		if err != nil {
			s.readFailed(err)
			break
		}
		s.lastIn.Store(s.host.now())
		if f.Op == ws.Close {
			s.readClose(f.Payload)
			break
		}
		s.frame(f)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading = false
	s.leave()
}

func (s *Session) readClose(payload []byte) {
	code, reason, err := ws.ParseClose(payload)
	if err != nil {
		s.conn.Done()
		s.readFailed(err)
		return
	}
	s.conn.Done()
	s.peerClose(code, reason)
}

// readFailed: the peer broke the protocol, and gets a close frame that it cannot
// answer, or the socket is dead.
func (s *Session) readFailed(err error) {
	var p *ws.ProtocolError
	if !errors.As(err, &p) {
		s.drop()
		return
	}
	s.mu.Lock()
	if s.phase == suspended {
		s.mu.Unlock()
		s.drop()
		return
	}
	s.deaf = true
	s.pending = s.pending && s.phase != live
	s.close(p.Code, p.Reason, false)
	over := s.closed()
	s.mu.Unlock()
	if over {
		s.end()
	}
}

// frame handles a frame that does not close.
func (s *Session) frame(f ws.Frame) {
	if f.Op == ws.Pong {
		return
	}
	var c frame.Client
	var err error
	if f.Op == ws.Binary && !f.TooLarge {
		if c, err = frame.ParseClient(f.Payload); err == nil && c.Kind == frame.Ack {
			s.ack(c.AckSeq)
			return
		}
	}
	if !s.admitFrame() {
		return
	}
	switch {
	case f.Op == ws.Ping:
		s.reply(ws.AppendFrame(nil, ws.Pong, f.Payload))
	case f.TooLarge:
		s.reject(tooLarge, errTooLarge, "frame too large")
	case err != nil:
		s.reject(malformed, errInvalid, "invalid protobuf")
	case c.Kind == frame.Message:
		s.message(c.Message)
	case c.Kind == frame.Ping:
		s.reply(serverFrame(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_HeartbeatPong{
			HeartbeatPong: &messagev1.HeartbeatPong{TimestampMs: c.PingTimestampMS},
		}}))
	default:
		s.reject(noPayload, errInvalid, "frame without a known payload")
	}
}

func (s *Session) reply(frame []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.push(frame)
}

// reject answers a frame that cannot be used; the connection stays.
func (s *Session) reject(why rejection, code int32, text string) {
	s.host.metrics.rejected.With(string(why)).Inc()
	s.reply(serverError(code, text))
}

func serverError(code int32, text string) []byte {
	return serverFrame(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Error{Error: &messagev1.ServerError{Code: code, Message: text}}})
}

// ack is a V2 client's acknowledgement of every delivery up to seq.
func (s *Session) ack(seq uint64) {
	s.mu.Lock()
	known := s.v2() && !s.ahead(seq)
	if known {
		s.ackedSeq = max(s.ackedSeq, seq)
		s.confirm(int64(seq))
	}
	s.mu.Unlock()
	if !known {
		s.reject(strangeAck, errInvalid, "acknowledgement of what was not sent")
	}
}

// message stamps a client's message and publishes it.
func (s *Session) message(src []byte) {
	id := s.Identity()
	stamp := frame.Stamp{Tenant: id.Tenant, User: id.User, Device: id.Device, TimestampMS: time.Now().UnixMilli()}
	room := len(src) + len(id.Tenant) + len(id.User) + len(id.Device) + 64
	m, h, err := frame.AppendMessage(make([]byte, 0, room), src, stamp)
	if err == nil && h.MsgID == "" {
		stamp.MsgID = newID()
		m, h, err = frame.AppendMessage(m[:0], src, stamp)
	}
	switch {
	case errors.Is(err, frame.ErrMalformed):
		s.reject(malformed, errInvalid, "invalid protobuf")
		return
	case err != nil:
		s.fail(h.MsgID, "internal error")
		return
	}
	s.host.metrics.message(h.Type).Inc()
	if len(h.Body) > s.host.cfg.MaxMessageBytes {
		s.fail(h.MsgID, bodyTooLarge)
		return
	}
	var traceparent string
	var end func()
	if trace := s.host.cfg.Trace; trace != nil {
		traceparent, end = trace(id.Tenant)
	}
	done := s.acquire()
	switch {
	case done == nil:
		if end != nil {
			end()
		}
		return
	case end != nil:
		answered := done
		done = func(ack []byte) { end(); answered(ack) }
	}
	s.host.cfg.Uplink.Publish(s, h.MsgID, m, traceparent, done)
}

func (m *metrics) message(t messagev1.MessageType) *telemetry.Counter {
	switch t {
	case messagev1.MessageType_SINGLE_CHAT:
		return m.single
	case messagev1.MessageType_GROUP_CHAT:
		return m.group
	}
	return m.other
}

// newID is a UUIDv7, by which a message can be found in logs in the order of time.
func newID() string {
	id, err := uuid.NewV7()
	if err != nil {
		panic(err) // the system has no random numbers
	}
	return id.String()
}

// fail answers a message without asking a router.
func (s *Session) fail(msgID, reason string) {
	s.reply(serverFrame(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Ack{Ack: &messagev1.MessageAck{
		MsgId: msgID, Status: messagev1.AckStatus_FAILED, TimestampMs: time.Now().UnixMilli(), Reason: reason,
	}}}))
}

// acquire waits until one more message may be without an answer and returns what
// takes the answer, nil when the session has ended, or is suspended: its client
// sends the message again.
func (s *Session) acquire() func(ack []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.unanswered >= maxUnanswered && s.phase != ended && s.phase != suspended {
		room := s.change()
		s.paused.Store(true)
		s.mu.Unlock()
		<-room
		s.mu.Lock()
		s.lastIn.Store(s.host.now()) // the silence was ours
		s.paused.Store(false)
	}
	if s.phase == ended || s.phase == suspended {
		return nil
	}
	s.unanswered++
	if s.answer == nil {
		s.answer = s.answered
	}
	return s.answer
}

// answered takes the outcome of a message, a serialized MessageAck.
func (s *Session) answered(ack []byte) {
	const fieldAck = 3 // of ServerFrame
	n := protowire.SizeTag(fieldAck) + protowire.SizeBytes(len(ack))
	b := ws.AppendHeader(make([]byte, 0, n+ws.HeaderSize(n)), ws.Binary, n)
	b = frame.AppendAck(b, ack)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unanswered--; s.unanswered == maxUnanswered-1 {
		s.notify()
	}
	s.push(b)
	if s.pending && !s.frozen && s.unanswered == 0 {
		s.close(s.code, s.reason, false)
	}
}

// admitFrame is the flood limit: a frame over it waits, so that nothing is lost
// and the client is slowed down by its own socket. False: it floods for too long,
// and is being closed.
func (s *Session) admitFrame() bool {
	gap := s.host.floodGap
	if gap == 0 {
		return true
	}
	now := s.host.now()
	s.tat = max(s.tat, now) + gap
	wait := s.tat - now - int64(floodBurst*time.Second)
	if wait <= 0 {
		s.floodSince = 0
		return true
	}
	s.host.metrics.flood.Inc()
	if s.floodSince == 0 {
		s.floodSince = now
	}
	s.host.logFlood(s, now)
	s.mu.Lock()
	if s.phase == live && now-s.floodSince > int64(floodPatience) {
		s.close(CodeFlood, "message flood", false)
	}
	if now-s.floodTold >= int64(time.Second) {
		s.floodTold = now
		s.push(serverError(errFlood, "too many messages"))
	}
	over := s.code == CodeFlood
	s.mu.Unlock()
	if over {
		// A flood must not go on for as long as the client does not answer.
		return false
	}
	s.paused.Store(true)
	time.Sleep(time.Duration(wait))
	s.lastIn.Store(s.host.now())
	s.paused.Store(false)
	return true
}

// logFlood logs once a second for all sessions.
func (h *Host) logFlood(s *Session, now int64) {
	last := h.floodLine.Load()
	if last != 0 && now-last < int64(time.Second) || !h.floodLine.CompareAndSwap(last, now) {
		return
	}
	id := s.Identity()
	h.log.Warn("rate_limited", "type", "message_flood", telemetry.TenantID, id.Tenant, "UserId", id.User,
		"threshold", h.cfg.FloodPerSecond, "current", h.floodRate(s, now))
}

// floodRate is how many frames a second the client has sent since its burst was
// used up, at least.
func (h *Host) floodRate(s *Session, now int64) int64 {
	ahead := s.tat - now - int64(floodBurst*time.Second)
	return int64(h.cfg.FloodPerSecond) + ahead/h.floodGap
}
