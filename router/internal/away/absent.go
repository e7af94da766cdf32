package away

import (
	"context"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/ring"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/route"
)

// Who is absent is in no gateway's list. So two routers remember him beside the store:
// his home, which makes the change, and the one that would be his home without it. That
// one's copy may be behind: it answers questions, and is the home's as soon as there is
// another one, but nobody writes it to a store that was emptied.

// tellEvery is how long only the home may know who has left.
const tellEvery = 250 * time.Millisecond

// pairs returns a user's home among these routers and the next one.
func pairs(routers []route.Router) func(route.UserKey) []route.Router {
	all := names(routers)
	return func(key route.UserKey) (out []route.Router) {
		home, backup := ring.Pair(all, ring.Hash(key.Tenant, key.User))
		for _, i := range []int{home, backup} {
			if i >= 0 {
				out = append(out, routers[i])
			}
		}
		return out
	}
}

func holds(routers []route.Router, n route.NodeRef) bool {
	return slices.ContainsFunc(routers, func(r route.Router) bool { return r.NodeRef == n })
}

// runTelling tells the other routers who is absent, and who is back, until Stop.
func (s *Store) runTelling() {
	ticker := time.NewTicker(tellEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.tell(s.ctx)
		case <-s.ctx.Done():
			return
		}
	}
}

// inherit sees to it that a router is told of those whom it has to remember since it is
// one of now.
func (s *Store) inherit(now []route.Router) {
	s.mu.Lock()
	before := s.told
	s.told = now
	s.mu.Unlock()
	if slices.EqualFunc(before, now, func(a, b route.Router) bool { return a.NodeRef == b.NodeRef }) {
		return
	}
	self, old, present := s.opts.Self.NodeRef, pairs(before), pairs(now)
	s.mirror.tellAgain(slices.DeleteFunc(s.mirror.absent(), func(k route.DeviceKey) bool {
		was := old(k.UserKey)
		news := func(r route.Router) bool { return r.NodeRef != self && !holds(was, r.NodeRef) }
		return !holds(was, self) || !slices.ContainsFunc(present(k.UserKey), news)
	}))
}

// tell tells the others what they have not been told. What cannot be said now is left for
// the next time.
func (s *Store) tell(ctx context.Context) {
	s.inherit(s.cluster.Directory.Routers())
	for range maxBatches {
		untold := s.mirror.untold(saveBatch)
		if len(untold) == 0 {
			return
		}
		routers := s.cluster.Directory.Routers()
		pair := pairs(routers)
		by := map[route.NodeRef][]route.Restored{}
		for _, r := range untold {
			for _, to := range pair(r.Key.UserKey) {
				by[to.NodeRef] = append(by[to.NodeRef], r)
			}
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		failed := false
		for _, to := range routers {
			theirs := by[to.NodeRef]
			if len(theirs) == 0 || to.ID == s.opts.Self.ID {
				continue
			}
			wg.Go(func() {
				if s.remind(ctx, to, theirs) {
					return
				}
				keys := make([]route.DeviceKey, len(theirs))
				for i, r := range theirs {
					keys[i] = r.Key
				}
				s.mirror.tellAgain(keys)
				mu.Lock()
				defer mu.Unlock()
				failed = true
			})
		}
		wg.Wait()
		if failed {
			return
		}
	}
}

// remind has another router remember these, and tells whether it does.
func (s *Store) remind(ctx context.Context, to route.Router, records []route.Restored) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req := s.question()
	req.Learn, req.Remembered = toUsers(records), true
	_, err := s.cluster.Peer(to).Records(ctx, connect.NewRequest(req))
	return err == nil
}

// remember takes another router's word on who is absent, or is not any more.
func (s *Store) remember(users []*routerv1.UserRecords) error {
	restored, err := fromUsers(users)
	if err != nil {
		return err
	}
	s.turn()
	for _, r := range restored {
		s.mirror.remember(r.Key, r.Record, s.mine(r.Key.UserKey))
	}
	return nil
}

// follows says that what others remember of the device is over if it was absent. mu is
// held.
func (m *mirror) follows(key route.DeviceKey, prev *route.Record) {
	if prev != nil && prev.State == route.Ghost {
		m.toTell[key] = true
	}
}

// remember takes the home's word on a device; mine: the home is this router now.
func (m *mirror) remember(key route.DeviceKey, r route.Record, mine bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.State != route.Ghost && m.users[key.UserKey] == nil {
		return
	}
	e := m.get(key.UserKey)
	i, known := find(e.records, key.Device)
	switch {
	case known && !better(r, e.records[i]):
	case r.State == route.Ghost:
		m.set(e, r)
		if !mine {
			m.copies[key] = true
		}
	case known && m.copies[key]:
		e.version++
		e.records = slices.Delete(e.records, i, i+1)
		delete(m.copies, key)
	}
}

// absent is all devices that are remembered as such.
func (m *mirror) absent() (keys []route.DeviceKey) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.users {
		for _, r := range e.records {
			if r.State == route.Ghost && !r.Forgotten(now) {
				keys = append(keys, route.DeviceKey{UserKey: e.key, Device: r.Device})
			}
		}
	}
	return keys
}

// tellAgain says that the other routers may not know of these.
func (m *mirror) tellAgain(keys []route.DeviceKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range keys {
		m.toTell[k] = true
	}
}

// untold returns about limit devices of which the other routers may not know that they are
// absent, or back; they count as told then.
func (m *mirror) untold(limit int) (out []route.Restored) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.toTell {
		if len(out) >= limit {
			break
		}
		delete(m.toTell, key)
		e := m.users[key.UserKey]
		if e == nil {
			continue
		}
		if i, ok := find(e.records, key.Device); ok && !e.records[i].Forgotten(now) {
			out = append(out, route.Restored{Key: key, Record: e.records[i]})
		}
	}
	return out
}
