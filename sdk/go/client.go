package mics

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// closeBudget bounds Close whatever its context says: a gateway that does not
// answer the close handshake, or an application that no longer takes
// deliveries, must not keep it.
const closeBudget = 5 * time.Second

// callbackGrace is how long Close still waits after it has cut everything that
// it can cut: only a callback that does not return takes that long.
const callbackGrace = 200 * time.Millisecond

// Phase is where a client is in its life.
type Phase int

const (
	// Connecting: never connected so far.
	Connecting Phase = iota
	Connected
	// Reconnecting: was connected and is trying to be again.
	Reconnecting
	// Closed is final.
	Closed
)

func (p Phase) String() string {
	switch p {
	case Connecting:
		return "connecting"
	case Connected:
		return "connected"
	case Reconnecting:
		return "reconnecting"
	case Closed:
		return "closed"
	}
	return fmt.Sprintf("Phase(%d)", int(p))
}

// State is a client's state at one moment.
type State struct {
	Phase Phase
	// URL of the gateway that is or was last dialed, without parameters.
	URL string
	// Node, User and Device as the gateway confirmed them; set when Connected.
	Node, User, Device string
	// Err is why the client is not connected: the last failure while
	// (re)connecting, the final reason when Closed.
	Err error
	// RetryIn is the wait before the next attempt.
	RetryIn time.Duration
}

// Stats counts since New.
type Stats struct {
	Connects          uint64 // connections that were acknowledged, without Migrations
	Resumes           uint64 // ... of them those that went on with the session before
	Migrations        uint64 // moves to another connection while connected, as the cluster asked
	Deliveries        uint64 // received, whether or not the application has them yet
	Repeats           uint64 // ... of them those that it has had before, left out
	DroppedDeliveries uint64 // discarded by DropOldest
	Resends           uint64 // messages written again on a later connection
	BadFrames         uint64 // frames from a gateway that could not be understood
}

// Client is one device's connection to the cluster. All methods are safe for
// concurrent use.
type Client struct {
	opts Options
	urls []*url.URL

	// live ends when Close begins: no more attempts, finish the connection. hard
	// ends when Close gives up waiting. Both are the client's whole life, which
	// no caller's context is.
	live, hard             context.Context
	cancelLive, cancelHard context.CancelFunc

	begin   sync.Once     // guards the start of run, or its replacement by Close
	done    chan struct{} // closed when the client has ended; err is set then
	stopped chan struct{} // closed when its goroutines are gone as well

	in     *inbox // its queue is closed by end, when no connection is left
	out    *outbox
	at     int // index of the URL to dial; owned by run's goroutine, like doubts
	doubts doubts

	connects, resumes, migrations, badFrames atomic.Uint64

	mu    sync.Mutex
	state State         // guarded by mu
	up    chan struct{} // guarded by mu: closed while connected
	err   error         // guarded by mu until done is closed
}

// New checks the options and returns a client that does nothing yet. A Message
// may be submitted already; it waits for the connection.
func New(o Options) (*Client, error) {
	o, urls, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Client{
		opts: o, urls: urls,
		done: make(chan struct{}), stopped: make(chan struct{}), up: make(chan struct{}),
		out: newOutbox(o.MaxPending),
	}
	c.live, c.cancelLive = context.WithCancel(context.Background())
	c.hard, c.cancelHard = context.WithCancel(context.Background())
	c.in = &inbox{queue: make(chan *Delivery, o.QueueSize), turn: make(chan struct{}, 1), overflow: o.Overflow, live: c.live, hard: c.hard}
	if !o.DisableV2 {
		c.in.recent = newRecent()
	}
	return c, nil
}

// Connect starts the client and waits until it is connected (nil), has been
// refused for good (that error), or ctx ends. In the last case it keeps on
// trying: call Connect again to wait on, or Close to end it.
func (c *Client) Connect(ctx context.Context) error {
	c.begin.Do(func() { go c.run() })
	c.mu.Lock()
	up := c.up
	c.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		if last := c.State().Err; last != nil {
			return fmt.Errorf("mics: not connected: %w (last failure: %w)", ctx.Err(), last)
		}
		return fmt.Errorf("mics: not connected: %w", ctx.Err())
	}
}

// Send sends m and waits for the cluster's answer. A nil error means SENT. A
// *SendError means that nothing was delivered. Any other error leaves the
// outcome unknown, unless it is one of ErrRecipient, ErrInFlight; the same
// message may be sent again with the ID of the returned Ack.
func (c *Client) Send(ctx context.Context, m Message) (Ack, error) {
	p, err := c.Submit(ctx, m)
	if err != nil {
		return Ack{ID: m.ID}, err
	}
	return p.Wait()
}

// Submit takes m in for sending and returns without waiting for the answer;
// it blocks only while MaxPending messages are unanswered. Messages go out in
// the order in which they were submitted. The message is given up on when ctx
// ends.
func (c *Client) Submit(ctx context.Context, m Message) (*Pending, error) {
	frame, err := m.encode()
	if err != nil {
		return nil, err
	}
	if len(m.Body) > c.opts.MaxBodyBytes {
		return nil, &SendError{ID: m.ID, Reason: reasonTooLarge}
	}
	p := &Pending{id: m.ID, frame: frame, done: make(chan struct{})}
	if err := c.out.add(ctx, p, c.done); err != nil {
		return nil, err
	}
	return p, nil
}

