// Package memstore is the route store in this process's memory: for the
// all-in-one and for tests. It knows one process only, so it is of no use with
// several routers in several processes.
package memstore

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// Store implements route.Store. Its lookups are always fresh.
type Store struct {
	mu      sync.Mutex
	users   map[route.UserKey]map[string]route.Record // guarded by mu
	nodes   map[string]lease[route.Node]              // guarded by mu
	routers map[string]lease[route.Router]            // guarded by mu
	conns   map[string]map[route.NodeRef]count        // guarded by mu: by tenant
	buckets map[string]*bucket                        // guarded by mu: by tenant

	upkeep
}

var _ route.Store = (*Store)(nil)

type lease[T any] struct {
	what  T
	ref   route.NodeRef
	until time.Time
}

// count is a node's share of a tenant's connections.
type count struct {
	n       int
	touched time.Time
}

// bucket is a token bucket of one second's worth.
type bucket struct {
	tokens float64
	at     time.Time
}

// New returns an empty store.
func New() *Store {
	return &Store{
		users:   map[route.UserKey]map[string]route.Record{},
		nodes:   map[string]lease[route.Node]{},
		routers: map[string]lease[route.Router]{},
		conns:   map[string]map[route.NodeRef]count{},
		buckets: map[string]*bucket{},
		upkeep:  newUpkeep(),
	}
}

// after returns the time d from now, d in whole milliseconds as all stores count.
func after(d time.Duration) time.Time {
	return time.UnixMilli(time.Now().UnixMilli() + route.Millis(d))
}

// Bind implements route.Store.
func (s *Store) Bind(_ context.Context, key route.DeviceKey, loc route.Location, version uint8) (uint64, *route.Record, error) {
	if err := key.Check(); err != nil {
		return 0, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(key.UserKey)
	var prev *route.Record
	epoch := uint64(1)
	if r, ok := s.users[key.UserKey][key.Device]; ok {
		prev, epoch = &r, r.Epoch+1
	}
	s.put(key, route.Record{State: route.Live, Node: loc.Node, Session: loc.Session, Epoch: epoch, Version: version})
	if _, buried := s.buried[loc.Node]; buried {
		s.note(loc.Node)
	}
	return epoch, prev, nil
}

// Change implements route.Store.
func (s *Store) Change(_ context.Context, changes []route.Change) ([]bool, error) {
	for _, c := range changes {
		if err := c.Check(); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	applied := make([]bool, len(changes))
	for i, c := range changes {
		r, ok := s.users[c.Key.UserKey][c.Key.Device]
		if !ok || !c.Matches(r) {
			continue
		}
		applied[i] = true
		if c.To == route.Ghost {
			s.ghost(c.Key, r, c.GhostTTL)
		} else {
			r.State = c.To
			s.put(c.Key, r)
		}
	}
	return applied, nil
}

// put sets a device's record. s.mu is held.
func (s *Store) put(key route.DeviceKey, r route.Record) {
	r.Device = key.Device
	devices := s.users[key.UserKey]
	if devices == nil {
		devices = map[string]route.Record{}
		s.users[key.UserKey] = devices
	}
	if old, ok := devices[key.Device]; ok {
		s.leave(old.Node, key)
	}
	devices[key.Device] = r
	if r.State != route.Ghost {
		s.enter(r.Node, key)
	}
}

// ghost makes the device, of record r, absent. s.mu is held.
func (s *Store) ghost(key route.DeviceKey, r route.Record, ttl time.Duration) {
	r.State, r.Until = route.Ghost, time.Now()
	if ttl > 0 {
		r.Until = after(ttl)
	}
	s.put(key, r)
	s.expire(key.UserKey)
}

// expire forgets a user's ghosts whose time is over, and a user without
// records. s.mu is held.
func (s *Store) expire(key route.UserKey) {
	devices, now := s.users[key], time.Now()
	for d, r := range devices {
		if r.Forgotten(now) {
			delete(devices, d)
		}
	}
	if len(devices) == 0 {
		delete(s.users, key)
	}
}

// Lookup implements route.Store.
func (s *Store) Lookup(ctx context.Context, keys []route.UserKey) ([][]route.Record, error) {
	out := make([][]route.Record, len(keys))
	for i, k := range keys {
		out[i], _ = s.LookupFresh(ctx, k)
	}
	return out, nil
}

// LookupFresh implements route.Store.
func (s *Store) LookupFresh(_ context.Context, key route.UserKey) ([]route.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(key)
	var out []route.Record
	for _, r := range s.users[key] {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b route.Record) int { return cmp.Compare(a.Device, b.Device) })
	return out, nil
}

// renew calls forgotten for every lease that is not remembered any longer.
func renew[T any](leases map[string]lease[T], what T, ref route.NodeRef, d time.Duration, forgotten func(route.NodeRef)) error {
	now := time.Now()
	for id, l := range leases {
		if now.Sub(l.until) >= route.LeaseMemory {
			delete(leases, id)
			forgotten(l.ref)
		}
	}
	if old, ok := leases[ref.ID]; ok && old.ref.Incarnation > ref.Incarnation {
		return route.ErrSuperseded
	}
	leases[ref.ID] = lease[T]{what, ref, after(d)}
	return nil
}

// remove tells whether ref held a lease.
func remove[T any](leases map[string]lease[T], ref route.NodeRef) bool {
	l, ok := leases[ref.ID]
	if !ok || l.ref != ref || !time.Now().Before(l.until) {
		return false
	}
	// The incarnation stays known for a while, so that an older one is refused.
	l.until = time.Now()
	leases[ref.ID] = l
	return true
}

func living[T any](leases map[string]lease[T], id func(T) string) []T {
	var out []T
	now := time.Now()
	for _, l := range leases {
		if now.Before(l.until) {
			out = append(out, l.what)
		}
	}
	slices.SortFunc(out, func(a, b T) int { return cmp.Compare(id(a), id(b)) })
	return out
}

// RenewNode implements route.Store.
func (s *Store) RenewNode(_ context.Context, n route.Node, d time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, buried := s.buried[n.NodeRef]; buried {
		return route.ErrSuperseded
	}
	old, known := s.nodes[n.ID]
	if err := renew(s.nodes, n, n.NodeRef, d, s.lapse); err != nil {
		return err
	}
	delete(s.dead, n.NodeRef)
	if known && old.ref != n.NodeRef {
		s.supersede(old.ref)
	}
	return nil
}

// RemoveNode implements route.Store.
func (s *Store) RemoveNode(_ context.Context, n route.NodeRef) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if remove(s.nodes, n) {
		s.dead[n] = route.Stopped
	}
	return nil
}

