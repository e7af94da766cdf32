package session

import (
	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/internal/telemetry"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/proto"
)

// connected is ConnectAck.code.
const connected = 1000

// maxSeq keeps seqs within what a position can be.
const maxSeq = 1 << 62

// Open admits the session: the client gets a ConnectAck, the backlog, what has
// come since the route was bound, and then what comes. It keeps a. The client is
// read from now on, by a goroutine of its own.
func (s *Session) Open(a Admission) {
	h := s.host
	a.Resumed = s.v2() && a.resumes()
	var resumeToken string
	if s.v2() {
		resumeToken = a.ResumeToken
	}
	t := h.tenant(a.Tenant, a.Heartbeat)
	ack := serverFrame(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_ConnectAck{ConnectAck: &messagev1.ConnectAck{
		Code: connected, TenantId: a.Tenant, UserId: a.User, DeviceId: a.Device, NodeId: h.cfg.NodeID, TraceId: a.TraceID,
		HeartbeatTimeoutSeconds: int32(t.heartbeat.Seconds()), Version: int32(s.version),
		ResumeToken: resumeToken, Resumed: a.Resumed,
	}}})
	h.log.Info("ws_connected", telemetry.TenantID, a.Tenant, "UserId", a.User, "DeviceId", a.Device, telemetry.TraceID, a.TraceID,
		"SessionId", s.id, "remote", s.remote, "version", s.version, "backlog", len(a.Backlog), "resumed", a.Resumed)
	h.metrics.connected.Inc()
	h.metrics.open.Add(1)
	if a.Resumed {
		h.metrics.resumed.Inc()
	}

	now := h.now()
	s.lastIn.Store(now) // opening is not the client's silence
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tenant, s.user, s.device, s.epoch = t, a.User, a.Device, a.Epoch
	s.phase, s.migrated = live, a.Resumed && a.Migrated
	s.acked = a.Acked
	s.enqueueFrame(ack)
	s.admit(a, now)
	h.owner.Opened(s, a.Identity)
	s.reading = true
	go s.read() // ends with the socket; Gone waits for it
	s.flushSoon()
	if s.pending {
		s.pending = false
		s.close(s.code, s.reason, s.frozen) // the device is elsewhere, where all of this goes
	}
	s.notify()
}

// resumes says that an earlier session goes on, and that the seqs are as they must
// be: in a row, up to NextSeq-1.
func (a *Admission) resumes() bool {
	if !a.Resumed || a.NextSeq == 0 || a.NextSeq > maxSeq {
		return false
	}
	n := uint64(0)
	for n < uint64(len(a.Backlog)) && a.Backlog[n].GetSeq() != 0 {
		n++
	}
	for i := range n {
		if a.Backlog[i].GetSeq() != a.NextSeq-n+i {
			return false
		}
	}
	return true
}

// admit queues the backlog and, behind it, what was held while opening. It looks
// for repeats in the keys that the device has had before and within all of this.
// The session is locked.
func (s *Session) admit(a Admission, now int64) {
	held := s.win.take()
	if len(a.RecentKeys) > 0 {
		s.recent = &recent{}
		s.recent.inherit(a.RecentKeys, a.RecentAges, now)
	}
	home := s.host.Router(a.Home)
	s.host.metrics.backlog.Add(int64(len(a.Backlog)))
	if a.Resumed {
		s.base = int64(a.NextSeq) - 1
		s.tail = s.base
		if len(a.Backlog) > 0 && a.Backlog[0].GetSeq() != 0 {
			s.tail = int64(a.Backlog[0].GetSeq()) - 1
		}
		s.sent, s.written = s.tail, s.tail
	}
	for _, u := range a.Backlog {
		if d := newDelivery(home, u); a.Resumed && u.GetSeq() != 0 {
			s.deliver(d, now) // the seq is its own, whatever is known of its key
		} else {
			s.admitOne(d, now)
		}
	}
	for _, e := range held {
		s.admitOne(e.d, now)
	}
	s.win.tell(s.id)
}

func (s *Session) admitOne(d *Delivery, now int64) {
	if s.recent.has(d.key, now) {
		s.repeat(d)
		return
	}
	s.deliver(d, now)
}

// Refuse ends a session that was not admitted, with a close frame. neverOpened
// says that a router may have admitted it all the same, because at least one call
// of OpenSession has had no answer; it must be false when none was sent, because
// then routers are told of a session that they need not know.
func (s *Session) Refuse(code int, reason string, neverOpened bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.shut, s.refused, s.pending = closing, true, true, false
	// Something was delivered to it: then some router has admitted it.
	s.neverOpened = neverOpened || len(s.win.entries) > 0
	s.code, s.reason = code, reason
	s.reading = true
	go s.read() // for the answer to the close frame; ends with the socket
	s.queueClose()
}

// serverFrame encodes a WebSocket frame of a message that always can be.
func serverFrame(m *messagev1.ServerFrame) []byte {
	n := proto.Size(m)
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(ws.AppendHeader(make([]byte, 0, n+ws.HeaderSize(n)), ws.Binary, n), m)
	if err != nil {
		// Only text that is not UTF-8, which no caller puts in.
		return ws.AppendFrame(nil, ws.Binary, nil)
	}
	return b
}
