package harness

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/proto"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// What a V1 client library does.
const (
	// ackTimeout is after which a message is written again: same id, new
	// timestamp.
	ackTimeout = 3 * time.Second
	// beat is between heartbeats; three without any frame from the gateway, and
	// the connection is given up.
	beat = time.Second
	// v1Queue bounds the messages without an answer.
	v1Queue = 256
)

// V1 is an unmodified V1 client: it knows nothing of V2, numbers its messages
// 1, 2, 3 … anew in every instance, and cannot acknowledge a delivery. It
// reconnects at once after any close, elsewhere if it can, and with full jitter
// when it is refused.
type V1 struct {
	d      Dialing
	http   *http.Client
	wire   atomic.Pointer[wire] // of the last dial
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when run has ended
	wake   chan struct{} // capacity 1: something to write
	slots  chan struct{} // one taken per unanswered message

	leaving sync.Once
	leave   chan struct{} // closed by Close: say goodbye

	mu      sync.Mutex
	next    int             // guarded by mu; the last id
	pending []*v1Message    // guarded by mu; in order of submission
	raw     [][]byte        // guarded by mu; frames to write as they are
	conn    *websocket.Conn // guarded by mu; nil: none
	once    bool            // guarded by mu; do not reconnect
}

type v1Message struct {
	id       string
	request  *messagev1.MessageRequest
	answered func(Answer)
	began    time.Time
	written  time.Time // the last time; zero: not yet
	attempts int
	settled  bool
}

// RawObserver is told of the frames that a V1 client does not use itself.
type RawObserver interface {
	ServerError(code int, message string)
}

// DialV1 starts a V1 client; it connects in the background.
func DialV1(d Dialing) *V1 {
	c := &V1{
		d: d.withDefaults(), done: make(chan struct{}), leave: make(chan struct{}), wake: make(chan struct{}, 1), slots: make(chan struct{}, v1Queue),
	}
	c.http = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: c.dialWire}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	go c.run()
	return c
}

// Submit implements Endpoint.
func (c *V1) Submit(m Outgoing, answered func(Answer)) bool {
	select {
	case c.slots <- struct{}{}:
	case <-c.ctx.Done():
		return false
	}
	p := &v1Message{answered: answered, began: time.Now(), request: &messagev1.MessageRequest{
		ToUserId: m.To, GroupId: m.Group, MsgBody: m.Body,
		TenantId: c.d.Tenant, UserId: c.d.User, DeviceId: c.d.Device,
	}}
	if m.Group != "" {
		p.request.MsgType = messagev1.MessageType_GROUP_CHAT
	}
	c.mu.Lock()
	c.next++
	p.id = strconv.Itoa(c.next)
	p.request.MsgId = p.id
	c.pending = append(c.pending, p)
	c.mu.Unlock()
	c.poke()
	return true
}

// Request sends a request as it is, under the next id; for what Submit does not
// let one send.
func (c *V1) Request(r *messagev1.MessageRequest, answered func(Answer)) {
	p := &v1Message{answered: answered, began: time.Now(), request: r}
	c.slots <- struct{}{}
	c.mu.Lock()
	c.next++
	p.id = strconv.Itoa(c.next)
	r.MsgId = p.id
	c.pending = append(c.pending, p)
	c.mu.Unlock()
	c.poke()
}

// Raw writes a binary frame as it is.
func (c *V1) Raw(frame []byte) {
	c.mu.Lock()
	c.raw = append(c.raw, frame)
	c.mu.Unlock()
	c.poke()
}

// Text writes a text frame on the present connection.
func (c *V1) Text(s string) error {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return errors.New("not connected")
	}
	return conn.Write(c.ctx, websocket.MessageText, []byte(s))
}

// Close implements Endpoint. It says that it goes, and shows its application all
// that comes until the gateway's answer, as a client library should; the
// WebSocket library's own way to close drops that.
func (c *V1) Close() {
	c.mu.Lock()
	c.once = true
	linked := c.conn != nil
	c.mu.Unlock()
	if linked {
		c.leaving.Do(func() { close(c.leave) })
		select {
		case <-c.done:
		case <-time.After(closeTimeout):
		}
	}
	c.cancel()
	<-c.done
	c.http.CloseIdleConnections()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pending {
		if !p.settled {
			p.answered(Answer{Err: ErrLeft, Attempts: p.attempts})
		}
	}
	c.pending = nil
}

// closeTimeout is how long a gateway may take to answer a close frame.
const closeTimeout = 3 * time.Second

// StaysAway keeps the client from reconnecting from now on.
func (c *V1) StaysAway() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.once = true
}

// Drop cuts the connection without a close frame; the client comes back.
func (c *V1) Drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		_ = c.conn.CloseNow()
	}
}

// ErrLeft is in an Answer when the client was closed before one came.
var (
	ErrLeft     = errors.New("the client was closed")
	errNoAnswer = errors.New("no answer in time")
	errSilent   = errors.New("the gateway is silent")
)

