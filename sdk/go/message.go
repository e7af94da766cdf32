package mics

import (
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// Message is one message to send, to a user or to a group.
type Message struct {
	// ID makes a repeat recognisable: within ten minutes (60 s on connections
	// of version 1) the cluster delivers the same ID with the same content
	// once. Empty: a new UUIDv7.
	ID string
	// To is a user id, Group a group id; exactly one is set.
	To, Group string
	// Body is opaque to the cluster. It is copied before Send or Submit returns.
	Body []byte
}

// Ack is the cluster's SENT: it has taken responsibility for the message.
type Ack struct {
	// ID of the message; set also where an error is returned beside it, unless
	// the message was refused before it got one.
	ID string
	// Time at which the cluster decided.
	Time time.Time
	// Duplicate: an earlier message with this ID and content was SENT, and this
	// one was not delivered again.
	Duplicate bool
	// Partial: some members of the group could not be served.
	Partial bool
	// How many offline members were told through the tenant, have the message
	// in their buffer, or were left out.
	OfflineNotified, OfflineBuffered, OfflineSkipped uint32
}

// Delivery is one received message.
type Delivery struct {
	ID string
	// From and FromDevice are the authenticated sender.
	From, FromDevice string
	// To is the recipient of a single message, Group the group of a group one.
	To, Group string
	Body      []byte
	SentAt    time.Time
	// Unmoderated: it passed while the tenant's moderation was unavailable.
	Unmoderated bool
}

// encode gives m an id if it has none and renders the frame that is sent, and
// sent again.
func (m *Message) encode() ([]byte, error) {
	req := &messagev1.MessageRequest{ToUserId: m.To, GroupId: m.Group, MsgBody: m.Body}
	switch {
	case m.To != "" && m.Group == "":
		req.MsgType = messagev1.MessageType_SINGLE_CHAT
	case m.Group != "" && m.To == "":
		req.MsgType = messagev1.MessageType_GROUP_CHAT
	default:
		return nil, ErrRecipient
	}
	if m.ID == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("mics: make a message id: %w", err)
		}
		m.ID = id.String()
	}
	req.MsgId = m.ID
	req.TimestampMs = time.Now().UnixMilli()
	b, err := proto.Marshal(&messagev1.ClientFrame{Payload: &messagev1.ClientFrame_Message{Message: req}})
	if err != nil {
		return nil, fmt.Errorf("mics: encode message: %w", err)
	}
	return b, nil
}

func encodePing(now time.Time) []byte {
	return encodeControl(&messagev1.ClientFrame{Payload: &messagev1.ClientFrame_HeartbeatPing{
		HeartbeatPing: &messagev1.HeartbeatPing{TimestampMs: now.UnixMilli()},
	}})
}

func encodeAck(seq uint64) []byte {
	return encodeControl(&messagev1.ClientFrame{Payload: &messagev1.ClientFrame_DeliveryAck{
		DeliveryAck: &messagev1.DeliveryAck{Seq: seq},
	}})
}

func encodeControl(f *messagev1.ClientFrame) []byte {
	b, err := proto.Marshal(f)
	if err != nil {
		panic("mics: a frame of numbers has no field that can fail: " + err.Error())
	}
	return b
}

func newDelivery(p *messagev1.MessageDelivery) *Delivery {
	m := p.GetMessage()
	return &Delivery{
		ID: m.GetMsgId(), From: m.GetUserId(), FromDevice: m.GetDeviceId(),
		To: m.GetToUserId(), Group: m.GetGroupId(), Body: m.GetMsgBody(),
		SentAt:      time.UnixMilli(m.GetTimestampMs()),
		Unmoderated: p.GetUnmoderated(),
	}
}

// outcome translates an ack into what Send returns.
func outcome(a *messagev1.MessageAck) (Ack, error) {
	ack := Ack{ID: a.GetMsgId(), Time: time.UnixMilli(a.GetTimestampMs())}
	if a.GetStatus() != messagev1.AckStatus_SENT {
		return ack, &SendError{ID: a.GetMsgId(), Reason: a.GetReason()}
	}
	ack.Duplicate = a.GetReason() == "duplicate"
	ack.Partial = a.GetPartialDelivery()
	ack.OfflineNotified = a.GetOfflineNotifiedUsers()
	ack.OfflineBuffered = a.GetOfflineBufferedUsers()
	ack.OfflineSkipped = a.GetOfflineSkippedUsers()
	return ack, nil
}
