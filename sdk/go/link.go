package mics

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
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
	// ackEvery and ackDelay: deliveries are acknowledged at the latest after so
	// many or so long (CONTRACT section 1.4).
	ackEvery = 32
	ackDelay = time.Second
	// repeatsTime is how long after it was opened Close waits for a connection to bring
	// again what the application has from the one before it.
	repeatsTime = time.Second
)

// link is one acknowledged connection. From start on, a reading and a writing
// goroutine serve it until done is closed.
type link struct {
	ws        *websocket.Conn
	tap       *tap
	ack       *messagev1.ConnectAck
	heartbeat time.Duration // the gateway closes after this much silence
	token     string        // with which it was opened
	at        string        // URL without parameters

	v2      bool // what follows is of V2 connections
	opened  time.Time
	session *session
	resumed bool
	migrate chan *messagev1.Migrate // capacity 1, newest wins; written by the reader

	// The highest seq of this connection that needs no repeating is written by
	// the reader, acked by the writer. An ack names only what came over this very
	// connection: the session may have got further over another one.
	seen, acked atomic.Uint64
	owing       atomic.Bool   // an ack is due within ackDelay
	urgent      atomic.Bool   // ... at once
	ackWake     chan struct{} // capacity 1

	lane *lane                   // where its messages come from
	cut  context.CancelCauseFunc // ends it at once
	done chan struct{}
	err  error // why it ended; set before done is closed
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

// start makes l the connection on which messages go out.
func (c *Client) start(l *link) {
	// hard, not live: Close lets the connection finish its close handshake.
	ctx, cut := context.WithCancelCause(c.hard)
	l.cut = cut
	l.lane = c.out.link()
	go func() {
		defer close(l.done)
		var writer sync.WaitGroup
		writer.Go(func() { c.write(ctx, l) })
		l.err = c.readAll(ctx, l)
		cut(errLost)
		writer.Wait()
		_ = l.ws.CloseNow() // mostly closed by now; the reason is err
	}()
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
		c.handle(ctx, l, f)
	}
}

// handle acts on one frame. Kinds that this version does not know are left
// alone, so that a newer gateway can send them.
func (c *Client) handle(ctx context.Context, l *link, f *messagev1.ServerFrame) {
	switch p := f.GetPayload().(type) {
	case *messagev1.ServerFrame_Delivery:
		c.in.take(ctx, l, p.Delivery)
	case *messagev1.ServerFrame_Ack:
		c.out.answer(p.Ack)
	case *messagev1.ServerFrame_Migrate:
		if l.v2 {
			l.asked(p.Migrate)
		}
	case *messagev1.ServerFrame_Error:
		if p.Error.GetCode() == errCodeFrameTooLarge && c.out.failLargest() {
			return
		}
		c.opts.Logger.Warn("mics: error from the gateway", "code", p.Error.GetCode(), "message", p.Error.GetMessage())
	}
}

// asked notes a request to move. What is acknowledged before it need not move.
func (l *link) asked(m *messagev1.Migrate) {
	select {
	case <-l.migrate:
	default:
	}
	l.migrate <- m // there is room: nobody else sends
	l.urgent.Store(true)
	l.wakeAck()
}

// saw notes for the next ack that the application has everything up to seq.
func (l *link) saw(seq uint64) {
	l.seen.Store(max(seq, l.seen.Load()))
	if l.owing.CompareAndSwap(false, true) || seq >= l.acked.Load()+ackEvery {
		l.wakeAck()
	}
}

func (l *link) wakeAck() {
	select {
	case l.ackWake <- struct{}{}:
	default: // one is waiting to be seen
	}
}

// write is the connection's only writer of messages, acks and heartbeats. When
// Close begins it writes the close frame and is done; when writing fails it lets
// reading go on briefly, for the reason, and then breaks the connection.
func (c *Client) write(ctx context.Context, l *link) {
	// A third of the timeout: two pings may be late or lost in a stall.
	beat := time.NewTicker(l.heartbeat / 3)
	defer beat.Stop()
	var ackDue <-chan time.Time
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-c.live.Done():
			if err = c.farewell(ctx, l); err == nil {
				return
			}
		case now := <-beat.C:
			err = l.write(ctx, encodePing(now))
		case <-l.lane.wake:
			err = c.writeMessages(ctx, l)
		case <-l.ackWake:
			if l.urgent.Load() || l.seen.Load() >= l.acked.Load()+ackEvery {
				ackDue = nil
				err = l.writeAck(ctx)
			} else if ackDue == nil {
				ackDue = time.After(ackDelay)
			}
		case <-ackDue:
			ackDue = nil
			err = l.writeAck(ctx)
		}
		if err != nil {
			if sleep(ctx, closeFrameGrace) {
				l.cut(fmt.Errorf("%w: %w", errStalledLink, err))
			}
			return
		}
	}
}

// farewell acknowledges the last delivery that the application gets, and closes.
func (c *Client) farewell(ctx context.Context, l *link) error {
	if l.v2 {
		c.in.seal()
		l.catchUp(ctx)
		if err := l.writeAck(ctx); err != nil {
			return err
		}
	}
	return l.tap.sendClose(uint16(websocket.StatusNormalClosure))
}

// catchUp waits for what the application has from the connection before this one: an
// ack can name it when this one has brought it again, and what is not acknowledged
// is kept for the device's next session.
func (l *link) catchUp(ctx context.Context) {
	late := time.After(time.Until(l.opened.Add(repeatsTime)))
	for {
		l.owing.Store(false) // before seen is read: what is seen later wakes
		if max(l.seen.Load(), l.acked.Load()) >= l.session.last.Load() {
			return
		}
		select {
		case <-l.ackWake:
		case <-late:
			return
		case <-ctx.Done():
			return
		}
	}
}

// writeMessages writes what the outbox holds for this connection.
func (c *Client) writeMessages(ctx context.Context, l *link) error {
	for p := c.out.next(l.lane); p != nil; p = c.out.next(l.lane) {
		if err := l.write(ctx, p.frame); err != nil {
			return err
		}
	}
	return nil
}

// writeAck acknowledges what has been seen, if that is news.
func (l *link) writeAck(ctx context.Context) error {
	l.urgent.Store(false)
	l.owing.Store(false) // before seen is read: what is seen later asks for an ack again
	seen := l.seen.Load()
	if seen <= l.acked.Load() {
		return nil
	}
	if err := l.write(ctx, encodeAck(seen)); err != nil {
		return err
	}
	l.acked.Store(seen)
	return nil
}

func (l *link) write(ctx context.Context, frame []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return l.ws.Write(ctx, websocket.MessageBinary, frame)
}
