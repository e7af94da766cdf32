package hook

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// Errors of ParseEvent and DecodeEvent; compare with [errors.Is].
var (
	// ErrMalformed: the bytes are no event, or what is in it is not what its type
	// says.
	ErrMalformed = errors.New("hook: malformed event")
	// ErrSignature: the event is not signed with the secret.
	ErrSignature = errors.New("hook: event signature does not match")
	// ErrNoSecret: an empty secret verifies nothing.
	ErrNoSecret = errors.New("hook: no secret")
)

// The kinds of events.
const (
	ConnectOnline  = hookv1.EventType_CONNECT_ONLINE
	ConnectOffline = hookv1.EventType_CONNECT_OFFLINE
	SingleChat     = hookv1.EventType_SINGLE_CHAT_MSG
	GroupChat      = hookv1.EventType_GROUP_CHAT_MSG
	OfflineMessage = hookv1.EventType_OFFLINE_MESSAGE
)

// ConnectAck is what a client was told when it connected.
type ConnectAck = messagev1.ConnectAck

// Event is what happened: MqEvent's fields, and its event_data decoded.
// EventType tells which of the two payloads is set; of a type that a later
// version adds none is.
type Event struct {
	*hookv1.MqEvent
	// Connection of ConnectOnline and ConnectOffline.
	Connection *ConnectAck
	// Message of SingleChat, GroupChat and OfflineMessage.
	Message *Message
}

// Time is when it happened, to the millisecond.
func (e *Event) Time() time.Time { return time.UnixMilli(e.GetTimestamp()) }

// ParseEvent verifies and decodes the value of a Kafka record. Give it more than
// one secret while one replaces another. value may be reused afterwards.
func ParseEvent(value []byte, secrets ...string) (*Event, error) {
	secrets = known(secrets)
	if len(secrets) == 0 {
		return nil, ErrNoSecret
	}
	raw, err := decode(value)
	if err != nil {
		return nil, err
	}
	ok, err := verify(secrets, raw.GetSign(), nil, withoutSign(value, eventSign), func() ([]byte, error) {
		c := proto.CloneOf(raw)
		c.Sign = ""
		return canonical(c)
	})
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, ErrSignature
	}
	return open(raw)
}

// DecodeEvent decodes without verifying, for a tenant that has no secret.
func DecodeEvent(value []byte) (*Event, error) {
	raw, err := decode(value)
	if err != nil {
		return nil, err
	}
	return open(raw)
}

func decode(value []byte) (*hookv1.MqEvent, error) {
	raw := &hookv1.MqEvent{}
	if err := proto.Unmarshal(value, raw); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return raw, nil
}

// open decodes event_data.
func open(raw *hookv1.MqEvent) (*Event, error) {
	e := &Event{MqEvent: raw}
	var data proto.Message
	switch raw.GetEventType() {
	case ConnectOnline, ConnectOffline:
		e.Connection = &ConnectAck{}
		data = e.Connection
	case SingleChat, GroupChat, OfflineMessage:
		e.Message = &Message{}
		data = e.Message
	default:
		return e, nil
	}
	if err := proto.Unmarshal(raw.GetEventData(), data); err != nil {
		return nil, fmt.Errorf("%w: event_data of %s: %w", ErrMalformed, raw.GetEventType(), err)
	}
	return e, nil
}

// SignEvent signs an event as the cluster does, for tests of a tenant's
// consumer. Its sign is replaced.
func SignEvent(e *hookv1.MqEvent, secret string) error {
	if secret == "" {
		return ErrNoSecret
	}
	e.Sign = ""
	plain, err := canonical(e)
	if err != nil {
		return err
	}
	e.Sign = sum(secret, plain)
	return nil
}
