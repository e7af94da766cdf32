package session

import (
	"net"
	"testing"
	"time"

	"github.com/mics-im/mics/gateway/internal/ws"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/proto"
)

// sinkConn is a socket that takes everything and brings nothing.
type sinkConn struct{ net.Conn }

func (sinkConn) Write(b []byte) (int, error)      { return len(b), nil }
func (sinkConn) Read([]byte) (int, error)         { return 0, net.ErrClosed }
func (sinkConn) Close() error                     { return nil }
func (sinkConn) SetWriteDeadline(time.Time) error { return nil }

// FuzzInbound: whatever a client sends in a frame, each message has exactly one
// outcome, and every other frame one answer or none.
func FuzzInbound(f *testing.F) {
	for _, m := range []*messagev1.ClientFrame{
		{},
		{Payload: &messagev1.ClientFrame_Message{Message: &messagev1.MessageRequest{MsgId: "1", ToUserId: "bob", MsgBody: []byte("hi")}}},
		{Payload: &messagev1.ClientFrame_Message{Message: &messagev1.MessageRequest{MsgBody: make([]byte, 300)}}},
		{Payload: &messagev1.ClientFrame_HeartbeatPing{HeartbeatPing: &messagev1.HeartbeatPing{TimestampMs: 1}}},
		{Payload: &messagev1.ClientFrame_DeliveryAck{DeliveryAck: &messagev1.DeliveryAck{Seq: 1}}},
		{Payload: &messagev1.ClientFrame_DeliveryAck{DeliveryAck: &messagev1.DeliveryAck{Seq: 1 << 63}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(ws.Binary), b)
	}
	f.Add(uint8(ws.Ping), []byte("x"))
	f.Add(uint8(ws.Binary), []byte{0x0a, 0x03, 0x22, 0x01, 0xff})
	w := newWorld(f, func(c *Config) { c.MaxMessageBytes = 200 })
	w.up.silent = true // answered below, so that the queue is not touched concurrently
	r := w.router("a")
	f.Fuzz(func(t *testing.T, op uint8, payload []byte) {
		s := w.host.NewSession(1, ws.NewConn(sinkConn{}, nil), Params{Tenant: "t", Version: 2})
		s.phase, s.user, s.device, s.writing = live, "ann", "d", true // no writing goroutine
		s.Deliver(r.delivery("1"))
		s.begin(&writer{})
		w.up.published = nil
		f := ws.Frame{Op: ws.Op(op % 11), Payload: payload}
		if f.Op == ws.Close || f.Op == ws.Text {
			return // not handled as a frame
		}
		s.frame(f)
		var want messagev1.ClientFrame
		err := proto.Unmarshal(payload, &want)
		answers := len(s.queue)
		switch {
		case f.Op != ws.Binary:
			return
		case err != nil:
			if answers != 1 || len(w.up.published) != 0 {
				t.Fatalf("%x is malformed: %d answers, %d published", payload, answers, len(w.up.published))
			}
		case want.GetMessage() != nil:
			if answers+len(w.up.published) != 1 || answers == 1 && len(want.GetMessage().MsgBody) <= 200 {
				t.Fatalf("%x is a message: %d answers, %d published", payload, answers, len(w.up.published))
			}
			for _, p := range w.up.published {
				if p.message.UserId != "ann" || p.message.TenantId != "t" || p.message.MsgId == "" || p.message.TimestampMs == 0 {
					t.Fatalf("published %v", p.message)
				}
			}
		case want.GetDeliveryAck() != nil:
			seq := want.GetDeliveryAck().Seq
			if (answers == 1) != (seq > 1) || (len(s.win.entries) == 0) != (seq == 1) {
				t.Fatalf("ack of %d: %d answers, window %d", seq, answers, len(s.win.entries))
			}
		default:
			if answers != 1 {
				t.Fatalf("%x: %d answers", payload, answers)
			}
		}
	})
}
