package ws

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// readBlock is the size of the read buffers: net/http's, so that what it had
// read ahead fits. It is also the largest message that is handed out, and the
// most bytes of several frames that are written, by way of such a buffer.
const readBlock = 4096

// leadSize is what is read where the socket cannot be waited for without a
// buffer: the header of most frames. What is behind it stays in the TLS layer.
const leadSize = 16

var blocks = sync.Pool{New: func() any { return new([readBlock]byte) }}

// Conn is the server's end of a WebSocket after the handshake. One goroutine
// reads (Next), one at a time writes (Write); the rest is safe for concurrent
// use. It never writes by itself: answering pings and closes is the caller's.
type Conn struct {
	net net.Conn
	// raw is set for plain TCP where the platform allows waiting without a buffer
	// at hand.
	raw    syscall.RawConn
	readFn func(fd uintptr) bool // c.readReady, once, so that reading does not allocate
	// sock is what the kernel's send queue is asked of; nil when unknown.
	sock    syscall.RawConn
	counter *Counted // below TLS; nil for plain connections

	// Owned by the reading goroutine.
	lead       [leadSize]byte   // what a wait without raw reads into
	block      *[readBlock]byte // nil while there is nothing in it
	buf        []byte           // block[:] or nil
	r, w       int              // buf[r:w] is unread
	readErr    error            // of the last readReady
	readN      int
	fragmented bool
	empty      uint8  // fragments without content
	message    []byte // fragments so far
	discarded  int    // bytes of a message that is thrown away

	written atomic.Int64
}

// NewConn wraps a socket; early is what has been read from it already. It panics
// if that is more than 4096 bytes.
func NewConn(nc net.Conn, early []byte) *Conn {
	if len(early) > readBlock {
		panic("ws: too many early bytes")
	}
	if t, ok := nc.(*Counted); ok {
		nc = t.TCPConn // without TLS what is written is what the kernel takes
	}
	c := &Conn{net: nc}
	c.setup(nc)
	if len(early) > 0 {
		c.acquire()
		c.w = copy(c.buf, early)
	}
	return c
}

// setup finds out what the socket can do.
func (c *Conn) setup(nc net.Conn) {
	switch t := nc.(type) {
	case *net.TCPConn:
		raw, err := t.SyscallConn()
		if err != nil {
			return
		}
		c.sock = raw
		if canReadRaw {
			c.raw = raw
			c.readFn = c.readReady
		}
	case *tls.Conn:
		if under, ok := t.NetConn().(*Counted); ok {
			c.counter = under
			if raw, err := under.SyscallConn(); err == nil {
				c.sock = raw
			}
		}
	}
}

func (c *Conn) acquire() {
	if c.block == nil {
		c.block = blocks.Get().(*[readBlock]byte)
		c.buf = c.block[:]
	}
}

func (c *Conn) release() {
	if c.block != nil {
		blocks.Put(c.block)
		c.block, c.buf = nil, nil
	}
}

// fill waits for bytes and puts what there is behind buf[r:w], at least one
// unless it fails. While it waits and nothing is unread there is no buffer.
func (c *Conn) fill() error {
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	var n int
	var err error
	switch {
	case c.raw != nil:
		c.readN, c.readErr = 0, nil
		if err = c.raw.Read(c.readFn); err == nil {
			n, err = c.readN, c.readErr
		}
	case c.w > 0:
		n, err = c.net.Read(c.buf[c.w:])
	default:
		c.release()
		n, err = c.net.Read(c.lead[:])
		if n > 0 {
			c.acquire()
			copy(c.buf, c.lead[:n])
		}
	}
	c.w += n
	if n > 0 {
		return nil // an error comes again
	}
	return err
}

// Done gives back what reading holds. It is for a reading goroutine that ends
// without an error of Next, which does the same; Next must not be called again.
func (c *Conn) Done() {
	c.r, c.w = 0, 0
	c.message = nil
	c.release()
}

