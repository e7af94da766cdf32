// Package canary carries canaries out: it looks at the fleet, lets package plan
// decide, makes the decision durable, and tells gateways and actuators. The leader
// does that; any control plane answers questions.
package canary

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mics-im/mics/controlplane/internal/canary/actuate"
	"github.com/mics-im/mics/controlplane/internal/canary/plan"
	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

const (
	// key of the canary that runs, or ran last, and the log of those that are over,
	// of which keep stay.
	key  = "canary"
	log  = "canaries"
	keep = 100
	// saveEvery is how often what only counts up (a bake's time) is saved.
	saveEvery = 5 * time.Second
	retry     = time.Second
)

// Inventory is where the gateways are known.
type Inventory interface {
	// Next waits for a snapshot newer than after and returns the newest.
	Next(ctx context.Context, after uint64) (*fleet.Snapshot, error)
}

// Drainer empties old gateways at a promotion.
type Drainer interface {
	// Drain begins to drain a gateway, if that is not under way already.
	Drain(ctx context.Context, node, reason string) error
}

// Config is what a Runner needs.
type Config struct {
	Store     store.Store
	Inventory Inventory
	// Actuator directs new connections.
	Actuator actuate.Actuator
	// Drainer may be nil: operators drain. It is not used where Actuator is an
	// actuate.Promoter, whose rollout has each old gateway drain when it ends it.
	Drainer Drainer
	// HTTP reaches gateways and routers.
	HTTP      *http.Client
	Telemetry *telemetry.Telemetry
}

// Runner is safe for concurrent use.
type Runner struct {
	cfg      Config
	log      *slog.Logger
	fleet    *caller
	actuator *driver

	poke chan struct{} // capacity 1: look at once

	looks, aborts, storeFailed *telemetry.Counter

	mu sync.Mutex
	// tenure is nil while this process does not lead, or has not read yet what
	// there is; guarded by mu, like what follows.
	tenure  *store.Tenure
	state   plan.State // the zero State: there has never been one
	version uint64     // of the item
	saved   time.Time
}

// New returns a runner; Duty makes it act.
func New(cfg Config) *Runner {
	t := cfg.Telemetry
	if _, replaces := cfg.Actuator.(actuate.Promoter); replaces {
		cfg.Drainer = nil // else all would be drained before the first is replaced
	}
	r := &Runner{
		cfg: cfg, log: t.Log, poke: make(chan struct{}, 1),
		fleet:       newCaller(cfg.HTTP, t),
		actuator:    newDriver(cfg.Actuator, t),
		looks:       t.Counter("mics_canary_looks_total", "Comparisons of canary and stable."),
		aborts:      t.Counter("mics_canary_degraded_total", "Canaries aborted because they did worse than stable."),
		storeFailed: t.Counter("mics_canary_store_failed_total", "Looks after which the canary's state could not be saved."),
	}
	t.Gauge("mics_canary_weight", "Weight of the canary, in hundredths of a per cent, at the leader.", func() int64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.tenure == nil || r.state.Phase.Over() {
			return 0
		}
		return int64(r.state.Target)
	})
	return r
}

// Duty is what the leader does: a look at every snapshot of the fleet.
func (r *Runner) Duty(ctx context.Context, tenure *store.Tenure) {
	if !r.load(ctx, tenure) {
		return
	}
	defer r.actuator.stop()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tenure = nil
	}()
	var seen uint64
	look, load := &sampler{}, &follower{}
	for {
		snap, err := r.next(ctx, seen)
		if err != nil {
			return
		}
		seen = snap.Seq
		r.tick(ctx, snap, look, load)
	}
}

// next waits for a snapshot, or for a change by an operator.
func (r *Runner) next(ctx context.Context, after uint64) (*fleet.Snapshot, error) {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() { // ends with this call
		defer close(done)
		select {
		case <-r.poke:
			cancel()
		case <-waiting.Done():
		}
	}()
	snap, err := r.cfg.Inventory.Next(waiting, after)
	cancel()
	<-done
	if err != nil && ctx.Err() == nil { // poked
		return r.cfg.Inventory.Next(ctx, 0)
	}
	return snap, err
}

// load reads the state until it succeeds or ctx ends.
func (r *Runner) load(ctx context.Context, tenure *store.Tenure) bool {
	for {
		s, version, err := r.read(ctx)
		if err == nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.state, r.version, r.tenure, r.saved = s, version, tenure, time.Now()
			if s.ID != "" && !s.Phase.Over() {
				r.log.Info("canary_continued", "canary", s.ID, "phase", s.Phase, "weight", s.Target)
			}
			return true
		}
		r.log.Warn("canary_not_read", "error", err.Error())
		select {
		case <-ctx.Done():
			return false
		case <-time.After(retry):
		}
	}
}

func (r *Runner) read(ctx context.Context) (plan.State, uint64, error) {
	item, err := r.cfg.Store.Get(ctx, key)
	if err != nil || item.Version == 0 {
		return plan.State{}, 0, err
	}
	var s plan.State
	if err := json.Unmarshal(item.Value, &s); err != nil {
		return plan.State{}, 0, fmt.Errorf("read the canary: %w", err)
	}
	return s, item.Version, nil
}

