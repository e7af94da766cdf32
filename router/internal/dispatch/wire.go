package dispatch

import (
	"cmp"
	"time"

	"github.com/mics-im/mics/internal/frame"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/router/internal/offline"
)

// Messages reads what a session gives back. What came without a key gets the one
// that its content has, if it can be read.
func Messages(undelivered []*gatewayv1.Undelivered) []*Message {
	out := make([]*Message, len(undelivered))
	for i, u := range undelivered {
		m := &Message{Bytes: u.GetMessage(), Unmoderated: u.GetUnmoderated()}
		if len(u.GetKey()) == len(m.Key) {
			copy(m.Key[:], u.GetKey())
		} else if h, err := frame.ParseMessage(m.Bytes); err == nil {
			m.Key = frame.Key(h)
		}
		out[i] = m
	}
	return out
}

// Accepted is Messages of a session that never got its backlog: they have their places
// among what is kept, by when the cluster took them. Those of which the gateway does not
// know that have since, in their order.
func Accepted(undelivered []*gatewayv1.Undelivered, since time.Time) []*Message {
	out := Messages(undelivered)
	for i, m := range out {
		m.At = cmp.Or(undelivered[i].GetTakenAt(), since.UnixNano()+int64(i))
	}
	return out
}

// Kept is the message of an entry of the offline buffer.
func Kept(e offline.Entry) *Message {
	return &Message{Bytes: e.Bytes, Unmoderated: e.Unmoderated, Key: e.Key, At: e.At, Front: e.Front}
}
