package view

import (
	"math"
	"strconv"
	"strings"

	"github.com/mics-im/mics/ctl/internal/output"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// Canary is a canary and what is seen of it. Weights and shares are per cent.
type Canary struct {
	ID             string         `json:"id"`
	Phase          string         `json:"phase"`
	Steps          []float64      `json:"steps"`
	Step           int32          `json:"step"`
	Weight         float64        `json:"weight"`
	Share          float64        `json:"share"`
	Paused         bool           `json:"paused"`
	Reason         string         `json:"reason,omitempty"`
	BakeMS         uint64         `json:"bakeMs"`
	BakedMS        uint64         `json:"bakedMs"`
	AutoPromote    bool           `json:"autoPromote"`
	MoveV1         bool           `json:"moveV1"`
	Tenants        []string       `json:"tenants"`
	TenantsDenied  []string       `json:"tenantsDenied"`
	Stable         CanaryTrack    `json:"stable"`
	Canary         CanaryTrack    `json:"canary"`
	Verdict        string         `json:"verdict,omitempty"`
	Looks          uint32         `json:"looks"`
	Signals        []CanarySignal `json:"signals"`
	NodesToReplace []string       `json:"nodesToReplace"`
	Events         []CanaryEvent  `json:"events"`
	Actuator       string         `json:"actuator"`
	ActuatorError  string         `json:"actuatorError,omitempty"`
	Pace           float64        `json:"pace,omitempty"`
	PaceReason     string         `json:"paceReason,omitempty"`
	StartedAt      string         `json:"startedAt"`
	PhaseSince     string         `json:"phaseSince"`
	ObservedAt     string         `json:"observedAt"`
	// Rule is what gateways decide by.
	RuleGeneration string  `json:"ruleGeneration"`
	RuleWeight     float64 `json:"ruleWeight"`
}

// CanaryTrack is the gateways of one track.
type CanaryTrack struct {
	Versions    []string `json:"versions"`
	Nodes       uint32   `json:"nodes"`
	Sessions    uint64   `json:"sessions"`
	Misplaced   uint64   `json:"misplaced"`
	MisplacedV1 uint64   `json:"misplacedV1"`
}

// CanarySignal is one signal of both tracks.
type CanarySignal struct {
	Name          string  `json:"name"`
	Outcome       string  `json:"outcome"`
	Stable        float64 `json:"stable"`
	Canary        float64 `json:"canary"`
	StableSamples uint64  `json:"stableSamples"`
	CanarySamples uint64  `json:"canarySamples"`
	Confidence    float64 `json:"confidence"`
	Detail        string  `json:"detail,omitempty"`
	// Trends have null where there was nothing.
	StableTrend []*float64 `json:"stableTrend"`
	CanaryTrend []*float64 `json:"canaryTrend"`
}

// CanaryEvent is something that happened.
type CanaryEvent struct {
	At    string `json:"at"`
	Text  string `json:"text"`
	Actor string `json:"actor,omitempty"`
}

// NewCanary converts a canary.
func NewCanary(c *controlv1.Canary) Canary {
	s := c.GetSpec()
	v := Canary{
		ID: c.GetId(), Phase: CanaryPhase(c.GetPhase()), Steps: make([]float64, 0, len(s.GetSteps())), Step: c.GetStep(),
		Weight: percent(c.GetWeight()), Share: 100 * c.GetShare(), Paused: c.GetPaused(), Reason: c.GetReason(),
		BakeMS: s.GetBakeMs(), BakedMS: c.GetBakedMs(), AutoPromote: s.GetAutoPromote(), MoveV1: s.GetMoveV1(),
		Tenants: list(s.GetTenants()), TenantsDenied: list(s.GetTenantsDenied()), Stable: newTrack(c.GetStable()), Canary: newTrack(c.GetCanary()),
		Verdict: c.GetVerdict(), Looks: c.GetLooks(), Signals: make([]CanarySignal, 0, len(c.GetSignals())),
		NodesToReplace: list(c.GetNodesToReplace()), Events: make([]CanaryEvent, 0, len(c.GetEvents())),
		Actuator: c.GetActuator(), ActuatorError: c.GetActuatorError(), Pace: c.GetPace(), PaceReason: c.GetPaceReason(), StartedAt: output.Time(c.GetStartedAtMs()),
		PhaseSince: output.Time(c.GetPhaseSinceMs()), ObservedAt: output.Time(c.GetObservedAtMs()),
		RuleGeneration: strconv.FormatUint(c.GetRuleGeneration(), 10), RuleWeight: percent(c.GetRuleWeight()),
	}
	for _, w := range s.GetSteps() {
		v.Steps = append(v.Steps, percent(w))
	}
	for _, g := range c.GetSignals() {
		v.Signals = append(v.Signals, CanarySignal{
			Name: g.GetName(), Outcome: g.GetOutcome(), Stable: number(g.GetStable()), Canary: number(g.GetCanary()), StableSamples: g.GetStableSamples(),
			CanarySamples: g.GetCanarySamples(), Confidence: number(g.GetConfidence()), Detail: g.GetDetail(),
			StableTrend: trend(g.GetStableTrend()), CanaryTrend: trend(g.GetCanaryTrend()),
		})
	}
	for _, e := range c.GetEvents() {
		v.Events = append(v.Events, CanaryEvent{At: output.Time(e.GetAtMs()), Text: e.GetText(), Actor: e.GetActor()})
	}
	return v
}

func newTrack(t *controlv1.CanaryTrack) CanaryTrack {
	return CanaryTrack{
		Versions: list(t.GetVersions()), Nodes: t.GetNodes(), Sessions: t.GetSessions(), Misplaced: t.GetMisplaced(), MisplacedV1: t.GetMisplacedV1(),
	}
}

func percent(w uint32) float64 { return float64(w) / 100 }

// number makes what JSON cannot say zero.
func number(x float64) float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return 0
	}
	return x
}

