package view

import (
	"strconv"
	"strings"

	"github.com/mics-im/mics/ctl/internal/output"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// Drains is a list of drains: those under way first, then those that have ended,
// newest first.
type Drains struct {
	Drains []Drain `json:"drains"`
}

// Drain is one operation.
type Drain struct {
	ID          string `json:"operationId"`
	Node        string `json:"nodeId"`
	Incarnation string `json:"incarnation"`
	// State is waiting, checking, draining, paused, verifying, cancelling, done,
	// cancelled, failed, or unknown.
	State       string  `json:"state"`
	Reason      string  `json:"reason,omitempty"`
	Terminating bool    `json:"terminating"`
	Forced      bool    `json:"forced"`
	RequestedBy string  `json:"requestedBy,omitempty"`
	TimeoutMS   uint64  `json:"timeoutMs"`
	Pace        float64 `json:"sessionsPerSecond"`
	PaceReason  string  `json:"paceReason,omitempty"`
	CreatedAt   string  `json:"createdAt,omitempty"`
	StartedAt   string  `json:"startedAt,omitempty"`
	EndedAt     string  `json:"endedAt,omitempty"`
	Sessions    uint64  `json:"sessions"`
	Left        uint64  `json:"left"`
	// Targets are where clients are sent; none: wherever their usual URL leads.
	Targets  []string `json:"targets"`
	Warnings []string `json:"warnings"`
	// Receipt is what has been counted so far; final once the drain has ended.
	Receipt *Receipt `json:"receipt,omitempty"`
}

// Receipt is what came of a drain.
type Receipt struct {
	Sessions          uint64   `json:"sessions"`
	Moved             uint64   `json:"moved"`
	Reconnected       uint64   `json:"reconnected"`
	Closed            uint64   `json:"closed"`
	Echoed            uint64   `json:"echoed"`
	GaveUp            uint64   `json:"gaveUp"`
	Suspended         uint64   `json:"suspended"`
	Unaccounted       uint64   `json:"unaccounted"`
	ConnectsElsewhere uint64   `json:"connectsElsewhere"`
	HandedOver        uint64   `json:"handedOver"`
	Lost              uint64   `json:"lost"`
	Repeated          uint64   `json:"repeated"`
	NotTakenBack      uint64   `json:"notTakenBack"`
	GapP50MS          float64  `json:"gapP50Ms"`
	GapP99MS          float64  `json:"gapP99Ms"`
	GapMaxMS          float64  `json:"gapMaxMs"`
	Gaps              uint64   `json:"gaps"`
	DurationMS        uint64   `json:"durationMs"`
	Incomplete        []string `json:"incomplete"`
}

// NewDrains converts a list.
func NewDrains(ops []*controlv1.DrainOperation) Drains {
	v := Drains{Drains: make([]Drain, 0, len(ops))}
	for _, op := range ops {
		v.Drains = append(v.Drains, NewDrain(op))
	}
	return v
}

// NewDrain converts one.
func NewDrain(op *controlv1.DrainOperation) Drain {
	d := Drain{
		ID: op.GetOperationId(), Node: op.GetNodeId(), Incarnation: strconv.FormatUint(op.GetIncarnation(), 10),
		State: DrainState(op.GetState()), Reason: op.GetReason(), Terminating: op.GetTerminating(), Forced: op.GetForced(),
		RequestedBy: op.GetRequestedBy(), TimeoutMS: op.GetTimeoutMs(), Pace: op.GetPace(), PaceReason: op.GetPaceReason(),
		CreatedAt: output.Time(op.GetCreatedAtMs()), StartedAt: output.Time(op.GetStartedAtMs()), EndedAt: output.Time(op.GetEndedAtMs()),
		Sessions: op.GetProgress().GetSessions(), Left: op.GetProgress().GetLeft(), Targets: []string{}, Warnings: list(op.GetWarnings()),
	}
	for _, t := range op.GetTargets() {
		d.Targets = append(d.Targets, t.GetNodeId())
	}
	if r := op.GetReceipt(); r != nil {
		d.Receipt = &Receipt{
			Sessions: r.GetSessions(), Moved: r.GetMoved(), Reconnected: r.GetReconnected(), Closed: r.GetClosed(), Echoed: r.GetEchoed(),
			GaveUp: r.GetGaveUp(), Suspended: r.GetSuspended(), Unaccounted: r.GetUnaccounted(), ConnectsElsewhere: r.GetConnectsElsewhere(),
			HandedOver: r.GetHandedOver(), Lost: r.GetLost(), Repeated: r.GetRepeatedDeliveries(), NotTakenBack: r.GetNotTakenBack(),
			GapP50MS: r.GetGapP50Ms(), GapP99MS: r.GetGapP99Ms(), GapMaxMS: r.GetGapMaxMs(), Gaps: r.GetGaps(), DurationMS: r.GetDurationMs(),
			Incomplete: list(r.GetIncomplete()),
		}
	}
	return d
}

// Final tells whether nothing follows.
func (d Drain) Final() bool {
	return d.State == "done" || d.State == "cancelled" || d.State == "failed"
}

// DrainState names a state.
func DrainState(s controlv1.DrainState) string {
	name, ok := controlv1.DrainState_name[int32(s)]
	if !ok || s == controlv1.DrainState_DRAIN_STATE_UNSPECIFIED {
		return "unknown"
	}
	return strings.ToLower(strings.TrimPrefix(name, "DRAIN_STATE_"))
}

// Rehearsal is what a drain would do.
type Rehearsal struct {
	Node       string  `json:"nodeId"`
	Sessions   uint64  `json:"sessions"`
	SessionsV2 uint64  `json:"sessionsV2"`
	DurationMS uint64  `json:"durationMs"`
	Pace       float64 `json:"sessionsPerSecond"`
	Room       uint64  `json:"room"`
	RoomKnown  bool    `json:"roomKnown"`
	// Refusal says why a drain would be refused now; empty: it would not be.
	Refusal  string          `json:"refusal"`
	Ahead    uint32          `json:"ahead"`
	Nodes    []RehearsedNode `json:"nodes"`
	Warnings []string        `json:"warnings"`
}

// RehearsedNode would take sessions.
type RehearsedNode struct {
	Node              string  `json:"nodeId"`
	Sessions          uint64  `json:"sessions"`
	SessionsMax       uint64  `json:"sessionsMax"`
	Share             float64 `json:"share"`
	ConnectsPerSecond float64 `json:"connectsPerSecond"`
	// Directed: clients can be told to go there.
	Directed bool `json:"directed"`
}

// NewRehearsal converts an answer.
func NewRehearsal(node string, r *controlv1.RehearseDrainResponse) Rehearsal {
	v := Rehearsal{
		Node: node, Sessions: r.GetSessions(), SessionsV2: r.GetSessionsV2(), DurationMS: r.GetDurationMs(), Pace: r.GetSessionsPerSecond(),
		Room: r.GetRoom(), RoomKnown: r.GetRoomKnown(), Refusal: r.GetRefusal(), Ahead: r.GetAhead(),
		Nodes: make([]RehearsedNode, 0, len(r.GetNodes())), Warnings: list(r.GetWarnings()),
	}
	for _, n := range r.GetNodes() {
		v.Nodes = append(v.Nodes, RehearsedNode{
			Node: n.GetNodeId(), Sessions: n.GetSessions(), SessionsMax: n.GetSessionsMax(), Share: n.GetShare(),
			ConnectsPerSecond: n.GetConnectsPerSecond(), Directed: n.GetDirected(),
		})
	}
	return v
}
