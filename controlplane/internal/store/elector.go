package store

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
)

// DefaultLease is how long a leader that says nothing stays one.
const DefaultLease = 5 * time.Second

// ElectorConfig is what an Elector needs.
type ElectorConfig struct {
	Store Store
	// Name and Address are what others see, see Candidate.
	Name, Address string
	// Lease is how long the lead is taken for; it is prolonged three times in it.
	// Zero means DefaultLease.
	Lease     time.Duration
	Telemetry *telemetry.Telemetry
}

// Elector makes one control plane lead. It is safe for concurrent use.
type Elector struct {
	cfg  ElectorConfig
	me   Candidate
	log  *slog.Logger
	wins *telemetry.Counter

	mu      sync.Mutex
	leader  Leader        // as last heard; zero: unknown; guarded by mu
	until   time.Time     // when leader is old news; guarded by mu
	changed chan struct{} // closed when leader changes; guarded by mu
}

// NewElector returns an Elector that leads nothing before Run.
func NewElector(cfg ElectorConfig) *Elector {
	if cfg.Lease <= 0 {
		cfg.Lease = DefaultLease
	}
	e := &Elector{
		cfg: cfg, log: cfg.Telemetry.Log, changed: make(chan struct{}),
		me:   Candidate{Instance: cfg.Name + "/" + rand.Text()[:8], Name: cfg.Name, Address: cfg.Address},
		wins: cfg.Telemetry.Counter("mics_controlplane_leader_changes_total", "How often this process began to lead."),
	}
	cfg.Telemetry.Gauge("mics_controlplane_leader", "1 while this process leads.", func() int64 {
		if _, mine := e.Leader(); mine {
			return 1
		}
		return 0
	})
	return e
}

// Tenure is one uninterrupted time of leading.
type Tenure struct{ term atomic.Uint64 }

// Term is what Commit wants. It rises when the store was emptied under the leader,
// which does not end its tenure: nobody else has led in between.
func (t *Tenure) Term() uint64 { return t.term.Load() }

// Leader returns who leads, as this process knows it, and whether it does itself.
// The zero Leader: nobody is known to.
func (e *Elector) Leader() (l Leader, mine bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.locked()
}

func (e *Elector) locked() (Leader, bool) {
	if !time.Now().Before(e.until) {
		return Leader{}, false
	}
	return e.leader, e.leader.Instance == e.me.Instance
}

// Await waits until somebody is known to lead. It fails only with ctx.
func (e *Elector) Await(ctx context.Context) (l Leader, mine bool, err error) {
	for {
		e.mu.Lock()
		l, mine = e.locked()
		changed := e.changed
		e.mu.Unlock()
		if l.Term != 0 {
			return l, mine, nil
		}
		select {
		case <-ctx.Done():
			return Leader{}, false, ctx.Err()
		case <-changed:
		}
	}
}

// Run campaigns until ctx ends, then resigns. Whenever this process leads, each of
// the duties runs in a goroutine of its own; its ctx ends before the lease does
// when that cannot be prolonged, and Run waits for all of them before it campaigns
// again. Call it once.
func (e *Elector) Run(ctx context.Context, duties ...func(ctx context.Context, t *Tenure)) {
	ticker := time.NewTicker(e.cfg.Lease / 3)
	defer ticker.Stop()
	for {
		if until, ok := e.campaign(ctx); ok {
			e.lead(ctx, until, ticker.C, duties)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// campaign asks once; mine tells whether this process leads, until then.
func (e *Elector) campaign(ctx context.Context) (until time.Time, mine bool) {
	asked := time.Now()
	l, err := e.cfg.Store.Campaign(ctx, e.me, e.cfg.Lease)
	if err != nil {
		if !errors.Is(err, ErrUnavailable) {
			e.log.Error("campaign_failed", "error", err.Error())
		}
		return time.Time{}, false
	}
	until = asked.Add(e.cfg.Lease)
	e.mu.Lock()
	defer e.mu.Unlock()
	if old, _ := e.locked(); old != l {
		e.log.Info("leader", "leader", l.Name, "address", l.Address, "term", l.Term)
		close(e.changed)
		e.changed = make(chan struct{})
	}
	e.leader, e.until = l, until
	return until, l.Instance == e.me.Instance
}

// forget makes the leader unknown.
func (e *Elector) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leader, e.until = Leader{}, time.Time{}
}

// lead runs the duties until the lease is lost or ctx ends.
func (e *Elector) lead(ctx context.Context, until time.Time, tick <-chan time.Time, duties []func(context.Context, *Tenure)) {
	e.wins.Inc()
	t := &Tenure{}
	l, _ := e.Leader()
	t.term.Store(l.Term)
	dutyCtx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, duty := range duties {
		wg.Go(func() { duty(dutyCtx, t) })
	}
	// A little before others may begin.
	expiry := time.NewTimer(time.Until(until) - e.cfg.Lease/10)
	defer expiry.Stop()
	for leading := true; leading; {
		select {
		case <-ctx.Done():
			leading = false
		case <-expiry.C:
			e.log.Warn("leader_lost", "reason", "the lease could not be prolonged")
			e.forget()
			leading = false
		case <-tick:
			next, mine := e.campaign(ctx)
			switch l, known := e.Leader(); {
			case mine:
				t.term.Store(l.Term)
				expiry.Reset(time.Until(next) - e.cfg.Lease/10)
			case l.Term != 0 && !known:
				e.log.Warn("leader_lost", "reason", "another one leads", "leader", l.Name)
				leading = false
			}
		}
	}
	cancel()
	wg.Wait()
	if ctx.Err() != nil {
		bounded, stop := context.WithTimeout(context.WithoutCancel(ctx), e.cfg.Lease/3)
		defer stop()
		e.forget()
		if err := e.cfg.Store.Resign(bounded, e.me.Instance); err != nil {
			e.log.Warn("resign_failed", "error", err.Error()) // the lease runs out by itself
		}
	}
}
