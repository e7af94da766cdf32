package frame

import (
	"bytes"
	"errors"
	"reflect"
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
	overlong := []byte{0xca, 0x80, 0x00, 0x01, 'z'} // field 9 as bytes, its tag in three bytes instead of one
	deep := append(bytes.Repeat([]byte{0x7b}, 9000), bytes.Repeat([]byte{0x7c}, 9000)...)
	tooDeep := append(bytes.Repeat([]byte{0x7b}, 11000), bytes.Repeat([]byte{0x7c}, 11000)...)
	return [][]byte{
		overlong, deep, tooDeep,
		{0x0c}, {0x0b, 0x0c}, {0x0b, 0x14}, // an end without a start, a group, a group with another's end
		{0x22, 0x01, 'a', 0x22, 0x00},                                              // msg_id given, then emptied
		{0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},         // msg_type -1
		{0x28, 0x80, 0x80, 0x80, 0x80, 0x10},                                       // msg_type 2^32: truncated to 0
		{0xf8, 0xff, 0xff, 0xff, 0x0f, 0x00}, {0x80, 0x80, 0x80, 0x80, 0x10, 0x00}, // the largest field number, and one too large
		{0x48, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02}, {0x06, 0x00}, // a varint of 65 bits, a reserved wire type
		{0x12, 0x00, 0x0a, 0x01, 0x80}, {0x0a, 0x02, 0x2a, 0x00, 0x12, 0x00}, {0x12, 0x00, 0x1a, 0x00}, // two payloads
		nil, {0xff}, {0x0a, 0x05}, marshal(t, full), unknown, twice,
		marshal(t, &messagev1.ClientFrame{Payload: &messagev1.ClientFrame_HeartbeatPing{HeartbeatPing: &messagev1.HeartbeatPing{TimestampMs: -7}}}),
		marshal(t, &messagev1.ClientFrame{Payload: &messagev1.ClientFrame_DeliveryAck{DeliveryAck: &messagev1.DeliveryAck{Seq: 9}}}),
		{0x0a, 0x03, 0x22, 0x01, 0xff}, // msg_id is not UTF-8
	}
}

// fataler is a test, also one of many random cases.
type fataler interface {
	Fatalf(format string, args ...any)
}

