package frame

import (
	"bytes"
	"fmt"
	"testing"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/proto"
)

// typical is a 1:1 message as a V2 client sends it.
func typical(body int) *messagev1.MessageRequest {
	return &messagev1.MessageRequest{
		TenantId: "tenant-1", UserId: "user-123", DeviceId: "phone", MsgId: "0192f3c4-7d1e-7abc-8def-0123456789ab",
		ToUserId: "user-456", MsgBody: bytes.Repeat([]byte("x"), body), TimestampMs: 1_700_000_000_000,
	}
}

var stamp = Stamp{Tenant: "tenant-1", User: "user-123", Device: "phone", MsgID: "unused", TimestampMS: 1}

func TestAllocations(t *testing.T) {
	m := typical(128)
	src := marshal(t, m)
	message := marshal(t, &messagev1.ClientFrame{Payload: &messagev1.ClientFrame_Message{Message: m}})
	ping := marshal(t, &messagev1.ClientFrame{Payload: &messagev1.ClientFrame_HeartbeatPing{HeartbeatPing: &messagev1.HeartbeatPing{TimestampMs: 1}}})
	h, err := ParseMessage(src)
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]byte, 0, 1024)
	for _, c := range []struct {
		name string
		want float64
		f    func()
	}{
		{"ParseClient of a message", 0, func() { _, _ = ParseClient(message) }},
		{"ParseClient of a ping", 0, func() { _, _ = ParseClient(ping) }},
		{"ParseMessage", 1, func() { _, _ = ParseMessage(src) }},
		{"AppendMessage", 1, func() { _, _, _ = AppendMessage(dst, src, stamp) }},
		{"AppendDelivery", 0, func() { _ = AppendDelivery(dst, src, 1, true) }},
		{"AppendAck", 0, func() { _ = AppendAck(dst, src) }},
		{"Key", 0, func() { _ = Key(h) }},
	} {
		if got := testing.AllocsPerRun(100, c.f); got != c.want {
			t.Errorf("%s allocates %v times, want %v", c.name, got, c.want)
		}
	}
}

func BenchmarkParseClient(b *testing.B) {
	frame := marshal(b, &messagev1.ClientFrame{Payload: &messagev1.ClientFrame_Message{Message: typical(128)}})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseClient(frame); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseMessage(b *testing.B) {
	src := marshal(b, typical(128))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseMessage(src); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendMessage(b *testing.B) {
	src := marshal(b, typical(128))
	dst := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := AppendMessage(dst, src, stamp); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLibrary is what AppendMessage replaces: decode, edit, encode.
func BenchmarkLibrary(b *testing.B) {
	src := marshal(b, typical(128))
	dst := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		var m messagev1.MessageRequest
		if err := proto.Unmarshal(src, &m); err != nil {
			b.Fatal(err)
		}
		m.TenantId, m.UserId, m.DeviceId = stamp.Tenant, stamp.User, stamp.Device
		if _, err := (proto.MarshalOptions{}).MarshalAppend(dst, &m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendDelivery(b *testing.B) {
	src := marshal(b, typical(128))
	dst := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		_ = AppendDelivery(dst, src, 300, false)
	}
}

func BenchmarkKey(b *testing.B) {
	for _, body := range []int{128, 1 << 20} {
		b.Run(fmt.Sprint(body), func(b *testing.B) {
			h, err := ParseMessage(marshal(b, typical(body)))
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				_ = Key(h)
			}
		})
	}
}
