package canary

import (
	"math"
	"time"

	"github.com/mics-im/mics/controlplane/internal/canary/analysis"
	"github.com/mics-im/mics/controlplane/internal/canary/plan"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

var phases = map[plan.Phase]controlv1.CanaryPhase{
	plan.Moving:    controlv1.CanaryPhase_CANARY_PHASE_MOVING,
	plan.Baking:    controlv1.CanaryPhase_CANARY_PHASE_BAKING,
	plan.Ready:     controlv1.CanaryPhase_CANARY_PHASE_READY,
	plan.Promoting: controlv1.CanaryPhase_CANARY_PHASE_PROMOTING,
	plan.Replacing: controlv1.CanaryPhase_CANARY_PHASE_REPLACING,
	plan.Returning: controlv1.CanaryPhase_CANARY_PHASE_RETURNING,
	plan.Aborting:  controlv1.CanaryPhase_CANARY_PHASE_ABORTING,
	plan.Promoted:  controlv1.CanaryPhase_CANARY_PHASE_PROMOTED,
	plan.Aborted:   controlv1.CanaryPhase_CANARY_PHASE_ABORTED,
}

// SpecOf reads what an operator asks for; Start checks it.
func SpecOf(s *controlv1.CanarySpec) plan.Spec {
	// What is out of bounds stays so.
	bake := time.Duration(min(s.GetBakeMs(), math.MaxInt64/uint64(time.Millisecond))) * time.Millisecond
	return plan.Spec{
		Steps: s.GetSteps(), Bake: bake, Tenants: s.GetTenants(), Denied: s.GetTenantsDenied(), AutoPromote: s.GetAutoPromote(),
		MoveV1: s.GetMoveV1(), Rate: s.GetSessionsPerSecond(), File: s.GetAnalysis(),
	}
}

// Proto is the view as operators see it.
func (v View) Proto() *controlv1.Canary {
	s := v.State
	p := plan.Count(v.Observed.Nodes, s.Rule.Generation)
	out := &controlv1.Canary{
		Id: s.ID, Phase: phases[s.Phase], Step: int32(s.Step), Weight: s.Target, Share: p.Share(), Paused: s.Paused,
		Spec: &controlv1.CanarySpec{
			Steps: s.Spec.Steps, BakeMs: uint64(s.Spec.Bake.Milliseconds()), Tenants: s.Spec.Tenants, TenantsDenied: s.Spec.Denied,
			AutoPromote: s.Spec.AutoPromote, MoveV1: s.Spec.MoveV1, Analysis: s.Spec.File, SessionsPerSecond: s.Spec.Rate,
		},
		Stable: group(p.Stable), Canary: group(p.Canary), Verdict: string(s.Verdict.Outcome), Looks: uint32(s.History.Looks),
		StartedAtMs: s.StartedAt.UnixMilli(), PhaseSinceMs: s.Since.UnixMilli(), BakedMs: uint64(s.Baked.Milliseconds()),
		RuleGeneration: s.Rule.Generation, RuleWeight: s.Rule.Weight, ObservedAtMs: v.Observed.At.UnixMilli(),
		Actuator: v.Actuator, ActuatorError: v.ActuatorError, Reason: s.Waits, Pace: s.Pace.Rate, PaceReason: s.Pace.Why,
	}
	if s.Reason != "" {
		out.Reason = s.Reason
		if s.Waits != "" {
			out.Reason += "; " + s.Waits
		}
	}
	if s.Phase == plan.Replacing {
		out.NodesToReplace = s.Old(v.Observed.Nodes)
	}
	for _, f := range s.Verdict.Findings {
		out.Signals = append(out.Signals, finding(f, s.Trend[f.Signal]))
	}
	for _, e := range s.Events {
		out.Events = append(out.Events, &controlv1.CanaryEvent{AtMs: e.At.UnixMilli(), Text: e.Text, Actor: e.Actor})
	}
	return out
}

func group(g plan.Group) *controlv1.CanaryTrack {
	return &controlv1.CanaryTrack{
		Versions: g.Versions, Nodes: uint32(g.Nodes), Sessions: g.Sessions, Misplaced: g.Misplaced, MisplacedV1: g.MisplacedV1,
	}
}

func finding(f analysis.Finding, trend []plan.Point) *controlv1.CanarySignal {
	out := &controlv1.CanarySignal{
		Name: string(f.Signal), Outcome: string(f.Outcome), Stable: f.Stable, Canary: f.Canary, StableSamples: f.StableSamples,
		CanarySamples: f.CanarySamples, Confidence: f.Confidence, Detail: f.Why,
	}
	value := func(x *float64) float64 {
		if x == nil {
			return math.NaN()
		}
		return *x
	}
	for _, p := range trend {
		out.StableTrend = append(out.StableTrend, value(p.Stable))
		out.CanaryTrend = append(out.CanaryTrend, value(p.Canary))
	}
	return out
}
