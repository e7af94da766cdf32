// Package drainer moves sessions to other gateways, paced: all of them in a drain,
// by itself or as the control plane directs it, or some of them while the gateway
// goes on serving (DESIGN section 6).
package drainer

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/internal/fault"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

const (
	// OwnOperation names the drain of a gateway that ends without the control plane.
	OwnOperation = "sigterm"
	// maxUndone bounds the remembered operations that a late repeat must not begin
	// again.
	maxUndone = 16
)

// Drain ends every session within the timeout by the gateway's own plan; it returns
// when there is none left or the timeout is over. When ctx ends, what is left is cut
// at once.
func Drain(ctx context.Context, reg *registry.Registry, up Routers, timeout time.Duration, log *slog.Logger) Summary {
	r := newRun(reg, NewMover(up, log), "", timeout)
	r.finish(timeout)
	r.loop(ctx)
	sum, _, _ := r.summary()
	return sum
}

// Options of a Drainer; all are required.
type Options struct {
	Registry *registry.Registry
	Routers  Routers
	Log      *slog.Logger
	// Timeout is that of a drain that is told none.
	Timeout time.Duration
	// Refuse says why no drain can begin now; empty: one can.
	Refuse func() string
	// OnPhase is told whether the gateway serves, drains or has drained. It must not
	// block nor call back.
	OnPhase func(gatewayv1.Phase)
}

// Drainer runs at most one operation at a time. Safe for concurrent use.
type Drainer struct {
	o     Options
	mover *Mover

	mu     sync.Mutex
	op     *operation    // guarded by mu, like what follows; nil: none drains it
	begun  chan struct{} // closed when one does
	shed   *shed         // the last one; nil: none
	ending bool          // the gateway ends
	closed bool          // it has
	undone []string      // operations that Undrain has ended or forestalled, oldest first
}

// operation is a drain under way, or one that is over and keeps the gateway empty.
type operation struct {
	run  *run
	stop context.CancelCauseFunc
	done chan struct{}
}

// New returns a drainer that does nothing; Close ends it.
func New(o Options) *Drainer {
	return &Drainer{o: o, mover: NewMover(o.Routers, o.Log), begun: make(chan struct{})}
}

// Order is how a drain is to go on.
type Order struct {
	Operation string
	// Pace is in sessions per second; 0: by the gateway's own plan.
	Pace    float64
	Paused  bool
	Targets []*gatewayv1.Target
}

// Drain begins a drain, or changes pace, pause and targets of the one that the
// request names.
func (d *Drainer) Drain(req *gatewayv1.DrainRequest) (*gatewayv1.DrainProgress, error) {
	order := Order{Operation: req.GetOperationId(), Pace: req.GetSessionsPerSecond(), Paused: req.GetPaused(), Targets: req.GetTargets()}
	if err := checkOrder(order); err != nil {
		return nil, err
	}
	timeout := d.o.Timeout
	if ms := req.GetTimeoutMs(); ms > 0 {
		timeout = time.Duration(min(ms, uint64(maxTimeout/time.Millisecond))) * time.Millisecond
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return nil, errEnding()
	case d.op != nil && d.op.run.id == order.Operation:
		d.op.run.direct(order.Pace, order.Paused, order.Targets)
		return d.op.run.Progress(), nil
	case d.op != nil && d.ending:
		return nil, fault.New(fault.FailedPrecondition, "the gateway is ending, by operation "+d.op.run.id)
	case d.op != nil:
		return nil, fault.New(fault.FailedPrecondition, "another operation drains the gateway: "+d.op.run.id)
	case slices.Contains(d.undone, order.Operation):
		return nil, fault.New(fault.FailedPrecondition, "this operation has been undone")
	}
	if why := d.o.Refuse(); why != "" {
		return nil, fault.New(fault.FailedPrecondition, "the gateway cannot be drained now: "+why)
	}
	d.begin(order, timeout, 0)
	return d.op.run.Progress(), nil
}

func errEnding() error { return fault.New(fault.FailedPrecondition, "the gateway is ending") }