// tick takes one look and has done what is to be.
func (r *Runner) tick(ctx context.Context, snap *fleet.Snapshot, look *sampler, load *follower) {
	state, _ := r.current()
	if state.ID == "" {
		return
	}
	o := observe(snap)
	due, follow := !state.Phase.Over() && look.due(state, o.At), state.Taking() != "" && state.Spec.Rate == 0
	var said []*routerv1.SignalsResponse
	if due || follow {
		said = r.fleet.ask(ctx, snap)
	}
	if due {
		o.Sample = look.take(state.ID, snap, said)
	}
	if follow {
		o.Load = load.take(state.Taking(), snap, said)
	}
	s, ok := r.decide(ctx, o)
	if !ok {
		return // gateways go on as they were told last
	}
	orders := plan.Give(s, o.Nodes)
	r.fleet.steer(ctx, snap, orders, s.Phase.Over())
	r.actuator.want(orders.Weight, orders.Version)
	if r.cfg.Drainer != nil {
		for _, node := range orders.Drain {
			if err := r.cfg.Drainer.Drain(ctx, node, "canary "+s.ID+" was promoted"); err != nil {
				r.log.Warn("canary_drain_refused", "canary", s.ID, "node", node, "error", err.Error())
			}
		}
	}
}

// decide goes on to the next state; false: it could not be made durable.
func (r *Runner) decide(ctx context.Context, o plan.Observation) (plan.State, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tenure == nil {
		return plan.State{}, false
	}
	before := r.state
	next := plan.Next(before, o)
	if o.Sample != nil {
		r.looks.Inc()
	}
	if err := r.save(ctx, next, o.At); err != nil {
		r.storeFailed.Inc()
		r.log.Warn("canary_not_saved", "canary", next.ID, "error", err.Error())
		return plan.State{}, false
	}
	r.report(before, next)
	return next, true
}

// save makes a state current and, unless it only counts up, durable. mu is held.
func (r *Runner) save(ctx context.Context, next plan.State, at time.Time) error {
	s := r.state
	same := s.Phase == next.Phase && s.Rule == next.Rule && s.Target == next.Target && s.Step == next.Step && s.Paused == next.Paused &&
		s.History.Looks == next.History.Looks && s.ID == next.ID
	if same && (next.Phase.Over() || at.Sub(r.saved) < saveEvery) {
		r.state = next
		return nil
	}
	text, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("write the canary: %w", err)
	}
	b := store.Batch{Changes: []store.Change{{Key: key, Version: r.version, Value: text}}}
	if next.Phase.Over() && !s.Phase.Over() {
		b.Entries = []store.Entry{{Log: log, Value: text, Keep: keep}}
	}
	versions, err := r.cfg.Store.Commit(ctx, r.tenure.Term(), b)
	if errors.Is(err, store.ErrConflict) {
		// The store was emptied, or an answer was lost: nobody else writes this.
		item, gerr := r.cfg.Store.Get(ctx, key)
		if gerr == nil {
			r.version = item.Version
		}
		return errors.Join(err, gerr)
	}
	if err != nil {
		return err
	}
	r.state, r.version, r.saved = next, versions[0], at
	return nil
}

// report writes a line per change that an operator may look for.
func (r *Runner) report(before, next plan.State) {
	fresh := next.Events
	if n := len(before.Events); n > 0 && before.ID == next.ID {
		fresh = fresh[slices.Index(fresh, before.Events[n-1])+1:]
	}
	for _, e := range fresh {
		r.log.Info("canary", "canary", next.ID, "event", e.Text, "actor", e.Actor, "phase", next.Phase, "weight", next.Target)
	}
	if next.Phase == plan.Aborting && before.Phase != plan.Aborting && strings.HasPrefix(next.Reason, next.Verdict.Why) && next.Verdict.Why != "" {
		r.aborts.Inc()
		r.log.Warn("canary_degraded", "canary", next.ID, "reason", next.Reason)
	}
}

func (r *Runner) current() (plan.State, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state, r.tenure != nil
}

// observe reads a snapshot.
func observe(s *fleet.Snapshot) plan.Observation {
	o := plan.Observation{At: s.At}
	for _, n := range s.Nodes {
		if n.Kind != fleet.Gateway {
			continue
		}
		st := n.Status
		o.Nodes = append(o.Nodes, plan.Node{
			ID: n.ID, Incarnation: n.Incarnation, Track: n.Track, Version: n.Version, ClientURL: n.ClientURL,
			Reached: !n.Unreachable && st != nil, Serving: !n.Unreachable && st != nil && n.Phase == gatewayv1.Phase_PHASE_SERVING,
			Sessions: n.Sessions, SessionsV2: n.SessionsV2, OfCanary: st.GetSessionsOfCanary(), Misplaced: st.GetSessionsMisplaced(),
			MisplacedV1: st.GetSessionsMisplacedV1(), Generation: st.GetRuleGeneration(), Places: st.GetSessionsByPlace(),
		})
	}
	return o
}

// errNotLeading is for the moment in which the lead changes.
func errNotLeading() error {
	return fault.New(fault.Unavailable, "this control plane does not lead: try again")
}
