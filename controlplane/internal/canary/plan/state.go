// Package plan decides what a canary does next. It is pure: a state and what is
// seen of the fleet give the next state, and a state gives what is to be done,
// level-triggered, so that whoever leads goes on where another stopped.
package plan

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mics-im/mics/controlplane/internal/canary/analysis"
	"github.com/mics-im/mics/controlplane/internal/pace"
	"github.com/mics-im/mics/internal/cohort"
)

// Phase is where a canary is.
type Phase string

// The phases; see control.proto.
const (
	Moving    Phase = "moving"
	Baking    Phase = "baking"
	Ready     Phase = "ready"
	Promoting Phase = "promoting"
	Replacing Phase = "replacing"
	Returning Phase = "returning"
	Aborting  Phase = "aborting"
	Promoted  Phase = "promoted"
	Aborted   Phase = "aborted"
)

// Over tells whether nothing more happens.
func (p Phase) Over() bool { return p == Promoted || p == Aborted }

// onTrial tells whether the canary may still be promoted or aborted by itself.
func (p Phase) onTrial() bool { return p == Moving || p == Baking || p == Ready }

// Bounds of a Spec.
const (
	maxSteps    = 20
	maxTenants  = 1000
	maxBake     = 7 * 24 * time.Hour
	maxRate     = 100_000
	defaultBake = 10 * time.Minute
	// maxEvents and maxTrend bound what a state remembers for people.
	maxEvents = 40
	maxTrend  = 40
)

// Spec is what an operator asked for. Weights are hundredths of a per cent.
type Spec struct {
	Steps       []uint32        `json:"steps"`
	Bake        time.Duration   `json:"bake"`
	Tenants     []string        `json:"tenants,omitempty"`
	Denied      []string        `json:"denied,omitempty"`
	AutoPromote bool            `json:"auto_promote,omitempty"`
	MoveV1      bool            `json:"move_v1,omitempty"`
	Rate        float64         `json:"rate,omitempty"`
	File        string          `json:"file,omitempty"` // what Analysis was read from
	Analysis    analysis.Config `json:"analysis"`
}

// Prepare checks a spec and fills in what it leaves open; Analysis is read from
// File.
func (s Spec) Prepare() (Spec, error) {
	if len(s.Steps) == 0 || len(s.Steps) > maxSteps {
		return s, fmt.Errorf("steps: want 1 to %d", maxSteps)
	}
	for i, w := range s.Steps {
		if w == 0 || w > cohort.Full || i > 0 && w <= s.Steps[i-1] {
			return s, errors.New("steps: weights must be above 0, at most 100, and rise")
		}
	}
	if s.Bake == 0 {
		s.Bake = defaultBake
	}
	if s.Bake < time.Second || s.Bake > maxBake {
		return s, fmt.Errorf("bake: must be from 1s to %v", maxBake)
	}
	if len(s.Tenants)+len(s.Denied) > maxTenants {
		return s, fmt.Errorf("tenants: at most %d", maxTenants)
	}
	for _, t := range s.Tenants {
		if slices.Contains(s.Denied, t) {
			return s, fmt.Errorf("tenants: %s is both allowed and denied", t)
		}
	}
	if !(s.Rate >= 0 && s.Rate <= maxRate) {
		return s, fmt.Errorf("sessions per second: must be from 0 (automatic) to %d", maxRate)
	}
	c, err := analysis.Parse([]byte(s.File))
	if err != nil {
		return s, err
	}
	s.Analysis = c.For(len(s.Steps), s.Bake)
	return s, nil
}

// Rule is what gateways are told; see CanaryRule.
type Rule struct {
	Generation uint64 `json:"generation"`
	Salt       string `json:"salt"`
	Weight     uint32 `json:"weight"`
}

// Point is one interval of one signal, by itself.
type Point struct {
	Stable *float64 `json:"s,omitempty"`
	Canary *float64 `json:"c,omitempty"`
}

// Event is something that a person may want to read afterwards.
type Event struct {
	At    time.Time `json:"at"`
	Text  string    `json:"text"`
	Actor string    `json:"actor,omitempty"`
}

// State is all there is to know of a canary. It is a value: nothing changes one
// that was returned.
type State struct {
	ID        string    `json:"id"`
	Spec      Spec      `json:"spec"`
	Phase     Phase     `json:"phase"`
	StartedAt time.Time `json:"started_at"`
	Since     time.Time `json:"since"` // of the phase
	// Step is an index of Spec.Steps, -1 for a weight below the first; Target is
	// the weight that is wanted.
	Step   int    `json:"step"`
	Target uint32 `json:"target"`
	Rule   Rule   `json:"rule"`
	// Aiming tells that the rule has the weight of before still, because it is not
	// known yet which one gives the target, and nobody moves; Adjusted counts how often
	// it was brought nearer to the target since; Falling tells that this step lowers
	// the weight; Turned, that it began while sessions moved the other way, which they
	// would again if the rule was adjusted.
	Aiming   bool `json:"aiming,omitempty"`
	Turned   bool `json:"turned,omitempty"`
	Adjusted int  `json:"adjusted,omitempty"`
	Falling  bool `json:"falling,omitempty"`
	// Population is how many sessions there were when the step began.
	Population uint64 `json:"population,omitempty"`
	// Pace is how fast sessions move in this step. The zero Pace is that of a fleet
	// which does not tell how it takes them.
	Pace pace.Pace `json:"pace,omitzero"`
	// Settled is since when sessions have been where the rule wants them.
	Settled time.Time `json:"settled,omitzero"`
	// Baked is for how long the step has been as it is to be; it counts only while
	// somebody looks. Seen is when somebody looked last.
	Baked  time.Duration `json:"baked"`
	Seen   time.Time     `json:"seen"`
	Paused bool          `json:"paused,omitempty"`
	// Version is the canary's.
	Version string `json:"version"`
	// Reason is why it was aborted; Waits what it waits for.
	Reason  string                      `json:"reason,omitempty"`
	Waits   string                      `json:"waits,omitempty"`
	History analysis.History            `json:"history"`
	Verdict analysis.Verdict            `json:"verdict"`
	Trend   map[analysis.Signal][]Point `json:"trend,omitempty"`
	Events  []Event                     `json:"events,omitempty"`
	// Deserted is since when no gateway of the canary has served.
	Deserted time.Time `json:"deserted,omitzero"`
}

// say remembers an event.
func (s State) say(at time.Time, actor, format string, a ...any) State {
	e := append(slices.Clone(s.Events), Event{At: at, Text: fmt.Sprintf(format, a...), Actor: actor})
	s.Events = e[max(0, len(e)-maxEvents):]
	return s
}

// enter goes to a phase.
func (s State) enter(p Phase, at time.Time) State {
	s.Phase, s.Since, s.Waits = p, at, ""
	return s
}

// Percent prints a weight.
func Percent(w uint32) string {
	if w%100 == 0 {
		return fmt.Sprintf("%d %%", w/100)
	}
	return fmt.Sprintf("%.2f %%", float64(w)/100)
}
