package session

import (
	"github.com/mics-im/mics/gateway/internal/ws"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"google.golang.org/protobuf/encoding/protowire"
)

// Delivery is one message on its way to any number of sessions, which share it.
// It is not modified after it was made.
type Delivery struct {
	router      *Router
	id          uint64
	key         key
	unmoderated bool
	takenAt     int64 // as the router told it
	// frame is the whole WebSocket frame as V1 clients get it.
	frame []byte
	// message is the serialized MessageRequest within it.
	message []byte
}

// key names a message; zero: it has no name.
type key [16]byte

func toKey(b []byte) key {
	if len(b) != len(key{}) {
		return key{}
	}
	return key(b)
}

// NewDelivery encodes a delivery once for all its sessions. It does not keep d.
func NewDelivery(r *Router, d *gatewayv1.Delivery) *Delivery {
	return newDelivery(r, &gatewayv1.Undelivered{
		Id: d.GetId(), Message: d.GetMessage(), Unmoderated: d.GetUnmoderated(), Key: d.GetKey(), TakenAt: d.GetTakenAt(),
	})
}

func newDelivery(r *Router, u *gatewayv1.Undelivered) *Delivery {
	d := &Delivery{router: r, id: u.GetId(), key: toKey(u.GetKey()), unmoderated: u.GetUnmoderated(), takenAt: u.GetTakenAt(), message: u.GetMessage()}
	b := d.appendPrefix(make([]byte, 0, d.size(0)), 0)
	at := len(b)
	b = append(b, d.message...)
	d.message = b[at:len(b):len(b)]
	d.frame = d.appendSuffix(b, 0)
	return d
}

func (d *Delivery) undelivered() *gatewayv1.Undelivered {
	u := &gatewayv1.Undelivered{Message: d.message, Unmoderated: d.unmoderated, TakenAt: d.takenAt}
	if d.key != (key{}) {
		u.Key = d.key[:]
	}
	return u
}

// Field numbers of ServerFrame and MessageDelivery. The frame is written here
// and not with frame.AppendDelivery because a large message must not be copied
// for each V2 session, whose frames differ in seq.
const (
	serverDelivery      = 2
	deliveryMessage     = 1
	deliverySeq         = 2
	deliveryUnmoderated = 3
)

// inner is the size of the MessageDelivery.
func (d *Delivery) inner(seq uint64) int {
	n := protowire.SizeTag(deliveryMessage) + protowire.SizeBytes(len(d.message))
	if seq != 0 {
		n += protowire.SizeTag(deliverySeq) + protowire.SizeVarint(seq)
	}
	if d.unmoderated {
		n += protowire.SizeTag(deliveryUnmoderated) + 1
	}
	return n
}

func (d *Delivery) payload(seq uint64) int {
	return protowire.SizeTag(serverDelivery) + protowire.SizeBytes(d.inner(seq))
}

// size is that of the whole WebSocket frame.
func (d *Delivery) size(seq uint64) int {
	n := d.payload(seq)
	return ws.HeaderSize(n) + n
}

// appendPrefix appends what comes before the message.
func (d *Delivery) appendPrefix(dst []byte, seq uint64) []byte {
	dst = ws.AppendHeader(dst, ws.Binary, d.payload(seq))
	dst = protowire.AppendTag(dst, serverDelivery, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(d.inner(seq)))
	dst = protowire.AppendTag(dst, deliveryMessage, protowire.BytesType)
	return protowire.AppendVarint(dst, uint64(len(d.message)))
}

// appendSuffix appends what comes after it.
func (d *Delivery) appendSuffix(dst []byte, seq uint64) []byte {
	if seq != 0 {
		dst = protowire.AppendTag(dst, deliverySeq, protowire.VarintType)
		dst = protowire.AppendVarint(dst, seq)
	}
	if d.unmoderated {
		dst = protowire.AppendTag(dst, deliveryUnmoderated, protowire.VarintType)
		dst = append(dst, 1)
	}
	return dst
}
