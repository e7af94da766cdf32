package ws

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// drawTraffic draws messages, fragmented anywhere, with control frames anywhere
// between, and what a reader must see of them.
func drawTraffic(t *rapid.T) (stream []byte, want []event) {
	size := rapid.OneOf(
		rapid.IntRange(0, 20),
		rapid.SampledFrom([]int{125, 126, 127, readBlock - 14, readBlock - 1, readBlock, readBlock + 1, 65535, 65536}),
		rapid.IntRange(0, 20000),
	)
	key := func() (k [4]byte) {
		binary.LittleEndian.PutUint32(k[:], rapid.Uint32().Draw(t, "key"))
		return k
	}
	controls := func() {
		for rapid.IntRange(0, 3).Draw(t, "control") == 0 {
			op := rapid.SampledFrom([]Op{Ping, Pong}).Draw(t, "op")
			p := pattern(rapid.IntRange(0, maxControl).Draw(t, "control size"))
			stream = append(stream, clientFrame(true, op, key(), p)...)
			want = append(want, event{op, string(p), false})
		}
	}
	for range rapid.IntRange(0, 5).Draw(t, "messages") {
		controls()
		payload := pattern(size.Draw(t, "size"))
		rest, op := payload, Binary
		for range rapid.IntRange(0, 4).Draw(t, "cuts") {
			n := rapid.IntRange(0, len(rest)).Draw(t, "cut")
			stream = append(stream, clientFrame(false, op, key(), rest[:n])...)
			rest, op = rest[n:], opContinuation
			controls()
		}
		stream = append(stream, clientFrame(true, op, key(), rest)...)
		want = append(want, event{Binary, string(payload), false})
	}
	controls()
	return stream, want
}

func drawChunks(t *rapid.T, stream []byte) (chunks [][]byte) {
	for len(stream) > 0 {
		n := rapid.OneOf(rapid.IntRange(1, 16), rapid.IntRange(1, 60000)).Draw(t, "chunk")
		n = min(n, len(stream))
		chunks, stream = append(chunks, stream[:n]), stream[n:]
	}
	return chunks
}

func TestAnyTrafficIsReadBack(t *testing.T) {
	each(t, func(t *testing.T, open func(testing.TB, [][]byte) (*Conn, func())) {
		rapid.Check(t, func(rt *rapid.T) {
			stream, want := drawTraffic(rt)
			c, end := open(t, drawChunks(rt, stream))
			defer end()
			got, err := readAll(c, wide)
			if !errors.Is(err, io.EOF) {
				rt.Fatal(err)
			}
			if len(got) != len(want) {
				rt.Fatalf("%d events, want %d", len(got), len(want))
			}
			for i := range got {
				if got[i] != want[i] {
					rt.Fatalf("event %d differs: op %v/%v, %d/%d bytes", i, got[i].op, want[i].op, len(got[i].payload), len(want[i].payload))
				}
			}
		})
	})
}

// model reads a whole stream in the plainest way. Its error is io.EOF,
// io.ErrUnexpectedEOF or a *ProtocolError.
func model(b []byte, lim Limits) (got []event, err error) {
	var message []byte
	open, total, empty := false, 0, 0
	cut := func() error {
		if len(b) == 0 && !open {
			return io.EOF
		}
		return io.ErrUnexpectedEOF
	}
	for {
		if len(b) < 2 {
			return got, cut()
		}
		fin, rsv, op, masked, size, at := b[0]&0x80 != 0, b[0]&0x70, Op(b[0]&15), b[1]&0x80 != 0, uint64(b[1]&0x7f), 2
		known := op == opContinuation || op == Text || op == Binary || op == Close || op == Ping || op == Pong
		if rsv != 0 || !known || !masked {
			return got, violation("")
		}
		switch {
		case size == 126 && len(b) >= 4:
			size, at = uint64(binary.BigEndian.Uint16(b[2:])), 4
		case size == 127 && len(b) >= 10:
			size, at = binary.BigEndian.Uint64(b[2:]), 10
		case size >= 126:
			return got, cut()
		}
		if len(b) < at+4 {
			return got, cut()
		}
		key := b[at : at+4]
		b = b[at+4:]
		control := op >= Close
		switch {
		case size > math.MaxInt64:
			return got, violation("")
		case size > maxFrame:
			return got, errTooBig
		case control && (!fin || size > 125):
			return got, violation("")
		case !control && open != (op == opContinuation):
			return got, violation("")
		case op == Text:
			return got, &ProtocolError{Code: CodeUnsupported}
		case !control && uint64(total)+size > uint64(lim.Discard):
			return got, errTooBig
		case uint64(len(b)) < size:
			return got, io.ErrUnexpectedEOF
		}
		p := make([]byte, size)
		for i := range p {
			p[i] = b[i] ^ key[i%4]
		}
		b = b[size:]
		if control {
			got = append(got, event{op, string(p), false})
			continue
		}
		message, total = append(message, p...), total+len(p)
		if open = !fin; open {
			if len(p) == 0 {
				if empty++; empty > maxEmpty {
					return got, &ProtocolError{Code: CodePolicy}
				}
			}
			continue
		}
		if total > lim.Message {
			got = append(got, event{Binary, "", true})
		} else {
			got = append(got, event{Binary, string(message), false})
		}
		message, total, empty = nil, 0, 0
	}
}

// FuzzNext reads anything, in any chunks, and compares with the model.
func FuzzNext(f *testing.F) {
	mixed := join(
		binaryFrame(nil), binaryFrame(pattern(126)), clientFrame(true, Ping, testKey, []byte("p")),
		clientFrame(false, Binary, testKey, pattern(3)), clientFrame(true, Pong, testKey, nil),
		clientFrame(false, opContinuation, testKey, nil), clientFrame(true, opContinuation, testKey, pattern(9)),
	)
	f.Add(mixed, uint16(0), uint16(300))
	f.Add(mixed, uint16(4096), uint16(5))
	f.Add(header64(1<<63-1), uint16(3), uint16(0))
	f.Add(join(clientFrame(false, Binary, testKey, pattern(100)), clientFrame(true, opContinuation, testKey, pattern(200))), uint16(7), uint16(250))
	f.Add(clientFrame(true, Close, testKey, []byte("\x03\xe8bye")), uint16(2), uint16(9))
	f.Fuzz(func(t *testing.T, in []byte, chunk, message uint16) {
		lim := Limits{Message: int(message), Discard: 3 * int(message)}
		var chunks [][]byte
		for rest := in; len(rest) > 0; {
			n := min(len(rest), int(chunk)+1)
			chunks, rest = append(chunks, rest[:n:n]), rest[n:]
		}
		c := NewConn(&script{chunks: chunks}, nil)
		want, wantErr := model(in, lim)
		var got []event
		for {
			fr, err := c.Next(lim)
			if cap(c.message) > lim.Message {
				t.Fatalf("holds %d bytes of a message, the limit is %d", cap(c.message), lim.Message)
			}
			if err != nil {
				var pe, wantPE *ProtocolError
				if errors.As(err, &pe) != errors.As(wantErr, &wantPE) || pe != nil && pe.Code != wantPE.Code || pe == nil && !errors.Is(err, wantErr) {
					t.Fatalf("ended with %v, want %v", err, wantErr)
				}
				break
			}
			got = append(got, event{fr.Op, string(fr.Payload), fr.TooLarge})
			if fr.Op == Close {
				if _, reason, err := ParseClose(fr.Payload); err == nil && !utf8.ValidString(reason) {
					t.Fatal("a close reason that is not UTF-8")
				}
			}
		}
		wantEvents(t, got, want)
	})
}