func trend(points []float64) []*float64 {
	out := make([]*float64, len(points))
	for i, p := range points {
		if !math.IsNaN(p) && !math.IsInf(p, 0) {
			out[i] = &points[i]
		}
	}
	return out
}

// CanaryPhase names a canary's phase: moving, baking, ready, …, or unknown for one
// that this micsctl is too old to know.
func CanaryPhase(p controlv1.CanaryPhase) string {
	name, ok := controlv1.CanaryPhase_name[int32(p)]
	if !ok || p == controlv1.CanaryPhase_CANARY_PHASE_UNSPECIFIED {
		return "unknown"
	}
	return strings.ToLower(strings.TrimPrefix(name, "CANARY_PHASE_"))
}

// Rebalance is how sessions are evened out.
type Rebalance struct {
	ID      string          `json:"id,omitempty"`
	Running bool            `json:"running"`
	Reason  string          `json:"reason,omitempty"`
	Nodes   []RebalanceNode `json:"nodes"`
}

// RebalanceNode is one gateway of it.
type RebalanceNode struct {
	Node     string `json:"nodeId"`
	Track    string `json:"track"`
	Sessions uint64 `json:"sessions"`
	Gives    uint64 `json:"gives"`
	Gets     uint64 `json:"gets"`
	Moved    uint64 `json:"moved"`
	Stayed   uint64 `json:"stayed"`
}

// NewRebalance converts an answer.
func NewRebalance(r *controlv1.RebalanceResponse) Rebalance {
	v := Rebalance{ID: r.GetId(), Running: r.GetRunning(), Reason: r.GetReason(), Nodes: make([]RebalanceNode, 0, len(r.GetNodes()))}
	for _, n := range r.GetNodes() {
		v.Nodes = append(v.Nodes, RebalanceNode{
			Node: n.GetNodeId(), Track: n.GetTrack(), Sessions: n.GetSessions(), Gives: n.GetGives(), Gets: n.GetGets(), Moved: n.GetMoved(), Stayed: n.GetStayed(),
		})
	}
	return v
}
