package drain

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	mics "github.com/mics-im/mics/sdk/go"
	"github.com/mics-im/mics/tests/harness"
	"github.com/mics-im/mics/tests/load"
)

const (
	codeDraining = 4200
	// noClose stands for an end without a close frame.
	noClose = 1006
	// answerWithin is how long a message may wait for its answer.
	answerWithin = time.Minute
	// header of a body: when it was due, in nanoseconds since the crowd's epoch,
	// and its number.
	header = 16
)

// client is one device, and what was seen of it. It writes to client n^1.
type client struct {
	n     int
	crowd *crowd
	mute  atomic.Bool

	sdk *mics.Client     // of most
	v1  harness.Endpoint // of a sample; nil: sdk

	mu        sync.Mutex
	out       sending   // guarded by mu, like all that follows
	in        receiving // of messages of n^1
	connected bool      // as the application sees it
	ever      bool
	lost      time.Time // when it was disconnected last
	told      time.Time // when it was closed with 4200 last
	ended     error
	live      int       // sockets with a ConnectAck
	offSince  time.Time // since when there was none
	acked     time.Time // when the last ConnectAck was read
	moving    time.Time // when the handshake of the socket being opened was sent; zero: none is
	moves     [4]span   // the last ones, at moved%4
	moved     int
}

// span is a time in which a client moved.
type span struct{ from, until time.Time }

func (c *client) name() string { return load.UserID(c.n) }

// start has it connect, at the n-th URL first where the order says so.
func (c *client) start(o order) error {
	if o.sampled(c.n) {
		c.v1 = harness.DialV1(harness.Dialing{
			URLs: o.URLs, Tenant: load.TenantName, User: c.name(), Token: load.Token(c.name()), Device: "drain", Observer: c,
			AnswerWithin: answerWithin,
		})
		return nil
	}
	var err error
	c.sdk, err = mics.New(mics.Options{
		URLs: o.URLs, Tenant: load.TenantName, Device: "drain", DisableV2: o.V1, QueueSize: 64,
		Token:      func(context.Context) (string, error) { return load.Token(c.name()), nil },
		OnDelivery: func(d *mics.Delivery) { c.delivered(d.From, d.Body) },
		OnState:    c.state,
		HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: c.dialer(o)}},
	})
	if err != nil {
		return err
	}
	now, cancel := context.WithCancel(context.Background())
	cancel() // start it, and do not wait
	_ = c.sdk.Connect(now)
	return nil
}

// dialer dials for the SDK.
func (c *client) dialer(o order) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, addr string) (conn net.Conn, err error) {
		if c.mute.Load() {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		if first := c.first(); first && len(o.Place) > 0 {
			u, err := url.Parse(o.Place[c.n/2%len(o.Place)])
			if err != nil {
				return nil, err
			}
			addr = u.Host
		}
		if o.Delay > 0 {
			conn, err = dialFar(ctx, addr, o.Delay, &c.crowd.wg)
		} else {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}
		if err != nil {
			return nil, err
		}
		if o.silences(c.n) {
			conn = newSilent(conn, c)
		}
		return &socket{Conn: conn, owner: c}, nil
	}
}

func (c *client) first() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.ever
}

