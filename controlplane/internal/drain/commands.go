package drain

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/internal/fault"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// Request asks for a drain.
type Request struct {
	Node string
	// Timeout zero: five minutes.
	Timeout time.Duration
	// Rate in sessions per second; 0: as fast as the others take them.
	Rate  float64
	Force bool
	// By says who asks.
	By string
}

func (q Request) operation(now time.Time) (Operation, error) {
	op := Operation{
		ID: newID(), Node: q.Node, State: Waiting, Forced: q.Force, By: q.By, Rate: q.Rate,
		Timeout: cmp.Or(q.Timeout, defaultTimeout), Created: now, Since: now, Reason: "waits for its turn",
	}
	if op.Timeout < minTimeout || op.Timeout > maxTimeout {
		return op, fault.New(fault.Invalid, fmt.Sprintf("timeout_ms: %v: want %v to %v", op.Timeout, minTimeout, maxTimeout))
	}
	if !(op.Rate >= 0 && op.Rate <= 1e6) {
		return op, fault.New(fault.Invalid, fmt.Sprintf("sessions_per_second: %v: want 0 (auto) to 1000000", op.Rate))
	}
	return op, nil
}

func lookup(gateways []fleet.Node, id string) (fleet.Node, error) {
	i := slices.IndexFunc(gateways, func(g fleet.Node) bool { return g.ID == id })
	if i < 0 {
		return fleet.Node{}, fault.New(fault.NotFound, fmt.Sprintf("node_id: no gateway %q is known", id))
	}
	return gateways[i], nil
}

// Drain takes an operation down, or refuses it with the reason. Only the leader.
func (r *Runner) Drain(ctx context.Context, q Request) (Operation, error) {
	op, err := r.change(ctx, func(ops []Operation, gateways []fleet.Node) (Operation, error) {
		op, err := q.operation(time.Now())
		if err != nil {
			return op, err
		}
		g, err := lookup(gateways, q.Node)
		if err != nil {
			return op, err
		}
		if err := drainable(g, ops); err != nil {
			return op, err
		}
		room := r.cfg.Rules.room(g.ID, ops, gateways)
		if why := room.refusal(g.ID); why != "" {
			if !q.Force {
				return op, fault.New(fault.FailedPrecondition, why)
			}
			op.warn(why)
		}
		if u := room.unknown(); u != "" {
			op.warn(u)
		}
		op.Incarnation, op.Sessions = g.Incarnation, g.Sessions
		return op, full(ops)
	})
	if err == nil {
		r.begun.Inc()
		r.log.InfoContext(ctx, "drain_requested", "operation", op.ID, "node", op.Node, "by", op.By)
	}
	return op, err
}

func full(ops []Operation) error {
	if len(ops) >= maxOperations {
		return fault.New(fault.Exhausted, fmt.Sprintf("%d drains are under way or wait: that is the most there can be", len(ops)))
	}
	return nil
}

// drainable says why a gateway cannot be drained now.
func drainable(g fleet.Node, ops []Operation) error {
	refuse := func(format string, args ...any) error {
		return fault.New(fault.FailedPrecondition, fmt.Sprintf("%s "+format, append([]any{g.ID}, args...)...))
	}
	for _, op := range ops {
		if op.Node == g.ID && op.State != Verifying {
			return refuse("is drained already: operation %s is %s", op.ID, op.State)
		}
	}
	switch {
	case g.Unreachable:
		return refuse("does not answer: %s", g.Reason)
	case g.Phase == gatewayv1.Phase_PHASE_DRAINING:
		return refuse("drains already, by itself")
	case g.Phase == gatewayv1.Phase_PHASE_DRAINED:
		return refuse("is drained already; 'undrain' makes it serve again")
	}
	return nil
}

// Changes that Change makes.
const (
	Pause  = "pause"
	Resume = "resume"
	Cancel = "cancel"
)

// Change pauses, resumes or cancels an operation: fault.FailedPrecondition when it
// is not in a state for that, or has ended, fault.NotFound when there is none. Only
// the leader.
func (r *Runner) Change(ctx context.Context, id, what string) (Operation, error) {
	op, err := r.change(ctx, func(ops []Operation, _ []fleet.Node) (Operation, error) {
		i := slices.IndexFunc(ops, func(op Operation) bool { return op.ID == id })
		if i < 0 {
			return Operation{}, errNoOperation
		}
		return changed(ops[i], what, time.Now())
	})
	switch {
	case err == nil:
		r.log.InfoContext(ctx, "drain_changed", "operation", op.ID, "node", op.Node, "change", what)
	case errors.Is(err, errNoOperation):
		return r.changedLate(ctx, id)
	}
	return op, err
}

