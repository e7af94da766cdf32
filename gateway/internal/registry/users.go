package registry

import (
	"hash/maphash"
	"sync"

	"github.com/mics-im/mics/gateway/internal/session"
)

// users finds a user's sessions without going through all of them: while Redis is
// away routers ask for every recipient. The sessions of a hash are a list through
// Session.Sibling, which is guarded by mu: this costs some 30 bytes a session.
type users struct {
	seed maphash.Seed
	mu   sync.RWMutex
	head map[uint64]*session.Session // guarded by mu
}

func (u *users) init() {
	u.seed = maphash.MakeSeed()
	u.head = map[uint64]*session.Session{}
}

func (u *users) hash(tenant, user string) uint64 {
	return maphash.Comparable(u.seed, [2]string{tenant, user})
}

func (u *users) add(s *session.Session, id session.Identity) {
	h := u.hash(id.Tenant, id.User)
	u.mu.Lock()
	defer u.mu.Unlock()
	s.Sibling = u.head[h]
	u.head[h] = s
}

// remove does nothing for a session that was not added.
func (u *users) remove(s *session.Session, id session.Identity) {
	h := u.hash(id.Tenant, id.User)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.head[h] == s {
		if s.Sibling == nil {
			delete(u.head, h)
		} else {
			u.head[h] = s.Sibling
		}
	}
	for at := u.head[h]; at != nil; at = at.Sibling {
		if at.Sibling == s {
			at.Sibling = s.Sibling
		}
	}
	s.Sibling = nil
}

// candidates may have others with the same hash among them.
func (u *users) candidates(tenant, user string) (out []*session.Session) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	for s := u.head[u.hash(tenant, user)]; s != nil; s = s.Sibling {
		out = append(out, s)
	}
	return out
}
