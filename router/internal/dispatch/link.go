package dispatch

import (
	"context"
	"sync"
	"time"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/router/internal/route"
)

// Stream is one Deliver stream to a gateway.
type Stream interface {
	Send(*gatewayv1.DeliverRequest) error
	Receive() (*gatewayv1.DeliverResponse, error)
	// CloseRequest and CloseResponse end it.
	CloseRequest() error
	CloseResponse() error
}

// Dialer opens a stream; it ends with ctx.
type Dialer func(ctx context.Context, node route.Node) Stream

const (
	// maxUnderWay bounds the deliveries to one gateway that have not been
	// answered; beyond it a delivery is refused, looked up again and, if that
	// goes on, not acknowledged.
	maxUnderWay = 100_000
	// maxBatch bounds one stream message.
	maxBatch      = 1024
	maxBatchBytes = 4 << 20
	redialFirst   = 20 * time.Millisecond
	redialMax     = time.Second
)

// link is the stream to one gateway incarnation. Deliveries are numbered in the
// order of push and kept until answered; a new stream sends them again, and the
// gateway knows by the numbers which it had.
type link struct {
	d      *Dispatcher
	node   route.Node
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // capacity 1

	mu     sync.Mutex
	queue  []queued // guarded by mu: unanswered, ids consecutive
	sent   int      // guarded by mu: how many of queue went out on this stream
	nextID uint64   // guarded by mu
	closed bool     // guarded by mu
}

type queued struct {
	*sending
	id    uint64
	since time.Time
}

func newLink(d *Dispatcher, node route.Node) *link {
	l := &link{d: d, node: node, wake: make(chan struct{}, 1), nextID: 1}
	l.ctx, l.cancel = context.WithCancel(d.ctx)
	return l
}

func (l *link) stop() { l.cancel() }

// push queues a delivery; false when the link is full or has ended.
func (l *link) push(s *sending) bool {
	l.mu.Lock()
	if l.closed || len(l.queue) >= maxUnderWay {
		l.mu.Unlock()
		return false
	}
	l.queue = append(l.queue, queued{s, l.nextID, time.Now()})
	l.nextID++
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return true
}

// run keeps a stream until the link is stopped; then everything unanswered is
// refused, and so looked up again.
func (l *link) run() {
	wait := redialFirst
	for l.ctx.Err() == nil {
		if l.stream() {
			wait = redialFirst
		}
		select {
		case <-time.After(wait):
		case <-l.ctx.Done():
		}
		wait = min(2*wait, redialMax)
	}
	l.mu.Lock()
	l.closed = true
	rest := l.queue
	l.queue = nil
	l.mu.Unlock()
	for _, q := range rest {
		l.d.opts.Hooks.ForwardFailed()
		for _, t := range q.targets {
			t.refuse(l.d, l.node.NodeRef)
		}
	}
}

// stream runs one stream to its end and reports whether it got any answer.
func (l *link) stream() bool {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	s := l.d.opts.Dial(ctx, l.node)
	l.mu.Lock()
	l.sent = 0
	l.mu.Unlock()
	var received sync.WaitGroup
	answered := false
	received.Go(func() {
		defer cancel()
		for {
			res, err := s.Receive()
			if err != nil {
				return
			}
			answered = true
			l.answer(res)
		}
	})
	err := s.Send(&gatewayv1.DeliverRequest{
		RouterId: l.d.opts.Router.ID, RouterIncarnation: l.d.opts.Router.Incarnation, GatewayIncarnation: l.node.Incarnation,
	})
	for err == nil {
		batch := l.batch()
		if len(batch) == 0 {
			select {
			case <-l.wake:
				continue
			case <-ctx.Done():
				err = ctx.Err()
				continue
			}
		}
		err = s.Send(&gatewayv1.DeliverRequest{Deliveries: batch})
	}
	cancel()
	_ = s.CloseRequest()
	_ = s.CloseResponse()
	received.Wait()
	return answered
}

// batch is what has not gone out on this stream, bounded.
func (l *link) batch() []*gatewayv1.Delivery {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*gatewayv1.Delivery
	bytes := 0
	for l.sent < len(l.queue) && len(out) < maxBatch && bytes < maxBatchBytes {
		q := l.queue[l.sent]
		sessions := make([]uint64, len(q.targets))
		for i, t := range q.targets {
			sessions[i] = t.session
		}
		out = append(out, &gatewayv1.Delivery{
			Id: q.id, Message: q.msg.Bytes, Unmoderated: q.msg.Unmoderated, SessionIds: sessions, Traceparent: q.msg.TraceParent,
		})
		bytes += len(q.msg.Bytes)
		l.sent++
	}
	return out
}

// answer takes one response: all up to its id are answered, the refusals are
// the exceptions.
func (l *link) answer(res *gatewayv1.DeliverResponse) {
	l.mu.Lock()
	n := 0
	for n < len(l.queue) && l.queue[n].id <= res.AnsweredThrough {
		n++
	}
	done := append([]queued(nil), l.queue[:n]...)
	clear(l.queue[:n])
	l.queue = l.queue[n:]
	l.sent = max(0, l.sent-n)
	l.mu.Unlock()

	type session struct{ id, session uint64 }
	refused := make(map[session]gatewayv1.Refusal_Reason, len(res.Refusals))
	for _, r := range res.Refusals {
		refused[session{r.Id, r.SessionId}] = r.Reason
	}
	now := time.Now()
	for _, q := range done {
		l.d.opts.Hooks.Forwarded(now.Sub(q.since), len(q.targets))
		for _, t := range q.targets {
			if why, no := refused[session{q.id, t.session}]; no {
				l.d.opts.Hooks.Refused(why.String())
				t.refuse(l.d, l.node.NodeRef)
			} else {
				t.accept(l.d, l.node.NodeRef)
			}
		}
	}
}
