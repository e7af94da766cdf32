package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/encoding/protowire"
)

// WebSocket opcodes (RFC 6455 section 5.2).
const (
	opBinary = 0x2
	opClose  = 0x8
	opPing   = 0x9
	opPong   = 0xa
)

const (
	// maskKey masks every client frame. One key for all is what makes it
	// possible to keep frames masked; it hides nothing, as none does on a load
	// generator's own network.
	maskKey = "\x9d\x1b\x6e\xc3"
	// maxFrame bounds what a server may send in one frame.
	maxFrame = 17 << 20
	// stampSize is the part of a body that says when its sending was due.
	stampSize = 8
	idSize    = 16
	// firstRead is a client's reading buffer until a frame needs more.
	firstRead = 1024
)

// maskAt masks the byte that is the i-th of a frame's payload.
func maskAt(b byte, i int) byte { return b ^ maskKey[i&3] }

// clientFrame is a whole masked frame.
func clientFrame(op byte, payload []byte) []byte {
	f := []byte{0x80 | op}
	switch n := len(payload); {
	case n < 126:
		f = append(f, 0x80|byte(n))
	case n <= 0xffff:
		f = append(f, 0x80|126)
		f = binary.BigEndian.AppendUint16(f, uint16(n))
	default:
		f = append(f, 0x80|127)
		f = binary.BigEndian.AppendUint64(f, uint64(n))
	}
	f = append(f, maskKey...)
	for i, b := range payload {
		f = append(f, maskAt(b, i))
	}
	return f
}

// template is a masked frame with a message in which only id and stamp change.
type template struct {
	frame               []byte
	payload, id, stamps int // offsets in frame
}

// newTemplate is for messages to a user or, if user is empty, to a group.
// prefix is the first half of every id.
func newTemplate(user, group string, prefix uint32, body int) *template {
	var m []byte
	str := func(num protowire.Number, s string) {
		m = protowire.AppendTag(m, num, protowire.BytesType)
		m = protowire.AppendString(m, s)
	}
	str(4, fmt.Sprintf("%08x%08x", prefix, 0))
	idEnd := len(m)
	if user != "" {
		str(6, user)
	} else {
		m = protowire.AppendTag(m, 5, protowire.VarintType)
		m = protowire.AppendVarint(m, uint64(messagev1.MessageType_GROUP_CHAT))
		str(7, group)
	}
	str(8, string(make([]byte, max(body, stampSize))))
	bodyAt := len(m) - max(body, stampSize)
	m = protowire.AppendTag(m, 9, protowire.VarintType)
	m = protowire.AppendVarint(m, 1_700_000_000_000) // any time that is as long as one
	payload := protowire.AppendTag(nil, 1, protowire.BytesType)
	payload = protowire.AppendVarint(payload, uint64(len(m)))
	inner := len(payload)
	payload = append(payload, m...)

	f := clientFrame(opBinary, payload)
	start := len(f) - len(payload)
	return &template{frame: f, payload: start, id: start + inner + idEnd - idSize, stamps: start + inner + bodyAt}
}

// next is the frame with another id and stamp; valid until the next call.
func (t *template) next(seq uint32, stamp int64) []byte {
	const hex = "0123456789abcdef"
	for i := range 8 {
		at := t.id + idSize/2 + i
		t.frame[at] = maskAt(hex[seq>>(28-4*i)&0xf], at-t.payload)
	}
	for i := range stampSize {
		at := t.stamps + i
		t.frame[at] = maskAt(byte(stamp>>(56-8*i)), at-t.payload)
	}
	return t.frame
}

// stampOf is the stamp of a message, serialized in a delivery.
func stampOf(delivery []byte) (int64, error) {
	message, err := bytesField(delivery, 1)
	if err != nil {
		return 0, err
	}
	body, err := bytesField(message, 8)
	if err != nil {
		return 0, err
	}
	if len(body) < stampSize {
		return 0, errors.New("a body without a stamp")
	}
	return int64(binary.BigEndian.Uint64(body)), nil
}

// bytesField is the content of a field; nil if it is not there.
func bytesField(b []byte, want protowire.Number) ([]byte, error) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
		size := protowire.ConsumeFieldValue(num, typ, b)
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		if num == want && typ == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b)
			return v, nil
		}
		b = b[size:]
	}
	return nil, nil
}

// reader reads frames. It is for one goroutine.
type reader struct {
	src  io.Reader
	buf  []byte
	r, w int // what is read and not consumed
}

// frame returns the next frame; payload is valid until the next call.
func (rd *reader) frame() (op byte, payload []byte, err error) {
	if err := rd.need(2); err != nil {
		return 0, nil, err
	}
	h := rd.buf[rd.r:]
	if h[0]&0xf0 != 0x80 || h[1]&0x80 != 0 {
		return 0, nil, fmt.Errorf("frame header %x: fragmented, masked or with extensions", h[:2])
	}
	op = h[0] & 0xf
	head, size := 2, int(h[1])
	switch size {
	case 126:
		head = 4
	case 127:
		head = 10
	}
	if err := rd.need(head); err != nil {
		return 0, nil, err
	}
	switch h = rd.buf[rd.r:]; head {
	case 4:
		size = int(binary.BigEndian.Uint16(h[2:]))
	case 10:
		n := binary.BigEndian.Uint64(h[2:])
		if n > maxFrame {
			return 0, nil, fmt.Errorf("frame of %d bytes", n)
		}
		size = int(n)
	}
	if err := rd.need(head + size); err != nil {
		return 0, nil, err
	}
	payload = rd.buf[rd.r+head : rd.r+head+size]
	rd.r += head + size
	return op, payload, nil
}

// need reads until n bytes are there.
func (rd *reader) need(n int) error {
	for rd.w-rd.r < n {
		if rd.r > 0 && (rd.r == rd.w || rd.r+n > len(rd.buf)) {
			rd.w = copy(rd.buf, rd.buf[rd.r:rd.w])
			rd.r = 0
		}
		if n > len(rd.buf) {
			rd.buf = append(make([]byte, 0, 2*n), rd.buf[:rd.w]...)[:2*n]
		}
		k, err := rd.src.Read(rd.buf[rd.w:])
		rd.w += k
		if k == 0 && err != nil {
			if errors.Is(err, io.EOF) && rd.w > rd.r {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}
