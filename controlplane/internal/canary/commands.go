package canary

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"github.com/mics-im/mics/controlplane/internal/canary/plan"
	"github.com/mics-im/mics/internal/fault"
)

// View is a canary and what is seen of the fleet.
type View struct {
	State    plan.State
	Observed plan.Observation
	Actuator string
	// ActuatorError says why new connections are not directed, at the leader.
	ActuatorError string
}

// Get returns the canary that runs, else the last one. Any control plane may be
// asked. NotFound: there has never been one.
func (r *Runner) Get(ctx context.Context) (View, error) {
	snap, err := r.cfg.Inventory.Next(ctx, 0)
	if err != nil {
		return View{}, fault.Wrap(fault.Unavailable, "no inventory yet", err)
	}
	s, leads := r.current()
	if !leads {
		if s, _, err = r.read(ctx); err != nil {
			return View{}, fault.Wrap(fault.Unavailable, "the canary's state could not be read", err)
		}
	}
	if s.ID == "" {
		return View{}, fault.New(fault.NotFound, "there has been no canary yet")
	}
	return r.view(s, observe(snap)), nil
}

func (r *Runner) view(s plan.State, o plan.Observation) View {
	name, err := r.actuator.status()
	return View{State: s, Observed: o, Actuator: name, ActuatorError: err}
}

// Start begins a canary. The leader only.
func (r *Runner) Start(ctx context.Context, spec plan.Spec, actor string) (View, error) {
	spec, err := spec.Prepare()
	if err != nil {
		return View{}, fault.New(fault.Invalid, err.Error())
	}
	return r.change(ctx, func(s plan.State, o plan.Observation) (plan.State, error) {
		if s.ID != "" && !s.Phase.Over() {
			return s, fmt.Errorf("canary %s runs already (%s at %s): one at a time", s.ID, s.Phase, plan.Percent(s.Target))
		}
		return plan.Begin("c-"+strings.ToLower(rand.Text()[:8]), spec, s.Rule.Generation, o, actor)
	})
}

// Change tells the canary that runs what to do. id is the one that is meant; empty:
// whichever runs. The leader only.
func (r *Runner) Change(ctx context.Context, id string, c plan.Command) (View, error) {
	return r.change(ctx, func(s plan.State, o plan.Observation) (plan.State, error) {
		switch {
		case s.ID == "":
			return s, fmt.Errorf("no canary runs")
		case id != "" && id != s.ID:
			return s, fmt.Errorf("canary %s is not the one that runs: that is %s", id, s.ID)
		}
		return plan.Apply(s, c, o)
	})
}

// change makes what f returns durable, and has it done soon.
func (r *Runner) change(ctx context.Context, f func(plan.State, plan.Observation) (plan.State, error)) (View, error) {
	snap, err := r.cfg.Inventory.Next(ctx, 0)
	if err != nil {
		return View{}, fault.Wrap(fault.Unavailable, "no inventory yet", err)
	}
	o := observe(snap)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tenure == nil {
		return View{}, errNotLeading()
	}
	before := r.state
	next, err := f(before, o)
	if err != nil {
		return View{}, fault.New(fault.FailedPrecondition, err.Error())
	}
	if err := r.save(ctx, next, o.At); err != nil {
		return View{}, fault.Wrap(fault.Unavailable, "the canary could not be made durable, and nothing was done: "+err.Error(), err)
	}
	r.report(before, next)
	select {
	case r.poke <- struct{}{}:
	default: // a look is due already
	}
	return r.view(next, o), nil
}

// Busy says that a canary moves sessions now, at the leader; empty: none does.
func (r *Runner) Busy() string {
	s, _ := r.current()
	if s.ID == "" || s.Phase.Over() {
		return ""
	}
	return "canary " + s.ID + " runs"
}
