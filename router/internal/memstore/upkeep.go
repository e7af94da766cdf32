package memstore

import (
	"cmp"
	"context"
	"crypto/rand"
	"slices"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// upkeep is what the store remembers to clean up and to rebuild; Store.mu guards
// all of it.
type upkeep struct {
	at     map[route.NodeRef]map[route.DeviceKey]struct{} // devices whose route is live or closing there
	dead   map[route.NodeRef]route.Death                  // to be cleaned, but for those that merely lapsed
	buried map[route.NodeRef]time.Time
	marker string
	whole  bool // nothing is missing in what has that name
	locks  map[string]lock
}

type lock struct {
	owner string
	until time.Time
}

func newUpkeep() upkeep {
	return upkeep{
		at:     map[route.NodeRef]map[route.DeviceKey]struct{}{},
		dead:   map[route.NodeRef]route.Death{},
		buried: map[route.NodeRef]time.Time{},
		locks:  map[string]lock{},
	}
}

func (u *upkeep) enter(n route.NodeRef, key route.DeviceKey) {
	if u.at[n] == nil {
		u.at[n] = map[route.DeviceKey]struct{}{}
	}
	u.at[n][key] = struct{}{}
}

func (u *upkeep) leave(n route.NodeRef, key route.DeviceKey) {
	delete(u.at[n], key)
	if len(u.at[n]) == 0 {
		delete(u.at, n)
	}
}

// lapse notes that n's lease is not remembered any longer.
func (u *upkeep) lapse(n route.NodeRef) {
	_, buried := u.buried[n]
	if _, known := u.dead[n]; !known && !buried {
		u.dead[n] = route.Lapsed
	}
}

func (u *upkeep) supersede(n route.NodeRef) {
	if _, buried := u.buried[n]; !buried && u.dead[n] != route.Stopped {
		u.dead[n] = route.Superseded
	}
}

// note sees to it that n, which a route names now, is cleaned up one day. s.mu
// is held.
func (s *Store) note(n route.NodeRef) {
	l, known := s.nodes[n.ID]
	_, buried := s.buried[n]
	switch {
	case buried:
		s.dead[n] = route.Buried
	case known && l.ref == n:
	case known && l.ref.Incarnation > n.Incarnation:
		s.supersede(n)
	default:
		s.lapse(n)
	}
}

// DeadNodes implements route.Store.
func (s *Store) DeadNodes(context.Context) ([]route.DeadNode, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []route.DeadNode
	for n, why := range s.dead {
		out = append(out, route.DeadNode{NodeRef: n, Why: why})
	}
	now := time.Now()
	for _, l := range s.nodes {
		_, listed := s.dead[l.ref]
		_, buried := s.buried[l.ref]
		if !now.Before(l.until) && !listed && !buried {
			out = append(out, route.DeadNode{NodeRef: l.ref, Why: route.Lapsed})
		}
	}
	slices.SortFunc(out, func(a, b route.DeadNode) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Incarnation, b.Incarnation))
	})
	return out, nil
}

// Bury implements route.Store.
func (s *Store) Bury(_ context.Context, n route.NodeRef) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if l, ok := s.nodes[n.ID]; ok && l.ref == n && now.Before(l.until) {
		return false, nil
	}
	for other, at := range s.buried {
		if now.Sub(at) >= route.BurialMemory {
			delete(s.buried, other)
		}
	}
	s.buried[n], s.dead[n] = now, route.Buried
	return true, nil
}

// Reap implements route.Store.
func (s *Store) Reap(_ context.Context, n route.NodeRef, limit int, ghostTTL func(tenant string) time.Duration) (ended []route.Ended, more bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.at[n] {
		if len(ended) == max(limit, 1) {
			return ended, true, nil
		}
		r := s.users[key.UserKey][key.Device]
		s.ghost(key, r, ghostTTL(key.Tenant))
		delete(s.conns[key.Tenant], n)
		ended = append(ended, route.Ended{Key: key, Epoch: r.Epoch})
	}
	return ended, false, nil
}

// ForgetNode implements route.Store.
func (s *Store) ForgetNode(_ context.Context, n route.NodeRef) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.at[n]) == 0 {
		delete(s.dead, n)
	}
	return nil
}

// Restore implements route.Store.
func (s *Store) Restore(_ context.Context, records []route.Restored) (int, error) {
	for _, r := range records {
		if err := r.Check(); err != nil {
			return 0, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	set := 0
	for _, r := range records {
		s.expire(r.Key.UserKey)
		old, known := s.users[r.Key.UserKey][r.Key.Device]
		rec := r.Record
		if rec.State != route.Ghost {
			rec.Until = time.Time{}
			s.note(rec.Node)
		} else {
			rec.Until = time.UnixMilli(rec.Until.UnixMilli())
		}
		if known && !old.YieldsTo(rec) || !known && rec.Forgotten(time.Now()) {
			continue
		}
		s.put(r.Key, rec)
		s.expire(r.Key.UserKey)
		set++
	}
	return set, nil
}

// SetConns implements route.Store.
func (s *Store) SetConns(_ context.Context, tenant string, node route.NodeRef, n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n <= 0 {
		delete(s.conns[tenant], node)
		return nil
	}
	if s.conns[tenant] == nil {
		s.conns[tenant] = map[route.NodeRef]count{}
	}
	s.conns[tenant][node] = count{n, time.Now()}
	return nil
}

// Marker implements route.Store.
func (s *Store) Marker(context.Context) (route.Marker, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	created := s.marker == ""
	if created {
		s.marker = rand.Text()
	}
	return route.Marker{ID: s.marker, Created: created, Whole: s.whole}, nil
}

// SetWhole implements route.Store.
func (s *Store) SetWhole(_ context.Context, id string, whole bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == s.marker {
		s.whole = whole
	}
	return nil
}

// Lock implements route.Store.
func (s *Store) Lock(_ context.Context, name, owner string, ttl time.Duration) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.locks[name]; ok && l.owner != owner && time.Now().Before(l.until) {
		return false, nil
	}
	s.locks[name] = lock{owner, after(ttl)}
	return true, nil
}

// Unlock implements route.Store.
func (s *Store) Unlock(_ context.Context, name, owner string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locks[name].owner == owner {
		delete(s.locks, name)
	}
	return nil
}