func (c *client) close() {
	if c.v1 != nil {
		c.v1.Close()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = c.sdk.Close(ctx) // a silent one cannot say good-bye
}

// send writes the next message, which was due then.
func (c *client) send(ctx context.Context, due time.Time, size int) {
	body := make([]byte, max(size, header))
	c.mu.Lock()
	n := c.out.begin()
	c.mu.Unlock()
	binary.BigEndian.PutUint64(body, uint64(due.Sub(c.crowd.epoch)))
	binary.BigEndian.PutUint64(body[8:], n)
	to := load.UserID(c.n ^ 1)
	if c.v1 != nil {
		c.v1.Submit(harness.Outgoing{To: to, Body: body}, func(a harness.Answer) { c.answered(n, a.Sent, cmpReason(a.Reason, a.Err)) })
		return
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	p, err := c.sdk.Submit(ctx, mics.Message{To: to, Body: body})
	if err != nil {
		cancel()
		c.answered(n, false, err.Error())
		return
	}
	c.crowd.wg.Go(func() { // ends with the answer, or the time for it
		defer cancel()
		_, err := p.Wait()
		var failed *mics.SendError
		if err != nil && !errors.As(err, &failed) {
			return // stays open: unanswered
		}
		c.answered(n, err == nil, cmpReason("", err))
	})
}

func cmpReason(reason string, err error) string {
	if err != nil {
		return err.Error()
	}
	return reason
}

func (c *client) answered(n uint64, sent bool, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.answer(n, sent, reason)
}

// delivered takes a message. Calls come one after the other.
func (c *client) delivered(from string, body []byte) {
	now := time.Now()
	if len(body) < header || from != load.UserID(c.n^1) {
		c.crowd.oddity(fmt.Sprintf("%s got a message of %s with %d bytes", c.name(), from, len(body)))
		return
	}
	due := c.crowd.epoch.Add(time.Duration(binary.BigEndian.Uint64(body)))
	c.mu.Lock()
	c.in.got(binary.BigEndian.Uint64(body[8:]))
	during := !c.moving.IsZero()
	for _, m := range c.moves {
		during = during || m.from.Before(now) && m.until.After(due)
	}
	c.mu.Unlock()
	p := c.crowd.phaseAt(due)
	p.Latency.Add(now.Sub(due))
	if during {
		p.Moving.Add(now.Sub(due))
	}
}

// state is what the application is told by the SDK.
func (c *client) state(s mics.State) {
	if s.Phase == mics.Connected {
		c.Connected(s.Node)
		return
	}
	code, reason := noClose, ""
	if ce, ok := errors.AsType[*mics.CloseError](s.Err); ok {
		code, reason = ce.Code, ce.Reason
	} else if s.Err != nil {
		reason = s.Err.Error()
	}
	if s.Phase == mics.Closed && errors.Is(s.Err, mics.ErrClosed) {
		return
	}
	c.Disconnected(code, reason)
	if s.Phase == mics.Closed {
		c.Ended(s.Err)
	}
}

// Connected implements harness.Observer.
func (c *client) Connected(string) {
	now := time.Now()
	c.mu.Lock()
	again, away := c.ever, now.Sub(c.lost)
	c.connected, c.ever = true, true
	c.mu.Unlock()
	if again {
		c.crowd.returned(now, away)
	}
}

// Disconnected implements harness.Observer. Of a connection that has been
// disconnected it tells nothing new.
func (c *client) Disconnected(code int, reason string) {
	now := time.Now()
	c.mu.Lock()
	was := c.connected
	c.connected = false
	if was {
		c.lost = now
		if code == codeDraining {
			c.told = now
		}
	}
	c.mu.Unlock()
	if was && !c.mute.Load() {
		c.crowd.disconnected(now, c.name(), code, reason)
	}
}

// Delivered implements harness.Observer.
func (c *client) Delivered(m harness.Incoming) { c.delivered(m.From, m.Body) }

// Ended implements harness.Observer.
func (c *client) Ended(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = err
}

// opening, opened and socketEnded are told by sockets. A move is a second socket that is
// opened while there is a first one.
func (c *client) opening(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live > 0 {
		c.moving = at
	}
}

func (c *client) opened(sent, at time.Time) {
	c.mu.Lock()
	hole := time.Duration(0)
	moved := c.live > 0
	if !moved && sent.Before(c.offSince) { // the first one ended meanwhile
		moved, hole = true, at.Sub(c.offSince)
	}
	c.live++
	m := Move{Client: c.n, After: c.acked.UnixNano(), Sent: sent.UnixNano(), Read: at.UnixNano()}
	c.moving, c.acked = time.Time{}, at
	if moved {
		c.moves[c.moved%len(c.moves)] = span{sent, at}
		c.moved++
	}
	c.mu.Unlock()
	if moved {
		c.crowd.moved(at, m, hole)
	}
}

func (c *client) socketEnded(live bool, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if live {
		if c.live--; c.live == 0 {
			c.offSince = at
		}
	} else {
		c.moving = time.Time{}
	}
}
