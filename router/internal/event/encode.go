package event

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"hash"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Field numbers of MqEvent (CONTRACT section 3).
const (
	fieldTenant      = 1
	fieldType        = 2
	fieldMsgID       = 3
	fieldUser        = 4
	fieldDevice      = 5
	fieldToUser      = 6
	fieldGroup       = 7
	fieldData        = 8
	fieldTimestamp   = 9
	fieldNode        = 10
	fieldSign        = 11
	fieldTrace       = 12
	fieldUnmoderated = 13
	fieldSeq         = 14
)

// encoder serializes one tenant's events, fields in number order. It is for one
// goroutine.
type encoder struct {
	tenant, node string
	secret       string
	mac          hash.Hash // keyed with secret; nil without one
	rest         []byte    // the fields after sign, reused
	sum          [sha256.Size]byte
}

// use sets the secret that signs from now on; empty: nothing is signed.
func (e *encoder) use(secret string) {
	switch {
	case secret == "":
		e.mac = nil
	case e.mac == nil || secret != e.secret:
		e.mac = hmac.New(sha256.New, []byte(secret))
	}
	e.secret = secret
}

// encode returns the event's serialization. What is signed are the same bytes
// without the field sign.
func (e *encoder) encode(it *item) []byte {
	if it.raw != nil {
		return e.again(it.raw)
	}
	b := make([]byte, 0, it.size)
	b = appendString(b, fieldTenant, e.tenant)
	b = appendVarint(b, fieldType, uint64(it.Type))
	b = appendString(b, fieldMsgID, it.MsgID)
	b = appendString(b, fieldUser, it.User)
	b = appendString(b, fieldDevice, it.Device)
	b = appendString(b, fieldToUser, it.ToUser)
	b = appendString(b, fieldGroup, it.Group)
	if len(it.Data) > 0 {
		b = protowire.AppendTag(b, fieldData, protowire.BytesType)
		b = protowire.AppendBytes(b, it.Data)
	}
	b = appendVarint(b, fieldTimestamp, uint64(it.Time.UnixMilli()))
	b = appendString(b, fieldNode, e.node)
	rest := appendString(e.rest[:0], fieldTrace, it.TraceID)
	if it.Unmoderated {
		rest = appendVarint(rest, fieldUnmoderated, 1)
	}
	rest = appendVarint(rest, fieldSeq, it.seq)
	e.rest = rest
	if e.mac != nil {
		b = appendString(b, fieldSign, e.sign(b, rest))
	}
	return append(b, rest...)
}

// sign returns the signature of the parts.
func (e *encoder) sign(parts ...[]byte) string {
	e.mac.Reset()
	for _, p := range parts {
		_, _ = e.mac.Write(p) // never fails
	}
	return base64.StdEncoding.EncodeToString(e.mac.Sum(e.sum[:0]))
}

// again signs an event that was serialized before with the secret of now. What
// is no event, or cannot be signed, stays as it is.
func (e *encoder) again(raw []byte) []byte {
	ev := &hookv1.MqEvent{}
	if e.mac == nil || proto.Unmarshal(raw, ev) != nil {
		return raw
	}
	ev.Sign = ""
	plain, err := proto.MarshalOptions{Deterministic: true}.Marshal(ev)
	if err != nil {
		return raw
	}
	ev.Sign = e.sign(plain)
	signed, err := proto.MarshalOptions{Deterministic: true}.Marshal(ev)
	if err != nil {
		return raw
	}
	return signed
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}
