// Package fleet keeps the inventory: which gateways and routers there are, and
// how they are doing.
//
// Once per interval it asks any router for the directory, then every gateway
// for its status, and publishes a whole new Snapshot. Who watches waits for a
// snapshot newer than the one they have: there is no queue, and a slow watcher
// goes straight to the newest.
package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// pollers bounds how many gateways are asked at the same time.
const pollers = 64

// Source is where a round gets its facts. Implementations bound every call by
// themselves.
type Source interface {
	// Directory returns what any one router says.
	Directory(ctx context.Context) (*routerv1.DirectoryResponse, error)
	// Status asks the gateway at the base URL.
	Status(ctx context.Context, endpoint string) (*gatewayv1.StatusResponse, error)
}

// Config is what a Fleet needs.
type Config struct {
	Source Source
	// Interval is from the start of one round to the start of the next. A round
	// that takes longer is followed at once.
	Interval time.Duration
	// ForgetAfter is how long a node stays that neither the directory names nor
	// answers.
	ForgetAfter time.Duration
	Telemetry   *telemetry.Telemetry
}

// Snapshot is the inventory after one round. It is immutable and shared.
type Snapshot struct {
	// Seq is 1 for the first round and rises by one with each.
	Seq uint64
	At  time.Time
	// Nodes, gateways first, each kind sorted by ID.
	Nodes []Node
	// Warnings say why the inventory may be incomplete.
	Warnings []string
	// Directory tells whether a router answered in this round.
	Directory bool
}

// Fleet is safe for concurrent use.
type Fleet struct {
	cfg Config
	log *slog.Logger

	directoryFailed, pollsOK, pollsFailed *telemetry.Counter
	duration                              telemetry.Recorder

	mu      sync.Mutex
	current *Snapshot     // nil before the first round; guarded by mu
	renewed chan struct{} // closed when current is replaced; guarded by mu
}

// New returns a Fleet that knows nothing until Run.
func New(cfg Config) *Fleet {
	t := cfg.Telemetry
	polls := t.CounterVec("mics_controlplane_polls_total", "Gateways asked for their status.", "result")
	f := &Fleet{
		cfg:             cfg,
		log:             t.Log,
		directoryFailed: t.Counter("mics_controlplane_directory_failed_total", "Rounds in which no router answered."),
		pollsOK:         polls.With("ok"),
		pollsFailed:     polls.With("failed"),
		duration: t.Histogram("mics_controlplane_refresh_duration_ms", "How long a round took.", "stage",
			1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)("round"),
		renewed: make(chan struct{}),
	}
	t.Gauge("mics_controlplane_gateways", "Gateways in the inventory.", func() int64 {
		return f.count(func(n *Node) bool { return n.Kind == Gateway })
	})
	t.Gauge("mics_controlplane_routers", "Routers in the inventory.", func() int64 {
		return f.count(func(n *Node) bool { return n.Kind == Router })
	})
	t.Gauge("mics_controlplane_nodes_unreachable", "Nodes in the inventory that do not answer.", func() int64 {
		return f.count(func(n *Node) bool { return n.Unreachable })
	})
	return f
}

func (f *Fleet) count(match func(*Node) bool) (n int64) {
	s, _ := f.state()
	if s == nil {
		return 0
	}
	for i := range s.Nodes {
		if match(&s.Nodes[i]) {
			n++
		}
	}
	return n
}

func (f *Fleet) state() (*Snapshot, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current, f.renewed
}

// NotReady returns why the inventory is of no use; nil when it is of use.
func (f *Fleet) NotReady() []string {
	s, _ := f.state()
	switch {
	case s == nil:
		return []string{"inventory not read yet"}
	case !s.Directory:
		return []string{"no router reachable"}
	}
	return nil
}

// Next waits for a snapshot newer than the one numbered after (0: any) and
// returns the newest. It fails only with ctx.
func (f *Fleet) Next(ctx context.Context, after uint64) (*Snapshot, error) {
	for {
		s, renewed := f.state()
		if s != nil && s.Seq > after {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-renewed:
		}
	}
}

// Run makes round after round until ctx ends. Call it once.
func (f *Fleet) Run(ctx context.Context) {
	ticker := time.NewTicker(f.cfg.Interval)
	defer ticker.Stop()
	var entries []entry
	for seq := uint64(1); ; seq++ {
		began := time.Now()
		next, warnings, directory := f.round(ctx, entries)
		if ctx.Err() != nil {
			return // a round cut short tells nothing
		}
		f.duration.Record(float64(time.Since(began)) / float64(time.Millisecond))
		f.logChanges(entries, next)
		entries = next
		f.publish(&Snapshot{Seq: seq, At: time.Now(), Nodes: nodes(entries), Warnings: warnings, Directory: directory})
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (f *Fleet) publish(s *Snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current == nil || f.current.Directory != s.Directory {
		if s.Directory {
			f.log.Info("router_directory_found")
		} else {
			f.log.Warn("router_directory_lost", "warnings", s.Warnings)
		}
	}
	f.current = s
	close(f.renewed)
	f.renewed = make(chan struct{})
}

// round asks everybody and applies the rules.
func (f *Fleet) round(ctx context.Context, entries []entry) (next []entry, warnings []string, directory bool) {
	dir, err := f.cfg.Source.Directory(ctx)
	if err != nil {
		f.directoryFailed.Inc()
		warnings = append(warnings, fmt.Sprintf("no router answered: gateways and routers may be missing or outdated: %s", Reason(err)))
		next = append(next, entries...)
	} else {
		next = merge(entries, dir, time.Now())
	}
	f.pollAll(ctx, next)
	next = expire(next, time.Now(), f.cfg.ForgetAfter)
	for _, e := range next {
		if e.Kind == Gateway && !e.missingSince.IsZero() && !e.Unreachable {
			warnings = append(warnings, fmt.Sprintf("gateway %s answers, but no router knows it", e.ID))
		}
	}
	return next, warnings, err == nil
}

// pollAll asks every gateway and updates its entry in place.
func (f *Fleet) pollAll(ctx context.Context, entries []entry) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, pollers)
	for i := range entries {
		if entries[i].Kind != Gateway {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			p := poll{}
			status, err := f.cfg.Source.Status(ctx, entries[i].Endpoint)
			if p.at = time.Now(); err != nil {
				f.pollsFailed.Inc()
				p.failure = Reason(err)
			} else {
				f.pollsOK.Inc()
				p.status = status
			}
			entries[i] = observe(entries[i], p) // each goroutine has its own element
		})
	}
	wg.Wait()
}

// logChanges writes a line per node that came, went, stopped or started to
// answer: what an operator greps for afterwards.
func (f *Fleet) logChanges(before, after []entry) {
	old := make(map[key]*entry, len(before))
	for i := range before {
		old[before[i].key()] = &before[i]
	}
	for i := range after {
		e := &after[i]
		was := old[e.key()]
		delete(old, e.key())
		switch {
		case was == nil || was.Incarnation != e.Incarnation:
			f.log.Info("node_found", "node", e.ID, "endpoint", e.Endpoint, "version", e.Version, "unreachable", e.Unreachable)
		case e.Unreachable && !was.Unreachable:
			f.log.Warn("node_unreachable", "node", e.ID, "reason", e.Reason)
		case !e.Unreachable && was.Unreachable:
			f.log.Info("node_reachable", "node", e.ID)
		}
	}
	for _, e := range old {
		f.log.Info("node_forgotten", "node", e.ID)
	}
}

func nodes(entries []entry) []Node {
	out := make([]Node, len(entries))
	for i, e := range entries {
		out[i] = e.Node
	}
	return out
}
