package ws

import (
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
)

// header64 is a final binary frame's header with a length of 8 bytes.
func header64(n uint64) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{0x82, 0xff}, n), testKey[:]...)
}

func TestViolations(t *testing.T) {
	frag := func(fin bool, op Op, s string) []byte { return clientFrame(fin, op, testKey, []byte(s)) }
	cases := map[string]struct {
		in   []byte
		code int
	}{
		"reserved bit 1":              {[]byte{0xc2, 0x80}, CodeProtocol},
		"reserved bit 2":              {[]byte{0xa2, 0x80}, CodeProtocol},
		"reserved bit 3":              {[]byte{0x92, 0x80}, CodeProtocol},
		"reserved bit on a control":   {[]byte{0xc9, 0x80}, CodeProtocol},
		"unmasked":                    {[]byte{0x82, 0x01, 'x'}, CodeProtocol},
		"unmasked control":            {[]byte{0x88, 0x00}, CodeProtocol},
		"text":                        {frag(true, Text, "hi"), CodeUnsupported},
		"text, fragmented":            {frag(false, Text, "hi"), CodeUnsupported},
		"ping fragmented":             {frag(false, Ping, "x"), CodeProtocol},
		"pong fragmented":             {frag(false, Pong, ""), CodeProtocol},
		"close fragmented":            {frag(false, Close, ""), CodeProtocol},
		"ping of 126":                 {frag(true, Ping, strings.Repeat("x", 126)), CodeProtocol},
		"close of 64 KiB":             {frag(true, Close, strings.Repeat("x", 1<<16)), CodeProtocol},
		"continuation first":          {frag(true, opContinuation, "x"), CodeProtocol},
		"continuation first, open":    {frag(false, opContinuation, "x"), CodeProtocol},
		"continuation after message":  {join(binaryFrame([]byte("a")), frag(true, opContinuation, "x")), CodeProtocol},
		"continuation after its end":  {join(frag(false, Binary, "a"), frag(true, opContinuation, "b"), frag(true, opContinuation, "c")), CodeProtocol},
		"binary within a message":     {join(frag(false, Binary, "a"), frag(true, Binary, "b")), CodeProtocol},
		"text within a message":       {join(frag(false, Binary, "a"), frag(true, Text, "b")), CodeProtocol},
		"length with its top bit":     {header64(1 << 63), CodeProtocol},
		"length of all ones":          {header64(1<<64 - 1), CodeProtocol},
		"largest length there is":     {header64(1<<63 - 1), CodeTooBig},
		"length that would wrap":      {join(frag(false, Binary, "abcd"), append(binary.BigEndian.AppendUint64([]byte{0x80, 0xff}, 1<<63-1), testKey[:]...)), CodeTooBig},
		"one over what is read past":  {header64(4<<20 + 1), CodeTooBig},
		"fragments over it in all":    {join(clientFrame(false, Binary, testKey, make([]byte, 4<<20)), frag(true, opContinuation, "x")), CodeTooBig},
		"one empty fragment too many": {join(frag(false, Binary, "a"), []byte(strings.Repeat(string(frag(false, opContinuation, "")), maxEmpty+1))), CodePolicy},
	}
	for op := range Op(16) {
		if op >= 3 && op <= 7 || op >= 11 {
			cases["opcode "+string('0'+rune(op))] = struct {
				in   []byte
				code int
			}{frag(true, op, ""), CodeProtocol}
		}
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, open func(testing.TB, [][]byte) (*Conn, func())) {
				first := binaryFrame([]byte("before"))
				var chunks [][]byte
				for rest := join(first, tc.in); len(rest) > 0; {
					n := min(len(rest), 60000)
					chunks, rest = append(chunks, rest[:n]), rest[n:]
				}
				c, end := open(t, chunks)
				defer end()
				got, err := readAll(c, wide)
				wantCode(t, err, tc.code)
				if len(got) == 0 || got[0].payload != "before" {
					t.Fatalf("what came before is lost: %v", got)
				}
				for _, e := range got[1:] {
					if e.payload != "a" && e.payload != "ab" {
						t.Fatalf("taken in spite of the violation: %q", e.payload)
					}
				}
				if c.block != nil || c.message != nil {
					t.Fatal("memory is held after an error")
				}
			})
		})
	}
}

