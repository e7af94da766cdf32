package session

import (
	"bytes"
	"testing"
	"testing/synctest"

	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/internal/frame"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/proto"
)

func TestAMessageLargerThanTheQueueIsDeliveredAlone(t *testing.T) {
	for _, version := range []uint32{1, 2} {
		inTime(t, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.QueueBytes = 1000 })
			s, c := w.connect(version)
			w.open(s)
			a := w.router("a")
			for id := range uint64(3) {
				body := make([]byte, 200_000)
				m, err := proto.Marshal(&messagev1.MessageRequest{MsgId: string(rune('1' + id)), MsgBody: body})
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if version == 2 {
					c.Ack(id)
					synctest.Wait()
				}
				want(t, "deliver", s.Deliver(NewDelivery(a.Router, &gatewayv1.Delivery{Id: id + 1, Message: m, Unmoderated: true})), accepted)
			}
			synctest.Wait()
			wantIDs(t, "shown", c.Delivered(), "1", "2", "3")
			d := c.Frames()[len(c.Frames())-1].GetDelivery()
			want(t, "size", len(d.GetMessage().GetMsgBody()), 200_000)
			want(t, "unmoderated", d.GetUnmoderated(), true)
			want(t, "seq", d.GetSeq(), uint64(version-1)*3)
		})
	}
}

func TestDeliveryFrames(t *testing.T) {
	r := &Router{}
	for _, size := range []int{0, 1, 100, 127, 128, 20_000, 70_000} {
		for _, unmoderated := range []bool{false, true} {
			d := NewDelivery(r, &gatewayv1.Delivery{Id: 1, Message: make([]byte, size), Unmoderated: unmoderated})
			if want := ws.AppendFrame(nil, ws.Binary, frame.AppendDelivery(nil, d.message, 0, unmoderated)); !bytes.Equal(d.frame, want) {
				t.Errorf("V1, %d bytes: other than internal/frame's", size)
			}
			for _, seq := range []uint64{1, 127, 128, 1 << 40} {
				got := d.appendSuffix(append(d.appendPrefix(nil, seq), d.message...), seq)
				if want := ws.AppendFrame(nil, ws.Binary, frame.AppendDelivery(nil, d.message, seq, unmoderated)); !bytes.Equal(got, want) || len(got) != d.size(seq) {
					t.Errorf("V2, %d bytes, seq %d: other than internal/frame's", size, seq)
				}
			}
		}
	}
}
