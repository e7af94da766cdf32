// Package wstest is the client's end of a WebSocket for tests of the gateway's
// packages, over any connection, also one in memory with fake time. It shows
// what came, frame by frame, and sends what it is told to, also what no honest
// client would.
package wstest

import (
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/mics-im/mics/gateway/internal/ws"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/proto"
)

// Plenty is more frames than any test has.
const Plenty = 1 << 11

// Client reads frame by frame, as far as Allow lets it. Safe for concurrent use.
type Client struct {
	Conn net.Conn

	t      testing.TB
	tokens chan struct{}
	over   chan struct{}

	mu           sync.Mutex
	frames       []*messagev1.ServerFrame // guarded by mu, like what follows
	pings, pongs int
	code         int
	reason       string
	echo         bool
}

// New starts a client that answers a close frame and reads nothing yet. End ends
// it.
func New(t testing.TB, conn net.Conn) *Client {
	c := &Client{Conn: conn, t: t, tokens: make(chan struct{}, 2*Plenty), over: make(chan struct{}), echo: true}
	go c.read()
	return c
}

// End closes the connection and waits for the reading goroutine. It may be called
// once.
func (c *Client) End() {
	_ = c.Conn.Close()
	close(c.tokens)
	<-c.over
}

// Allow lets the client read so many more frames.
func (c *Client) Allow(frames int) {
	for range frames {
		c.tokens <- struct{}{}
	}
}

// Echo says whether a close frame is answered.
func (c *Client) Echo(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.echo = on
}

func (c *Client) read() {
	defer close(c.over)
	for range c.tokens {
		op, payload, err := ReadFrame(c.Conn)
		if err != nil {
			return
		}
		if c.take(op, payload) {
			c.Write(ws.Close, payload)
		}
	}
}

// take keeps a frame; true: it is a close frame to be answered.
func (c *Client) take(op ws.Op, payload []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch op {
	case ws.Binary:
		f := &messagev1.ServerFrame{}
		if err := proto.Unmarshal(payload, f); err != nil {
			c.t.Errorf("server frame %x: %v", payload, err)
		}
		c.frames = append(c.frames, f)
	case ws.Ping:
		c.pings++
	case ws.Pong:
		c.pongs++
	case ws.Close:
		c.code, c.reason, _ = ws.ParseClose(payload)
		return c.echo
	}
	return false
}

// ReadFrame reads a frame of a server.
func ReadFrame(r io.Reader) (ws.Op, []byte, error) {
	var h [10]byte
	if _, err := io.ReadFull(r, h[:2]); err != nil {
		return 0, nil, err
	}
	size := int(h[1])
	var long []byte
	switch h[1] {
	case 126:
		long = h[2:4]
	case 127:
		long = h[2:10]
	}
	if _, err := io.ReadFull(r, long); err != nil {
		return 0, nil, err
	}
	switch len(long) {
	case 2:
		size = int(binary.BigEndian.Uint16(long))
	case 8:
		size = int(binary.BigEndian.Uint64(long))
	}
	b := make([]byte, size)
	_, err := io.ReadFull(r, b)
	return ws.Op(h[0] & 0x0f), b, err
}

// Write sends a frame, masked with zeros. An error is no failure: the server may
// have gone, which the test sees.
func (c *Client) Write(op ws.Op, payload []byte) {
	WriteFrame(c.Conn, op, payload)
}

// WriteFrame is Client.Write on any connection.
func WriteFrame(w io.Writer, op ws.Op, payload []byte) {
	f := ws.AppendHeader(nil, op, len(payload))
	f[1] |= 0x80
	f = append(f, 0, 0, 0, 0)
	_, _ = w.Write(append(f, payload...))
}

// Close sends a close frame.
func (c *Client) Close(code int, reason string) {
	c.Write(ws.Close, append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...))
}

// Send sends a client frame.
func (c *Client) Send(f *messagev1.ClientFrame) {
	b, err := proto.Marshal(f)
	if err != nil {
		c.t.Errorf("client frame: %v", err)
	}
	c.Write(ws.Binary, b)
}

// Message sends a message.
func (c *Client) Message(m *messagev1.MessageRequest) {
	c.Send(&messagev1.ClientFrame{Payload: &messagev1.ClientFrame_Message{Message: m}})
}

// Ack acknowledges deliveries.
func (c *Client) Ack(seq uint64) {
	c.Send(&messagev1.ClientFrame{Payload: &messagev1.ClientFrame_DeliveryAck{DeliveryAck: &messagev1.DeliveryAck{Seq: seq}}})
}

// Frames are the server frames that have come so far.
func (c *Client) Frames() []*messagev1.ServerFrame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.frames)
}

// Delivered are the ids of the messages that have come.
func (c *Client) Delivered() (ids []string) {
	for _, f := range c.Frames() {
		if d := f.GetDelivery(); d != nil {
			ids = append(ids, d.GetMessage().GetMsgId())
		}
	}
	return ids
}

// Errors are the codes of the server errors that have come.
func (c *Client) Errors() (codes []int32) {
	for _, f := range c.Frames() {
		if e := f.GetError(); e != nil {
			codes = append(codes, e.GetCode())
		}
	}
	return codes
}

// Acks are the outcomes that have come.
func (c *Client) Acks() (acks []*messagev1.MessageAck) {
	for _, f := range c.Frames() {
		if a := f.GetAck(); a != nil {
			acks = append(acks, a)
		}
	}
	return acks
}

// Control counts the WebSocket pings and pongs that have come.
func (c *Client) Control() (pings, pongs int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pings, c.pongs
}

// Closed is what the server's close frame said; 0: none has come.
func (c *Client) Closed() (code int, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.code, c.reason
}