// A violation is found by its first bytes: nobody waits for the rest.
func TestViolationsAreFoundEarly(t *testing.T) {
	for name, in := range map[string][]byte{
		"reserved": {0xc2, 0x80}, "opcode": {0x83, 0x80}, "unmasked": {0x82, 0x05},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := ways["plain"](t, [][]byte{in})
			_, err := c.Next(wide)
			wantCode(t, err, CodeProtocol)
		})
	}
}

func TestLengthsLongerThanNeeded(t *testing.T) {
	payload := []byte{'x' ^ testKey[0]}
	in := join(
		[]byte{0x82, 0xfe, 0, 1}, testKey[:], payload,
		header64(1), payload,
		[]byte{0x89, 0xfe, 0, 1}, testKey[:], payload,
	)
	each(t, func(t *testing.T, open func(testing.TB, [][]byte) (*Conn, func())) {
		c, end := open(t, [][]byte{in})
		defer end()
		got, err := readAll(c, wide)
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		wantEvents(t, got, []event{{Binary, "x", false}, {Binary, "x", false}, {Ping, "x", false}})
	})
}

func TestEnds(t *testing.T) {
	first := binaryFrame([]byte("whole"))
	whole := join(first, clientFrame(false, Binary, testKey, []byte("ab")), clientFrame(true, Ping, testKey, []byte("p")),
		clientFrame(true, opContinuation, testKey, pattern(5000)))
	each(t, func(t *testing.T, open func(testing.TB, [][]byte) (*Conn, func())) {
		for cut := range len(whole) + 1 {
			want := io.ErrUnexpectedEOF
			if cut == 0 || cut == len(first) || cut == len(whole) {
				want = io.EOF
			}
			c, end := open(t, [][]byte{whole[:cut]})
			_, err := readAll(c, wide)
			end()
			if err != want { //nolint:errorlint // the very one is promised
				t.Fatalf("cut at %d: %v, want %v", cut, err, want)
			}
		}
	})
}

func TestEmptyFragmentsAreCountedForEachMessage(t *testing.T) {
	message := clientFrame(false, Binary, testKey, []byte("a"))
	for range maxEmpty {
		message = append(message, clientFrame(false, opContinuation, testKey, nil)...)
	}
	message = append(message, clientFrame(true, opContinuation, testKey, nil)...)
	c, _ := ways["plain"](t, [][]byte{message, message})
	got, err := readAll(c, wide)
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	wantEvents(t, got, []event{{Binary, "a", false}, {Binary, "a", false}})
}

// splitStream has every kind of header at the places that matter.
func splitStream() (stream []byte, want []event) {
	add := func(op Op, payload []byte) {
		stream = append(stream, clientFrame(true, op, testKey, payload)...)
		want = append(want, event{op, string(payload), false})
	}
	add(Binary, nil)
	add(Binary, pattern(1))
	add(Ping, pattern(125))
	add(Binary, pattern(126))
	add(Binary, pattern(readBlock-200)) // its end is near the buffer's
	add(Pong, nil)
	add(Binary, pattern(readBlock)) // just fits
	add(Binary, pattern(readBlock+1))
	stream = append(stream, clientFrame(false, Binary, testKey, pattern(3))...)
	add(Ping, []byte("between"))
	stream = append(stream, clientFrame(false, opContinuation, testKey, nil)...)
	stream = append(stream, clientFrame(true, opContinuation, testKey, pattern(300)[3:])...)
	want = append(want, event{Binary, string(pattern(300)), false})
	add(Close, []byte("\x03\xe8bye"))
	return stream, want
}

// worthSplitting is true near everything that is not a frame's middle, and for
// some of those.
func worthSplitting(stream []byte, at int) bool {
	if at%readBlock < 20 || at%readBlock > readBlock-20 || at%61 == 0 {
		return true
	}
	pos := 0
	for pos < len(stream) && pos < at+20 {
		if at < pos+20 && at > pos-20 {
			return true
		}
		size, header := int(stream[pos+1]&0x7f), 6
		if size == 126 {
			size, header = int(binary.BigEndian.Uint16(stream[pos+2:])), 8
		}
		pos += header + size
	}
	return len(stream)-at < 20
}

