package service

import (
	"context"
	"sync"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	// maxOutcomes bounds the outcomes that a gateway has not read: far more than
	// it may have unanswered (64 a session). Beyond it the stream ends; the
	// gateway sends again what it got no outcome for.
	maxOutcomes = 1 << 20
	// maxOutcomeBatch bounds one stream message.
	maxOutcomeBatch = 4096
)

// Publish implements RouterService. One goroutine takes messages into the
// pipeline, one sends outcomes; neither waits for the other, and neither for a
// tenant.
func (s *Service) Publish(ctx context.Context, stream *connect.BidiStream[routerv1.PublishRequest, routerv1.PublishResponse]) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	p := &publishing{outcomes: rpc.NewQueue[*routerv1.Outcome](maxOutcomes), overflow: make(chan struct{}), quiet: make(chan struct{})}
	var sending sync.WaitGroup
	sending.Go(func() { p.send(ctx, stream) })
	defer sending.Wait()
	defer p.outcomes.Close()

	requests, end := receive(ctx, stream)
	gateway, err := s.first(requests, p)
	if err != nil {
		return err
	}
	intake := s.opts.Intake(gateway, p.answer)
	for batch := p.begun; ; {
		if len(batch) > 0 {
			if !s.opts.Directory.Alive(gateway) {
				return fault.New(fault.FailedPrecondition, "this gateway incarnation holds no lease")
			}
			p.begin(len(batch))
			intake.Publish(batch)
		}
		select {
		case req, ok := <-requests:
			if !ok {
				return end()
			}
			batch = req.Messages
		case <-p.overflow:
			s.opts.Stats.OutcomesRefused.Inc()
			return fault.New(fault.Exhausted, "outcomes are not read")
		case <-s.stopping:
			// Whatever comes in now is not taken, and so sent to another router.
			p.drain(ctx)
			return fault.New(fault.Unavailable, "this router is stopping")
		}
	}
}

// first reads the first message, which names the gateway and may bring messages.
func (s *Service) first(requests <-chan *routerv1.PublishRequest, p *publishing) (route.NodeRef, error) {
	select {
	case req, ok := <-requests:
		if !ok {
			return route.NodeRef{}, fault.New(fault.Invalid, "the first message names the gateway")
		}
		if err := named(req.Gateway); err != nil {
			return route.NodeRef{}, err
		}
		p.begun = req.Messages
		return route.NodeRef{ID: req.Gateway.NodeId, Incarnation: req.Gateway.Incarnation}, nil
	case <-s.stopping:
		return route.NodeRef{}, fault.New(fault.Unavailable, "this router is stopping")
	}
}

// publishing is one Publish stream.
type publishing struct {
	begun    []*routerv1.Inbound // of the first message
	outcomes *rpc.Queue[*routerv1.Outcome]
	overflow chan struct{} // closed when an outcome found no room

	mu         sync.Mutex
	unanswered int           // guarded by mu
	draining   bool          // guarded by mu
	overflowed bool          // guarded by mu
	quiet      chan struct{} // closed when draining and all is answered
}

func (p *publishing) begin(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unanswered += n
}

// answer queues one outcome. After the stream's end it goes nowhere: the gateway
// asks again on another one.
func (p *publishing) answer(ref uint64, ack []byte) {
	pushed := p.outcomes.Push(&routerv1.Outcome{Ref: ref, Ack: ack})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unanswered--
	if p.draining && p.unanswered == 0 {
		close(p.quiet)
	}
	if !pushed && !p.overflowed {
		p.overflowed = true
		close(p.overflow)
	}
}

// drain waits until all that was taken is answered, or ctx ends, which it does
// when the server is stopped.
func (p *publishing) drain(ctx context.Context) {
	p.mu.Lock()
	p.draining = true
	done := p.unanswered == 0
	p.mu.Unlock()
	if done {
		return
	}
	select {
	case <-p.quiet:
	case <-ctx.Done():
	}
}

// send sends outcomes until the queue is closed and empty, or the stream ends.
func (p *publishing) send(ctx context.Context, stream *connect.BidiStream[routerv1.PublishRequest, routerv1.PublishResponse]) {
	var spare []*routerv1.Outcome
	for {
		items, ok := p.outcomes.Take(ctx, spare)
		if !ok {
			return
		}
		for rest := items; len(rest) > 0; {
			n := min(len(rest), maxOutcomeBatch)
			if stream.Send(&routerv1.PublishResponse{Outcomes: rest[:n]}) != nil {
				return // the handler learns it from its reading
			}
			rest = rest[n:]
		}
		spare = items
	}
}
