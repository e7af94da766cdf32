package drain

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/controlplane/internal/pace"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

const (
	// settle is how long the counts have to stand still; maxSettle is when they
	// are taken as they are.
	settle    = 2 * time.Second
	maxSettle = 10 * time.Second
	// overdue is how long after its timeout a gateway may take to say it is empty.
	overdue = 30 * time.Second
	// silence is after how long a gateway that neither answers nor is named by the
	// routers is gone, where the inventory still has it.
	silence = 15 * time.Second
	// patience is how long a gateway that ends may say nothing and still be waiting
	// for its turn.
	patience = 10 * time.Second
)

// Observation is what Next goes by.
type Observation struct {
	Now time.Time
	// Gateways is the inventory as of At. Complete: a router answered.
	Gateways []fleet.Node
	At       time.Time
	Complete bool
	// Load is since the observation before.
	Load pace.Load
	// Answers are those to the actions before, by operation.
	Answers map[string]Answer
}

// Answer is what came of an Action.
type Answer struct {
	// Progress is set if the gateway did as it was told.
	Progress *gatewayv1.DrainProgress
	// Undrained: it serves again.
	Undrained bool
	// Refused: it will not. Failed: it did not answer, or not well.
	Refused, Failed string
}

// Action is a call to make.
type Action struct {
	Operation, Node, Endpoint string
	// Exactly one of these.
	Drain   *gatewayv1.DrainRequest
	Undrain *gatewayv1.UndrainRequest
}