func TestEverySplitPoint(t *testing.T) {
	stream, want := splitStream()
	each(t, func(t *testing.T, open func(testing.TB, [][]byte) (*Conn, func())) {
		for at := range len(stream) + 1 {
			if !worthSplitting(stream, at) {
				continue
			}
			c, end := open(t, [][]byte{stream[:at], stream[at:]})
			got, err := readAll(c, wide)
			end()
			if !errors.Is(err, io.EOF) {
				t.Fatalf("split at %d: %v", at, err)
			}
			wantEvents(t, got, want)
		}
		var bytewise [][]byte
		for i := range stream {
			bytewise = append(bytewise, stream[i:i+1])
		}
		c, end := open(t, bytewise)
		defer end()
		got, err := readAll(c, wide)
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		wantEvents(t, got, want)
	})
}

func TestEarlyBytes(t *testing.T) {
	stream, want := splitStream()
	for at := range readBlock + 1 {
		if !worthSplitting(stream, at) {
			continue
		}
		c := NewConn(&script{chunks: [][]byte{stream[at:]}}, stream[:at])
		got, err := readAll(c, wide)
		if !errors.Is(err, io.EOF) {
			t.Fatalf("early %d: %v", at, err)
		}
		wantEvents(t, got, want)
	}
}

func TestTooLarge(t *testing.T) {
	lim := Limits{Message: 1000, Discard: 5000}
	after := join(clientFrame(false, Binary, testKey, []byte("af")), clientFrame(true, opContinuation, testKey, []byte("ter")), binaryFrame([]byte("after")))
	small := event{Binary, "after", false}
	large := event{Binary, "", true}
	frag := func(fin bool, op Op, n int) []byte { return clientFrame(fin, op, testKey, pattern(n)) }
	for name, tc := range map[string]struct {
		in   []byte
		want []event
		code int
	}{
		"at the limit":             {frag(true, Binary, 1000), []event{{Binary, string(pattern(1000)), false}}, 0},
		"one over":                 {frag(true, Binary, 1001), []event{large}, 0},
		"at the last":              {frag(true, Binary, 5000), []event{large}, 0},
		"one over the last":        {frag(true, Binary, 5001), nil, CodeTooBig},
		"fragments at the limit":   {join(frag(false, Binary, 500), frag(true, opContinuation, 500)), []event{{Binary, string(pattern(500)) + string(pattern(500)), false}}, 0},
		"fragments one over":       {join(frag(false, Binary, 500), frag(true, opContinuation, 501)), []event{large}, 0},
		"large first, small later": {join(frag(false, Binary, 1001), frag(false, opContinuation, 1), frag(true, opContinuation, 0)), []event{large}, 0},
		"fragments at the last":    {join(frag(false, Binary, 500), frag(false, opContinuation, 4000), frag(true, opContinuation, 500)), []event{large}, 0},
		"fragments over the last":  {join(frag(false, Binary, 500), frag(false, opContinuation, 4000), frag(true, opContinuation, 501)), nil, CodeTooBig},
		"ping while thrown away":   {join(frag(false, Binary, 1001), clientFrame(true, Ping, testKey, []byte("p")), frag(true, opContinuation, 9)), []event{{Ping, "p", false}, large}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, open func(testing.TB, [][]byte) (*Conn, func())) {
				c, end := open(t, [][]byte{join(tc.in, after)})
				defer end()
				got, err := readAll(c, lim)
				if tc.code != 0 {
					wantCode(t, err, tc.code)
					wantEvents(t, got, tc.want)
					return
				}
				if !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				wantEvents(t, got, append(tc.want, small, small))
			})
		})
	}
}

// A message in fragments of one byte is copied a few times over, not once per
// fragment.
func TestSmallFragmentsAreCheap(t *testing.T) {
	const n = 200_000
	stream := clientFrame(false, Binary, testKey, nil)
	one := clientFrame(false, opContinuation, testKey, []byte{1})
	for range n {
		stream = append(stream, one...)
	}
	c := NewConn(&script{chunks: [][]byte{stream}}, nil)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := c.Next(wide)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 8*n {
		t.Errorf("%d bytes allocated for a message of %d", got, n)
	}
}

// A header that promises much reserves little.
func TestHeadersReserveLittle(t *testing.T) {
	for _, arrived := range []int{0, 10, firstChunk - 1, firstChunk, 50_000, 500_000} {
		c := NewConn(&script{chunks: [][]byte{header64(1 << 20), pattern(arrived)}}, nil)
		h, err := c.readHeader()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.fragment(h, wide); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		if cap(c.message) > max(firstChunk, 2*arrived) {
			t.Errorf("room for %d bytes when %d had arrived", cap(c.message), arrived)
		}
		if c.block != nil {
			t.Error("the read buffer is held beside the message's own")
		}
	}
}
