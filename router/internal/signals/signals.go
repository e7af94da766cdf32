// Package signals counts what a router sees of each gateway, so that the control
// plane can compare a canary's gateways with the stable ones.
package signals

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	// maxGateways bounds the table. Beyond it the dead go, then new ones are not
	// counted.
	maxGateways = 4096
	// keepDead is how long a gateway's counts stay after its end: whoever compares
	// intervals wants the last one whole.
	keepDead = 5 * time.Minute
)

// authBounds are of the auth hook's time, which 150 ms bound, in milliseconds.
var authBounds = [...]float64{1, 2, 5, 10, 20, 50, 100, 150}

// Gateway counts for one incarnation of a gateway. Every count is one atomic
// addition. A nil one counts nothing.
type Gateway struct {
	hooksOK, hooksFailed, forwardsOK, forwardsFailed, limited, messages atomic.Uint64
	auth                                                                [len(authBounds) + 1]atomic.Uint64
}

// Hook counts a call of a tenant's hook on behalf of a client of the gateway. A
// refusal by the tenant is a success: it was asked and has answered.
func (g *Gateway) Hook(err error) {
	switch {
	case g == nil:
	case err != nil:
		g.hooksFailed.Add(1)
	default:
		g.hooksOK.Add(1)
	}
}

// Auth is Hook for the auth hook, which took that long.
func (g *Gateway) Auth(took time.Duration, err error) {
	g.Hook(err)
	if g == nil || err != nil {
		return
	}
	ms, i := float64(took)/float64(time.Millisecond), 0
	for i < len(authBounds) && ms > authBounds[i] {
		i++
	}
	g.auth[i].Add(1)
}

// Forward counts a delivery that the gateway answered, or, failed, one that it
// could not be given.
func (g *Gateway) Forward(failed bool) {
	switch {
	case g == nil:
	case failed:
		g.forwardsFailed.Add(1)
	default:
		g.forwardsOK.Add(1)
	}
}

// Limited counts a message or connection over a limit.
func (g *Gateway) Limited() {
	if g != nil {
		g.limited.Add(1)
	}
}

// Message counts a client's message.
func (g *Gateway) Message() {
	if g != nil {
		g.messages.Add(1)
	}
}

// Table has a Gateway for each. Safe for concurrent use; a nil one counts nothing.
type Table struct {
	alive    func(route.NodeRef) bool
	overflow *telemetry.Counter

	mu       sync.RWMutex
	gateways map[route.NodeRef]*entry // guarded by mu
}

type entry struct {
	Gateway
	dead time.Time // when it was first seen dead, zero: it lives; guarded by Table.mu
}

// New returns an empty table. alive tells whether a gateway holds a lease.
func New(alive func(route.NodeRef) bool, tel *telemetry.Telemetry) *Table {
	return &Table{
		alive: alive, gateways: map[route.NodeRef]*entry{},
		overflow: tel.Counter("mics_signals_overflow_total", "Gateways that were not counted by themselves because there were too many."),
	}
}

// Of returns the gateway's counts; a caller on a hot path keeps them. It is nil
// when the table is full.
func (t *Table) Of(ref route.NodeRef) *Gateway {
	if t == nil {
		return nil
	}
	t.mu.RLock()
	e := t.gateways[ref]
	t.mu.RUnlock()
	if e != nil {
		return &e.Gateway
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.gateways[ref]; e != nil {
		return &e.Gateway
	}
	if len(t.gateways) >= maxGateways {
		t.prune(0)
	}
	if len(t.gateways) >= maxGateways {
		t.overflow.Inc()
		return nil
	}
	e = &entry{}
	t.gateways[ref] = e
	return &e.Gateway
}

// prune forgets who has been dead for longer than keep. mu is held.
func (t *Table) prune(keep time.Duration) {
	now := time.Now()
	for ref, e := range t.gateways {
		switch {
		case t.alive(ref):
			e.dead = time.Time{}
		case e.dead.IsZero():
			e.dead = now
			fallthrough
		default:
			if now.Sub(e.dead) >= keep {
				delete(t.gateways, ref)
			}
		}
	}
}

// Read returns all counts, sorted by gateway.
func (t *Table) Read() []*routerv1.GatewaySignals {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	t.prune(keepDead)
	out := make([]*routerv1.GatewaySignals, 0, len(t.gateways))
	for ref, e := range t.gateways {
		s := &routerv1.GatewaySignals{
			NodeId: ref.ID, Incarnation: ref.Incarnation,
			HooksOk: e.hooksOK.Load(), HooksFailed: e.hooksFailed.Load(),
			ForwardsOk: e.forwardsOK.Load(), ForwardsFailed: e.forwardsFailed.Load(),
			RateLimited: e.limited.Load(), Messages: e.messages.Load(),
			AuthMs: &gatewayv1.Histogram{Bounds: authBounds[:], Counts: make([]uint64, len(e.auth))},
		}
		for i := range e.auth {
			s.AuthMs.Counts[i] = e.auth[i].Load()
		}
		out = append(out, s)
	}
	t.mu.Unlock()
	slices.SortFunc(out, func(a, b *routerv1.GatewaySignals) int {
		return cmp.Or(cmp.Compare(a.NodeId, b.NodeId), cmp.Compare(a.Incarnation, b.Incarnation))
	})
	return out
}
