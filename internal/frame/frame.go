// Package frame reads and builds client frames on the wire level: the cluster
// carries message bodies without decoding or copying them (DESIGN section 2).
// What it accepts and rejects is what proto.Unmarshal of mics.message.v1 does;
// a differential fuzz test holds it to that.
package frame

import (
	"errors"
	"fmt"
	"unicode/utf8"

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
	// not parsed yet.
	Message         []byte
	PingTimestampMS int64
	AckSeq          uint64
}

// Field numbers of mics.message.v1.
const (
	clientMessage, clientPing, clientAck = 1, 2, 3
	serverDelivery, serverAck            = 2, 3
	deliveryMessage, deliverySeq         = 1, 2
	deliveryUnmoderated                  = 3
	msgTenant, msgUser, msgDevice        = 1, 2, 3
	msgID, msgType, msgTo, msgGroup      = 4, 5, 6, 7
	msgBody, msgTimestamp                = 8, 9
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

// ParseClient parses a ClientFrame. A repeated payload of the same kind would
// be merged by protobuf; that never happens in honest frames and is handed to
// the protobuf library.
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

// Header is what the cluster needs to know of a MessageRequest.
type Header struct {
	Tenant, User, Device string
	MsgID                string
	Type                 messagev1.MessageType
	ToUser, Group        string
	// Body aliases the input.
	Body        []byte
	TimestampMS int64
}

// ParseMessage reads the header of a MessageRequest.
func ParseMessage(b []byte) (Header, error) {
	var h Header
	for len(b) > 0 {
		num, typ, val, next, err := field(b)
		if err != nil {
			return Header{}, err
		}
		if err := h.set(num, typ, val); err != nil {
			return Header{}, err
		}
		b = next
	}
	return h, nil
}

func (h *Header) set(num protowire.Number, typ protowire.Type, val []byte) error {
	switch typ {
	case protowire.BytesType:
		var s *string
		switch num {
		case msgTenant:
			s = &h.Tenant
		case msgUser:
			s = &h.User
		case msgDevice:
			s = &h.Device
		case msgID:
			s = &h.MsgID
		case msgTo:
			s = &h.ToUser
		case msgGroup:
			s = &h.Group
		case msgBody:
			h.Body = val
			return nil
		default:
			return nil
		}
		if !utf8.Valid(val) {
			return fmt.Errorf("%w: field %d is not valid UTF-8", ErrMalformed, num)
		}
		*s = string(val)
	case protowire.VarintType:
		switch num {
		case msgType:
			h.Type = messagev1.MessageType(varint(val))
		case msgTimestamp:
			h.TimestampMS = int64(varint(val))
		}
	}
	return nil
}

// Stamp is what the cluster writes into a message: the connection's identity
// always, the id and the time only where the client gave none.
type Stamp struct {
	Tenant, User, Device string
	MsgID                string
	TimestampMS          int64
}

// AppendMessage appends src, a MessageRequest, to dst with the stamp applied.
// Every other field, unknown ones included, is kept as it is (CONTRACT section
// 1.2). The header's Body aliases src.
func AppendMessage(dst, src []byte, s Stamp) ([]byte, Header, error) {
	h, err := ParseMessage(src)
	if err != nil {
		return dst, Header{}, err
	}
	h.Tenant, h.User, h.Device = s.Tenant, s.User, s.Device
	dst = appendString(dst, msgTenant, s.Tenant)
	dst = appendString(dst, msgUser, s.User)
	dst = appendString(dst, msgDevice, s.Device)
	fillID, fillTime := h.MsgID == "", h.TimestampMS == 0
	if fillID {
		h.MsgID = s.MsgID
		dst = appendString(dst, msgID, s.MsgID)
	}
	if fillTime {
		h.TimestampMS = s.TimestampMS
		dst = protowire.AppendTag(dst, msgTimestamp, protowire.VarintType)
		dst = protowire.AppendVarint(dst, uint64(s.TimestampMS))
	}
	for b := src; len(b) > 0; {
		num, typ, _, next, _ := field(b) // parsed once already
		whole := b[:len(b)-len(next)]
		b = next
		if typ == protowire.BytesType && num <= msgDevice ||
			typ == protowire.BytesType && num == msgID && fillID ||
			typ == protowire.VarintType && num == msgTimestamp && fillTime {
			continue
		}
		dst = append(dst, whole...)
	}
	return dst, h, nil
}

func appendString(dst []byte, num protowire.Number, v string) []byte {
	if v == "" {
		return dst
	}
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	return protowire.AppendString(dst, v)
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
