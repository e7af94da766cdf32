package away

import (
	"context"
	"maps"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// members is who was in the last full lists.
type members struct {
	nodes, routers map[string]bool
}

// RenewNode implements route.Store.
func (s *Store) RenewNode(ctx context.Context, n route.Node, lease time.Duration) error {
	return s.pass(ctx, func() error { return s.backend.RenewNode(ctx, n, lease) })
}

// RemoveNode implements route.Store.
func (s *Store) RemoveNode(ctx context.Context, n route.NodeRef) error {
	return s.pass(ctx, func() error { return s.backend.RemoveNode(ctx, n) })
}

// RenewRouter implements route.Store. It is called twice a second, and so notices
// that the backend has lost its content.
func (s *Store) RenewRouter(ctx context.Context, r route.Router, lease time.Duration) error {
	err := s.pass(ctx, func() error { return s.backend.RenewRouter(ctx, r, lease) })
	if err == nil {
		s.verify()
	}
	return err
}

// RemoveRouter implements route.Store.
func (s *Store) RemoveRouter(ctx context.Context, r route.NodeRef) error {
	return s.pass(ctx, func() error { return s.backend.RemoveRouter(ctx, r) })
}

// Nodes implements route.Store, but that an answer which may lack some comes with
// route.ErrPartial.
func (s *Store) Nodes(ctx context.Context) ([]route.Node, error) {
	return listed(ctx, s, s.backend.Nodes, func(n route.Node) string { return n.ID }, func(m *members) *map[string]bool { return &m.nodes })
}

// Routers implements route.Store like Nodes.
func (s *Store) Routers(ctx context.Context) ([]route.Router, error) {
	return listed(ctx, s, s.backend.Routers, func(r route.Router) string { return r.ID }, func(m *members) *map[string]bool { return &m.routers })
}

func listed[T any](ctx context.Context, s *Store, ask func(context.Context) ([]T, error), id func(T) string, last func(*members) *map[string]bool) (out []T, err error) {
	err = s.pass(ctx, func() (err error) { out, err = ask(ctx); return err })
	if err != nil {
		return nil, err
	}
	now := map[string]bool{}
	for _, one := range out {
		now[id(one)] = true
	}
	s.mu.Lock()
	before := *last(&s.last)
	*last(&s.last) = now
	s.mu.Unlock()
	for name := range maps.Keys(before) {
		if !now[name] && !s.verify() {
			return out, route.ErrPartial
		}
	}
	if s.incomplete() {
		return out, route.ErrPartial
	}
	return out, nil
}

// incomplete tells whether leases that are held may be missing in the backend.
func (s *Store) incomplete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase() != up || time.Now().Before(s.partial)
}

// pass passes a call on unless the backend is away.
func (s *Store) pass(ctx context.Context, call func() error) error {
	if s.phase() == away {
		return s.unavailable()
	}
	err := call()
	s.failed(ctx, err)
	return err
}

// LeaseTokens implements route.Store.
func (s *Store) LeaseTokens(ctx context.Context, tenant string, rate, want int) (granted int, err error) {
	err = s.pass(ctx, func() (err error) { granted, err = s.backend.LeaseTokens(ctx, tenant, rate, want); return err })
	return granted, err
}

// AcquireConn implements route.Store. A limit that cannot be asked for does not
// hold.
func (s *Store) AcquireConn(ctx context.Context, tenant string, node route.NodeRef, limit int, live []route.NodeRef) (bool, int, error) {
	if s.phase() == healing && !s.emptied() && limit > 0 {
		limit = 0 // connections that have ended may still be counted there
		s.unenforced.Inc()
	}
	if s.phase() != away {
		ok, n, err := s.backend.AcquireConn(ctx, tenant, node, limit, live)
		if !s.failed(ctx, err) {
			return ok, n, err
		}
	}
	s.unenforced.Inc()
	s.uncounted(tenant, node, 1)
	return true, 0, nil
}

// ReleaseConns implements route.Store.
func (s *Store) ReleaseConns(ctx context.Context, tenant string, node route.NodeRef, n int) error {
	if n <= 0 {
		return nil
	}
	if s.phase() != away {
		err := s.backend.ReleaseConns(ctx, tenant, node, n)
		if !s.failed(ctx, err) {
			return err
		}
	}
	s.uncounted(tenant, node, -n)
	return nil
}

