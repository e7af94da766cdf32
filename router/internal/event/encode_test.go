package event

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"google.golang.org/protobuf/proto"
)

// itemOf is the event that e was made of.
func itemOf(e *hookv1.MqEvent) (*encoder, *item) {
	return &encoder{tenant: e.TenantId, node: e.NodeId}, &item{seq: e.TenantSeq, Event: Event{
		Type: e.EventType, MsgID: e.MsgId, User: e.UserId, Device: e.DeviceId, ToUser: e.ToUserId, Group: e.GroupId,
		Data: e.EventData, Time: time.UnixMilli(e.Timestamp), TraceID: e.TraceId, Unmoderated: e.Unmoderated,
	}}
}

func TestGoldenEvents(t *testing.T) {
	raw, err := os.ReadFile("../../../proto/testdata/events.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct{ Name, Message, Secret, Hex string }
	if err := json.Unmarshal(raw, &vectors); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, v := range vectors {
		if v.Message != "mics.hook.v1.MqEvent" {
			continue
		}
		want, err := hex.DecodeString(v.Hex)
		if err != nil {
			t.Fatal(err)
		}
		e := &hookv1.MqEvent{}
		if err := proto.Unmarshal(want, e); err != nil {
			t.Fatal(err)
		}
		if len(e.ProtoReflect().GetUnknown()) > 0 {
			continue // of a later version
		}
		tried++
		enc, it := itemOf(e)
		enc.use(v.Secret)
		if got := enc.encode(it); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", v.Name, got, want)
		}
	}
	if tried < 4 {
		t.Fatalf("only %d vectors were tried", tried)
	}
}

func TestEncodingIsProtobufs(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	text := func() string { return strings.Repeat("x", r.IntN(3)*r.IntN(200)) }
	for range 500 {
		e := &hookv1.MqEvent{
			TenantId: text(), EventType: hookv1.EventType(r.IntN(5)), MsgId: text(), UserId: text(), DeviceId: text(), ToUserId: text(),
			GroupId: text(), EventData: []byte(text()), Timestamp: r.Int64N(math.MaxInt64), NodeId: text(), TraceId: text(),
			Unmoderated: r.IntN(2) == 0, TenantSeq: r.Uint64() >> r.IntN(64),
		}
		enc, it := itemOf(e)
		it.Time = time.UnixMilli(e.Timestamp)
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if got := enc.encode(it); !bytes.Equal(got, want) {
			t.Fatalf("%v:\n got %x\nwant %x", e, got, want)
		}
	}
}

func TestSecretsMayChange(t *testing.T) {
	enc := &encoder{tenant: "t", node: "n"}
	it := &item{seq: 1, Event: chat("m", "a", "b")}
	for _, s := range []string{"one", "two", "", "one"} {
		enc.use(s)
		r := parse(t, enc.encode(it), s)
		if s == "" && r.Text[11] != "" || s != "" && !r.Signed {
			t.Errorf("with secret %q: sign %q", s, r.Text[11])
		}
	}
	enc.use("old")
	raw := enc.encode(it)
	enc.use("new")
	if r := parse(t, enc.encode(&item{raw: raw}), "new"); !r.Signed || r.seq() != 1 || r.msg() != "m" {
		t.Errorf("an event from the dead letters: %+v", r)
	}
	if got := enc.encode(&item{raw: []byte("\xff\xff")}); string(got) != "\xff\xff" {
		t.Errorf("what is no event became %x", got)
	}
}

func TestKeysAreWhereKafkasOwnClientsPutThem(t *testing.T) {
	// Of org.apache.kafka.common.utils.Utils.murmur2, from its own test, without
	// the sign, which toPositive takes away.
	for key, hash := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		if got := partition(key, math.MaxInt32); got != int(hash&0x7fffffff)%math.MaxInt32 {
			t.Errorf("%s: %d", key, got)
		}
	}
}

func TestTopicsThatKafkaWouldRefuse(t *testing.T) {
	for tenant, want := range map[string]bool{
		"acme": true, "A.b_c-9": true, "a b": false, "ä": false, "a/b": false, strings.Repeat("x", 231): true, strings.Repeat("x", 232): false,
	} {
		if usable(tenant) != want {
			t.Errorf("%q: %v", tenant, !want)
		}
	}
	if n := len(DeadLetters(strings.Repeat("x", 231))); n > maxTopic {
		t.Errorf("a topic of %d bytes", n)
	}
}
