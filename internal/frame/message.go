package frame

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of MessageRequest.
const (
	msgTenant, msgUser, msgDevice   = 1, 2, 3
	msgID, msgType, msgTo, msgGroup = 4, 5, 6, 7
	msgBody, msgTimestamp           = 8, 9
)

// Header is what the cluster needs to know of a MessageRequest.
type Header struct {
	Tenant, User, Device string
	MsgID                string
	Type                 messagev1.MessageType
	ToUser, Group        string
	// Body aliases the serialized message: ParseMessage's input, or what
	// AppendMessage returned.
	Body        []byte
	TimestampMS int64
}

// Stamp is what the cluster writes into a message: the connection's identity
// always, the id and the time only where the client gave none.
type Stamp struct {
	Tenant, User, Device string
	MsgID                string
	TimestampMS          int64
}

// errStamp is not the frame's fault, and so not an ErrMalformed.
var errStamp = errors.New("stamp is not valid UTF-8")

// ParseMessage reads the header of a MessageRequest. Its strings cost one
// allocation in all. Errors wrap ErrMalformed.
func ParseMessage(b []byte) (Header, error) {
	var r raw
	if err := r.parse(b); err != nil {
		return Header{}, err
	}
	h := Header{Type: r.typ, Body: r.body, TimestampMS: r.timestamp}
	toStrings([]*string{&h.Tenant, &h.User, &h.Device, &h.MsgID, &h.ToUser, &h.Group},
		[][]byte{r.tenant, r.user, r.device, r.msgID, r.toUser, r.group})
	return h, nil
}

// AppendMessage appends src, a MessageRequest, to dst with the stamp applied.
// Every other field, unknown ones included, is kept (CONTRACT section 1.2).
// What it appends is byte for byte what proto.Marshal writes: known fields in
// number order and once each, then the unknown ones. So whoever signs, caches
// or compares the bytes gets the same ones from any implementation.
//
// On an error dst comes back as it was. Errors wrap ErrMalformed, except that
// of a stamp which is not valid UTF-8.
func AppendMessage(dst, src []byte, s Stamp) ([]byte, Header, error) {
	if !utf8.ValidString(s.Tenant) || !utf8.ValidString(s.User) || !utf8.ValidString(s.Device) || !utf8.ValidString(s.MsgID) {
		return dst, Header{}, errStamp
	}
	var r raw
	if err := r.parse(src); err != nil {
		return dst, Header{}, err
	}
	h := Header{Tenant: s.Tenant, User: s.User, Device: s.Device, Type: r.typ, TimestampMS: r.timestamp}
	toStrings([]*string{&h.MsgID, &h.ToUser, &h.Group}, [][]byte{r.msgID, r.toUser, r.group})
	if h.MsgID == "" {
		h.MsgID = s.MsgID
	}
	if h.TimestampMS == 0 {
		h.TimestampMS = s.TimestampMS
	}
	out := appendBytes(dst, msgTenant, h.Tenant)
	out = appendBytes(out, msgUser, h.User)
	out = appendBytes(out, msgDevice, h.Device)
	out = appendBytes(out, msgID, h.MsgID)
	out = appendVarint(out, msgType, uint64(h.Type))
	out = appendBytes(out, msgTo, h.ToUser)
	out = appendBytes(out, msgGroup, h.Group)
	out = appendBytes(out, msgBody, r.body)
	end := len(out)
	out = appendVarint(out, msgTimestamp, uint64(h.TimestampMS))
	if r.unknown {
		out = appendUnknown(out, src)
	}
	// Only now: each append may have moved out.
	h.Body = out[end-len(r.body) : end : end]
	return out, h, nil
}

// appendBytes appends a field unless it is empty.
func appendBytes[T string | []byte](dst []byte, num protowire.Number, v T) []byte {
	if len(v) == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(len(v)))
	return append(dst, v...)
}

// appendVarint appends a field unless it is zero.
func appendVarint(dst []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, num, protowire.VarintType)
	return protowire.AppendVarint(dst, v)
}

// appendUnknown appends the unknown fields of src, which has been parsed.
func appendUnknown(dst, src []byte) []byte {
	var r raw
	for len(src) > 0 {
		num, typ, _, rest, _ := field(src)
		if !r.known(num, typ) {
			// The tag is written anew, as the library does: it may be overlong.
			_, _, n := protowire.ConsumeTag(src)
			dst = protowire.AppendTag(dst, num, typ)
			dst = append(dst, src[n:len(src)-len(rest)]...)
		}
		src = rest
	}
	return dst
}

// toStrings converts each part, with one allocation for all of them.
func toStrings(dst []*string, parts [][]byte) {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	if size == 0 {
		return
	}
	var sb strings.Builder
	sb.Grow(size)
	for _, p := range parts {
		_, _ = sb.Write(p)
	}
	all := sb.String()
	for i, p := range parts {
		*dst[i], all = all[:len(p)], all[len(p):]
	}
}

// raw holds the fields of a MessageRequest; the slices alias it. Of a repeated
// field the last one counts.
type raw struct {
	tenant, user, device, msgID, toUser, group, body []byte

	typ       messagev1.MessageType
	timestamp int64
	unknown   bool // there are unknown fields
}

// text returns where the value of a string field goes, nil for other fields.
func (r *raw) text(num protowire.Number) *[]byte {
	switch num {
	case msgTenant:
		return &r.tenant
	case msgUser:
		return &r.user
	case msgDevice:
		return &r.device
	case msgID:
		return &r.msgID
	case msgTo:
		return &r.toUser
	case msgGroup:
		return &r.group
	}
	return nil
}

// known tells whether a field is decoded. One with a known number but another
// wire type is an unknown field to protobuf.
func (r *raw) known(num protowire.Number, typ protowire.Type) bool {
	switch typ {
	case protowire.BytesType:
		return num == msgBody || r.text(num) != nil
	case protowire.VarintType:
		return num == msgType || num == msgTimestamp
	}
	return false
}

func (r *raw) parse(b []byte) error {
	for len(b) > 0 {
		num, typ, val, rest, err := field(b)
		if err != nil {
			return err
		}
		b = rest
		switch {
		case !r.known(num, typ):
			r.unknown = true
		case num == msgBody:
			r.body = val
		case num == msgType:
			r.typ = messagev1.MessageType(varint(val)) // truncated, as the library does
		case num == msgTimestamp:
			r.timestamp = int64(varint(val))
		case !utf8.Valid(val):
			return fmt.Errorf("%w: field %d is not valid UTF-8", ErrMalformed, num)
		default:
			*r.text(num) = val
		}
	}
	return nil
}
