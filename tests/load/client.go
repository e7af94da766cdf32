package load

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
)

// Events are what a client's connection says. They are called by the client's
// reading goroutine, one after the other; bytes are valid during the call only.
// All may be nil.
type Events struct {
	// Delivery gets a serialized MessageDelivery.
	Delivery func(c *Client, delivery []byte)
	// Ack tells the outcome of a message; reason is that of a failure.
	Ack func(c *Client, sent bool, reason string)
	// Pong answers Ping.
	Pong func(c *Client)
	// Closed is the last call; code is the server's, 0: there was none.
	Closed func(c *Client, code int, err error)
}

// Client is one V1 connection. It costs a goroutine and a small buffer, and the
// only work of sending is one write. It does not send heartbeats by itself:
// tenants of load tests allow ten minutes of silence.
type Client struct {
	// N numbers the client among those of its Swarm: user UserID(N).
	N int

	conn net.Conn
	rd   reader

	mu   sync.Mutex
	tmpl *template // guarded by mu
	seq  uint32    // guarded by mu
}

// UserID is the user that the n-th client's token stands for.
func UserID(n int) string { return "u" + strconv.Itoa(n) }

// Token is the token of that user at the tenant that a cluster is started with.
func Token(user string) string { return tokenPrefix + user }

// GroupID names the group of the users from size×k up to size×(k+1).
func GroupID(size, k int) string { return fmt.Sprintf("g-%d-%d", size, k) }

const tokenPrefix = "load:"

// refusedError is a close code in the place of a ConnectAck.
type refusedError struct {
	code   int
	reason string
}

func (e *refusedError) Error() string { return fmt.Sprintf("closed with %d %s", e.code, e.reason) }

// dial connects and waits for the ConnectAck.
func dial(ctx context.Context, at string, n int, t Target, device string) (*Client, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "ws" {
		return nil, fmt.Errorf("%s: only ws:// URLs can be measured", at)
	}
	d := net.Dialer{KeepAlive: -1, LocalAddr: localAddr(u.Host, n)}
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	c := &Client{N: n, conn: conn, rd: reader{src: conn, buf: make([]byte, firstRead)}}
	err = c.open(u, t, device)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect %s to %s: %w", UserID(n), u.Host, err)
	}
	return c, nil
}

// perAddress is how many connections leave from one address: less than there
// are ports.
const perAddress = 16_000

// localAddr spreads connections to this machine over addresses of it.
func localAddr(host string, n int) net.Addr {
	if n < perAddress || !strings.HasPrefix(host, "127.") {
		return nil
	}
	return &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(n/perAddress%250))}
}

func (c *Client) open(u *url.URL, t Target, device string) error {
	q := url.Values{"tenantId": {t.Tenant}, "token": {cmp.Or(t.Token, tokenPrefix) + UserID(c.N)}, "deviceId": {device}}
	_, err := fmt.Fprintf(c.conn, "GET %s?%s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bWljcy1sb2FkLWNsaWVudA==\r\n\r\n", u.Path, q.Encode(), u.Host)
	if err != nil {
		return err
	}
	if err := c.rd.response(); err != nil {
		return err
	}
	for {
		op, payload, err := c.rd.frame()
		switch {
		case err != nil:
			return err
		case op == opClose:
			code, reason := closeOf(payload)
			return &refusedError{code, reason}
		case op == opBinary:
			ack, err := bytesField(payload, 1)
			if err != nil || ack == nil {
				return fmt.Errorf("the first frame is no ConnectAck: %x", payload)
			}
			if code := varintField(ack, 1); code != 1000 {
				return fmt.Errorf("ConnectAck with code %d", code)
			}
			return nil
		}
	}
}

// response reads the answer to the handshake. It does not verify the server's
// key: that is not what a load test is about.
func (rd *reader) response() error {
	const maxHeader = 8 << 10
	for n := 1; ; n++ {
		if err := rd.need(n); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("handshake: %w", err)
		}
		text := rd.buf[rd.r:rd.w]
		end := bytes.Index(text, []byte("\r\n\r\n"))
		if end < 0 {
			if n = len(text); n > maxHeader {
				return errors.New("handshake: no end of the header")
			}
			continue
		}
		rd.r += end + 4
		status, _, _ := bytes.Cut(text, []byte("\r\n"))
		if !bytes.HasPrefix(status, []byte("HTTP/1.1 101 ")) {
			return fmt.Errorf("handshake refused: %s", status)
		}
		return nil
	}
}

func closeOf(payload []byte) (code int, reason string) {
	if len(payload) < 2 {
		return 1005, ""
	}
	return int(binary.BigEndian.Uint16(payload)), string(payload[2:])
}

func varintField(b []byte, want protowire.Number) (v uint64) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0
		}
		b = b[n:]
		size := protowire.ConsumeFieldValue(num, typ, b)
		if size < 0 {
			return 0
		}
		if num == want && typ == protowire.VarintType {
			v, _ = protowire.ConsumeVarint(b)
		}
		b = b[size:]
	}
	return v
}

// prepare sets what Send sends: messages to a user or, if user is empty, to a
// group.
func (c *Client) prepare(user, group string, prefix uint32, body int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tmpl = newTemplate(user, group, prefix, body)
}

// Send sends the next message; stamp is what recipients find in its body.
func (c *Client) Send(stamp int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	_, err := c.conn.Write(c.tmpl.next(c.seq, stamp))
	return err
}

// Ping sends a heartbeat.
func (c *Client) Ping() error {
	return c.write(opBinary, []byte{0x12, 0x02, 0x08, 0x01}) // ClientFrame{heartbeat_ping{timestamp_ms: 1}}
}

func (c *Client) write(op byte, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.conn.Write(clientFrame(op, payload))
	return err
}

// close says good-bye and does not wait for the answer.
func (c *Client) close() {
	_ = c.write(opClose, binary.BigEndian.AppendUint16(nil, 1000))
	_ = c.conn.Close()
}

// run reads until the connection ends.
func (c *Client) run(ev *Events) {
	code, err := 0, error(nil)
	for err == nil && code == 0 {
		code, err = c.step(ev)
	}
	_ = c.conn.Close()
	if ev.Closed != nil {
		ev.Closed(c, code, err)
	}
}

// step takes one frame.
func (c *Client) step(ev *Events) (closed int, err error) {
	op, payload, err := c.rd.frame()
	if err != nil {
		return 0, err
	}
	switch op {
	case opPing:
		return 0, c.write(opPong, payload)
	case opClose:
		code, _ := closeOf(payload)
		_ = c.write(opClose, payload)
		return code, nil
	case opBinary:
		return 0, c.take(ev, payload)
	}
	return 0, nil
}

// take takes a ServerFrame.
func (c *Client) take(ev *Events, payload []byte) error {
	num, _, n := protowire.ConsumeTag(payload)
	if n < 0 {
		return protowire.ParseError(n)
	}
	content, m := protowire.ConsumeBytes(payload[n:])
	if m < 0 {
		return protowire.ParseError(m)
	}
	switch {
	case num == 2 && ev.Delivery != nil:
		ev.Delivery(c, content)
	case num == 3 && ev.Ack != nil:
		if varintField(content, 2) == 0 {
			ev.Ack(c, true, "")
			return nil
		}
		reason, err := bytesField(content, 4)
		if err != nil {
			return err
		}
		ev.Ack(c, false, string(reason))
	case num == 4:
		return fmt.Errorf("server error %d", varintField(content, 1))
	case num == 5 && ev.Pong != nil:
		ev.Pong(c)
	}
	return nil
}
