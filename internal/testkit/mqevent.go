package testkit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// MQEvent is an event as a tenant reads it that has nothing but the contract's
// tables (CONTRACT section 3): no generated code, and nothing that the publisher
// uses.
type MQEvent struct {
	Text    map[protowire.Number]string // strings and bytes, by field
	Numbers map[protowire.Number]uint64
	// Signed with the secret that ReadMQEvent was given.
	Signed bool
}

// Fields of an MqEvent.
const (
	MQType     protowire.Number = 2
	MQMsgID    protowire.Number = 3
	MQUser     protowire.Number = 4
	MQDevice   protowire.Number = 5
	MQToUser   protowire.Number = 6
	MQNode     protowire.Number = 10
	mqSign     protowire.Number = 11
	MQSequence protowire.Number = 14
)

// Types of events.
const (
	MQOnline  = 0
	MQOffline = 1
	MQSingle  = 2
)

// Type, Seq and ID are the fields that everybody asks for; ID names the event
// for good.
func (e MQEvent) Type() uint64 { return e.Numbers[MQType] }
func (e MQEvent) Seq() uint64  { return e.Numbers[MQSequence] }
func (e MQEvent) ID() string   { return fmt.Sprintf("%s/%d", e.Text[MQNode], e.Seq()) }

// ReadMQEvent reads an event and checks its signature: over its bytes without
// the field of the signature, wherefore fields must come in the order of their
// numbers.
func ReadMQEvent(value []byte, secret string) (MQEvent, error) {
	e := MQEvent{Text: map[protowire.Number]string{}, Numbers: map[protowire.Number]uint64{}}
	var plain []byte
	last := protowire.Number(0)
	for b := value; len(b) > 0; {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 || num < last {
			return e, fmt.Errorf("field %d after %d, or no field: % x", num, last, value)
		}
		last = num
		size := n
		switch kind {
		case protowire.BytesType:
			v, m := protowire.ConsumeBytes(b[n:])
			if m < 0 {
				return e, fmt.Errorf("field %d is cut off", num)
			}
			e.Text[num] = string(v)
			size += m
		case protowire.VarintType:
			v, m := protowire.ConsumeVarint(b[n:])
			if m < 0 {
				return e, fmt.Errorf("field %d is cut off", num)
			}
			e.Numbers[num] = v
			size += m
		default:
			return e, fmt.Errorf("field %d is of wire type %d", num, kind)
		}
		if num != mqSign {
			plain = append(plain, b[:size]...)
		}
		b = b[size:]
	}
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = mac.Write(plain) // never fails
	e.Signed = e.Text[mqSign] == base64.StdEncoding.EncodeToString(mac.Sum(nil))
	return e, nil
}
