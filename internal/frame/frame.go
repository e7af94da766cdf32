// Package frame reads and builds client frames on the wire level: the cluster
// carries message bodies without decoding or copying them (DESIGN section 2).
// What it accepts and rejects is what proto.Unmarshal of mics.message.v1 does;
// a differential fuzz test holds it to that.
package frame

import (
	"errors"
	"fmt"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// ErrMalformed is in the chain of every parse error.
var ErrMalformed = errors.New("malformed protobuf")

// Kind says what a ClientFrame carries.
type Kind uint8

// Kinds of client frames. None is a frame without a known payload.
const (
	None Kind = iota
	Message
	Ping
	Ack
)

// Client is a parsed ClientFrame.
type Client struct {
	Kind Kind
	// Message is the serialized MessageRequest; it aliases the input. It is
	// not parsed yet: AppendMessage and ParseMessage tell whether it is sound.
	Message         []byte
	PingTimestampMS int64
	AckSeq          uint64
}

// Field numbers of ClientFrame, ServerFrame and MessageDelivery.
const (
	clientMessage, clientPing, clientAck = 1, 2, 3
	serverDelivery, serverAck            = 2, 3
	deliveryMessage, deliverySeq         = 1, 2
	deliveryUnmoderated                  = 3
)

// field reads one field: its number, its type, and its value as raw bytes (of
// a length-delimited one the content). rest is what follows.
func field(b []byte) (num protowire.Number, typ protowire.Type, val, rest []byte, err error) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return 0, 0, nil, nil, fmt.Errorf("%w: %w", ErrMalformed, protowire.ParseError(n))
	}
	if num > protowire.MaxValidNumber {
		return 0, 0, nil, nil, fmt.Errorf("%w: field number %d", ErrMalformed, num)
	}
	b = b[n:]
	if typ == protowire.BytesType {
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return 0, 0, nil, nil, fmt.Errorf("%w: %w", ErrMalformed, protowire.ParseError(n))
		}
		return num, typ, v, b[n:], nil
	}
	n = protowire.ConsumeFieldValue(num, typ, b)
	if n < 0 {
		return 0, 0, nil, nil, fmt.Errorf("%w: %w", ErrMalformed, protowire.ParseError(n))
	}
	return num, typ, b[:n], b[n:], nil
}

// varint is the value of a field that field read as a varint.
func varint(val []byte) uint64 {
	v, _ := protowire.ConsumeVarint(val)
	return v
}

// ParseClient parses a ClientFrame without allocating. A repeated payload would
// be merged by protobuf, or the last one win; that never happens in honest
// frames and is handed to the protobuf library.
func ParseClient(b []byte) (Client, error) {
	var c Client
	for rest := b; len(rest) > 0; {
		num, typ, val, next, err := field(rest)
		if err != nil {
			return Client{}, err
		}
		rest = next
		if typ != protowire.BytesType || num < clientMessage || num > clientAck {
			continue
		}
		if c.Kind != None {
			return parseMerged(b)
		}
		c.Kind = Kind(num)
		switch num {
		case clientMessage:
			c.Message = val
		default:
			n, err := lastVarint(val, 1)
			if err != nil {
				return Client{}, err
			}
			c.PingTimestampMS, c.AckSeq = int64(n), n
			if num == clientPing {
				c.AckSeq = 0
			} else {
				c.PingTimestampMS = 0
			}
		}
	}
	return c, nil
}

func parseMerged(b []byte) (Client, error) {
	var f messagev1.ClientFrame
	if err := proto.Unmarshal(b, &f); err != nil {
		return Client{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	switch p := f.GetPayload().(type) {
	case *messagev1.ClientFrame_Message:
		m, err := proto.Marshal(p.Message)
		return Client{Kind: Message, Message: m}, err
	case *messagev1.ClientFrame_HeartbeatPing:
		return Client{Kind: Ping, PingTimestampMS: p.HeartbeatPing.GetTimestampMs()}, nil
	case *messagev1.ClientFrame_DeliveryAck:
		return Client{Kind: Ack, AckSeq: p.DeliveryAck.GetSeq()}, nil
	}
	return Client{}, nil
}

// lastVarint returns the last value of the varint field num in a message.
func lastVarint(b []byte, num protowire.Number) (v uint64, err error) {
	for len(b) > 0 {
		n, typ, val, next, err := field(b)
		if err != nil {
			return 0, err
		}
		if n == num && typ == protowire.VarintType {
			v = varint(val)
		}
		b = next
	}
	return v, nil
}

// AppendDelivery appends ServerFrame{delivery{message, seq, unmoderated}};
// message is a serialized MessageRequest.
func AppendDelivery(dst, message []byte, seq uint64, unmoderated bool) []byte {
	n := protowire.SizeTag(deliveryMessage) + protowire.SizeBytes(len(message))
	if seq != 0 {
		n += protowire.SizeTag(deliverySeq) + protowire.SizeVarint(seq)
	}
	if unmoderated {
		n += protowire.SizeTag(deliveryUnmoderated) + 1
	}
	dst = protowire.AppendTag(dst, serverDelivery, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(n))
	dst = protowire.AppendTag(dst, deliveryMessage, protowire.BytesType)
	dst = protowire.AppendBytes(dst, message)
	if seq != 0 {
		dst = protowire.AppendTag(dst, deliverySeq, protowire.VarintType)
		dst = protowire.AppendVarint(dst, seq)
	}
	if unmoderated {
		dst = protowire.AppendTag(dst, deliveryUnmoderated, protowire.VarintType)
		dst = append(dst, 1)
	}
	return dst
}

// AppendAck appends ServerFrame{ack}; ack is a serialized MessageAck.
func AppendAck(dst, ack []byte) []byte {
	dst = protowire.AppendTag(dst, serverAck, protowire.BytesType)
	return protowire.AppendBytes(dst, ack)
}
