package drain

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/controlplane/internal/pace"
	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/telemetry"
)

const (
	interval = time.Second
	// prefix of the operations that are under way, and the log of those that have
	// ended, of which keep stay.
	prefix = "drain/"
	ended  = "drains"
	keep   = 1000
	// maxOperations bounds those under way.
	maxOperations = 128
	// signalsTimeout bounds the question to the routers, and maxRouters how many are
	// asked.
	signalsTimeout = 500 * time.Millisecond
	maxRouters     = 64
	// The bounds and the default of a timeout.
	minTimeout, maxTimeout, defaultTimeout = time.Second, 24 * time.Hour, 5 * time.Minute
)

// Inventory is where the gateways are known.
type Inventory interface {
	// Next waits for a snapshot newer than after and returns the newest.
	Next(ctx context.Context, after uint64) (*fleet.Snapshot, error)
}

// Config is what a Runner needs.
type Config struct {
	Rules     Rules
	Store     store.Store
	Inventory Inventory
	// HTTP reaches gateways and routers.
	HTTP      *http.Client
	Telemetry *telemetry.Telemetry
}

// Runner carries operations out while its process leads, and answers questions at
// all times. It is safe for concurrent use.
type Runner struct {
	cfg Config
	log *slog.Logger
	// poke asks for a tick at once.
	poke chan struct{}

	begun, done, cancelled, failed, lost, storeFailed *telemetry.Counter

	mu sync.Mutex
	// tenure is nil while this process does not lead, or has not read yet what
	// there is; guarded by mu.
	tenure  *store.Tenure
	ops     []Operation       // under way; guarded by mu
	saved   map[string]saved  // what of them is in the store; guarded by mu
	answers map[string]Answer // since the last tick; guarded by mu
	ticked  chan struct{}     // closed at the end of a tick; guarded by mu
}

type saved struct {
	version uint64
	text    string
}

// New returns a Runner.
func New(cfg Config) *Runner {
	t := cfg.Telemetry
	total := t.CounterVec("mics_controlplane_drains_total", "Drains that have ended.", "outcome")
	r := &Runner{
		cfg: cfg, log: t.Log, poke: make(chan struct{}, 1),
		begun: t.Counter("mics_controlplane_drains_begun_total", "Drains that were asked for."),
		done:  total.With(string(Done)), cancelled: total.With(string(Cancelled)), failed: total.With(string(Failed)),
		lost:        t.Counter("mics_controlplane_drain_deliveries_lost_total", "Deliveries lost by the sequence audit of drains."),
		storeFailed: t.Counter("mics_controlplane_drain_store_failed_total", "Ticks whose outcome the store did not take."),
		saved:       map[string]saved{}, answers: map[string]Answer{}, ticked: make(chan struct{}),
	}
	t.Gauge("mics_controlplane_drains", "Drains under way or waiting, where this process leads.", func() int64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return int64(len(r.ops))
	})
	return r
}

// Duty is what the leader does.
func (r *Runner) Duty(ctx context.Context, tenure *store.Tenure) {
	if !r.load(ctx, tenure) {
		return
	}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tenure, r.ops = nil, nil
		clear(r.saved)
		clear(r.answers)
	}()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var before *fleet.Snapshot
	var auth pace.Auth
	signals := fleet.Signals{Ask: fleet.AskOver(r.cfg.HTTP), Most: maxRouters, Timeout: signalsTimeout}
	for {
		snap, err := r.cfg.Inventory.Next(ctx, 0)
		if err != nil {
			return
		}
		var load pace.Load
		if r.paced() && before != nil && before.Seq != snap.Seq {
			load = pace.LoadOf(gateways(before), gateways(snap), r.staying())
			said, _ := signals.All(ctx, snap) // who does not tell is no evidence
			load.AuthP95 = auth.P95(said)
		}
		r.call(ctx, r.tick(ctx, load, snap))
		before = snap
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-r.poke:
		}
	}
}

// load reads the operations until it succeeds or ctx ends.
func (r *Runner) load(ctx context.Context, tenure *store.Tenure) bool {
	for {
		items, err := r.cfg.Store.List(ctx, prefix)
		if err == nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, it := range items {
				var op Operation
				if err := json.Unmarshal(it.Value, &op); err != nil {
					r.log.Error("drain_unreadable", "key", it.Key, "error", err.Error())
					continue
				}
				r.ops = append(r.ops, op)
				r.saved[op.ID] = saved{it.Version, string(it.Value)}
			}
			r.tenure = tenure
			if len(r.ops) > 0 {
				r.log.Info("drains_continued", "operations", len(r.ops))
			}
			return true
		}
		r.log.Warn("drains_not_read", "error", err.Error())
		select {
		case <-ctx.Done():
			return false
		case <-time.After(interval):
		}
	}
}

// tick decides and makes what was decided durable; only then may it be done.
func (r *Runner) tick(ctx context.Context, load pace.Load, snap *fleet.Snapshot) []Action {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() {
		close(r.ticked)
		r.ticked = make(chan struct{})
	}()
	if len(r.ops) == 0 {
		return nil
	}
	o := Observation{Now: time.Now(), Gateways: gateways(snap), At: snap.At, Complete: snap.Directory, Load: load, Answers: r.answers}
	ops, actions := r.cfg.Rules.Next(r.ops, o)
	if err := r.commit(ctx, ops); err != nil {
		r.storeFailed.Inc()
		r.log.Warn("drains_not_saved", "error", err.Error())
		return nil // the gateways go on as they were told last
	}
	r.answers = map[string]Answer{}
	return actions
}