// Write writes whole frames, blocking until the kernel has them all, the write
// deadline passes or the connection is closed. After an error the stream may
// have ended within a frame. The elements of frames are consumed; the bytes are
// only read, so that frames can be shared between connections.
func (c *Conn) Write(frames net.Buffers) error {
	size := 0
	for _, f := range frames {
		size += len(f)
	}
	_, tcp := c.net.(*net.TCPConn)
	switch {
	case size == 0:
		return nil
	case len(frames) == 1:
		_, err := (*sink)(c).Write(frames[0])
		return err
	case size <= readBlock:
		return c.writeCopy(frames)
	case tcp:
		return c.writeVectors(frames)
	default:
		return c.writeJoined(frames)
	}
}

// writeCopy is for few bytes: it costs less than a vector of small pieces.
func (c *Conn) writeCopy(frames net.Buffers) error {
	b := blocks.Get().(*[readBlock]byte)
	n := 0
	for _, f := range frames {
		n += copy(b[n:], f)
	}
	_, err := (*sink)(c).Write(b[:n])
	blocks.Put(b)
	return err
}

// maxVector is how many frames one system call takes. The runtime keeps the
// vector with the connection, 16 bytes for each.
const maxVector = 64

func (c *Conn) writeVectors(frames net.Buffers) error {
	for len(frames) > 0 {
		part := frames[:min(maxVector, len(frames))]
		frames = frames[len(part):]
		n, err := part.WriteTo(c.net)
		c.written.Add(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// joins are what frames are joined in where each write makes a TLS record.
var joins = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, maxRecord) }}

const maxRecord = 16 << 10

func (c *Conn) writeJoined(frames net.Buffers) error {
	b := joins.Get().(*bufio.Writer)
	b.Reset((*sink)(c))
	for _, f := range frames {
		_, _ = b.Write(f) // its error is Flush's too
	}
	err := b.Flush()
	b.Reset(nil)
	joins.Put(b)
	return err
}

// sink counts what the connection takes.
type sink Conn

func (s *sink) Write(b []byte) (int, error) {
	n, err := s.net.Write(b)
	s.written.Add(int64(n))
	return n, err
}

// Written is how many bytes of frames the kernel has taken, as it counts them:
// below TLS where there is TLS.
func (c *Conn) Written() int64 {
	if c.counter != nil {
		return c.counter.written.Load()
	}
	return c.written.Load()
}

// Exact says that Written advances by just the sizes of the frames written.
func (c *Conn) Exact() bool { return c.counter == nil }

// errUnknown says that the platform or the socket cannot tell.
var errUnknown = errors.New("send queue unknown")

// Acknowledged is how many bytes of Written the peer's kernel has acknowledged,
// which says that they reached its host and not that anybody read them. It may be
// too low, never too high: while a Write is under way, and while the answer to
// the handshake is. ok is false where it cannot be known, and after Close.
func (c *Conn) Acknowledged() (n int64, ok bool) {
	if c.sock == nil {
		return 0, false
	}
	// In this order: what is written in between makes the answer too low.
	written := c.Written()
	queued, err := sendQueue(c.sock)
	if err != nil {
		return 0, false
	}
	return max(0, written-int64(queued)), true
}

// Gone says that the peer has closed its end without another word. It may be
// false for one that has. By the reading goroutine, or before it runs.
func (c *Conn) Gone() bool { return c.sock != nil && c.r == c.w && peerGone(c.sock) }

// SetWriteDeadline bounds a Write, also one under way.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.net.SetWriteDeadline(t) }

// RemoteAddr is the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.net.RemoteAddr() }

// Close closes the socket at once; Next and Write under way fail. What the kernel
// has is still sent, unless the peer has sent something that Next has not read:
// then the kernel resets the connection, and a close frame written last may never
// be seen. For TLS no alert is sent, which could block.
func (c *Conn) Close() error {
	if t, ok := c.net.(*tls.Conn); ok {
		return t.NetConn().Close()
	}
	return c.net.Close()
}

// Counted counts the bytes written to a connection that TLS runs over.
type Counted struct {
	*net.TCPConn // also promotes what writes past Write (ReadFrom, writev); TLS uses neither
	written      atomic.Int64
}

// Write counts what the kernel took.
func (c *Counted) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.written.Add(int64(n))
	return n, err
}

// CountListener makes the TCP connections of a listener Counted. Put it below
// tls.NewListener.
type CountListener struct{ net.Listener }

// Accept waits for the next connection.
func (l CountListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if t, ok := c.(*net.TCPConn); ok {
		return &Counted{TCPConn: t}, err
	}
	return c, err
}