// changedLate says why an operation that is not under way cannot be changed.
func (r *Runner) changedLate(ctx context.Context, id string) (Operation, error) {
	past, err := r.Ended(ctx, 1, func(op *Operation) bool { return op.ID == id })
	switch {
	case err != nil:
		return Operation{}, err
	case len(past) == 0:
		return Operation{}, fault.New(fault.NotFound, fmt.Sprintf("operation_id: no drain %q is known", id))
	}
	return past[0], past[0].refuse("has ended: " + string(past[0].State))
}

// refuse is the error that says why the operation cannot be changed.
func (op *Operation) refuse(why string) error {
	return fault.New(fault.FailedPrecondition, fmt.Sprintf("drain %s of %s: %s", op.ID, op.Node, why))
}

// changed is the pure part of Change.
func changed(op Operation, what string, now time.Time) (Operation, error) {
	if op.Alone && what != Resume {
		return op, op.refuse("the gateway drains by itself and takes no orders")
	}
	switch {
	case what == Pause && op.State == Draining:
		op.enter(Paused, now, "paused by an operator")
	case what == Pause:
		return op, op.refuse(fmt.Sprintf("is %s: only one that is draining can be paused", op.State))
	case what == Resume && op.State == Paused:
		op.enter(Draining, now, "")
	case what == Resume:
		return op, op.refuse(fmt.Sprintf("is %s, not paused", op.State))
	case op.Terminating && op.State != Waiting:
		return op, op.refuse("the gateway ends (SIGTERM): that cannot be cancelled")
	case op.State == Waiting || op.State == Checking:
		op.enter(Cancelled, now, "cancelled before it began")
	case op.State == Draining || op.State == Paused:
		op.enter(Cancelling, now, "")
	default:
		return op, op.refuse(fmt.Sprintf("is %s", op.State))
	}
	return op, nil
}

// Undrain cancels the node's drain, or has a gateway that is drained serve again;
// found tells whether there was an operation. Only the leader.
func (r *Runner) Undrain(ctx context.Context, node string) (op Operation, found bool, err error) {
	var gateway fleet.Node
	op, err = r.change(ctx, func(ops []Operation, gateways []fleet.Node) (Operation, error) {
		if i := slices.IndexFunc(ops, func(op Operation) bool { return op.Node == node && op.State != Verifying }); i >= 0 {
			found = true
			return changed(ops[i], Cancel, time.Now())
		}
		g, err := lookup(gateways, node)
		if err != nil {
			return Operation{}, err
		}
		if g.Phase != gatewayv1.Phase_PHASE_DRAINED && g.Phase != gatewayv1.Phase_PHASE_DRAINING {
			return Operation{}, fault.New(fault.FailedPrecondition, fmt.Sprintf("%s is not drained", node))
		}
		gateway = g
		return Operation{}, errNoOperation
	})
	if gateway.ID == "" {
		return op, found, err
	}
	a := r.ask(ctx, Action{Node: node, Endpoint: gateway.Endpoint, Undrain: &gatewayv1.UndrainRequest{GatewayIncarnation: gateway.Incarnation}})
	switch {
	case a.Refused != "":
		return op, false, fault.New(fault.FailedPrecondition, node+": "+a.Refused)
	case a.Failed != "":
		return op, false, fault.New(fault.Unavailable, node+" does not answer: "+a.Failed)
	}
	r.log.InfoContext(ctx, "undrained", "node", node)
	return op, false, nil
}

var errNoOperation = fault.New(fault.NotFound, "no operation")

// Turn is the answer to a gateway that ends.
type Turn struct {
	Granted bool
	Op      Operation
	Reason  string
}

// Terminate takes down that a gateway wants to end, and tells whether it may drain
// now. An operation that drains it already is its turn. Only the leader.
func (r *Runner) Terminate(ctx context.Context, node string, incarnation, sessions uint64, timeout time.Duration) (Turn, error) {
	if node == "" || incarnation == 0 {
		return Turn{}, fault.New(fault.Invalid, "node_id, incarnation: required")
	}
	op, err := r.change(ctx, func(ops []Operation, _ []fleet.Node) (Operation, error) {
		now := time.Now()
		i := slices.IndexFunc(ops, func(op Operation) bool { return op.Node == node && op.Incarnation == incarnation })
		if i >= 0 {
			op := ops[i]
			op.Terminating, op.Asked = true, now
			if op.State == Waiting {
				op.Timeout, op.Sessions = max(timeout, minTimeout), sessions
			}
			return op, nil
		}
		op, err := Request{Node: node, Timeout: max(timeout, minTimeout), By: "SIGTERM"}.operation(now)
		op.Incarnation, op.Sessions, op.Terminating, op.Asked = incarnation, sessions, true, now
		if err != nil {
			return op, err
		}
		return op, full(ops)
	})
	if err != nil {
		return Turn{}, err
	}
	// The next tick may be all that it takes.
	op = r.afterTick(ctx, op)
	granted := op.State == Draining || op.State == Paused || op.State == Verifying
	return Turn{Granted: granted, Op: op, Reason: cmp.Or(op.Reason, string(op.State))}, nil
}