// paced tells whether a control loop needs to know how the others do.
func (r *Runner) paced() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.ops, func(op Operation) bool { return op.Rate == 0 && op.State == Draining && !op.Alone })
}

// staying tells which gateways are not drained.
func (r *Runner) staying() func(fleet.Node) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := map[string]bool{}
	for _, op := range r.ops {
		names[op.Node] = true
	}
	return func(g fleet.Node) bool { return !names[g.ID] }
}

func gateways(s *fleet.Snapshot) (out []fleet.Node) {
	for _, n := range s.Nodes {
		if n.Kind == fleet.Gateway {
			out = append(out, n)
		}
	}
	return out
}

// commit writes what differs from what is in the store and makes it current. Those
// that have ended move from the items to the log in one step. Callers hold mu.
func (r *Runner) commit(ctx context.Context, ops []Operation) error {
	for _, op := range ops {
		text, err := json.Marshal(op)
		if err != nil {
			return fmt.Errorf("write operation %s: %w", op.ID, err)
		}
		was := r.saved[op.ID]
		if was.text == string(text) {
			continue
		}
		var b store.Batch
		switch c := (store.Change{Key: prefix + op.ID, Version: was.version, Value: text}); {
		case !op.State.Final():
			b.Changes = append(b.Changes, c)
		case was.version == 0:
		default:
			b.Changes = append(b.Changes, store.Change{Key: c.Key, Version: c.Version, Delete: true})
		}
		if op.State.Final() {
			b.Entries = append(b.Entries, store.Entry{Log: ended, Value: text, Keep: keep})
		}
		versions, err := r.cfg.Store.Commit(ctx, r.tenure.Term(), b)
		if errors.Is(err, store.ErrConflict) {
			// Redis was emptied, or an answer was lost on its way: nobody else
			// writes these.
			return errors.Join(err, r.reread(ctx, op.ID))
		}
		if err != nil {
			return err
		}
		if !op.State.Final() {
			r.saved[op.ID] = saved{versions[0], string(text)}
			r.replace(op)
			continue
		}
		delete(r.saved, op.ID)
		r.remove(op.ID)
		r.report(op)
	}
	return nil
}

// reread finds out at which version an operation is.
func (r *Runner) reread(ctx context.Context, id string) error {
	it, err := r.cfg.Store.Get(ctx, prefix+id)
	if err == nil {
		r.saved[id] = saved{version: it.Version}
	}
	return err
}

func (r *Runner) replace(op Operation) {
	if i := slices.IndexFunc(r.ops, func(o Operation) bool { return o.ID == op.ID }); i >= 0 {
		r.ops[i] = op
		return
	}
	r.ops = append(r.ops, op)
}

func (r *Runner) remove(id string) {
	r.ops = slices.DeleteFunc(r.ops, func(o Operation) bool { return o.ID == id })
}

// report says that an operation has ended.
func (r *Runner) report(op Operation) {
	switch op.State {
	case Done:
		r.done.Inc()
	case Cancelled:
		r.cancelled.Inc()
	default:
		r.failed.Inc()
	}
	x := op.Receipt
	r.lost.Add(int64(x.Lost))
	r.log.Info("drain_receipt", "operation", op.ID, "node", op.Node, "outcome", op.State, "reason", op.Reason,
		"sessions", x.Sessions, "moved", x.Moved, "reconnected", x.Reconnected, "closed", x.Closed, "echoed", x.Echoed,
		"gave_up", x.GaveUp, "suspended", x.Suspended, "unaccounted", x.Unaccounted, "handed_over", x.HandedOver,
		"lost", x.Lost, "repeated", x.Repeated, "not_taken_back", x.NotTakenBack, "gap_p50_ms", x.GapP50, "gap_p99_ms", x.GapP99,
		"gap_max_ms", x.GapMax, "duration_ms", x.Duration.Milliseconds(), "incomplete", x.Incomplete)
}

// change runs f on the operations and makes what it returns durable. It refuses
// where this process does not lead.
func (r *Runner) change(ctx context.Context, f func(ops []Operation, gateways []fleet.Node) (Operation, error)) (Operation, error) {
	snap, err := r.cfg.Inventory.Next(ctx, 0)
	if err != nil {
		return Operation{}, fault.Wrap(fault.Unavailable, "no inventory yet", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tenure == nil {
		return Operation{}, fault.New(fault.Unavailable, "this control plane does not lead: try again")
	}
	op, err := f(slices.Clone(r.ops), gateways(snap))
	if err != nil {
		return op, err
	}
	if err := r.commit(ctx, []Operation{op}); err != nil {
		return op, fault.Wrap(fault.Unavailable, "the operation could not be made durable, and nothing was done: "+err.Error(), err)
	}
	select {
	case r.poke <- struct{}{}:
	default: // a tick is due already
	}
	return op, nil
}

// newID names an operation.
func newID() string { return "d-" + strings.ToLower(rand.Text()[:8]) }
