package plan

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/mics-im/mics/controlplane/internal/canary/analysis"
	"github.com/mics-im/mics/controlplane/internal/pace"
	"github.com/mics-im/mics/internal/cohort"
)

const (
	// tolerance is how far the share may be from the weight, and which part of all
	// sessions may be on the wrong track, for a bake to count.
	tolerance = 0.01
	// near is what the share may miss without an adjustment of the rule, adjustments
	// how often there is one in a step.
	near        = 0.004
	adjustments = 8
	// calm is for how long sessions have to be where they are wanted before they are
	// counted: one that moves may be seen on both gateways, or on neither.
	calm = 1500 * time.Millisecond
	// absence is for how long a step waits for sessions that were there before.
	absence = 5 * time.Minute
	// silence is for how long a gateway that does not answer is waited for before
	// sessions are counted without its own.
	silence = 20 * time.Second
	// gap bounds what one look at the fleet adds to a bake: nobody was looking.
	gap = 5 * time.Second
	// desertedAfter is how long a canary may be without a gateway that serves.
	desertedAfter = 20 * time.Second
	// abortPatience is for how long an abort waits for the last 1 per cent.
	abortPatience = 2 * time.Minute
)

// Begin starts a canary with a prepared spec. generation is of the newest rule that
// any gateway may have.
func Begin(id string, spec Spec, generation uint64, o Observation, actor string) (State, error) {
	p := Count(o.Nodes, 0)
	switch {
	case p.Canary.Nodes == 0:
		return State{}, fmt.Errorf("no gateway of the canary track serves: start one with TRACK=canary")
	case p.Stable.Nodes == 0:
		return State{}, fmt.Errorf("no gateway of the stable track serves: there is nothing to compare with, and nowhere to go back to")
	case len(p.Canary.Versions) > 1:
		return State{}, fmt.Errorf("the gateways of the canary track have %d versions: %s", len(p.Canary.Versions), strings.Join(p.Canary.Versions, ", "))
	}
	for _, n := range o.Nodes {
		generation = max(generation, n.Generation)
	}
	s := State{
		ID: id, Spec: spec, StartedAt: o.At, Seen: o.At, Step: -1, Version: p.Canary.Versions[0],
		Rule: Rule{Generation: generation, Salt: id},
	}
	s = s.say(o.At, actor, "started: version %s, steps %s, bake %v", s.Version, steps(spec.Steps), spec.Bake)
	return s.toward(0, spec.Steps[0], p, o.At), nil
}

func steps(w []uint32) string {
	out := make([]string, len(w))
	for i, x := range w {
		out[i] = Percent(x)
	}
	return strings.Join(out, ", ")
}

// toward begins a step: sessions move until the share is the target.
func (s State) toward(step int, target uint32, p Population, at time.Time) State {
	falling := target < s.Target
	s.Turned = s.Phase == Moving && (s.Turned || s.Falling || falling)
	s.Step, s.Target, s.Falling, s.Adjusted, s.Baked, s.Population = step, target, falling, 0, 0, p.Total()
	s.Pace = pace.Pace{}
	if s.partial() && (p.Places == nil || s.Phase == Moving) {
		s = s.rule(s.Rule.Weight)
		s.Aiming = true
	} else {
		s = s.rule(s.aim(p))
	}
	s.History = s.History.Restart(s.alone())
	s.Verdict = analysis.Verdict{}
	return s.enter(Moving, at)
}

// partial tells whether the target is a share of all sessions, neither none nor all.
func (s State) partial() bool { return s.Target > 0 && s.Target < cohort.Full && s.whole() }

// aim returns the weight of the rule whose share is the nearest to the target.
//
// The rule decides by a hash, so the share that it gives is its weight only on
// average: of 5,000 sessions 50 per cent are 48.6 to 51.4 in 19 of 20 cases. Which
// weight gives which share of those who are connected is known when gateways tell
// their places. It is never on the other side of the weight in force than the step
// is, so that nobody moves twice, and not far from the target, because whoever is
// connected now may be a poor sample of all.
func (s State) aim(p Population) uint32 {
	if !s.partial() || p.Places == nil || p.Total() == 0 {
		if s.Falling {
			return min(s.Target, s.Rule.Weight)
		}
		return max(s.Target, s.Rule.Weight)
	}
	share := float64(s.Target) / cohort.Full
	// Ten standard deviations: users with several devices make the share wider.
	margin := uint32(math.Ceil(10 * math.Sqrt(share*(1-share)/float64(max(p.Total(), s.Population))) * cohort.Full))
	low, high := s.Target-min(margin, s.Target), min(s.Target+margin, cohort.Full)
	if s.Falling {
		high = min(high, s.Rule.Weight)
		low = min(low, high)
	} else {
		low = max(low, s.Rule.Weight)
		high = max(low, high)
	}
	miss := func(sessions uint64) float64 { return math.Abs(float64(sessions) - share*float64(p.Total())) }
	distance := func(weight uint32) uint32 { return max(weight, s.Target) - min(weight, s.Target) }
	below := uint64(0) // sessions whose place is below the weight
	for _, n := range p.Places[:low] {
		below += n
	}
	best, least := low, miss(below)
	for weight := low + 1; weight <= high; weight++ {
		below += p.Places[weight-1]
		if m := miss(below); m < least || m == least && distance(weight) < distance(best) {
			best, least = weight, m
		}
	}
	return best
}

