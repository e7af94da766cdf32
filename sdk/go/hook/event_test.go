package hook

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

// value encodes an event after signing it.
func value(t testing.TB, e *hookv1.MqEvent) []byte {
	t.Helper()
	if err := SignEvent(e, secret); err != nil {
		t.Fatal(err)
	}
	return encode(t, e)
}

func TestParseEvent(t *testing.T) {
	ack := &ConnectAck{Code: 1000, UserId: "ann", NodeId: "gw-1"}
	said := &Message{UserId: "ann", ToUserId: "bob", MsgBody: []byte("hi")}
	for kind, want := range map[hookv1.EventType]proto.Message{
		ConnectOnline: ack, ConnectOffline: ack, SingleChat: said, GroupChat: said, OfflineMessage: said,
	} {
		e, err := ParseEvent(value(t, &hookv1.MqEvent{EventType: kind, EventData: encode(t, want), Timestamp: 1_764_000_000_123}), "retired", secret)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		var got proto.Message = e.Message
		if e.Message == nil {
			got = e.Connection
		}
		if !proto.Equal(got, want) {
			t.Errorf("%s: payload %v, want %v", kind, got, want)
		}
		if !e.Time().Equal(time.Date(2025, 11, 24, 16, 0, 0, 123_000_000, time.UTC)) {
			t.Errorf("time %s", e.Time())
		}
	}
	later, err := ParseEvent(value(t, &hookv1.MqEvent{EventType: 99, EventData: []byte("\xff")}), secret)
	if err != nil || later.Message != nil || later.Connection != nil {
		t.Errorf("of a later version: %+v, %v", later, err)
	}
}

func TestParseEventRefuses(t *testing.T) {
	good := value(t, &hookv1.MqEvent{TenantId: "acme", TenantSeq: 1})
	for name, c := range map[string]struct {
		value   []byte
		secrets []string
		want    error
	}{
		"no secret":     {good, nil, ErrNoSecret},
		"empty secrets": {good, []string{"", ""}, ErrNoSecret},
		"other secret":  {good, []string{"other", ""}, ErrSignature},
		"unsigned":      {encode(t, &hookv1.MqEvent{TenantId: "acme"}), []string{secret}, ErrSignature},
		"more at its end": {append(append([]byte{}, good...), encode(t, &hookv1.MqEvent{TenantSeq: 2})...),
			[]string{secret}, ErrSignature},
		"garbage":      {[]byte("garbage"), []string{secret}, ErrMalformed},
		"bad payload":  {value(t, &hookv1.MqEvent{EventType: SingleChat, EventData: []byte("\xff")}), []string{secret}, ErrMalformed},
		"bad and fake": {encode(t, &hookv1.MqEvent{EventType: SingleChat, EventData: []byte("\xff")}), []string{secret}, ErrSignature},
	} {
		if e, err := ParseEvent(c.value, c.secrets...); !errors.Is(err, c.want) || e != nil {
			t.Errorf("%s: %v, %v, want %v", name, e, err, c.want)
		}
	}
	if _, err := DecodeEvent([]byte("garbage")); !errors.Is(err, ErrMalformed) {
		t.Errorf("garbage: %v", err)
	}
}
