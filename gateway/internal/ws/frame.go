// Package ws is the server's side of a WebSocket (RFC 6455) for many mostly
// idle connections. It is a frame codec over a socket and decides nothing: who
// reads sees control frames as they come, and who writes hands over complete
// frames. That is what a drain needs (a close frame goes out, reading goes on
// until the echo), what fan-out needs (one encoded frame for all receivers, many
// frames in one write), and what memory needs (an idle connection holds no
// buffer). No extensions.
package ws

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Op is a frame's opcode.
type Op byte

// Opcodes of RFC 6455, section 11.8.
const (
	opContinuation Op = 0
	Text           Op = 1
	Binary         Op = 2
	Close          Op = 8
	Ping           Op = 9
	Pong           Op = 10
)

// Close codes of RFC 6455, section 7.4.1.
const (
	CodeNormal      = 1000
	CodeProtocol    = 1002
	CodeUnsupported = 1003
	CodeNone        = 1005 // never on the wire: the close frame had no code
	CodeAbnormal    = 1006 // never on the wire: there was no close frame
	CodeInvalid     = 1007 // text that is not UTF-8
	CodePolicy      = 1008
	CodeTooBig      = 1009
)

// maxControl bounds the payload of a control frame.
const maxControl = 125

// MaxReason bounds the text of a close frame, in bytes.
const MaxReason = maxControl - 2

// ProtocolError is a violation that ends a connection with a close code.
type ProtocolError struct {
	Code   int
	Reason string
}

func (e *ProtocolError) Error() string { return fmt.Sprintf("%d %s", e.Code, e.Reason) }

var errTooBig error = &ProtocolError{CodeTooBig, "message too big"}

func violation(reason string) error { return &ProtocolError{CodeProtocol, reason} }

// AppendHeader appends the header of an unmasked, final frame.
func AppendHeader(dst []byte, op Op, size int) []byte {
	dst = append(dst, 0x80|byte(op))
	switch {
	case size <= 125:
		return append(dst, byte(size))
	case size <= 0xffff:
		return binary.BigEndian.AppendUint16(append(dst, 126), uint16(size))
	default:
		return binary.BigEndian.AppendUint64(append(dst, 127), uint64(size))
	}
}

// HeaderSize is how much AppendHeader appends.
func HeaderSize(size int) int {
	switch {
	case size <= 125:
		return 2
	case size <= 0xffff:
		return 4
	default:
		return 10
	}
}

// AppendFrame appends a whole unmasked frame.
func AppendFrame(dst []byte, op Op, payload []byte) []byte {
	return append(AppendHeader(dst, op, len(payload)), payload...)
}

// AppendClose appends a close frame. The reason is cut to MaxReason bytes, at a
// rune, and made valid UTF-8. CodeNone and CodeAbnormal, which are never on the
// wire, give a frame without a code.
func AppendClose(dst []byte, code int, reason string) []byte {
	if code == CodeNone || code == CodeAbnormal {
		return AppendHeader(dst, Close, 0)
	}
	reason = CutReason(reason)
	dst = AppendHeader(dst, Close, 2+len(reason))
	dst = binary.BigEndian.AppendUint16(dst, uint16(code))
	return append(dst, reason...)
}

// CutReason makes a text fit a close frame.
func CutReason(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= MaxReason {
		return s
	}
	end := MaxReason
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// ParseClose reads the payload of a close frame; an empty one is CodeNone. Codes
// that RFC 6455 and the registry do not assign to endpoints are refused. An error
// is a *ProtocolError.
func ParseClose(p []byte) (code int, reason string, err error) {
	switch {
	case len(p) == 0:
		return CodeNone, "", nil
	case len(p) == 1:
		return 0, "", violation("close frame of one byte")
	}
	code = int(binary.BigEndian.Uint16(p))
	switch {
	case code >= 3000 && code <= 4999, code >= 1000 && code <= 1014 && code != 1004 && code != CodeNone && code != CodeAbnormal:
	default:
		return 0, "", violation("invalid close code")
	}
	if !utf8.Valid(p[2:]) {
		return 0, "", &ProtocolError{CodeInvalid, "close reason is not UTF-8"}
	}
	return code, string(p[2:]), nil
}

// mask applies the key to b, which starts at offset pos of the payload.
func mask(b []byte, key [4]byte, pos int) {
	k := uint64(binary.LittleEndian.Uint32([]byte{key[pos&3], key[(pos+1)&3], key[(pos+2)&3], key[(pos+3)&3]}))
	k |= k << 32
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^k)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= byte(k >> (8 * i))
	}
}