// whole tells whether the weight is of all users.
func (s State) whole() bool { return len(s.Spec.Tenants)+len(s.Spec.Denied) == 0 }

// alone tells whether nobody is left on stable.
func (s State) alone() bool { return s.Target == cohort.Full && s.whole() }

func (s State) rule(weight uint32) State {
	s.Rule.Weight, s.Aiming, s.Settled = weight, false, time.Time{}
	s.Rule.Generation++
	return s
}

// Next takes a look at the fleet.
func Next(s State, o Observation) State {
	if s.Phase.Over() {
		return s
	}
	passed := min(max(o.At.Sub(s.Seen), 0), gap)
	s.Seen = o.At
	p := Count(o.Nodes, s.Rule.Generation)
	if s.Phase.onTrial() || s.Phase == Promoting {
		if s = s.judge(o); s.Phase == Aborting {
			return s
		}
		if s = s.desert(p, o.At); s.Phase == Aborting {
			return s
		}
	}
	s = s.hurry(o, passed)
	switch s.Phase {
	case Moving:
		return s.moving(p, o.At)
	case Baking:
		return s.baking(p, o.At, passed)
	case Ready:
		s.Waits = "all steps went well: promote or abort"
	case Promoting:
		return s.promoting(p, o.At)
	case Replacing:
		return s.replacing(o)
	case Returning:
		return s.returning(p, o.At)
	case Aborting:
		return s.aborting(p, o.At)
	}
	return s
}

// judge takes a sample, if there is one.
func (s State) judge(o Observation) State {
	if o.Sample == nil {
		return s
	}
	c := s.Spec.Analysis
	if s.Phase != Baking && s.Phase != Ready {
		c = c.WhileMoving()
	}
	s.History = s.History.Add(c, *o.Sample)
	s.Verdict = analysis.Judge(c, s.History)
	s.Trend = extend(s.Trend, analysis.Points(s.Spec.Analysis, *o.Sample))
	if s.Verdict.Outcome == analysis.Degraded {
		return s.abort(o.At, "", s.Verdict.Why)
	}
	return s
}

// extend adds an interval to the trend.
func extend(t map[analysis.Signal][]Point, add map[analysis.Signal][2]float64) map[analysis.Signal][]Point {
	out := maps.Clone(t)
	if out == nil {
		out = map[analysis.Signal][]Point{}
	}
	known := func(x float64) *float64 {
		if math.IsNaN(x) {
			return nil
		}
		return &x
	}
	for s, v := range add {
		points := append(slices.Clone(out[s]), Point{known(v[0]), known(v[1])})
		out[s] = points[max(0, len(points)-maxTrend):]
	}
	return out
}

// desert aborts a canary whose gateways are all gone.
func (s State) desert(p Population, at time.Time) State {
	switch {
	case p.Canary.Nodes > 0:
		s.Deserted = time.Time{}
	case s.Deserted.IsZero():
		s.Deserted = at
	case at.Sub(s.Deserted) >= desertedAfter:
		return s.abort(at, "", fmt.Sprintf("no gateway of the canary track has served for %v", desertedAfter))
	}
	return s
}

// settled tells whether sessions are where the rule wants them; if not, what is
// waited for.
func (s State) settled(p Population) (bool, string) {
	if !p.Current {
		return false, "gateways have yet to take the new rule"
	}
	allowed := uint64(tolerance * float64(p.Total()))
	if n := p.movable(s.Spec.MoveV1); n > allowed {
		return false, fmt.Sprintf("%d sessions have to move", n)
	}
	return true, ""
}

func (s State) moving(p Population, at time.Time) State {
	if s.Paused {
		s.Waits = "paused"
		return s
	}
	// A gateway is cut off, or clients are: those who are here say little of all.
	scarce := p.Total() < s.Population/2 && at.Sub(s.Since) < absence
	silent := func(since time.Time) bool { return p.Silent > 0 && at.Sub(since) < silence }
	if s.Aiming && p.Current && !scarce && !silent(s.Since) && at.Sub(s.Since) >= calm { // who tells no places by now does not know how
		return s.rule(s.aim(p))
	}
	ok, why := s.settled(p)
	if ok && scarce {
		ok, why = false, fmt.Sprintf("%d of %d sessions are connected", p.Total(), s.Population)
	}
	switch {
	case !ok:
		s.Waits, s.Settled = why, time.Time{}
		return s
	case s.Settled.IsZero():
		s.Settled = at
		return s
	case at.Sub(s.Settled) < calm:
		return s
	case silent(s.Settled):
		s.Waits = fmt.Sprintf("%d gateways with sessions do not answer", p.Silent)
		return s
	}
	if next, again := s.adjust(p); again {
		return next
	}
	s.History = s.History.Bake()
	s = s.say(at, "", "%s reached: %d of %d sessions are on canary (%.1f %%)", Percent(s.Target), p.Canary.Sessions, p.Total(), 100*p.Share())
	return s.enter(Baking, at)
}