// maxDrift bounds the counts to be made up for.
const maxDrift = 1 << 16

// uncounted remembers n connections that the backend was not told of.
func (s *Store) uncounted(tenant string, node route.NodeRef, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := share{tenant, node}
	if _, known := s.drift[k]; !known && len(s.drift) >= maxDrift {
		s.overflow.Inc()
		return
	}
	s.drift[k] += n
}

// emptied tells whether the backend had lost everything, and so counts too little
// at most.
func (s *Store) emptied() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heal.emptied
}

// count makes up for what was not counted.
func (s *Store) count(ctx context.Context) error {
	s.mu.Lock()
	drift := s.drift
	s.drift = map[share]int{}
	s.mu.Unlock()
	var err error
	for k, n := range drift {
		if n < 0 && err == nil {
			if err = s.backend.ReleaseConns(ctx, k.tenant, k.node, -n); err == nil {
				n = 0
			}
		}
		for ; n > 0 && err == nil; n-- {
			if _, _, err = s.backend.AcquireConn(ctx, k.tenant, k.node, 0, nil); err != nil {
				break
			}
		}
		if n != 0 {
			s.uncounted(k.tenant, k.node, n)
		}
	}
	s.failed(ctx, err)
	return err
}

// DeadNodes implements route.Store. While leases may be missing nobody is dead.
func (s *Store) DeadNodes(ctx context.Context) (dead []route.DeadNode, err error) {
	if s.incomplete() {
		return nil, s.unavailable()
	}
	err = s.pass(ctx, func() (err error) { dead, err = s.backend.DeadNodes(ctx); return err })
	return dead, err
}

// Bury implements route.Store.
func (s *Store) Bury(ctx context.Context, n route.NodeRef) (ok bool, err error) {
	if s.incomplete() {
		return false, s.unavailable()
	}
	err = s.pass(ctx, func() (err error) { ok, err = s.backend.Bury(ctx, n); return err })
	return ok, err
}

// Reap implements route.Store.
func (s *Store) Reap(ctx context.Context, n route.NodeRef, limit int, ghostTTL func(string) time.Duration) (ended []route.Ended, more bool, err error) {
	err = s.pass(ctx, func() (err error) { ended, more, err = s.backend.Reap(ctx, n, limit, ghostTTL); return err })
	return ended, more, err
}

// ForgetNode implements route.Store.
func (s *Store) ForgetNode(ctx context.Context, n route.NodeRef) error {
	return s.pass(ctx, func() error { return s.backend.ForgetNode(ctx, n) })
}

// Lock implements route.Store.
func (s *Store) Lock(ctx context.Context, name, owner string, ttl time.Duration) (ok bool, err error) {
	err = s.pass(ctx, func() (err error) { ok, err = s.backend.Lock(ctx, name, owner, ttl); return err })
	return ok, err
}

// Unlock implements route.Store.
func (s *Store) Unlock(ctx context.Context, name, owner string) error {
	return s.pass(ctx, func() error { return s.backend.Unlock(ctx, name, owner) })
}

// Restore implements route.Store.
func (s *Store) Restore(ctx context.Context, records []route.Restored) (n int, err error) {
	err = s.pass(ctx, func() (err error) { n, err = s.backend.Restore(ctx, records); return err })
	return n, err
}

// SetConns implements route.Store.
func (s *Store) SetConns(ctx context.Context, tenant string, node route.NodeRef, n int) error {
	return s.pass(ctx, func() error { return s.backend.SetConns(ctx, tenant, node, n) })
}

// Marker implements route.Store.
func (s *Store) Marker(ctx context.Context) (m route.Marker, err error) {
	err = s.pass(ctx, func() (err error) { m, err = s.backend.Marker(ctx); return err })
	return m, err
}

// SetWhole implements route.Store.
func (s *Store) SetWhole(ctx context.Context, id string, whole bool) error {
	return s.pass(ctx, func() error { return s.backend.SetWhole(ctx, id, whole) })
}
