package plan

import (
	"errors"
	"fmt"

	"github.com/mics-im/mics/internal/cohort"
)

// Change is what an operator tells a canary.
type Change uint8

// The changes.
const (
	Pause Change = iota + 1
	Resume
	Promote
	Abort
	SetWeight
)

// Command is a change by somebody.
type Command struct {
	Change Change
	Weight uint32 // of SetWeight
	Reason string // of Abort required
	Actor  string
}

// Apply does as told; an error says why that cannot be in this phase.
func Apply(s State, c Command, o Observation) (State, error) {
	if s.Phase.Over() {
		return s, fmt.Errorf("canary %s is over: it was %s", s.ID, s.Phase)
	}
	p := Count(o.Nodes, s.Rule.Generation)
	trial := func(what string) error {
		if s.Phase.onTrial() {
			return nil
		}
		return fmt.Errorf("canary %s is %s: it cannot be %s any more", s.ID, s.Phase, what)
	}
	switch c.Change {
	case Pause:
		if err := trial("paused"); err != nil {
			return s, err
		}
		if !s.Paused {
			s.Paused = true
			s = s.say(o.At, c.Actor, "paused%s", because(c.Reason))
		}
		return s, nil
	case Resume:
		if s.Paused {
			s.Paused = false
			s = s.say(o.At, c.Actor, "resumed%s", because(c.Reason))
		}
		return s, nil
	case SetWeight:
		if err := trial("weighted"); err != nil {
			return s, err
		}
		if c.Weight > cohort.Full {
			return s, errors.New("weight: must be from 0 to 100 per cent")
		}
		if c.Weight == s.Target {
			return s, nil
		}
		s = s.say(o.At, c.Actor, "weight set to %s%s", Percent(c.Weight), because(c.Reason))
		return s.toward(s.after(c.Weight)-1, c.Weight, p, o.At), nil
	case Promote:
		if err := trial("promoted"); err != nil {
			return s, err
		}
		return s.promote(p, o.At, c.Actor), nil
	case Abort:
		switch {
		case c.Reason == "":
			return s, errors.New("reason: required")
		case s.Phase == Aborting:
			return s, nil
		case s.Phase == Returning:
			return s, fmt.Errorf("stable is version %s already: go back with a rollout", s.Version)
		}
		return s.abort(o.At, c.Actor, c.Reason), nil
	}
	return s, errors.New("change: unknown")
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}
