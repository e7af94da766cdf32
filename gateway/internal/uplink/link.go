package uplink

import (
	"context"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
)

const (
	// defaultLease is used until a router has said otherwise.
	defaultLease = 3 * time.Second
	// answerTimeout is when a router that does not answer a Register request
	// counts as gone although its connection lives.
	answerTimeout = 3 * time.Second
	// maxBatch bounds the messages of one PublishRequest, in bytes.
	maxBatch = 4 << 20
	// retireTimeout is what a router has to end a stream that we have ended.
	retireTimeout = 3 * time.Second
	// goodStream is how long a stream must live so that the next break is
	// followed by an early attempt.
	goodStream = 5 * time.Second
	// closeTimeout bounds a CloseSessions call.
	closeTimeout = 10 * time.Second
)

// link is everything between this gateway and one base URL of a router: the
// lease, the messages, the closed sessions. Each has its own goroutine.
type link struct {
	u      *Uplink
	url    string
	client routerv1connect.RouterServiceClient
	place  *place
	closes *closeQueue
	cancel context.CancelFunc
	// announce has room for one token: the gateway has news for the router.
	announce chan struct{}

	// Guarded by u.mu.
	registered bool // a Register stream is open and has had an answer
	failing    bool // it has been logged that it cannot be reached
	downSince  time.Time
	answer     []member // the last one
}

// start runs the link until its context ends; u.wg waits for it.
func (l *link) start(ctx context.Context) {
	for _, loop := range []func(context.Context){l.registerLoop, l.publishLoop, l.closeLoop} {
		l.u.wg.Go(func() { loop(ctx) })
	}
}

// registerLoop keeps the lease, until the gateway stops or is superseded.
func (l *link) registerLoop(ctx context.Context) {
	var b backoff
	for ctx.Err() == nil {
		answered, err := l.register(ctx)
		if answered {
			b.reset()
		}
		l.u.unregistered(l, err)
		if err == nil || fault.KindOf(err) == fault.FailedPrecondition || !b.wait(ctx) {
			return
		}
	}
}

// register runs one Register stream. A nil error: it was ended by Stop.
func (l *link) register(ctx context.Context) (answered bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream := l.client.Register(ctx)
	defer endWith(ctx, stream)()
	// A router that hangs is not noticed by the connection's own pings.
	watchdog := time.AfterFunc(answerTimeout, func() { cancel(errNoAnswer) })
	defer watchdog.Stop()
	var answers chan *routerv1.RegisterResponse
	for {
		last := l.u.isStopping()
		watchdog.Reset(answerTimeout)
		sent := time.Now()
		if err := stream.Send(&routerv1.RegisterRequest{Gateway: l.u.opts.Info(), Sessions: l.u.opts.Sessions()}); err != nil {
			if answers == nil {
				return answered, streamError(stream, err)
			}
			<-ctx.Done() // the receiver knows why, or the watchdog gives up
			return answered, context.Cause(ctx)
		}
		if answers == nil { // only now: Receive would wait for the request
			answers = make(chan *routerv1.RegisterResponse)
			var receiver sync.WaitGroup
			receiver.Go(func() { receive(ctx, cancel, stream, answers) })
			defer receiver.Wait()
			defer cancel(nil)
		}
		var res *routerv1.RegisterResponse
		select {
		case res = <-answers:
		case <-ctx.Done():
			return answered, context.Cause(ctx)
		}
		watchdog.Stop()
		answered = true
		l.u.registered(l, res, sent)
		if last {
			err := stream.CloseRequest()
			watchdog.Reset(answerTimeout)
			<-ctx.Done() // the stream's end: the router has seen ours
			return true, err
		}
		if err := l.pause(ctx, answers, res); err != nil {
			return true, err
		}
	}
}

var errNoAnswer = errors.New("no answer to Register in time")

// receive hands over what comes, and ends the stream's context with the stream.
func receive(ctx context.Context, cancel context.CancelCauseFunc, s *connect.BidiStreamForClient[routerv1.RegisterRequest, routerv1.RegisterResponse], answers chan<- *routerv1.RegisterResponse) {
	for {
		res, err := s.Receive()
		if err != nil {
			cancel(err)
			return
		}
		select {
		case answers <- res:
		case <-ctx.Done():
			return
		}
	}
}

