package harness

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	mics "github.com/mics-im/mics/sdk/go"
)

// Outgoing is a message to send; exactly one of To and Group is set.
type Outgoing struct {
	ID        string // SDK only; empty: a new one
	To, Group string
	Body      []byte
}

// Incoming is a message as the application sees it.
type Incoming struct {
	ID, From, FromDevice, To, Group string
	Body                            []byte
	Unmoderated                     bool
}

// Answer is the outcome of a message.
type Answer struct {
	Sent     bool // else FAILED, or Err
	Reason   string
	Partial  bool
	Buffered uint32
	Attempts int // how often it was written; 0: not known
	// Err: there is no answer; the client gave up.
	Err error
}

// Observer learns what the application of a client sees: each call in order,
// never two at once. It must not block.
type Observer interface {
	Connected(node string)
	// Disconnected: code is 1006 where there was no close frame.
	Disconnected(code int, reason string)
	Delivered(Incoming)
	// Ended: the client stopped for good, and not because it was closed.
	Ended(error)
}

// MoveObserver is told by an SDK client that it has moved to another gateway without a
// break, before what it receives there.
type MoveObserver interface{ Moved(node string) }

// Endpoint is a client program of one device.
type Endpoint interface {
	// Submit hands a message over without waiting for more than room; answered
	// is called for every answer, from a goroutine of the endpoint: once, but
	// that a V1 client may be answered again when it wrote a message again.
	// False: the endpoint is closed and answered is not called.
	Submit(m Outgoing, answered func(Answer)) bool
	// Close ends the program in good order and waits for it. No Observer is
	// called afterwards.
	Close()
}

// Dialing says who connects where.
type Dialing struct {
	URLs                []string
	Tenant, User, Token string // Token: default user:User
	Device              string
	Observer            Observer
	// AnswerWithin bounds the wait for an answer; 0: a minute.
	AnswerWithin time.Duration
	// MaxBackoff bounds the waits between attempts; 0: a second.
	MaxBackoff time.Duration
}

func (d Dialing) withDefaults() Dialing {
	if d.Token == "" {
		d.Token = tokenPrefix + d.User
	}
	if d.AnswerWithin == 0 {
		d.AnswerWithin = time.Minute
	}
	if d.MaxBackoff == 0 {
		d.MaxBackoff = time.Second
	}
	return d
}

const dialTimeout = 3 * time.Second

// sdk is an Endpoint on the Go SDK.
type sdk struct {
	d      Dialing
	client *mics.Client
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // answers being waited for

	// mu orders what the observer is told: the SDK has one goroutine for states
	// and one for deliveries.
	mu     sync.Mutex
	linked bool   // guarded by mu
	node   string // guarded by mu: the last that the observer was told
	closed bool   // guarded by mu
}

// DialSDK starts a client on the Go SDK; it connects in the background.
func DialSDK(d Dialing) (Endpoint, error) {
	s := &sdk{d: d.withDefaults()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	var err error
	s.client, err = mics.New(mics.Options{
		URLs: d.URLs, Tenant: d.Tenant, Device: d.Device,
		Token:      func(context.Context) (string, error) { return s.d.Token, nil },
		OnDelivery: s.deliver, OnState: s.state,
		DialTimeout: dialTimeout, MinBackoff: 100 * time.Millisecond, MaxBackoff: s.d.MaxBackoff,
		MaxPending: 256,
	})
	if err != nil {
		s.cancel()
		return nil, err
	}
	now, cancel := context.WithCancel(s.ctx)
	cancel() // start it, and do not wait
	_ = s.client.Connect(now)
	return s, nil
}

func (s *sdk) state(st mics.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.Phase == mics.Connected {
		s.linked, s.node = true, st.Node
		s.d.Observer.Connected(st.Node)
		return
	}
	var ce *mics.CloseError
	closed := errors.As(st.Err, &ce)
	if s.linked {
		s.linked = false
		code, reason := 1006, ""
		switch {
		case closed:
			code, reason = ce.Code, ce.Reason
		case errors.Is(st.Err, mics.ErrClosed):
			code = 1000
		case st.Err != nil:
			reason = st.Err.Error()
		}
		s.d.Observer.Disconnected(code, reason)
	}
	if st.Phase == mics.Closed && !errors.Is(st.Err, mics.ErrClosed) {
		s.d.Observer.Ended(st.Err)
	}
}

func (s *sdk) deliver(d *mics.Delivery) {
	st := s.client.State()
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, ok := s.d.Observer.(MoveObserver); ok && s.linked && st.Phase == mics.Connected && st.Node != s.node {
		s.node = st.Node
		o.Moved(st.Node)
	}
	s.d.Observer.Delivered(Incoming{
		ID: d.ID, From: d.From, FromDevice: d.FromDevice, To: d.To, Group: d.Group, Body: d.Body, Unmoderated: d.Unmoderated,
	})
}

func (s *sdk) Submit(m Outgoing, answered func(Answer)) bool {
	ctx, cancel := context.WithTimeout(s.ctx, s.d.AnswerWithin)
	p, err := s.client.Submit(ctx, mics.Message{ID: m.ID, To: m.To, Group: m.Group, Body: m.Body})
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.wg.Add(1)
	}
	s.mu.Unlock()
	if closed {
		cancel()
		return false
	}
	go func() {
		defer s.wg.Done()
		defer cancel()
		var ack mics.Ack
		if err == nil {
			ack, err = p.Wait()
		}
		answered(outcome(ack, err))
	}()
	return true
}

func outcome(ack mics.Ack, err error) Answer {
	var failed *mics.SendError
	switch {
	case err == nil:
		a := Answer{Sent: true, Partial: ack.Partial, Buffered: ack.OfflineBuffered}
		if ack.Duplicate {
			a.Reason = "duplicate"
		}
		return a
	case errors.As(err, &failed):
		return Answer{Reason: failed.Reason}
	case errors.Is(err, mics.ErrClosed):
		return Answer{Err: ErrLeft}
	}
	return Answer{Err: err}
}

func (s *sdk) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = s.client.Close(ctx) // cut short: a paused gateway does not answer
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

// jitter is full jitter below a ceiling that doubles with every attempt.
func jitter(attempt int, ceiling time.Duration) time.Duration {
	top := min(100*time.Millisecond<<min(attempt, 10), ceiling)
	return rand.N(top) + 1
}
