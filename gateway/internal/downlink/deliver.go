package downlink

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"go.opentelemetry.io/otel/trace"
)

const (
	// maxRefusals bounds the refusals that a router has not read; beyond them its
	// deliveries are not read either.
	maxRefusals = 100_000
	// commitAfter is how many refusals of one batch are answered together.
	commitAfter = 20_000
	// maxConfirmsSent bounds one message.
	maxConfirmsSent = 8192
)

// stream is one Deliver stream. Two goroutines: one takes deliveries, the
// handler's own answers. What connects them batches by itself.
type stream struct {
	svc    *Service
	router *session.Router
	wake   chan struct{} // capacity 1: there is something to send
	room   chan struct{} // capacity 1: refusals have been sent
	ended  chan struct{} // closed when receiving has ended, with err

	err error // set before ended is closed

	mu       sync.Mutex
	busy     bool                 // guarded by mu: deliveries are being given to sessions
	answered uint64               // guarded by mu
	told     uint64               // guarded by mu: answered, as it was sent last
	refusals []*gatewayv1.Refusal // guarded by mu: of deliveries in (told, answered]
}

// Deliver implements GatewayService.
func (s *Service) Deliver(ctx context.Context, bidi *connect.BidiStream[gatewayv1.DeliverRequest, gatewayv1.DeliverResponse]) error {
	if !s.enter() {
		return errClosing()
	}
	defer s.streams.Done()
	st := &stream{svc: s, wake: make(chan struct{}, 1), room: make(chan struct{}, 1), ended: make(chan struct{})}
	hello := make(chan struct{})
	if !s.enter() {
		return errClosing()
	}
	// It ends with the stream: at the latest when this handler has returned, which
	// breaks what it reads from. Close waits for it.
	go func() {
		defer s.streams.Done()
		defer close(st.ended)
		st.err = st.receive(ctx, bidi, hello)
		if st.router != nil {
			st.router.Detach(st.wake)
		}
	}()
	select {
	case <-hello:
	case <-st.ended:
		return st.result(ctx)
	case <-s.quit:
		return errClosing()
	}
	return st.send(ctx, bidi)
}

// result is what the handler returns when receiving has ended.
func (st *stream) result(ctx context.Context) error {
	if errors.Is(st.err, io.EOF) || ctx.Err() != nil {
		return nil
	}
	return st.err
}

// receive takes the hello and then deliveries until the stream ends.
func (st *stream) receive(ctx context.Context, bidi *connect.BidiStream[gatewayv1.DeliverRequest, gatewayv1.DeliverResponse], hello chan<- struct{}) error {
	m, err := bidi.Receive()
	if err != nil {
		return err
	}
	switch {
	case m.GetRouterId() == "":
		return fault.New(fault.Invalid, "the first message must name the router")
	case m.GetGatewayIncarnation() != st.svc.o.Info().GetIncarnation():
		return fault.New(fault.FailedPrecondition, "this is another incarnation of the gateway")
	}
	r := st.svc.o.Registry.Router(session.RouterRef{ID: m.GetRouterId(), Incarnation: m.GetRouterIncarnation()})
	r.Process.Lock() // behind the last batch of the stream that this one replaces
	r.Attach(st.wake)
	r.Process.Unlock()
	st.router = r
	close(hello)
	for {
		st.reconfirm(m.GetConfirmSessions())
		if err := st.take(ctx, m.GetDeliveries()); err != nil {
			return err
		}
		if m, err = bidi.Receive(); err != nil {
			return err
		}
	}
}

// reconfirm has the router told again what sessions have confirmed.
func (st *stream) reconfirm(sessions []uint64) {
	st.router.Process.Lock()
	defer st.router.Process.Unlock()
	for _, id := range sessions {
		st.svc.o.Registry.Reconfirm(id, st.router)
	}
}

// take gives a batch to its sessions and has it answered. Until then no confirm is
// sent: one that comes before its delivery's answer means nothing to the router.
func (st *stream) take(ctx context.Context, batch []*gatewayv1.Delivery) error {
	for len(batch) > 0 {
		st.mu.Lock()
		st.busy = true
		st.mu.Unlock()
		var refusals []*gatewayv1.Refusal
		n := 0
		st.router.Process.Lock()
		for n < len(batch) && len(refusals) < commitAfter {
			refusals = st.deliver(ctx, batch[n], refusals)
			n++
		}
		st.router.Process.Unlock()
		if err := st.commit(ctx, batch[n-1].GetId(), refusals); err != nil {
			return err
		}
		batch = batch[n:]
	}
	return nil
}

// commit has the deliveries up to the id answered. It waits while the router does
// not read.
func (st *stream) commit(ctx context.Context, id uint64, refusals []*gatewayv1.Refusal) error {
	st.mu.Lock()
	st.busy = false
	st.answered = max(st.answered, id)
	st.refusals = append(st.refusals, refusals...)
	full := len(st.refusals) > maxRefusals
	st.mu.Unlock()
	signal(st.wake)
	for full {
		select {
		case <-st.room:
		case <-ctx.Done():
			return ctx.Err()
		case <-st.svc.quit:
			return errClosing()
		}
		st.mu.Lock()
		full = len(st.refusals) > maxRefusals
		st.mu.Unlock()
	}
	return nil
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// deliver gives one delivery to its sessions and adds their refusals.
func (st *stream) deliver(ctx context.Context, m *gatewayv1.Delivery, refusals []*gatewayv1.Refusal) []*gatewayv1.Refusal {
	if tp := m.GetTraceparent(); tp != "" {
		_, span := st.svc.o.Telemetry.Tracer.Start(telemetry.WithTraceParent(ctx, tp), "deliver", trace.WithSpanKind(trace.SpanKindServer))
		defer span.End()
	}
	d := session.NewDelivery(st.router, m)
	for _, id := range m.GetSessionIds() {
		if why := st.svc.o.Registry.Deliver(id, d); why != gatewayv1.Refusal_REASON_UNSPECIFIED {
			st.svc.refused.With(label(why)).Inc()
			refusals = append(refusals, &gatewayv1.Refusal{Id: m.GetId(), SessionId: id, Reason: why})
		}
	}
	st.router.Processed(m.GetId())
	return refusals
}

// label is a refusal's reason as a label.
func label(r gatewayv1.Refusal_Reason) string {
	return strings.ToLower(strings.TrimPrefix(r.String(), "REASON_"))
}

// send answers until the stream or the service ends.
func (st *stream) send(ctx context.Context, bidi *connect.BidiStream[gatewayv1.DeliverRequest, gatewayv1.DeliverResponse]) error {
	for {
		if m := st.next(); m != nil {
			if err := bidi.Send(m); err != nil {
				return err
			}
			continue
		}
		select {
		case <-st.wake:
		case <-st.ended:
			return st.result(ctx)
		case <-ctx.Done():
			return nil
		case <-st.svc.quit:
			return errClosing()
		}
	}
}

// next is what there is to send, nil when there is nothing. The refusals of a
// delivery go with the answer that covers it: whoever is not among them there has
// accepted.
func (st *stream) next() *gatewayv1.DeliverResponse {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.busy {
		return nil // commit wakes
	}
	confirms := st.router.Take(st.wake, maxConfirmsSent)
	if st.told == st.answered && len(st.refusals) == 0 && len(confirms) == 0 {
		return nil
	}
	m := &gatewayv1.DeliverResponse{AnsweredThrough: st.answered, Refusals: st.refusals, Confirms: confirms}
	st.told, st.refusals = st.answered, nil
	signal(st.room)
	return m
}
