// Package drain empties gateways in order: how many at a time, whether what stays
// has room, how fast, where to, and what came of it.
//
// Next is the whole of what is decided, a pure function of the operations and of
// what is observed; Runner is the thin rest: the inventory, the store, the calls.
//
//	waiting → checking → draining ⇄ paused → verifying → done | failed
//	    └────────┴───────────┴─────────┴→ cancelling → cancelled
//
// Everything is level-triggered: each second the gateway is told again what it is
// to do, under the operation's id. When nobody tells it (no leader, no store, no
// network) it goes on as it was told last, and whoever leads next goes on from what
// is in the store.
package drain

import (
	"time"

	"github.com/mics-im/mics/controlplane/internal/pace"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// State is where an operation stands.
type State string

// The states; the last three are final.
const (
	Waiting    State = "waiting"
	Checking   State = "checking"
	Draining   State = "draining"
	Paused     State = "paused"
	Verifying  State = "verifying"
	Cancelling State = "cancelling"
	Done       State = "done"
	Cancelled  State = "cancelled"
	Failed     State = "failed"
)

// Final tells whether nothing follows.
func (s State) Final() bool { return s == Done || s == Cancelled || s == Failed }

// holdsSlot tells whether the state counts against the budget.
func (s State) holdsSlot() bool {
	return s == Checking || s == Draining || s == Paused || s == Cancelling
}

// Operation is one drain of one start of a gateway. It is a value, and what the
// store keeps, as JSON: fields are only added.
type Operation struct {
	ID          string `json:"id"`
	Node        string `json:"node"`
	Incarnation uint64 `json:"incarnation"`
	State       State  `json:"state"`
	Reason      string `json:"reason,omitempty"`
	// Terminating: the gateway asked for it because it ends (SIGTERM).
	Terminating bool   `json:"terminating,omitempty"`
	Forced      bool   `json:"forced,omitempty"`
	By          string `json:"by,omitempty"`
	// Timeout is from the start, without pauses; Rate in sessions per second, 0:
	// by the control loop.
	Timeout time.Duration `json:"timeout"`
	Rate    float64       `json:"rate,omitempty"`

	Created time.Time `json:"created"`
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
	// Since is when State was entered.
	Since time.Time `json:"since"`
	// Spent is how long it has been draining, without pauses, up to Ticked.
	Spent  time.Duration `json:"spent,omitempty"`
	Ticked time.Time     `json:"ticked,omitzero"`

	// Sessions is how many there were at the start.
	Sessions uint64    `json:"sessions"`
	Progress Progress  `json:"progress,omitzero"`
	Pace     pace.Pace `json:"pace,omitzero"`
	Targets  []Target  `json:"targets,omitempty"`
	Warnings []string  `json:"warnings,omitempty"`
	// Alone: the gateway drains, but not by our word; it is only watched.
	Alone bool `json:"alone,omitempty"`
	// Asked is when the gateway asked for its turn last.
	Asked time.Time `json:"asked,omitzero"`
	// Verdict is what the operation becomes once what moved has been counted.
	Verdict       State  `json:"verdict,omitempty"`
	VerdictReason string `json:"verdictReason,omitempty"`
	// Settled is since when the counts stand still.
	Settled time.Time `json:"settled,omitzero"`
	// Tally is what the receipt is made of; dropped when the operation has ended.
	Tally   Tally    `json:"tally,omitempty"`
	Receipt *Receipt `json:"receipt,omitempty"`
}

// Progress is what the gateway said last (gatewayv1.DrainProgress).
type Progress struct {
	At           time.Time `json:"at,omitzero"`
	Sessions     uint64    `json:"sessions,omitempty"`
	Left         uint64    `json:"left,omitempty"`
	LeftV2       uint64    `json:"leftV2,omitempty"`
	Moved        uint64    `json:"moved,omitempty"`
	Closed       uint64    `json:"closed,omitempty"`
	Echoed       uint64    `json:"echoed,omitempty"`
	GaveUp       uint64    `json:"gaveUp,omitempty"`
	HandedOver   uint64    `json:"handedOver,omitempty"`
	NotTakenBack uint64    `json:"notTakenBack,omitempty"`
	Suspended    uint64    `json:"suspended,omitempty"`
	Paused       bool      `json:"paused,omitempty"`
	Done         bool      `json:"done,omitempty"`
}

// heard takes down what the gateway says. When it is done that was its last word:
// what it answered before may arrive later.
func (op *Operation) heard(p *gatewayv1.DrainProgress, at time.Time) {
	if !op.Progress.Done {
		op.Progress = progressOf(p, at)
	}
}

func progressOf(p *gatewayv1.DrainProgress, at time.Time) Progress {
	return Progress{
		At: at, Sessions: p.GetSessions(), Left: p.GetLeft(), LeftV2: p.GetLeftV2(), Moved: p.GetMoved(), Closed: p.GetClosed(),
		Echoed: p.GetEchoed(), GaveUp: p.GetGaveUp(), HandedOver: p.GetHandedOver(), NotTakenBack: p.GetNotTakenBack(),
		Suspended: p.GetSuspended(), Paused: p.GetPaused(), Done: p.GetDone(),
	}
}

// Target is a gateway that takes some of the sessions.
type Target struct {
	Node   string `json:"node"`
	URL    string `json:"url"`
	Weight uint32 `json:"weight"`
}

// enter moves op into a state.
func (op *Operation) enter(s State, at time.Time, reason string) {
	op.State, op.Since, op.Reason = s, at, reason
	if s.Final() {
		op.Ended = at
		r := op.receipt()
		op.Receipt, op.Tally = &r, nil
	}
}

// warn adds a warning once.
func (op *Operation) warn(text string) {
	for _, w := range op.Warnings {
		if w == text {
			return
		}
	}
	op.Warnings = append(op.Warnings[:len(op.Warnings):len(op.Warnings)], text)
}

// left is how many sessions the gateway may still have.
func (op *Operation) left() uint64 {
	if op.Progress.At.IsZero() {
		return op.Sessions
	}
	return op.Progress.Left
}
