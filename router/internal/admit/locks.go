package admit

import (
	"context"
	"sync"

	"github.com/mics-im/mics/router/internal/route"
)

// maxWaiting bounds who waits for one user's lock.
const maxWaiting = 64

// locks serialise what changes one user's sessions. A lock exists only while
// somebody holds it or waits, so no user waits for another one's slow gateway.
type locks struct {
	mu    sync.Mutex
	users map[route.UserKey]*userLock // guarded by mu
}

type userLock struct {
	held chan struct{} // capacity 1: full while it is held
	refs int           // guarded by locks.mu
}

// taken tells whether somebody holds the user's lock, or waits for it.
func (l *locks) taken(key route.UserKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.users[key] != nil
}

// lock waits for the user's lock until ctx ends.
func (l *locks) lock(ctx context.Context, key route.UserKey) (unlock func(), err error) {
	l.mu.Lock()
	u := l.users[key]
	if u == nil {
		u = &userLock{held: make(chan struct{}, 1)}
		l.users[key] = u
	}
	if u.refs >= maxWaiting {
		l.mu.Unlock()
		return nil, errBusy
	}
	u.refs++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if u.refs--; u.refs == 0 {
			delete(l.users, key)
		}
	}
	select {
	case u.held <- struct{}{}:
		return func() {
			<-u.held
			leave()
		}, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
