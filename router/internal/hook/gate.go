package hook

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/mics-im/mics/router/internal/tenant"
	"github.com/sony/gobreaker/v2"
)

const (
	// maxWaiting bounds the calls of one gate that wait for a slot; one more is
	// refused like one that waited in vain.
	maxWaiting = 1024
	// complainEvery bounds how often one gate's failures are logged.
	complainEvery = 10 * time.Second
)

// gateKey holds the tenant and not its name: a tenant that was removed and
// added again starts afresh.
type gateKey struct {
	tenant *tenant.Tenant
	op     Op
}

// gate isolates one hook of one tenant. It lasts as long as the tenant: its
// limits may change with every call, and what is under way, or known to be
// down, still counts.
type gate struct {
	slots slots

	mu         sync.Mutex
	made       tripping                            // guarded by mu: what breaker was made for
	breaker    *gobreaker.CircuitBreaker[struct{}] // guarded by mu
	complained time.Time                           // guarded by mu: when a failure was logged last
	unlogged   int                                 // guarded by mu: failures since
}

// tripping are a breaker's limits.
type tripping struct {
	threshold int
	open      time.Duration
}

// gate returns the gate of a tenant's hook.
func (c *Client) gate(t *tenant.Tenant, op Op) *gate {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := gateKey{t, op}
	g := c.gates[key]
	if g == nil {
		for k := range c.gates {
			if k.tenant.Removed() {
				delete(c.gates, k)
			}
		}
		g = &gate{}
		c.gates[key] = g
	}
	return g
}

// circuit returns the gate's breaker. With new limits it is a new one, which is
// open, for the new time, if the old one was not closed.
func (g *gate) circuit(h *tenant.HookConfig) *gobreaker.CircuitBreaker[struct{}] {
	want := tripping{h.BreakerThreshold, h.BreakerOpen}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.breaker != nil && g.made == want {
		return g.breaker
	}
	old := g.breaker
	g.made, g.breaker = want, newBreaker(want)
	if old != nil && old.State() != gobreaker.StateClosed {
		for range want.threshold {
			_, _ = g.breaker.Execute(func() (struct{}, error) { return struct{}{}, errCarriedOver })
		}
	}
	return g.breaker
}

var errCarriedOver = errors.New("open under earlier limits")

func newBreaker(l tripping) *gobreaker.CircuitBreaker[struct{}] {
	return gobreaker.NewCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests: 1,
		Timeout:     l.open,
		ReadyToTrip: func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= uint32(l.threshold) },
		// A 4xx is an answer of a living server.
		IsSuccessful: func(err error) bool {
			e, ok := errors.AsType[*Error](err)
			return err == nil || ok && e.Result == HTTP4xx
		},
		IsExcluded: func(err error) bool {
			e, ok := errors.AsType[*Error](err)
			return ok && e.ours
		},
	})
}

// complain tells whether a failure is to be logged now, and how many were not.
func (g *gate) complain(now time.Time) (unlogged int, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.complained.IsZero() && now.Sub(g.complained) < complainEvery {
		g.unlogged++
		return 0, false
	}
	unlogged, g.unlogged, g.complained = g.unlogged, 0, now
	return unlogged, true
}

// errNoSlot: all slots were taken for as long as a call may wait.
var errNoSlot = errors.New("all slots taken")

// slots count the calls of one hook that are under way. Their limit comes with
// every call, so a new one holds at once and counts what began under an older
// one. Who waits is served in order. The zero value is free.
type slots struct {
	mu      sync.Mutex
	taken   int       // guarded by mu
	limit   int       // guarded by mu: the latest
	waiting list.List // guarded by mu: of chan struct{}, closed when its turn has come
}

// take takes a slot, waiting for one at most wait; errNoSlot or ctx's error say
// why there was none. Give it back with release.
func (s *slots) take(ctx context.Context, limit int, wait time.Duration) error {
	s.mu.Lock()
	s.limit = limit
	s.admit()
	if s.taken < s.limit {
		s.taken++
		s.mu.Unlock()
		return nil
	}
	if wait <= 0 || s.waiting.Len() >= maxWaiting {
		s.mu.Unlock()
		return errNoSlot
	}
	turn := make(chan struct{})
	place := s.waiting.PushBack(turn)
	s.mu.Unlock()

	timer := time.NewTimer(wait)
	defer timer.Stop()
	var err error
	select {
	case <-turn:
		return nil
	case <-timer.C:
		err = errNoSlot
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-turn: // came at the last moment
		return nil
	default:
	}
	s.waiting.Remove(place)
	return err
}

// release gives a slot back.
func (s *slots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	s.admit()
}

// admit gives free slots to who waits. s.mu is held.
func (s *slots) admit() {
	for s.taken < s.limit && s.waiting.Len() > 0 {
		s.taken++
		close(s.waiting.Remove(s.waiting.Front()).(chan struct{}))
	}
}