// Next moves every operation on by what is observed and says what to call. It is
// pure: ops is left as it is, and what it returns is in the order of creation.
func (r Rules) Next(ops []Operation, o Observation) ([]Operation, []Action) {
	out := slices.Clone(ops)
	slices.SortStableFunc(out, func(a, b Operation) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	busy := foreign(out, o.Gateways)
	for _, op := range out {
		if op.State.holdsSlot() {
			busy = append(busy, op.Node)
		}
	}
	var actions []Action
	for i := range out {
		op := &out[i]
		if op.State == Waiting {
			r.wait(op, o, busy)
			if op.State.holdsSlot() {
				busy = append(busy, op.Node)
			}
		}
		if a := r.advance(op, out, o); a != nil {
			actions = append(actions, *a)
		}
		op.Ticked = o.Now
	}
	return out, actions
}

// foreign names the gateways that drain without an operation of ours.
func foreign(ops []Operation, gateways []fleet.Node) (names []string) {
	for _, g := range gateways {
		ours := slices.ContainsFunc(ops, func(op Operation) bool { return op.Node == g.ID && op.Incarnation == g.Incarnation })
		if !ours && g.Phase == gatewayv1.Phase_PHASE_DRAINING && !g.Unreachable {
			names = append(names, g.ID)
		}
	}
	return names
}

// find returns the operation's gateway; there tells whether that very start of it
// is in the inventory.
func find(op *Operation, o Observation) (g fleet.Node, there bool) {
	for _, g := range o.Gateways {
		if g.ID == op.Node {
			return g, g.Incarnation == op.Incarnation
		}
	}
	return fleet.Node{}, false
}

// gone tells whether the operation's gateway has ended, and how that shows.
func gone(op *Operation, o Observation) (why string, ended bool) {
	g, there := find(op, o)
	switch {
	case g.ID != "" && g.Incarnation > op.Incarnation:
		return "it was started anew", true
	case g.ID == "" && o.Complete:
		return "it is gone", true
	case there && g.Unreachable && g.Status != nil && o.At.Sub(g.StatusAt) > silence:
		return "it does not answer any more: " + g.Reason, true
	}
	return "", false
}

func (r Rules) wait(op *Operation, o Observation, busy []string) {
	g, there := find(op, o)
	if why, ended := gone(op, o); ended {
		op.enter(Cancelled, o.Now, "before its turn came: "+why)
		return
	}
	if there && !g.Unreachable && g.Phase == gatewayv1.Phase_PHASE_DRAINING && g.Status.GetDrain().GetOperationId() != op.ID {
		r.begun(op, g, nil, o)
		op.Alone, op.Pace = true, pace.Pace{Why: "its own"}
		op.enter(Draining, o.Now, "it drains by itself: it could not wait for its turn")
		return
	}
	if silent := o.Now.Sub(op.Asked); op.Terminating && silent > patience {
		if silent > 6*patience {
			op.enter(Cancelled, o.Now, "it does not ask for its turn any more")
			return
		}
		op.Reason = "it does not ask for its turn any more"
		return
	}
	if len(busy) < max(r.Budget, 1) {
		op.enter(Checking, o.Now, "")
		return
	}
	op.Reason = fmt.Sprintf("waits for its turn: at most %d at a time, and there is %s", max(r.Budget, 1), list(busy))
}

func list(names []string) string {
	s := names[0]
	if len(names) > 1 {
		s = fmt.Sprintf("%s and %d more", s, len(names)-1)
	}
	return s
}

// begun sets what is taken down at the start.
func (r Rules) begun(op *Operation, g fleet.Node, ops []Operation, o Observation) {
	op.Started, op.Ticked, op.Sessions = o.Now, o.Now, g.Sessions
	op.Tally = baseline(*op, o.Gateways)
	op.Targets = targets(r.place(g, ops, o.Gateways))
	op.Pace = r.begin(*op, o.Load)
}

func (r Rules) advance(op *Operation, ops []Operation, o Observation) *Action {
	switch op.State {
	case Checking:
		if !r.check(op, ops, o) {
			return nil
		}
	case Draining, Paused:
		r.follow(op, o)
	case Cancelling:
		r.cancel(op, o)
	case Verifying:
		r.verify(op, o)
	}
	g, there := find(op, o)
	if !there || op.Alone {
		return nil
	}
	a := &Action{Operation: op.ID, Node: op.Node, Endpoint: g.Endpoint}
	switch op.State {
	case Draining, Paused:
		if op.State == Draining {
			op.Targets = targets(r.place(g, ops, o.Gateways))
		}
		a.Drain = op.request()
	case Cancelling:
		a.Undrain = &gatewayv1.UndrainRequest{OperationId: op.ID, GatewayIncarnation: op.Incarnation}
	default:
		return nil
	}
	return a
}

// request is what the gateway is told.
func (op *Operation) request() *gatewayv1.DrainRequest {
	req := &gatewayv1.DrainRequest{
		OperationId: op.ID, GatewayIncarnation: op.Incarnation, SessionsPerSecond: op.Pace.Rate, Paused: op.State == Paused,
		TimeoutMs: uint64(max(op.Timeout-op.Spent, time.Second).Milliseconds()),
	}
	for _, t := range op.Targets {
		req.Targets = append(req.Targets, &gatewayv1.Target{NodeId: t.Node, Url: t.URL, Weight: t.Weight})
	}
	return req
}

// check begins the drain, or ends it where there is no room.
func (r Rules) check(op *Operation, ops []Operation, o Observation) bool {
	if why, ended := gone(op, o); ended {
		op.enter(Cancelled, o.Now, "before it began: "+why)
		return false
	}
	g, there := find(op, o)
	// One that ends will not wait for certainty.
	fresh := o.At.After(op.Since) && o.Complete || op.Terminating
	if !there || g.Unreachable || !fresh {
		op.Reason = "waits for a new and complete inventory"
		return false
	}
	room := r.room(op.Node, ops, o.Gateways)
	refusal := room.refusal(op.Node)
	switch {
	case refusal != "" && !op.Forced && !op.Terminating:
		op.enter(Failed, o.Now, refusal)
		return false
	case refusal != "":
		op.warn(refusal)
	}
	if u := room.unknown(); u != "" {
		op.warn(u)
	}
	r.begun(op, g, ops, o)
	op.enter(Draining, o.Now, "")
	return true
}

// follow takes in how far the gateway is.
func (r Rules) follow(op *Operation, o Observation) {
	if op.State == Draining {
		op.Spent += max(o.Now.Sub(op.Ticked), 0)
	}
	op.Tally = count(*op, o.Gateways)
	answer := o.Answers[op.ID]
	g, there := find(op, o)
	if p := g.Status.GetDrain(); there && g.StatusAt.After(op.Progress.At) && (p.GetOperationId() == op.ID || op.Alone && p != nil) {
		op.heard(p, g.StatusAt)
	}
	if answer.Progress != nil {
		op.heard(answer.Progress, o.Now)
		op.Reason = ""
	}
	switch {
	case answer.Refused != "" && (op.Terminating || !op.Progress.At.IsZero()):
		op.Alone, op.Reason = true, "it goes on by itself: "+answer.Refused
	case answer.Refused != "":
		op.enter(Failed, o.Now, "the gateway refuses: "+answer.Refused)
		return
	case answer.Failed != "":
		op.Reason = "it does not answer, and goes on as it was told last: " + answer.Failed
	}
	if op.Progress.Done {
		op.Verdict = Done
		op.enter(Verifying, o.Now, "")
		return
	}
	if why, ended := gone(op, o); ended {
		op.Verdict, op.VerdictReason = op.verdict(why, o.Now)
		op.enter(Verifying, o.Now, why)
		return
	}
	if op.State == Draining && op.Spent > op.Timeout+overdue {
		op.Verdict, op.VerdictReason = Failed, fmt.Sprintf("not empty %v after its timeout: %d sessions left", overdue, op.left())
		op.enter(Verifying, o.Now, op.VerdictReason)
		return
	}
	if op.State == Draining && !op.Alone {
		op.Pace = r.next(*op, o.Load, o.Now)
	}
}

// verdict judges a gateway that is gone before it said that it was empty: one that
// was to end, and can have been done in the time since it was heard of last, is.
func (op *Operation) verdict(why string, now time.Time) (State, string) {
	left := op.left()
	heard := op.Progress.At
	if heard.IsZero() {
		heard = op.Started
	}
	// What it said was up to a second old, and its end up to a second ago.
	unheard := min(now.Sub(heard), silence).Seconds() + 2
	rate := op.Pace.Rate
	if op.Spent > 0 {
		rate = max(rate, float64(since(left, op.Sessions))/op.Spent.Seconds())
	}
	inTime := float64(left) <= rate*unheard || op.Spent+3*time.Second >= op.Timeout
	if left == 0 || (op.Terminating || op.Alone) && inTime {
		return Done, ""
	}
	return Failed, fmt.Sprintf("%s with %d of %d sessions left", why, left, max(op.Sessions, op.Progress.Sessions))
}

// verify waits until what moved has been counted.
func (r Rules) verify(op *Operation, o Observation) {
	before := op.Tally.arrived()
	op.Tally = count(*op, o.Gateways)
	if g, there := find(op, o); there && g.StatusAt.After(op.Progress.At) && g.Status.GetDrain().GetOperationId() == op.ID {
		op.heard(g.Status.GetDrain(), g.StatusAt)
	}
	if op.Settled.IsZero() || op.Tally.arrived() != before || !o.At.After(op.Since) {
		op.Settled = o.Now
	}
	verified := o.Now.Sub(op.Since)
	if verified < maxSettle && (o.Now.Sub(op.Settled) < settle || op.Progress.NotTakenBack > 0) {
		return
	}
	op.enter(cmp.Or(op.Verdict, Done), o.Now, op.VerdictReason)
	if n := op.Receipt.Unaccounted; n > 0 && op.State == Done {
		op.Reason = fmt.Sprintf("it ended before it could say what became of the last %d sessions", n)
	}
}

// cancel ends when the gateway serves again, or is gone.
func (r Rules) cancel(op *Operation, o Observation) {
	op.Tally = count(*op, o.Gateways)
	answer := o.Answers[op.ID]
	switch why, ended := gone(op, o); {
	case ended:
		op.enter(Cancelled, o.Now, why)
	case answer.Undrained:
		if answer.Progress != nil {
			op.heard(answer.Progress, o.Now)
		}
		op.enter(Cancelled, o.Now, "it serves again")
	case answer.Refused != "":
		op.Alone = true
		op.enter(Draining, o.Now, "it cannot be cancelled: "+answer.Refused)
	case answer.Failed != "":
		op.Reason = "the gateway does not answer: " + answer.Failed
	}
}