// Nodes implements route.Store.
func (s *Store) Nodes(context.Context) ([]route.Node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return living(s.nodes, func(n route.Node) string { return n.ID }), nil
}

// RenewRouter implements route.Store.
func (s *Store) RenewRouter(_ context.Context, r route.Router, d time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return renew(s.routers, r, r.NodeRef, d, func(route.NodeRef) {})
}

// RemoveRouter implements route.Store.
func (s *Store) RemoveRouter(_ context.Context, r route.NodeRef) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	remove(s.routers, r)
	return nil
}

// Routers implements route.Store.
func (s *Store) Routers(context.Context) ([]route.Router, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return living(s.routers, func(r route.Router) string { return r.ID }), nil
}

// AcquireConn implements route.Store.
func (s *Store) AcquireConn(_ context.Context, tenant string, node route.NodeRef, limit int, live []route.NodeRef) (bool, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	counts := s.conns[tenant]
	sum := 0
	for ref, c := range counts {
		if ref == node || slices.Contains(live, ref) {
			sum += c.n
		} else if now.Sub(c.touched) >= route.CountMemory {
			delete(counts, ref)
		}
	}
	if limit > 0 && sum >= limit {
		return false, sum, nil
	}
	if counts == nil {
		counts = map[route.NodeRef]count{}
		s.conns[tenant] = counts
	}
	counts[node] = count{counts[node].n + 1, now}
	return true, sum, nil
}

// ReleaseConns implements route.Store.
func (s *Store) ReleaseConns(_ context.Context, tenant string, node route.NodeRef, n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := s.conns[tenant]
	c, known := counts[node]
	if n <= 0 || !known {
		return nil
	}
	if left := c.n - n; left > 0 {
		counts[node] = count{left, time.Now()}
	} else {
		delete(counts, node)
	}
	if len(counts) == 0 {
		delete(s.conns, tenant)
	}
	return nil
}

// LeaseTokens implements route.Store.
func (s *Store) LeaseTokens(_ context.Context, tenant string, rate, want int) (int, error) {
	if rate <= 0 || want <= 0 {
		return 0, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	b := s.buckets[tenant]
	if b == nil {
		b = &bucket{tokens: float64(rate), at: now}
		s.buckets[tenant] = b
	}
	b.tokens = min(float64(rate), b.tokens+now.Sub(b.at).Seconds()*float64(rate))
	b.at = now
	got := min(want, int(b.tokens))
	b.tokens -= float64(got)
	return got, nil
}

// Ping implements route.Store.
func (s *Store) Ping(context.Context) error { return nil }

// Close implements route.Store.
func (s *Store) Close() error { return nil }
