package rebalance

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

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
)

const (
	key         = "rebalance"
	interval    = time.Second
	callTimeout = 800 * time.Millisecond
	defaultRate = 100 // sessions per second and gateway
	maxRate     = 100_000
	// longest bounds an operation: what has not moved by then stays.
	longest = time.Hour
	// rest is from the end of one to an automatic one.
	rest = 5 * time.Minute
)

// Inventory is where the gateways are known.
type Inventory interface {
	Next(ctx context.Context, after uint64) (*fleet.Snapshot, error)
}

// Config is what a Runner needs.
type Config struct {
	Store     store.Store
	Inventory Inventory
	// Automatic begins one by itself beyond 1.1 times the mean and 1,000 sessions.
	Automatic bool
	// Busy tells why an automatic one has to wait; empty: it has not.
	Busy      func() string
	HTTP      *http.Client
	Telemetry *telemetry.Telemetry
}

// Operation is one evening out.
type Operation struct {
	ID      string    `json:"id"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	Rate    float64   `json:"rate"`
	Gives   []Give    `json:"gives"`
	By      string    `json:"by,omitempty"`
}

// Give is what one gateway gives away.
type Give struct {
	Node        string `json:"node"`
	Incarnation uint64 `json:"incarnation"`
	Track       string `json:"track"`
	Sessions    uint64 `json:"sessions"`
	Moved       uint64 `json:"moved"`
	Stayed      uint64 `json:"stayed"`
	Done        bool   `json:"done,omitempty"`
}

// Runner is safe for concurrent use.
type Runner struct {
	cfg  Config
	log  *slog.Logger
	shed func(context.Context, fleet.Node, *gatewayv1.ShedRequest) (*gatewayv1.ShedResponse, error)

	begun, moved *telemetry.Counter

	mu      sync.Mutex
	tenure  *store.Tenure // nil: this process does not lead; guarded by mu, like what follows
	op      Operation     // the last one; without an ID: none
	version uint64        // of the item
}

// New returns a runner; Duty makes it act.
func New(cfg Config) *Runner {
	t := cfg.Telemetry
	return &Runner{
		cfg: cfg, log: t.Log,
		begun: t.Counter("mics_rebalances_total", "Times that sessions were evened out."),
		moved: t.Counter("mics_rebalance_moved_total", "Sessions that moved to even them out."),
		shed: func(ctx context.Context, n fleet.Node, req *gatewayv1.ShedRequest) (*gatewayv1.ShedResponse, error) {
			res, err := gatewayv1connect.NewGatewayServiceClient(cfg.HTTP, n.Endpoint, rpc.ClientOptions()...).Shed(ctx, connect.NewRequest(req))
			if err != nil {
				return nil, err
			}
			return res.Msg, nil
		},
	}
}

// Duty is what the leader does.
func (r *Runner) Duty(ctx context.Context, tenure *store.Tenure) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tenure = nil
	}()
	for loaded := false; ; {
		if !loaded {
			loaded = r.load(ctx, tenure)
		}
		if loaded {
			snap, err := r.cfg.Inventory.Next(ctx, 0)
			if err != nil {
				return
			}
			r.tick(ctx, snap)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (r *Runner) load(ctx context.Context, tenure *store.Tenure) bool {
	op, version, err := r.read(ctx)
	if err != nil {
		r.log.Warn("rebalance_not_read", "error", err.Error())
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.op, r.version, r.tenure = op, version, tenure
	return true
}

func (r *Runner) read(ctx context.Context) (op Operation, version uint64, err error) {
	item, err := r.cfg.Store.Get(ctx, key)
	if err == nil && item.Version != 0 {
		err = json.Unmarshal(item.Value, &op)
	}
	return op, item.Version, err
}

// save makes an operation durable and current. mu is held.
func (r *Runner) save(ctx context.Context, op Operation) error {
	text, err := json.Marshal(op)
	if err != nil {
		return err
	}
	versions, err := r.cfg.Store.Commit(ctx, r.tenure.Term(), store.Batch{Changes: []store.Change{{Key: key, Version: r.version, Value: text}}})
	if errors.Is(err, store.ErrConflict) {
		item, gerr := r.cfg.Store.Get(ctx, key)
		if gerr == nil {
			r.version = item.Version
		}
		return errors.Join(err, gerr)
	}
	if err == nil {
		r.op, r.version = op, versions[0]
	}
	return err
}

func (op *Operation) running() bool { return op.ID != "" && op.Ended.IsZero() }

// serving are the gateways that take and give sessions.
func serving(s *fleet.Snapshot) (nodes []Node, by map[string]fleet.Node) {
	by = map[string]fleet.Node{}
	for _, n := range s.Nodes {
		if n.Kind != fleet.Gateway || n.Unreachable || n.Status == nil || n.Phase != gatewayv1.Phase_PHASE_SERVING {
			continue
		}
		nodes = append(nodes, Node{ID: n.ID, Incarnation: n.Incarnation, Track: n.Track, Sessions: n.Sessions, Movable: n.SessionsV2, ClientURL: n.ClientURL})
		by[n.ID] = n
	}
	return nodes, by
}

// tick goes on with the operation that runs, or begins one by itself.
func (r *Runner) tick(ctx context.Context, snap *fleet.Snapshot) {
	r.mu.Lock()
	op := r.op
	r.mu.Unlock()
	if !op.running() {
		if r.cfg.Automatic && time.Since(op.Ended) >= rest && r.cfg.Busy() == "" {
			r.mu.Lock()
			defer r.mu.Unlock()
			if shares, why := r.plan(snap, automatic); why == "" && r.tenure != nil {
				if err := r.begin(ctx, shares, defaultRate, "automatic"); err != nil {
					r.log.Warn("rebalance_not_saved", "error", err.Error())
				}
			}
		}
		return
	}
	next := r.advance(ctx, op, snap)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tenure == nil || r.op.ID != next.ID {
		return
	}
	if !r.op.Ended.IsZero() {
		// Cancelled meanwhile: a gateway may have heard of that before it was asked for
		// the first time, and have begun after it.
		r.cancel(ctx, snap, op)
		return
	}
	if err := r.save(ctx, next); err != nil {
		r.log.Warn("rebalance_not_saved", "error", err.Error())
		return
	}
	r.moved.Add(int64(total(next.Gives, func(g Give) uint64 { return g.Moved }) - total(op.Gives, func(g Give) uint64 { return g.Moved })))
	if !next.Ended.IsZero() {
		r.log.Info("rebalance_done", "operation", next.ID, "moved", total(next.Gives, func(g Give) uint64 { return g.Moved }),
			"stayed", total(next.Gives, func(g Give) uint64 { return g.Stayed }))
	}
}

func total(gives []Give, f func(Give) uint64) (n uint64) {
	for _, g := range gives {
		n += f(g)
	}
	return n
}

// advance repeats every gateway's request and takes its progress.
func (r *Runner) advance(ctx context.Context, op Operation, snap *fleet.Snapshot) Operation {
	nodes, by := serving(snap)
	gives := slices.Clone(op.Gives)
	late := time.Since(op.Started) > longest
	var wg sync.WaitGroup
	for i := range gives {
		g := &gives[i] // each goroutine has its own
		n, there := by[g.Node]
		if g.Done {
			continue
		}
		if !there || n.Incarnation != g.Incarnation {
			g.Done = true // it drains, or is gone with its sessions
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			res, err := r.shed(ctx, n, &gatewayv1.ShedRequest{
				OperationId: op.ID, GatewayIncarnation: g.Incarnation, Sessions: g.Sessions, SessionsPerSecond: op.Rate,
				Targets: targets(nodes, *g, op.Gives), Cancel: late,
			})
			switch {
			case err == nil:
				g.Moved, g.Stayed, g.Done = res.GetMoved(), res.GetStayed(), res.GetDone() || late
			case fault.KindOf(err) == fault.FailedPrecondition || connect.CodeOf(err) == connect.CodeUnimplemented:
				g.Done = true
			}
		})
	}
	wg.Wait()
	op.Gives = gives
	if !slices.ContainsFunc(gives, func(g Give) bool { return !g.Done }) {
		op.Ended = time.Now()
	}
	return op
}

// targets are the gateways of the same track that give nothing, the emptier the
// more.
func targets(nodes []Node, g Give, gives []Give) (out []*gatewayv1.Target) {
	var most uint64
	for _, n := range nodes {
		if n.Track == g.Track {
			most = max(most, n.Sessions)
		}
	}
	for _, n := range nodes {
		giving := slices.ContainsFunc(gives, func(o Give) bool { return o.Node == n.ID })
		if n.Track == g.Track && !giving && n.ClientURL != "" {
			out = append(out, &gatewayv1.Target{NodeId: n.ID, Url: n.ClientURL, Weight: uint32(min(most-n.Sessions, 1<<20)) + 1})
		}
	}
	return out
}

func (r *Runner) plan(snap *fleet.Snapshot, th Threshold) ([]Share, string) {
	nodes, _ := serving(snap)
	return Plan(nodes, th)
}

// begin makes a new operation. mu is held.
func (r *Runner) begin(ctx context.Context, shares []Share, rate float64, by string) error {
	op := Operation{ID: "b-" + strings.ToLower(rand.Text()[:8]), Started: time.Now(), Rate: rate, By: by}
	for _, s := range shares {
		if s.Gives > 0 {
			op.Gives = append(op.Gives, Give{Node: s.ID, Incarnation: s.Incarnation, Track: s.Track, Sessions: s.Gives})
		}
	}
	if err := r.save(ctx, op); err != nil {
		return err
	}
	r.begun.Inc()
	r.log.Info("rebalance_begin", "operation", op.ID, "sessions", total(op.Gives, func(g Give) uint64 { return g.Sessions }), "by", by)
	return nil
}

// Rebalance does as an operator asks. The leader only, but for a preview.
func (r *Runner) Rebalance(ctx context.Context, req *controlv1.RebalanceRequest, by string) (*controlv1.RebalanceResponse, error) {
	rate := req.GetSessionsPerSecond()
	if rate == 0 {
		rate = defaultRate
	}
	if !(rate > 0 && rate <= maxRate) {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("sessions_per_second: must be above 0 and at most %d", maxRate))
	}
	snap, err := r.cfg.Inventory.Next(ctx, 0)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, "no inventory yet", err)
	}
	shares, why := r.plan(snap, manual)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tenure == nil {
		return nil, fault.New(fault.Unavailable, "this control plane does not lead: try again")
	}
	unsaved := func(err error) error {
		return fault.Wrap(fault.Unavailable, "it could not be made durable, and nothing was done: "+err.Error(), err)
	}
	switch {
	case req.GetCancel():
		if r.op.running() {
			op := r.op
			op.Ended = time.Now()
			if err := r.save(ctx, op); err != nil {
				return nil, unsaved(err)
			}
			r.cancel(ctx, snap, op)
		}
		why = "stopped"
	case req.GetPreview(), r.op.running(), why != "":
	default:
		if err := r.begin(ctx, shares, rate, by); err != nil {
			return nil, unsaved(err)
		}
	}
	if r.op.running() {
		why = ""
	}
	return r.answer(shares, why), nil
}

// cancel tells the gateways to stop; one that does not hear it goes on to its end.
func (r *Runner) cancel(ctx context.Context, snap *fleet.Snapshot, op Operation) {
	_, by := serving(snap)
	var wg sync.WaitGroup
	for _, g := range op.Gives {
		n, there := by[g.Node]
		if g.Done || !there {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			if _, err := r.shed(ctx, n, &gatewayv1.ShedRequest{OperationId: op.ID, SessionsPerSecond: op.Rate, Cancel: true}); err != nil {
				r.log.Warn("rebalance_not_stopped", "node", g.Node, "error", err.Error())
			}
		})
	}
	wg.Wait()
}

// answer puts the plan and the operation together. mu is held.
func (r *Runner) answer(shares []Share, why string) *controlv1.RebalanceResponse {
	res := &controlv1.RebalanceResponse{Running: r.op.running(), Reason: why}
	if res.Running {
		res.Id = r.op.ID
	}
	for _, s := range shares {
		n := &controlv1.RebalanceNode{NodeId: s.ID, Track: s.Track, Sessions: s.Sessions, Gives: s.Gives, Gets: s.Gets}
		for _, g := range r.op.Gives {
			if res.Running && g.Node == s.ID {
				n.Gives, n.Gets, n.Moved, n.Stayed = g.Sessions, 0, g.Moved, g.Stayed
			}
		}
		res.Nodes = append(res.Nodes, n)
	}
	return res
}
