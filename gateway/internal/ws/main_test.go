package ws

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var testKey = [4]byte{0x37, 0xfa, 0x21, 0x3d}

// clientFrame encodes a frame as a client does, in the plainest way there is:
// it is what the codec is checked against.
func clientFrame(fin bool, op Op, key [4]byte, payload []byte) []byte {
	b := []byte{byte(op)}
	if fin {
		b[0] |= 0x80
	}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = append(b, 0x80|126, byte(n>>8), byte(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	b = append(b, key[:]...)
	for i, x := range payload {
		b = append(b, x^key[i%4])
	}
	return b
}

func binaryFrame(payload []byte) []byte { return clientFrame(true, Binary, testKey, payload) }

// pattern is n bytes that are not the same anywhere near.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// script is a connection that delivers chunks as they are, then io.EOF.
type script struct {
	net.Conn
	chunks [][]byte
	reads  int
}

func (s *script) Read(p []byte) (int, error) {
	s.reads++
	for len(s.chunks) > 0 && len(s.chunks[0]) == 0 {
		s.chunks = s.chunks[1:]
	}
	if len(s.chunks) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.chunks[0])
	s.chunks[0] = s.chunks[0][n:]
	return n, nil
}

// rawScript delivers chunks through a kernel pipe to the way of reading that
// waits without a buffer: the next chunk comes only when the reader has asked,
// got nothing, and waits.
type rawScript struct {
	script
	t       testing.TB
	c       *Conn
	in, out int // file descriptors
}

func (s *rawScript) Read(p []byte) (n int, err error) {
	if rerr := s.rawRead(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), p)
		return !errors.Is(err, syscall.EAGAIN)
	}); rerr != nil {
		return 0, rerr
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

func (s *rawScript) rawRead(f func(uintptr) bool) error {
	for !f(uintptr(s.in)) {
		if s.c.r == s.c.w && s.c.block != nil {
			s.t.Error("a buffer is held while waiting with nothing in it")
		}
		switch {
		case len(s.chunks) > 0:
			if _, err := syscall.Write(s.out, s.chunks[0]); err != nil {
				return err
			}
			s.chunks = s.chunks[1:]
		case s.out >= 0:
			_ = syscall.Close(s.out)
			s.out = -1
		}
	}
	return nil
}

// rawConn is what rawScript is for Conn.raw.
type rawConn struct{ *rawScript }

func (r rawConn) Read(f func(uintptr) bool) error { return r.rawRead(f) }
func (rawConn) Write(func(uintptr) bool) error    { return errUnknown }
func (rawConn) Control(func(uintptr)) error       { return errUnknown }

// ways are the ways of reading; each makes a Conn of chunks below 64 KiB.
var ways = map[string]func(t testing.TB, chunks [][]byte) (*Conn, func()){
	"plain": func(_ testing.TB, chunks [][]byte) (*Conn, func()) {
		return NewConn(&script{chunks: chunks}, nil), func() {}
	},
	"raw": func(t testing.TB, chunks [][]byte) (*Conn, func()) {
		if !canReadRaw {
			t.Skip("SKIPPED: this platform has no such way")
		}
		var p [2]int
		if err := syscall.Pipe(p[:]); err != nil {
			t.Fatal(err)
		}
		if err := syscall.SetNonblock(p[0], true); err != nil {
			t.Fatal(err)
		}
		s := &rawScript{script: script{chunks: chunks}, t: t, in: p[0], out: p[1]}
		c := NewConn(s, nil)
		s.c, c.raw, c.readFn = c, rawConn{s}, c.readReady
		return c, func() {
			_ = syscall.Close(s.in)
			if s.out >= 0 {
				_ = syscall.Close(s.out)
			}
		}
	},
}

// each runs f once for each way of reading.
func each(t *testing.T, f func(t *testing.T, open func(testing.TB, [][]byte) (*Conn, func()))) {
	t.Helper()
	for name, open := range ways {
		t.Run(name, func(t *testing.T) { f(t, open) })
	}
}

// event is what a reader saw, copied.
type event struct {
	op       Op
	payload  string
	tooLarge bool
}

// readAll reads until an error and returns it with what came before.
func readAll(c *Conn, lim Limits) (got []event, err error) {
	for {
		f, err := c.Next(lim)
		if err != nil {
			return got, err
		}
		got = append(got, event{f.Op, string(f.Payload), f.TooLarge})
		// The payload is the reader's for now: what it does to it must not
		// reach what comes next, not even what is behind it.
		clear(f.Payload)
		clear(f.Payload[len(f.Payload):cap(f.Payload)])
	}
}

var wide = Limits{Message: 1 << 20, Discard: 4 << 20}

func wantEvents(t testing.TB, got, want []event) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Fatalf("event %d is missing: %v, %d bytes", i, want[i].op, len(want[i].payload))
		case i >= len(want):
			t.Fatalf("event %d is one too many: %v, %d bytes", i, got[i].op, len(got[i].payload))
		case got[i] != want[i]:
			t.Fatalf("event %d differs: op %v/%v, %d/%d bytes, same: %v, too large %v/%v", i, got[i].op, want[i].op,
				len(got[i].payload), len(want[i].payload), got[i].payload == want[i].payload, got[i].tooLarge, want[i].tooLarge)
		}
	}
}

// wantCode fails unless err is a violation with this code.
func wantCode(t testing.TB, err error, code int) {
	t.Helper()
	var pe *ProtocolError
	if !errors.As(err, &pe) || pe.Code != code {
		t.Fatalf("got %v, want a violation with code %d", err, code)
	}
}

// loopback is a server's Conn and a client's socket.
func loopback(t testing.TB, wrap func(net.Conn) net.Conn) (*Conn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	client, err := new(net.Dialer).DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if wrap != nil {
		server = wrap(server)
	}
	c := NewConn(server, nil)
	t.Cleanup(func() { _ = c.Close() })
	// Nothing here waits for long; a hang shall fail and not hang.
	_ = client.SetDeadline(time.Now().Add(30 * time.Second))
	return c, client.(*net.TCPConn)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