// adjust brings the rule nearer to the target, in the step's direction only, when
// people have come and gone while sessions moved.
func (s State) adjust(p Population) (State, bool) {
	if !s.partial() || p.Places == nil || s.Turned || s.Adjusted >= adjustments {
		return s, false
	}
	if math.Abs(float64(s.Target)/cohort.Full-p.ByRule()) <= near {
		return s, false
	}
	weight := s.aim(p)
	if weight == s.Rule.Weight {
		return s, false
	}
	s.Adjusted++
	s.Waits = "the rule is brought nearer to the weight"
	return s.rule(weight), true
}

func (s State) baking(p Population, at time.Time, passed time.Duration) State {
	if s.Paused {
		s.Waits = "paused"
		return s
	}
	if ok, why := s.settled(p); !ok {
		s.Waits = why
		return s
	}
	s.Baked = min(s.Baked+passed, s.Spec.Bake)
	switch {
	case s.Baked < s.Spec.Bake:
		s.Waits = ""
		return s
	case s.Verdict.Outcome != analysis.Pass:
		s.Waits = "no verdict yet"
		if s.Verdict.Why != "" {
			s.Waits = s.Verdict.Why
		}
		return s
	}
	s = s.say(at, "", "%s went well for %v", Percent(s.Target), s.Spec.Bake)
	if next := s.after(s.Target); next < len(s.Spec.Steps) {
		return s.toward(next, s.Spec.Steps[next], p, at)
	}
	if s.Spec.AutoPromote {
		return s.promote(p, at, "")
	}
	return s.enter(Ready, at)
}

// after is the index of the first step above the weight.
func (s State) after(weight uint32) int {
	for i, w := range s.Spec.Steps {
		if w > weight {
			return i
		}
	}
	return len(s.Spec.Steps)
}

func (s State) promote(p Population, at time.Time, actor string) State {
	s = s.say(at, actor, "promoted: version %s becomes the stable one", s.Version)
	s.Paused = false
	// The new version is everybody's: the tenant lists were for the trial.
	s.Spec.Tenants, s.Spec.Denied = nil, nil
	s = s.toward(s.Step, cohort.Full, p, at)
	return s.enter(Promoting, at)
}

func (s State) promoting(p Population, at time.Time) State {
	if ok, why := s.settled(p); !ok {
		s.Waits = why
		return s
	}
	return s.say(at, "", "everybody is on canary; the stable gateways are to be replaced").enter(Replacing, at)
}

// replacing waits until all stable gateways that serve have the new version.
func (s State) replacing(o Observation) State {
	fresh := 0
	for _, n := range o.Nodes {
		if n.Track != cohort.Canary && n.Serving && n.Version == s.Version {
			fresh++
		}
	}
	old := s.Old(o.Nodes)
	switch {
	case len(old) > 0:
		s.Waits = fmt.Sprintf("%d stable gateways have to be replaced by version %s: %s", len(old), s.Version, strings.Join(old, ", "))
		return s
	case fresh == 0:
		s.Waits = fmt.Sprintf("no stable gateway of version %s serves yet", s.Version)
		return s
	}
	s = s.say(o.At, "", "stable is version %s", s.Version)
	s.Target, s.Falling, s.Pace = 0, true, pace.Pace{}
	return s.rule(0).enter(Returning, o.At)
}

// Old lists the stable gateways that have another version than the canary and are
// not gone.
func (s State) Old(nodes []Node) (ids []string) {
	for _, n := range nodes {
		if n.Track != cohort.Canary && n.Version != s.Version && (n.Serving || n.Reached && n.Sessions > 0) {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

func (s State) returning(p Population, at time.Time) State {
	if ok, why := s.settled(p); !ok {
		s.Waits = why
		return s
	}
	return s.say(at, "", "everybody is back on stable, version %s", s.Version).enter(Promoted, at)
}

func (s State) abort(at time.Time, actor, reason string) State {
	s = s.say(at, actor, "aborted at %s: %s", Percent(s.Target), reason)
	s.Reason, s.Paused, s.Target, s.Falling, s.Pace = reason, false, 0, true, pace.Pace{}
	return s.rule(0).enter(Aborting, at)
}

func (s State) aborting(p Population, at time.Time) State {
	ok, why := s.settled(p)
	if n := p.movable(s.Spec.MoveV1); ok && n > 0 && at.Sub(s.Since) < abortPatience {
		ok, why = false, fmt.Sprintf("%d sessions have to move", n)
	}
	if !ok {
		s.Waits = why
		return s
	}
	return s.say(at, "", "everybody is back on stable").enter(Aborted, at)
}
