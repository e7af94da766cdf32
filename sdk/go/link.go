package mics

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/proto"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

const (
	// connectOK is ConnectAck.code for success.
	connectOK = 1000
	// defaultHeartbeat is the cluster's heartbeat timeout where the ConnectAck
	// names none.
	defaultHeartbeat = 30 * time.Second
	// maxFrameBytes bounds a received frame: well above any message limit.
	maxFrameBytes = 16 << 20
	// writeTimeout is how long a gateway may leave a frame unread.
	writeTimeout = 10 * time.Second
	// closeFrameGrace is how long reading goes on after a failed write, to find
	// the close frame that says why.
	closeFrameGrace = time.Second
)

// link is one acknowledged connection.
type link struct {
	ws        *websocket.Conn
	tap       *tap
	ack       *messagev1.ConnectAck
	heartbeat time.Duration // the gateway closes after this much silence
}

// dialer makes links. It is owned by the client's run loop.
type dialer struct {
	opts     *Options
	refused  string // the token that was refused last
	why      error  // and with what
	refusals int    // refused tokens in a row
}

// dial makes one attempt. It fails with a *CloseError, a *HandshakeError, the
// Token function's error or a network error, none of which names the token.
func (d *dialer) dial(ctx context.Context, base *url.URL) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, d.opts.DialTimeout)
	defer cancel()
	token, err := d.opts.Token(ctx)
	if err != nil {
		return nil, fmt.Errorf("mics: get a token: %w", err)
	}
	if d.refusals > 0 && token == d.refused {
		d.refusals = maxRefusals // nothing would change
		return nil, d.why
	}
	l, err := d.open(ctx, base, token)
	if errors.Is(err, ErrUnauthorized) {
		d.refused, d.why = token, err
		d.refusals++
	} else if err == nil {
		d.refused, d.why, d.refusals = "", nil, 0
	}
	return l, err
}

// open dials and reads up to the ConnectAck.
func (d *dialer) open(ctx context.Context, base *url.URL, token string) (*link, error) {
	u := *base
	q := u.Query()
	q.Set("tenantId", d.opts.Tenant)
	q.Set("token", token)
	q.Set("deviceId", d.opts.Device)
	u.RawQuery = q.Encode()

	l := &link{}
	//nolint:bodyclose // Dial documents that the body need not be closed
	ws, resp, err := websocket.Dial(context.WithValue(ctx, tapKey{}, &l.tap), u.String(),
		&websocket.DialOptions{HTTPClient: d.opts.HTTPClient})
	if err != nil {
		if resp != nil {
			return nil, &HandshakeError{Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header, time.Now())}
		}
		// The library's error quotes the URL, and with it the token.
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return nil, fmt.Errorf("mics: dial %s: %w", bare(base), err)
	}
	l.ws = ws
	ws.SetReadLimit(maxFrameBytes)
	frame, err := l.read(ctx)
	if err == nil {
		l.ack = frame.GetConnectAck()
		if l.ack.GetCode() != connectOK {
			err = errNoConnAck
		}
	}
	if err != nil {
		_ = ws.CloseNow() // already failing; the close has nothing to add
		return nil, err
	}
	l.heartbeat = defaultHeartbeat
	if s := l.ack.GetHeartbeatTimeoutSeconds(); s > 0 {
		l.heartbeat = time.Duration(s) * time.Second
	}
	return l, nil
}

// errBadFrame is a frame that is no ServerFrame; the connection is still good.
var errBadFrame = errors.New("mics: frame from the gateway not understood")

// read returns the next frame; errBadFrame, a *CloseError, or an error after
// which the connection is useless.
func (l *link) read(ctx context.Context) (*messagev1.ServerFrame, error) {
	kind, b, err := l.ws.Read(ctx)
	if err != nil {
		if ce, ok := errors.AsType[websocket.CloseError](err); ok {
			return nil, &CloseError{Code: int(ce.Code), Reason: ce.Reason}
		}
		return nil, fmt.Errorf("%w: %w", errLost, err)
	}
	f := &messagev1.ServerFrame{}
	if kind != websocket.MessageBinary {
		return nil, errBadFrame
	}
	if err := proto.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadFrame, err)
	}
	return f, nil
}

