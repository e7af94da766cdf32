package session

import (
	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/internal/telemetry"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/proto"
)

// connected is ConnectAck.code.
const connected = 1000

// Open admits the session: the client gets a ConnectAck, the backlog, what has
// come since the route was bound, and then what comes. It keeps a. The client is
// read from now on, by a goroutine of its own.
func (s *Session) Open(a Admission) {
	h := s.host
	t := h.tenant(a.Tenant, a.Heartbeat)
	ack := serverFrame(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_ConnectAck{ConnectAck: &messagev1.ConnectAck{
		Code: connected, TenantId: a.Tenant, UserId: a.User, DeviceId: a.Device, NodeId: h.cfg.NodeID, TraceId: a.TraceID,
		HeartbeatTimeoutSeconds: int32(t.heartbeat.Seconds()), Version: int32(s.version),
	}}})
	h.log.Info("ws_connected", telemetry.TenantID, a.Tenant, "UserId", a.User, "DeviceId", a.Device, telemetry.TraceID, a.TraceID,
		"SessionId", s.id, "remote", s.remote, "version", s.version, "backlog", len(a.Backlog))
	h.metrics.connected.Inc()
	h.metrics.open.Add(1)

	now := h.now()
	s.lastIn.Store(now) // opening is not the client's silence
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tenant, s.user, s.device, s.epoch = t, a.User, a.Device, a.Epoch
	s.phase = live
	s.enqueueFrame(ack)
	s.admit(a, now)
	h.owner.Opened(s, a.Identity)
	s.reading = true
	go s.read() // ends with the socket; Gone waits for it
	s.flushSoon()
	if s.pending {
		s.pending = false
		s.close(s.code, s.reason, false)
	}
	s.notify()
}

// admit queues the backlog and, behind it, what was held while opening. It looks
// for repeats in the keys that the device has had before and within all of this.
// The session is locked.
func (s *Session) admit(a Admission, now int64) {
	held := s.win.take()
	if len(a.RecentKeys) > 0 {
		s.recent = &recent{}
		s.recent.inherit(a.RecentKeys, now)
	}
	home := s.host.Router(a.Home)
	s.host.metrics.backlog.Add(int64(len(a.Backlog)))
	for _, u := range a.Backlog {
		s.admitOne(newDelivery(home, u), now)
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