// checkClient holds ParseClient and ParseMessage against the library.
func checkClient(t fataler, b []byte) {
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
		if !errors.Is(err, ErrMalformed) {
			t.Fatalf("%x: error %v is not ErrMalformed", b, err)
		}
		return
	}
	switch got.Kind {
	case None:
		if want.Payload != nil {
			t.Fatalf("%x: missed %v", b, want.Payload)
		}
	case Message:
		if w := want.GetMessage(); w == nil || !same(h, w) {
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

// same tells whether the header says what the library decoded.
func same(h Header, w *messagev1.MessageRequest) bool {
	return h.Tenant == w.TenantId && h.User == w.UserId && h.Device == w.DeviceId && h.MsgID == w.MsgId && h.Type == w.MsgType &&
		h.ToUser == w.ToUserId && h.Group == w.GroupId && bytes.Equal(h.Body, w.MsgBody) && h.TimestampMS == w.TimestampMs
}

// checkMessage holds ParseMessage against the library.
func checkMessage(t fataler, b []byte) {
	var want messagev1.MessageRequest
	wantErr := proto.Unmarshal(b, &want)
	h, err := ParseMessage(b)
	if (err != nil) != (wantErr != nil) || err != nil && !errors.Is(err, ErrMalformed) {
		t.Fatalf("%x: error %v, the library's %v", b, err, wantErr)
	}
	if err == nil && !same(h, &want) {
		t.Fatalf("%x: got %+v, want %v", b, h, &want)
	}
}

// checkStamp holds AppendMessage against editing the decoded message: the bytes
// must be the library's own.
func checkStamp(t fataler, b []byte) {
	var want messagev1.MessageRequest
	wantErr := proto.Unmarshal(b, &want)
	stamp := Stamp{Tenant: "t", User: "ann", Device: "d", MsgID: "filled", TimestampMS: 1}
	src := bytes.Clone(b)
	out, h, err := AppendMessage([]byte("before"), b, stamp)
	if !bytes.Equal(src, b) {
		t.Fatalf("%x: the source was changed to %x", src, b)
	}
	if (err != nil) != (wantErr != nil) {
		t.Fatalf("%x: error %v, the library's %v", b, err, wantErr)
	}
	out, ok := bytes.CutPrefix(out, []byte("before"))
	if !ok {
		t.Fatalf("%x: what was in dst is gone: %x", b, out)
	}
	if err != nil {
		if !errors.Is(err, ErrMalformed) || len(out) != 0 {
			t.Fatalf("%x: error %v, appended %x", b, err, out)
		}
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
	canonical, err := proto.MarshalOptions{Deterministic: true}.Marshal(&want)
	if err != nil || !bytes.Equal(out, canonical) {
		t.Fatalf("%x: %v\ngot  %x\nwant %x", b, err, out, canonical)
	}
	if again, err := ParseMessage(out); err != nil || !reflect.DeepEqual(plain(again), plain(h)) {
		t.Fatalf("%x: header %+v, parsed again %+v, %v", b, h, again, err)
	}
}

// plain makes an empty body nil, for comparing.
func plain(h Header) Header {
	if len(h.Body) == 0 {
		h.Body = nil
	}
	return h
}

func TestAgainstTheLibrary(t *testing.T) {
	for _, b := range seeds(t) {
		checkClient(t, b)
		checkMessage(t, b)
		checkStamp(t, b)
	}
}

func FuzzParseClient(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkClient(t, b) })
}

func FuzzParseMessage(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkMessage(t, b) })
}

func FuzzAppendMessage(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkStamp(t, b) })
}

// Whatever room dst has, and so wherever appending has to move it.
func TestBodyIsInWhatAppendMessageReturns(t *testing.T) {
	src := protowire.AppendTag(marshal(t, full), 99, protowire.BytesType)
	src = protowire.AppendString(src, "from the future")
	for room := range 2 * len(src) {
		out, h, err := AppendMessage(make([]byte, 0, room), src, stamp)
		if err != nil {
			t.Fatal(err)
		}
		clear(out)
		if !bytes.Equal(h.Body, make([]byte, len(full.MsgBody))) {
			t.Errorf("room for %d bytes: the body is elsewhere", room)
		}
		if len(h.Body) != cap(h.Body) {
			t.Errorf("room for %d bytes: appending to the body overwrites what follows", room)
		}
	}
}

func TestAStampThatIsNotUTF8IsRefused(t *testing.T) {
	for name, s := range map[string]Stamp{
		"tenant": {Tenant: "\xff"}, "user": {User: "\xff"}, "device": {Device: "\xff"}, "msg_id": {MsgID: "\xff"},
	} {
		out, _, err := AppendMessage([]byte("before"), marshal(t, full), s)
		if err == nil || errors.Is(err, ErrMalformed) || string(out) != "before" {
			t.Errorf("%s: %v, appended %q", name, err, out)
		}
	}
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
	if Key(resend) != k || !IsRepeat(h, resend) {
		t.Error("a resend with a new timestamp is not recognised")
	}
	for name, change := range map[string]func(*Header){
		"tenant":    func(h *Header) { h.Tenant = "t2" },
		"user":      func(h *Header) { h.User = "u2" },
		"device":    func(h *Header) { h.Device = "d2" },
		"msg_id":    func(h *Header) { h.MsgID = "2" },
		"group":     func(h *Header) { h.Group = "g" },
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
		if IsRepeat(h, other) {
			t.Errorf("other %s, and yet a repeat", name)
		}
	}
}