// pause waits until the next request is due. An error: the stream has ended.
func (l *link) pause(ctx context.Context, answers <-chan *routerv1.RegisterResponse, res *routerv1.RegisterResponse) error {
	next := time.NewTimer(leaseOf(res) / 3)
	defer next.Stop()
	for {
		select {
		case <-next.C:
		case <-l.announce:
		case <-l.u.stopping:
		case news := <-answers: // not asked for: it renews nothing
			l.u.learned(l, news)
			continue
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		return nil
	}
}

func leaseOf(res *routerv1.RegisterResponse) time.Duration {
	if d := time.Duration(res.GetLeaseMs()) * time.Millisecond; d > 0 {
		return d
	}
	return defaultLease
}

// streamError is why a Send failed: the stream's own end says more. Nobody else
// may be receiving: net/http wakes only one of two.
func streamError[Req, Res any](s *connect.BidiStreamForClient[Req, Res], err error) error {
	if _, rerr := s.Receive(); rerr != nil {
		return rerr
	}
	return err
}

// endWith makes a stream end when ctx does: net/http does not look at the context
// while the request is open and nothing is sent. What it returns ends it anyway.
func endWith[Req, Res any](ctx context.Context, s *connect.BidiStreamForClient[Req, Res]) (end func()) {
	stop := context.AfterFunc(ctx, func() { _ = s.CloseRequest() })
	return func() {
		stop()
		// Its errors have been seen by Send and Receive.
		_ = s.CloseRequest()
		_ = s.CloseResponse()
	}
}

// publishLoop keeps a stream for messages while the router is somebody's home.
func (l *link) publishLoop(ctx context.Context) {
	var b backoff
	for {
		for !l.u.outbox.isHome(l.place) || !l.u.isRegistered(l) {
			select {
			case <-l.place.wake:
			case <-ctx.Done():
				return
			}
		}
		began := time.Now()
		err := l.publish(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil || time.Since(began) > goodStream {
			b.reset()
		}
		if err != nil {
			l.u.breaks.With("publish").Inc()
			l.u.log.Warn("publish_stream_broken", "router", l.url, "error", err)
		}
		if !b.wait(ctx) {
			return
		}
	}
}

var errStreamEnded = errors.New("the router ended the stream")

// publish runs one Publish stream. A nil error: it was not needed any more.
func (l *link) publish(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream := l.client.Publish(ctx)
	defer endWith(ctx, stream)()
	info := l.u.opts.Info()
	hello := &routerv1.PublishRequest{Gateway: &gatewayv1.GatewayRef{NodeId: info.GetNodeId(), Incarnation: info.GetIncarnation()}}
	if err := stream.Send(hello); err != nil {
		return streamError(stream, err)
	}
	var receiver sync.WaitGroup
	receiver.Go(func() {
		var done []finished
		for {
			res, err := stream.Receive()
			if err != nil {
				cancel(err)
				return
			}
			done = l.u.outbox.answer(res.GetOutcomes(), done[:0])
			now := time.Now()
			for _, f := range done {
				l.u.acks.Record(float64(now.Sub(f.since)) / float64(time.Millisecond))
				f.done(f.ack)
			}
			clear(done)
		}
	})
	l.u.outbox.open(l.place)
	// Last: only then nobody uses what the stream has taken.
	defer l.u.outbox.broken(l.place)
	err := l.send(ctx, stream)
	if err == nil {
		if err = stream.CloseRequest(); err == nil {
			timeout := time.AfterFunc(retireTimeout, func() { cancel(nil) })
			receiver.Wait()
			timeout.Stop()
			return nil
		}
	}
	cancel(err)
	receiver.Wait()
	return err
}

// send sends batches until the stream breaks, or nil: nobody needs it any more.
func (l *link) send(ctx context.Context, stream *connect.BidiStreamForClient[routerv1.PublishRequest, routerv1.PublishResponse]) error {
	req := &routerv1.PublishRequest{}
	for {
		var idle bool
		req.Messages, idle = l.u.outbox.take(l.place, req.Messages[:0], maxBatch)
		switch {
		case len(req.Messages) > 0:
			err := stream.Send(req)
			clear(req.Messages)
			if err != nil {
				return streamCause(ctx, err)
			}
			continue
		case idle:
			return nil
		}
		select {
		case <-l.place.wake:
		case <-ctx.Done():
			return streamCause(ctx, nil)
		}
	}
}

// streamCause is what the receiver found, else err.
func streamCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err == nil {
		return errStreamEnded
	}
	return err
}

// closeLoop tells the router of closed sessions.
func (l *link) closeLoop(ctx context.Context) {
	var b backoff
	c := l.u.closer
	limit := maxCloseSessions
	for {
		items := c.take(l.closes, limit)
		if len(items) == 0 {
			select {
			case <-l.closes.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		err := l.closeSessions(ctx, items)
		switch {
		case err == nil:
			b.reset()
			limit = min(2*limit, maxCloseSessions)
			finish(items)
			continue
		case fault.KindOf(err) == fault.Invalid && len(items) == 1:
			// It will never be taken, and must not keep the others.
			l.u.refused.Inc()
			l.u.log.Error("closed_session_refused", "router", l.url, "session", items[0].s.GetSessionId(), "error", err)
			finish(items)
			continue
		case fault.KindOf(err) == fault.Invalid:
			limit = 1 // find out which
		}
		c.back(l.closes, items)
		if !b.wait(ctx) {
			return
		}
	}
}

func (l *link) closeSessions(ctx context.Context, items []*closing) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	info := l.u.opts.Info()
	req := &routerv1.CloseSessionsRequest{Gateway: &gatewayv1.GatewayRef{NodeId: info.GetNodeId(), Incarnation: info.GetIncarnation()}}
	for _, i := range items {
		req.Sessions = append(req.Sessions, i.s)
	}
	_, err := l.client.CloseSessions(ctx, connect.NewRequest(req))
	return err
}