// begin begins a drain: what is left after the time last is closed at once; all is
// over after total, unless it is 0. d.mu is held.
func (d *Drainer) begin(order Order, last, total time.Duration) {
	d.endShed()
	d.o.OnPhase(gatewayv1.Phase_PHASE_DRAINING) // before sessions are counted
	r := newRun(d.o.Registry, d.mover, order.Operation, last)
	r.direct(order.Pace, order.Paused, order.Targets)
	if total > 0 {
		r.finish(total)
	}
	began := time.Now()
	r.onDone = func(done bool) {
		if !done {
			d.o.OnPhase(gatewayv1.Phase_PHASE_DRAINING)
			return
		}
		d.o.OnPhase(gatewayv1.Phase_PHASE_DRAINED)
		d.o.Log.Info("drained", "operation", r.id, "took", time.Since(began).Round(time.Millisecond).String())
	}
	d.o.Log.Info("drain_begin", "operation", r.id, "sessions", r.Progress().GetSessions(), "sessions_per_second", order.Pace,
		"timeout", last.String(), "targets", len(order.Targets))
	ctx, stop := context.WithCancelCause(context.Background())
	op := &operation{run: r, stop: stop, done: make(chan struct{})}
	d.op = op
	close(d.begun)
	go func() {
		defer close(op.done) // waited for by Undrain, Finish or Close
		r.loop(ctx)
		r.publish() // what the last waves did
		stop(nil)
	}()
}

// Undrain ends a drain, if there is one, and returns what it had done. Clients that
// have been asked may still move.
func (d *Drainer) Undrain(id string) (*gatewayv1.DrainProgress, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.ending || d.closed:
		return nil, errEnding()
	case d.op == nil:
		d.remember(id) // its request may come yet
		return nil, nil
	case id != "" && id != d.op.run.id:
		return nil, fault.New(fault.FailedPrecondition, "another operation drains the gateway: "+d.op.run.id)
	}
	op := d.op
	op.stop(errUndrained)
	<-op.done // what waits for routers has been cut short
	d.op, d.begun = nil, make(chan struct{})
	d.remember(op.run.id)
	d.o.OnPhase(gatewayv1.Phase_PHASE_SERVING)
	p := op.run.Progress()
	d.o.Log.Info("undrained", "operation", op.run.id, "left", p.GetLeft(), "moved", p.GetMoved(), "closed", p.GetClosed())
	return p, nil
}

// remember keeps that an operation, if there is one, does not begin any more. d.mu
// is held.
func (d *Drainer) remember(undone string) {
	if undone == "" || slices.Contains(d.undone, undone) {
		return
	}
	if d.undone = append(d.undone, undone); len(d.undone) > maxUndone {
		d.undone = d.undone[1:]
	}
}

// End says that the gateway ends: a drain can still begin, and none be undone.
// Finish follows.
func (d *Drainer) End() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ending = true
}

// Begun is closed when an operation drains the gateway.
func (d *Drainer) Begun() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.begun
}

// Finish ends all sessions within that time: by the operation that drains the
// gateway, or else by order, whose empty Operation means the gateway's own. When ctx
// ends, what is left is cut at once. No operation can begin afterwards.
func (d *Drainer) Finish(ctx context.Context, total time.Duration, order Order) Summary {
	d.mu.Lock()
	d.ending = true
	if d.op == nil {
		order.Operation = cmp.Or(order.Operation, OwnOperation)
		d.begin(order, total, total)
	} else {
		d.op.run.finish(total)
	}
	op := d.op
	d.mu.Unlock()
	select {
	case <-op.done:
	case <-ctx.Done():
		op.stop(ctx.Err())
		<-op.done
	}
	d.Close()
	sum, _, _ := op.run.summary()
	return sum
}

// Close ends what runs, and leaves the sessions that are left. It may be called
// again.
func (d *Drainer) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.endShed()
	if d.op != nil {
		d.op.stop(errUndrained)
		<-d.op.done
	}
}

// Progress of the drain; nil: there is none.
func (d *Drainer) Progress() *gatewayv1.DrainProgress {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.op == nil {
		return nil
	}
	return d.op.run.Progress()
}

// maxTimeout keeps a mistaken timeout from overflowing.
const maxTimeout = 24 * time.Hour