// Deliveries yields what arrives, in order, until the client ends; whatever was
// received before is yielded first. The last pair carries an error when the
// client ended by itself or ctx ended; after Close the sequence just ends. It
// may be ranged over again, but not at the same time and not with OnDelivery.
func (c *Client) Deliveries(ctx context.Context) iter.Seq2[*Delivery, error] {
	return func(yield func(*Delivery, error) bool) {
		for {
			select {
			case d, ok := <-c.in.queue:
				if !ok {
					<-c.done
					if err := c.Err(); !errors.Is(err, ErrClosed) {
						yield(nil, err)
					}
					return
				}
				if !yield(d, nil) {
					return
				}
			case <-ctx.Done():
				yield(nil, ctx.Err())
				return
			}
		}
	}
}

// State returns the present state.
func (c *Client) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Stats returns the counters.
func (c *Client) Stats() Stats {
	return Stats{
		Connects: c.connects.Load(), Resumes: c.resumes.Load(), Migrations: c.migrations.Load(),
		Deliveries: c.in.deliveries.Load(), Repeats: c.in.repeats.Load(), DroppedDeliveries: c.in.dropped.Load(),
		Resends: c.out.resent(), BadFrames: c.badFrames.Load(),
	}
}

// Done is closed when the client has ended for good; Err says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is nil until the client has ended for good.
func (c *Client) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// Close ends the client: it performs the close handshake, hands over what it
// has received, and waits for its goroutines and for OnDelivery to finish, at
// most until ctx ends or for five seconds. What arrives before the gateway's
// answer is handed over on a connection of version 1; since version 2 the
// cluster keeps it for the device's next session. If the cluster is just moving
// the client it waits for that, at most two seconds, because acknowledgements count
// on the new connection. Messages still unanswered end with ErrClosed. It returns
// an error if it had to cut that short. Closing twice is harmless.
func (c *Client) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeBudget)
	defer cancel()
	c.cancelLive()
	c.begin.Do(func() {
		c.end(ErrClosed)
		close(c.stopped)
	})
	select {
	case <-c.stopped:
		return nil
	case <-ctx.Done():
	}
	c.cancelHard()
	select {
	case <-c.stopped: // it ends now, unless a callback of the application hangs
	case <-time.After(callbackGrace):
	}
	return fmt.Errorf("mics: close was cut short: %w", ctx.Err())
}

// run is the client's one lasting goroutine: it connects, serves the
// connection, and decides what comes after it, until the client ends.
func (c *Client) run() {
	defer close(c.stopped)
	var dispatcher sync.WaitGroup
	if c.opts.OnDelivery != nil {
		dispatcher.Go(c.dispatch)
	}
	c.end(c.loop())
	dispatcher.Wait()
	c.cancelHard()
	c.opts.HTTPClient.CloseIdleConnections()
}

// loop returns why the client ends.
func (c *Client) loop() error {
	d := dialer{opts: &c.opts}
	pace := newPacer(c.opts.MinBackoff, c.opts.MaxBackoff)
	c.at = rand.IntN(len(c.urls)) // a fleet spreads over the URLs
	ever := false
	c.setState(State{Phase: Connecting, URL: bare(c.urls[c.at])})
	for {
		l, err := d.dial(c.live, c.urls[c.at])
		if err == nil {
			ever = true
			started := time.Now()
			err = c.serve(&d, l)
			if time.Since(started) >= stableAfter {
				pace.reset()
			}
			if errors.Is(err, ErrReplaced) && c.doubts.explain() {
				d.resume, err = nil, errReplacedBySelf // the token names the session before that
			}
		} else if doubtful(err) {
			c.doubts.add(1)
		}
		if c.live.Err() != nil {
			return ErrClosed
		}
		v := judge(err, ever)
		if v.stop == nil && d.refusals >= maxRefusals {
			v.stop = err
		}
		if v.stop != nil {
			c.opts.Logger.Warn("mics: ended", "err", v.stop)
			return v.stop
		}
		if v.elsewhere {
			c.at = (c.at + 1) % len(c.urls)
		}
		wait := pace.next(v)
		phase := Connecting
		if ever {
			phase = Reconnecting
		}
		c.opts.Logger.Info("mics: not connected", "err", err, "retry_in", wait)
		c.setState(State{Phase: phase, URL: bare(c.urls[c.at]), Err: err, RetryIn: wait})
		if !sleep(c.live, wait) {
			return ErrClosed
		}
	}
}

// sleep waits; false means that ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// end makes err the client's last word. Called once.
func (c *Client) end(err error) {
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
	c.out.end(err)
	close(c.done)
	close(c.in.queue)
	c.cancelLive()
	c.setState(State{Phase: Closed, URL: c.State().URL, Err: err})
}

// setState publishes s. Called by run's goroutine only, so that OnState sees
// the changes one at a time and in order.
func (c *Client) setState(s State) {
	c.mu.Lock()
	if s.Phase == Connected {
		close(c.up)
	} else if c.state.Phase == Connected {
		c.up = make(chan struct{})
	}
	c.state = s
	c.mu.Unlock()
	if c.opts.OnState != nil {
		c.opts.OnState(s)
	}
}

// dispatch feeds OnDelivery until the queue has ended and is empty, or Close
// has run out of time.
func (c *Client) dispatch() {
	for d := range c.in.queue {
		if c.hard.Err() != nil {
			return
		}
		c.opts.OnDelivery(d)
	}
}

// bare is u without its parameters.
func bare(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