func (c *V1) poke() {
	select {
	case c.wake <- struct{}{}:
	default: // one is waiting to be seen
	}
}

func (c *V1) run() {
	defer close(c.done)
	at := rand.IntN(len(c.d.URLs))
	refused := 0
	for c.ctx.Err() == nil {
		conn, node, err := c.dial(c.d.URLs[at])
		if err != nil {
			refused++
			if code := websocket.CloseStatus(err); code > 0 && c.final() {
				var ce websocket.CloseError
				errors.As(err, &ce)
				c.d.Observer.Disconnected(int(code), ce.Reason)
				return
			}
		} else {
			refused = 0
			c.d.Observer.Connected(node)
			code, reason := c.serve(conn)
			c.d.Observer.Disconnected(code, reason)
		}
		c.giveUp()
		if c.final() {
			return
		}
		at = (at + 1) % len(c.d.URLs)
		if refused > 0 {
			select {
			case <-time.After(jitter(refused, c.d.MaxBackoff)):
			case <-c.ctx.Done():
			}
		}
	}
}

func (c *V1) final() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.once
}

// dial connects and reads the ConnectAck.
func (c *V1) dial(base string) (*websocket.Conn, string, error) {
	ctx, cancel := context.WithTimeout(c.ctx, dialTimeout)
	defer cancel()
	q := url.Values{"tenantId": {c.d.Tenant}, "token": {c.d.Token}, "deviceId": {c.d.Device}}
	//nolint:bodyclose // Dial documents that the body need not be closed
	conn, _, err := websocket.Dial(ctx, base+"?"+q.Encode(), &websocket.DialOptions{HTTPClient: c.http})
	if err != nil {
		return nil, "", err
	}
	conn.SetReadLimit(16 << 20)
	f, err := readFrame(ctx, conn)
	if err == nil && f.GetConnectAck().GetCode() != 1000 {
		err = errors.New("the first frame is no ConnectAck")
	}
	if err != nil {
		_ = conn.CloseNow() // already failing
		return nil, "", err
	}
	return conn, f.GetConnectAck().GetNodeId(), nil
}

func readFrame(ctx context.Context, conn *websocket.Conn) (*messagev1.ServerFrame, error) {
	_, b, err := conn.Read(ctx)
	if err != nil {
		return nil, err
	}
	f := &messagev1.ServerFrame{}
	return f, proto.Unmarshal(b, f)
}

// serve runs one connection to its end.
func (c *V1) serve(conn *websocket.Conn) (code int, reason string) {
	ctx, cancel := context.WithCancel(c.ctx)
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { c.write(ctx, conn) })
	err := c.read(ctx, conn)
	cancel()
	wg.Wait()
	c.mu.Lock()
	c.conn = nil
	c.mu.Unlock()
	_ = conn.CloseNow() // mostly closed by now
	var ce websocket.CloseError
	if errors.As(err, &ce) {
		return int(ce.Code), ce.Reason
	}
	return 1006, err.Error()
}

func (c *V1) read(ctx context.Context, conn *websocket.Conn) error {
	for {
		rctx, cancel := context.WithTimeoutCause(ctx, 3*beat, errSilent)
		f, err := readFrame(rctx, conn)
		cancel()
		if err != nil {
			return err
		}
		switch p := f.GetPayload().(type) {
		case *messagev1.ServerFrame_Delivery:
			m := p.Delivery.GetMessage()
			c.d.Observer.Delivered(Incoming{
				ID: m.GetMsgId(), From: m.GetUserId(), FromDevice: m.GetDeviceId(), To: m.GetToUserId(), Group: m.GetGroupId(), Body: m.GetMsgBody(),
			})
		case *messagev1.ServerFrame_Ack:
			c.answer(p.Ack)
		case *messagev1.ServerFrame_Error:
			if o, ok := c.d.Observer.(RawObserver); ok {
				o.ServerError(int(p.Error.GetCode()), p.Error.GetMessage())
			}
		}
	}
}

func (c *V1) write(ctx context.Context, conn *websocket.Conn) {
	resend, heartbeat := time.NewTicker(100*time.Millisecond), time.NewTicker(beat)
	defer resend.Stop()
	defer heartbeat.Stop()
	for {
		var frames [][]byte
		select {
		case <-ctx.Done():
			return
		case <-c.leave:
			if w := c.wire.Load(); w != nil {
				_, _ = w.Write(goodbye) // reading learns why not
			}
			return
		case <-heartbeat.C:
			frames = [][]byte{clientFrame(&messagev1.ClientFrame{Payload: &messagev1.ClientFrame_HeartbeatPing{
				HeartbeatPing: &messagev1.HeartbeatPing{TimestampMs: time.Now().UnixMilli()},
			}})}
		case <-resend.C:
			c.giveUp()
			frames = c.due()
		case <-c.wake:
			frames = c.due()
		}
		for _, f := range frames {
			if err := conn.Write(ctx, websocket.MessageBinary, f); err != nil {
				return // reading learns why
			}
		}
	}
}
