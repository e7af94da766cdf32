package drain

import (
	"math"
	"time"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

var states = map[State]controlv1.DrainState{
	Waiting:    controlv1.DrainState_DRAIN_STATE_WAITING,
	Checking:   controlv1.DrainState_DRAIN_STATE_CHECKING,
	Draining:   controlv1.DrainState_DRAIN_STATE_DRAINING,
	Paused:     controlv1.DrainState_DRAIN_STATE_PAUSED,
	Verifying:  controlv1.DrainState_DRAIN_STATE_VERIFYING,
	Cancelling: controlv1.DrainState_DRAIN_STATE_CANCELLING,
	Done:       controlv1.DrainState_DRAIN_STATE_DONE,
	Cancelled:  controlv1.DrainState_DRAIN_STATE_CANCELLED,
	Failed:     controlv1.DrainState_DRAIN_STATE_FAILED,
}

// Proto is the operation as operators see it.
func (op *Operation) Proto() *controlv1.DrainOperation {
	p := op.Progress
	out := &controlv1.DrainOperation{
		OperationId: op.ID, NodeId: op.Node, Incarnation: op.Incarnation, State: states[op.State], Reason: op.Reason,
		Terminating: op.Terminating, Forced: op.Forced, TimeoutMs: millis(op.Timeout), SessionsPerSecond: op.Rate,
		Pace: op.Pace.Rate, PaceReason: op.Pace.Why, CreatedAtMs: unixMS(op.Created), StartedAtMs: unixMS(op.Started),
		EndedAtMs: unixMS(op.Ended), Warnings: op.Warnings, RequestedBy: op.By,
	}
	for _, t := range op.Targets {
		out.Targets = append(out.Targets, &gatewayv1.Target{NodeId: t.Node, Url: t.URL, Weight: t.Weight})
	}
	if !op.Started.IsZero() {
		out.Progress = &gatewayv1.DrainProgress{
			OperationId: op.ID, Sessions: max(p.Sessions, op.Sessions), Left: op.left(), LeftV2: p.LeftV2, Moved: p.Moved,
			Closed: p.Closed, Echoed: p.Echoed, GaveUp: p.GaveUp, HandedOver: p.HandedOver, NotTakenBack: p.NotTakenBack,
			Paused: p.Paused, Done: p.Done, StartedAtMs: unixMS(op.Started), SessionsPerSecond: op.Pace.Rate, Suspended: p.Suspended,
		}
	}
	if r := op.Receipt; r != nil {
		out.Receipt = &controlv1.DrainReceipt{
			Sessions: r.Sessions, Moved: r.Moved, Reconnected: r.Reconnected, Closed: r.Closed, Echoed: r.Echoed, GaveUp: r.GaveUp,
			Suspended: r.Suspended, Unaccounted: r.Unaccounted, ConnectsElsewhere: r.ConnectsElsewhere, HandedOver: r.HandedOver,
			Lost: r.Lost, RepeatedDeliveries: r.Repeated, NotTakenBack: r.NotTakenBack, GapP50Ms: r.GapP50, GapP99Ms: r.GapP99,
			GapMaxMs: r.GapMax, Gaps: r.Gaps, DurationMs: millis(r.Duration), Incomplete: r.Incomplete,
		}
	}
	return out
}

// Proto is the rehearsal as operators see it.
func (h Rehearsal) Proto() *controlv1.RehearseDrainResponse {
	out := &controlv1.RehearseDrainResponse{
		Sessions: h.Node.Sessions, SessionsV2: h.Node.SessionsV2, DurationMs: millis(h.Duration), SessionsPerSecond: h.Rate,
		Room: h.Room.Free, RoomKnown: h.Room.Known, Refusal: h.Refusal, Ahead: uint32(min(h.Ahead, math.MaxInt32)), Warnings: h.Warnings,
	}
	for _, p := range h.Places {
		out.Nodes = append(out.Nodes, &controlv1.RehearsedNode{
			NodeId: p.Node.ID, Sessions: p.Sessions, SessionsMax: p.Max, Share: p.Share, ConnectsPerSecond: p.Share * h.Rate,
			Directed: p.Node.ClientURL != "",
		})
	}
	return out
}

func millis(d time.Duration) uint64 { return uint64(max(d, 0).Milliseconds()) }

func unixMS(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