// Drained takes down what came of the drain of a gateway that is about to be gone.
// Only the leader.
func (r *Runner) Drained(ctx context.Context, node string, incarnation uint64, p *gatewayv1.DrainProgress) error {
	_, err := r.change(ctx, func(ops []Operation, _ []fleet.Node) (Operation, error) {
		i := slices.IndexFunc(ops, func(op Operation) bool {
			return op.Node == node && op.Incarnation == incarnation && op.ID == p.GetOperationId()
		})
		if i < 0 {
			return Operation{}, errNoOperation
		}
		op := ops[i]
		op.heard(p, time.Now())
		return op, nil
	})
	return err
}

// turnWait is how long a gateway that ends is made to wait for a tick.
const turnWait = 500 * time.Millisecond

// afterTick returns the operation as it is after the tick that comes, if that comes
// soon.
func (r *Runner) afterTick(ctx context.Context, op Operation) Operation {
	ctx, cancel := context.WithTimeout(ctx, turnWait)
	defer cancel()
	for op.State == Waiting || op.State == Checking {
		r.mu.Lock()
		ticked := r.ticked
		i := slices.IndexFunc(r.ops, func(o Operation) bool { return o.ID == op.ID })
		if i >= 0 {
			op = r.ops[i]
		}
		r.mu.Unlock()
		if i < 0 || op.State != Waiting && op.State != Checking {
			return op
		}
		select {
		case <-ticked:
		case <-ctx.Done():
			return op
		}
	}
	return op
}

// Rehearse tells what a drain would do. Any control plane.
func (r *Runner) Rehearse(ctx context.Context, q Request) (Rehearsal, error) {
	op, err := q.operation(time.Now())
	if err != nil {
		return Rehearsal{}, err
	}
	snap, err := r.cfg.Inventory.Next(ctx, 0)
	if err != nil {
		return Rehearsal{}, fault.Wrap(fault.Unavailable, "no inventory yet", err)
	}
	all := gateways(snap)
	g, err := lookup(all, q.Node)
	if err != nil {
		return Rehearsal{}, err
	}
	ops, err := r.Active(ctx)
	if err != nil {
		return Rehearsal{}, err
	}
	h := r.cfg.Rules.rehearse(op, g, ops, all)
	if err := drainable(g, ops); err != nil && h.Refusal == "" {
		h.Refusal = err.Error()
	}
	return h, nil
}

// Active returns the operations under way, from the store, in their order. Any
// control plane.
func (r *Runner) Active(ctx context.Context) ([]Operation, error) {
	items, err := r.cfg.Store.List(ctx, prefix)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, "the store does not answer", err)
	}
	ops := make([]Operation, 0, len(items))
	for _, it := range items {
		var op Operation
		if err := json.Unmarshal(it.Value, &op); err != nil {
			r.log.Error("drain_unreadable", "key", it.Key, "error", err.Error())
			continue
		}
		if op.Receipt == nil && !op.Started.IsZero() {
			x := op.receipt()
			op.Receipt = &x
		}
		ops = append(ops, op)
	}
	slices.SortFunc(ops, func(a, b Operation) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return ops, nil
}

// Ended returns at most limit operations that have ended and match, newest first,
// of the thousand that are kept. Any control plane.
func (r *Runner) Ended(ctx context.Context, limit int, match func(*Operation) bool) ([]Operation, error) {
	records, err := r.cfg.Store.Tail(ctx, ended, time.Time{}, keep)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, "the store does not answer", err)
	}
	var ops []Operation
	for _, rec := range records {
		var op Operation
		if err := json.Unmarshal(rec.Value, &op); err != nil {
			r.log.Error("drain_unreadable", "record", rec.ID, "error", err.Error())
			continue
		}
		if len(ops) < limit && match(&op) {
			ops = append(ops, op)
		}
	}
	return ops, nil
}