// serve runs one connection to its end and returns why it ended.
func (c *Client) serve(l *link, at string) error {
	// hard, not live: Close lets the connection finish its close handshake.
	ctx, cancel := context.WithCancelCause(c.hard)
	c.connects.Add(1)
	c.opts.Logger.Info("mics: connected", "url", at, "node", l.ack.GetNodeId(), "trace", l.ack.GetTraceId())
	c.out.link()
	c.setState(State{Phase: Connected, URL: at,
		Node: l.ack.GetNodeId(), User: l.ack.GetUserId(), Device: l.ack.GetDeviceId()})

	var writer sync.WaitGroup
	writer.Go(func() { c.write(ctx, l, cancel) })
	err := c.readAll(ctx, l)
	cancel(errLost)
	writer.Wait()
	c.out.unlink()
	_ = l.ws.CloseNow() // mostly closed by now; the reason is err
	return err
}

// readAll handles frames until the connection ends. A delivery is in the
// application's queue before the next frame is read, and so before the library
// echoes the gateway's close frame: the gateway takes that echo as the receipt.
func (c *Client) readAll(ctx context.Context, l *link) error {
	warned := false
	for {
		// Only waiting for the gateway counts as its silence, not waiting for
		// room in the application's queue.
		rctx, cancel := context.WithTimeoutCause(ctx, l.heartbeat, errSilence)
		f, err := l.read(rctx)
		cause := context.Cause(rctx)
		cancel()
		switch {
		case errors.Is(err, errBadFrame):
			c.badFrames.Add(1)
			if !warned { // once per connection: the peer decides how often
				warned = true
				c.opts.Logger.Warn("mics: frames ignored", "err", err, "node", l.ack.GetNodeId())
			}
			continue
		case err != nil:
			if _, closed := errors.AsType[*CloseError](err); !closed && cause != nil {
				return cause
			}
			return err
		}
		c.handle(f)
	}
}

// handle acts on one frame. Kinds that this version does not know are left
// alone, so that a newer gateway can send them.
func (c *Client) handle(f *messagev1.ServerFrame) {
	switch p := f.GetPayload().(type) {
	case *messagev1.ServerFrame_Delivery:
		c.push(newDelivery(p.Delivery))
	case *messagev1.ServerFrame_Ack:
		c.out.answer(p.Ack)
	case *messagev1.ServerFrame_Error:
		if p.Error.GetCode() == errCodeFrameTooLarge && c.out.failLargest() {
			return
		}
		c.opts.Logger.Warn("mics: error from the gateway", "code", p.Error.GetCode(), "message", p.Error.GetMessage())
	}
}

// write is the connection's only writer of messages and heartbeats. When Close
// begins it writes the close frame and is done; when writing fails it lets
// reading go on briefly, for the reason, and then breaks the connection.
func (c *Client) write(ctx context.Context, l *link, fail context.CancelCauseFunc) {
	// A third of the timeout: two pings may be late or lost in a stall.
	beat := time.NewTicker(l.heartbeat / 3)
	defer beat.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-c.live.Done():
			if l.tap.sendClose(uint16(websocket.StatusNormalClosure)) == nil {
				return
			}
			err = errStalledLink
		case now := <-beat.C:
			err = l.write(ctx, encodePing(now))
		case <-c.out.wake:
			err = c.writeMessages(ctx, l)
		}
		if err != nil {
			if sleep(ctx, closeFrameGrace) {
				fail(fmt.Errorf("%w: %w", errStalledLink, err))
			}
			return
		}
	}
}

// writeMessages writes what the outbox holds for this connection.
func (c *Client) writeMessages(ctx context.Context, l *link) error {
	for p := c.out.next(); p != nil; p = c.out.next() {
		if err := l.write(ctx, p.frame); err != nil {
			return err
		}
	}
	return nil
}

func (l *link) write(ctx context.Context, frame []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return l.ws.Write(ctx, websocket.MessageBinary, frame)
}
