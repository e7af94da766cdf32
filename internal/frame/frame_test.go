package frame

import (
	"bytes"
	"testing"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var full = &messagev1.MessageRequest{
	TenantId: "evil", UserId: "eve", DeviceId: "x", MsgId: "1", MsgType: messagev1.MessageType_GROUP_CHAT,
	ToUserId: "bob", GroupId: "g", MsgBody: []byte{0, 1, 2}, TimestampMs: 42,
}

func seeds(t testing.TB) [][]byte {
	unknown := protowire.AppendTag(marshal(t, full), 99, protowire.BytesType)
	unknown = protowire.AppendString(unknown, "from the future")
	twice := append(marshal(t, &messagev1.ClientFrame{Payload: &messagev1.ClientFrame_Message{Message: full}}),
		marshal(t, &messagev1.ClientFrame{Payload: &messagev1.ClientFrame_Message{Message: &messagev1.MessageRequest{MsgId: "2"}}})...)
	return [][]byte{
		nil, {0xff}, {0x0a, 0x05}, marshal(t, full), unknown, twice,
		marshal(t, &messagev1.ClientFrame{Payload: &messagev1.ClientFrame_HeartbeatPing{HeartbeatPing: &messagev1.HeartbeatPing{TimestampMs: -7}}}),
		marshal(t, &messagev1.ClientFrame{Payload: &messagev1.ClientFrame_DeliveryAck{DeliveryAck: &messagev1.DeliveryAck{Seq: 9}}}),
		{0x0a, 0x03, 0x22, 0x01, 0xff}, // msg_id is not UTF-8
	}
}

// checkClient holds ParseClient and ParseMessage against the library.
func checkClient(t *testing.T, b []byte) {
	var want messagev1.ClientFrame
	wantErr := proto.Unmarshal(b, &want)
	got, err := ParseClient(b)
	var h Header
	if err == nil && got.Kind == Message {
		h, err = ParseMessage(got.Message)
	}
	if (err != nil) != (wantErr != nil) {
		t.Fatalf("%x: error %v, the library's %v", b, err, wantErr)
	}
	if err != nil {
		return
	}
	switch got.Kind {
	case None:
		if want.Payload != nil {
			t.Fatalf("%x: missed %v", b, want.Payload)
		}
	case Message:
		w := want.GetMessage()
		if w == nil || h.MsgID != w.MsgId || h.Type != w.MsgType || h.ToUser != w.ToUserId || h.Group != w.GroupId ||
			!bytes.Equal(h.Body, w.MsgBody) || h.TimestampMS != w.TimestampMs || h.Tenant != w.TenantId || h.User != w.UserId || h.Device != w.DeviceId {
			t.Fatalf("%x: got %+v, want %v", b, h, w)
		}
	case Ping:
		if want.GetHeartbeatPing() == nil || got.PingTimestampMS != want.GetHeartbeatPing().TimestampMs {
			t.Fatalf("%x: ping %d, want %v", b, got.PingTimestampMS, &want)
		}
	case Ack:
		if want.GetDeliveryAck() == nil || got.AckSeq != want.GetDeliveryAck().Seq {
			t.Fatalf("%x: ack %d, want %v", b, got.AckSeq, &want)
		}
	}
}

// checkStamp holds AppendMessage against editing the decoded message.
func checkStamp(t *testing.T, b []byte) {
	var want messagev1.MessageRequest
	wantErr := proto.Unmarshal(b, &want)
	stamp := Stamp{Tenant: "t", User: "ann", Device: "d", MsgID: "filled", TimestampMS: 1}
	out, h, err := AppendMessage(nil, b, stamp)
	if (err != nil) != (wantErr != nil) {
		t.Fatalf("%x: error %v, the library's %v", b, err, wantErr)
	}
	if err != nil {
		return
	}
	want.TenantId, want.UserId, want.DeviceId = "t", "ann", "d"
	if want.MsgId == "" {
		want.MsgId = "filled"
	}
	if want.TimestampMs == 0 {
		want.TimestampMs = 1
	}
	var got messagev1.MessageRequest
	if err := proto.Unmarshal(out, &got); err != nil {
		t.Fatalf("%x: output does not parse: %v", b, err)
	}
	if !proto.Equal(&got, &want) {
		t.Fatalf("%x:\ngot  %v\nwant %v", b, &got, &want)
	}
	if h.MsgID != want.MsgId || h.TimestampMS != want.TimestampMs || h.User != "ann" {
		t.Fatalf("header %+v", h)
	}
}

func TestAgainstTheLibrary(t *testing.T) {
	for _, b := range seeds(t) {
		checkClient(t, b)
		checkStamp(t, b)
	}
}

func FuzzParseClient(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Fuzz(checkClient)
}

func FuzzAppendMessage(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Fuzz(checkStamp)
}

func TestServerFrames(t *testing.T) {
	for _, want := range []*messagev1.MessageDelivery{{Message: full}, {Message: full, Seq: 300, Unmoderated: true}, {Message: &messagev1.MessageRequest{}}} {
		got := AppendDelivery(nil, marshal(t, want.Message), want.Seq, want.Unmoderated)
		if exp := marshal(t, &messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Delivery{Delivery: want}}); !bytes.Equal(got, exp) {
			t.Errorf("delivery %x, want %x", got, exp)
		}
	}
	ack := &messagev1.MessageAck{MsgId: "1", Status: messagev1.AckStatus_FAILED, Reason: "no"}
	if got, exp := AppendAck(nil, marshal(t, ack)), marshal(t, &messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Ack{Ack: ack}}); !bytes.Equal(got, exp) {
		t.Errorf("ack %x, want %x", got, exp)
	}
}

func TestKeySeesContentAndNotTime(t *testing.T) {
	h := Header{Tenant: "t", User: "u", Device: "d", MsgID: "1", ToUser: "bob", Body: []byte("hi"), TimestampMS: 1}
	k := Key(h)
	resend := h
	resend.TimestampMS = 2
	if Key(resend) != k {
		t.Error("a resend with a new timestamp is not recognised")
	}
	for name, change := range map[string]func(*Header){
		"body":      func(h *Header) { h.Body = []byte("ho") },
		"recipient": func(h *Header) { h.ToUser = "carl" },
		"boundary":  func(h *Header) { h.User, h.Device = "ud", "" },
		"type":      func(h *Header) { h.Type = 1 },
	} {
		other := h
		change(&other)
		if Key(other) == k {
			t.Errorf("other %s, same key", name)
		}
	}
}

func BenchmarkAppendMessage(b *testing.B) {
	src := marshal(b, full)
	dst := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := AppendMessage(dst, src, Stamp{Tenant: "t", User: "ann", Device: "d"}); err != nil {
			b.Fatal(err)
		}
	}
}
