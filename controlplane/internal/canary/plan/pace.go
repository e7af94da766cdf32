package plan

import (
	"math"
	"time"

	"github.com/mics-im/mics/controlplane/internal/pace"
	"github.com/mics-im/mics/internal/cohort"
)

// In sessions per second and gateway that takes them: what moving begins with, and is
// while nobody tells how it goes; what it is at most and at least; what it rises by in
// a second; and below which gaps alone do not slow it, because a population is to
// reach its weight in minutes.
const (
	perNode     = 100
	mostPerNode = 500
	leastOfNode = 5
	stepPerNode = 20
	gapsPerNode = 25
)

// Taking is the track to which sessions move now; empty: to none.
func (s State) Taking() string {
	switch {
	case s.Paused || s.Aiming:
		return ""
	case s.Phase == Moving && s.Falling, s.Phase == Returning, s.Phase == Aborting:
		return cohort.Stable
	case s.Phase == Moving, s.Phase == Promoting:
		return cohort.Canary
	}
	return ""
}

// hurry adjusts the pace to what the gateways say that take sessions. passed is since
// the last look.
func (s State) hurry(o Observation, passed time.Duration) State {
	to := s.Taking()
	takers, left := 0, uint64(0)
	for _, n := range o.Nodes {
		if trackOf(n) != to {
			left += moves(s, n)
		} else if n.Serving {
			takers++
		}
	}
	if to == "" || takers == 0 || left == 0 || passed == 0 || s.Spec.Rate > 0 {
		return s
	}
	n := float64(takers)
	g := pace.Goal{Start: perNode * n, Most: mostPerNode * n, Floor: leastOfNode * n, Step: stepPerNode * n * math.Min(passed.Seconds(), 1)}
	g.Needed = gapsPerNode * n
	if s.Phase == Aborting { // a bad version is worse than a gap
		g.Needed = g.Start
	}
	if s.Pace.Rate == 0 {
		s.Pace = pace.Begin(g, o.Load)
		return s
	}
	s.Pace = s.Pace.Next(g, o.Load, o.At)
	return s
}

// rate is how many sessions per second are to move to some gateways.
func (s State) rate(takers int) float64 {
	switch {
	case s.Spec.Rate > 0:
		return s.Spec.Rate
	case s.Pace.Rate > 0:
		return s.Pace.Rate
	}
	return float64(perNode * takers)
}
