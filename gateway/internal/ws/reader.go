package ws

import (
	"encoding/binary"
	"io"
	"math"
)

// Frame is what Next returns: a whole data message or one control frame.
type Frame struct {
	Op Op
	// Payload is valid until the next call of Next or Done, and may be modified.
	Payload []byte
	// TooLarge says that the message was over Limits.Message; it has been read
	// and thrown away, and Payload is nil.
	TooLarge bool
}

// Limits bound a message, in bytes.
type Limits struct {
	// Message is the largest message that is kept.
	Message int
	// Discard is the largest one that is taken at all: kept if it is within
	// Message too, else read past. Beyond it Next fails with CodeTooBig. It is at
	// most half of an int.
	Discard int
}

const (
	// firstChunk is how much is allocated for a large message before any of it
	// has arrived: a header alone must not cost a megabyte.
	firstChunk = 16 << 10
	// maxEmpty bounds the fragments of a message that carry nothing. They cost a
	// peer six bytes and take part in no other limit.
	maxEmpty = 128
	// maxFrame is the largest frame whose size can be added to others.
	maxFrame = math.MaxInt >> 1
)

// header is a frame's header.
type header struct {
	fin  bool
	op   Op
	size int
	key  [4]byte
}

// Next returns the next message or control frame; control frames may come
// between the fragments of a message. A text frame is a violation here, as the
// protocol has binary ones only. A length in more bytes than it needs is taken,
// as everybody does.
//
// An error is a *ProtocolError or the socket's: io.EOF if the peer ended the
// stream between two frames, io.ErrUnexpectedEOF within one or within a message.
// Next must not be called again after one. For one goroutine.
func (c *Conn) Next(lim Limits) (Frame, error) {
	f, err := c.next(lim)
	if err != nil {
		c.Done()
		return Frame{}, err
	}
	return f, nil
}

func (c *Conn) next(lim Limits) (Frame, error) {
	for {
		h, err := c.readHeader()
		if err != nil {
			return Frame{}, err
		}
		switch {
		case h.op >= Close:
			if !h.fin || h.size > maxControl {
				return Frame{}, violation("control frame fragmented or too long")
			}
			p, err := c.small(h)
			return Frame{Op: h.op, Payload: p}, err
		case (h.op == opContinuation) != c.fragmented:
			return Frame{}, violation("continuation out of place")
		case h.op == Text:
			return Frame{}, &ProtocolError{CodeUnsupported, "binary frames only"}
		}
		if h.fin && !c.fragmented && h.size <= min(lim.Message, lim.Discard, readBlock) {
			p, err := c.small(h)
			return Frame{Op: Binary, Payload: p}, err
		}
		if err := c.fragment(h, lim); err != nil {
			return Frame{}, err
		}
		c.fragmented = !h.fin
		if h.fin {
			f := Frame{Op: Binary, Payload: c.message, TooLarge: c.discarded > 0}
			if f.TooLarge {
				f.Payload = nil
			}
			c.message, c.discarded, c.empty = nil, 0, 0
			return f, nil
		}
		if h.size == 0 {
			if c.empty++; c.empty > maxEmpty {
				return Frame{}, &ProtocolError{CodePolicy, "too many empty fragments"}
			}
		}
	}
}

// readHeader reads a frame's header and checks it.
func (c *Conn) readHeader() (header, error) {
	b, err := c.peek(2)
	if err != nil {
		return header{}, err
	}
	h := header{fin: b[0]&0x80 != 0, op: Op(b[0] & 0x0f)}
	switch {
	case b[0]&0x70 != 0:
		return header{}, violation("reserved bits set")
	case h.op > Binary && h.op < Close || h.op > Pong:
		return header{}, violation("unknown opcode")
	case b[1]&0x80 == 0:
		return header{}, violation("unmasked frame")
	}
	size, extra := uint64(b[1]&0x7f), 0
	switch size {
	case 126:
		extra = 2
	case 127:
		extra = 8
	}
	if b, err = c.peek(2 + extra + 4); err != nil {
		return header{}, err
	}
	switch extra {
	case 2:
		size = uint64(binary.BigEndian.Uint16(b[2:]))
	case 8:
		size = binary.BigEndian.Uint64(b[2:])
	}
	switch {
	case size > math.MaxInt64:
		return header{}, violation("frame length out of range")
	case size > maxFrame:
		return header{}, errTooBig
	}
	h.size = int(size)
	copy(h.key[:], b[2+extra:])
	c.r += 2 + extra + 4
	return h, nil
}

// small reads a payload that fits the read buffer, in place.
func (c *Conn) small(h header) ([]byte, error) {
	b, err := c.peek(h.size)
	if err != nil {
		return nil, unexpected(err)
	}
	b = b[:h.size:h.size]
	mask(b, h.key, 0)
	c.r += h.size
	return b, nil
}

// fragment adds a data frame to the message, or throws it away.
func (c *Conn) fragment(h header, lim Limits) error {
	total := len(c.message) + c.discarded + h.size
	if total > lim.Discard {
		return errTooBig
	}
	if total > lim.Message {
		c.discarded += len(c.message) + h.size
		c.message = nil
		return c.skip(h.size)
	}
	for done := 0; done < h.size; {
		if cap(c.message) == len(c.message) {
			c.grow(h.size-done, lim.Message)
		}
		n := min(cap(c.message)-len(c.message), h.size-done)
		part := c.message[len(c.message) : len(c.message)+n]
		if err := c.full(part); err != nil {
			return err
		}
		mask(part, h.key, done)
		c.message = c.message[:len(c.message)+n]
		done += n
	}
	return nil
}

// grow makes room for some of the next rest bytes of a message, which will not
// be longer than most. The room at least doubles, so that many small fragments
// are not copied over and over, and it is at most firstChunk or twice what has
// really arrived.
func (c *Conn) grow(rest, most int) {
	have := len(c.message)
	size := have + min(rest, max(firstChunk, have))
	next := make([]byte, have, max(size, min(2*have, most)))
	copy(next, c.message)
	c.message = next
}

// skip reads past n bytes.
func (c *Conn) skip(n int) error {
	for n > 0 {
		if c.r == c.w {
			if err := c.fill(); err != nil {
				return unexpected(err)
			}
		}
		k := min(n, c.w-c.r)
		c.r += k
		n -= k
	}
	return nil
}

// full fills p from the buffer and then from the socket.
func (c *Conn) full(p []byte) error {
	n := copy(p, c.buf[c.r:c.w])
	c.r += n
	if n < len(p) {
		c.r, c.w = 0, 0
		c.release()
	}
	for n < len(p) {
		k, err := c.net.Read(p[n:])
		n += k
		if err != nil && n < len(p) {
			return unexpected(err)
		}
	}
	return nil
}

// peek makes n bytes available without consuming them, n <= readBlock.
func (c *Conn) peek(n int) ([]byte, error) {
	for c.w-c.r < n {
		if len(c.buf)-c.r < n {
			c.w = copy(c.buf, c.buf[c.r:c.w])
			c.r = 0
		}
		if err := c.fill(); err != nil {
			if c.w > c.r || c.fragmented {
				err = unexpected(err)
			}
			return nil, err
		}
	}
	return c.buf[c.r:c.w], nil
}

func unexpected(err error) error {
	if err == io.EOF { //nolint:errorlint // a reader returns it bare
		return io.ErrUnexpectedEOF
	}
	return err
}
