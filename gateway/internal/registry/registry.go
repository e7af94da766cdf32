// Package registry is the table of a gateway's sessions and the one sweeper
// that looks after all of them.
package registry

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/gateway/internal/ws"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// shards spread the locks of the table.
const shards = 64

// Options of a Registry.
type Options struct {
	Session session.Config
}

// Registry is safe for concurrent use.
type Registry struct {
	host   *session.Host
	lastID atomic.Uint64
	n, v2  atomic.Int64
	shards [shards]shard
	users  users
	graves graves
	sweep  sweeper
	// gone is signalled (capacity 1) when a session has left the table.
	gone chan struct{}
}

type shard struct {
	mu       sync.RWMutex
	sessions map[uint64]*session.Session // guarded by mu
}

// New returns an empty table. Start must be called before the first Add.
func New(o Options) *Registry {
	r := &Registry{gone: make(chan struct{}, 1)}
	for i := range r.shards {
		r.shards[i].sessions = map[uint64]*session.Session{}
	}
	r.users.init()
	r.graves.init()
	r.sweep.init(r)
	r.host = session.NewHost(o.Session, r)
	return r
}

// Start runs the sweeper.
func (r *Registry) Start() { r.sweep.start() }

// Stop cuts what is left and waits until all of it has been handed back, or ctx
// ends, which is an error; then it ends the sweeper. Every Add must have had its
// Open or Refuse, or get it soon.
func (r *Registry) Stop(ctx context.Context) error {
	defer r.sweep.stop()
	r.Walk(func(s *session.Session) bool { s.Abort(); return true })
	for r.Len() > 0 {
		select {
		case <-r.gone:
		case <-ctx.Done():
			if n := r.Len(); n > 0 {
				return fmt.Errorf("%d sessions have not been handed back: %w", n, ctx.Err())
			}
		}
	}
	return nil
}

// Add makes a session, which must get Open or Refuse exactly once. From now on
// it takes deliveries.
func (r *Registry) Add(conn *ws.Conn, p session.Params) *session.Session {
	s := r.host.NewSession(r.lastID.Add(1), conn, p)
	sh := r.shard(s.ID())
	sh.mu.Lock()
	sh.sessions[s.ID()] = s
	sh.mu.Unlock()
	r.n.Add(1)
	if s.Version() >= 2 {
		r.v2.Add(1)
	}
	return s
}

func (r *Registry) shard(id uint64) *shard { return &r.shards[id%shards] }

// Get returns nil for an unknown session.
func (r *Registry) Get(id uint64) *session.Session {
	sh := r.shard(id)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	return sh.sessions[id]
}

// Deliver gives a delivery to a session. REASON_UNSPECIFIED: taken.
func (r *Registry) Deliver(id uint64, d *session.Delivery) gatewayv1.Refusal_Reason {
	if s := r.Get(id); s != nil {
		return s.Deliver(d)
	}
	// What a session took and gave back before a router has had its answer would
	// be delivered twice if it were refused now.
	if s := r.graves.get(id); s != nil && s.Deliver(d) == gatewayv1.Refusal_REASON_UNSPECIFIED {
		return gatewayv1.Refusal_REASON_UNSPECIFIED
	}
	return gatewayv1.Refusal_REASON_UNKNOWN
}

// Reconfirm posts to the router what the session has confirmed of its deliveries.
func (r *Registry) Reconfirm(id uint64, router *session.Router) {
	if s := r.Get(id); s != nil {
		s.Reconfirm(router)
		return
	}
	router.Post(id, session.LastLive)
	router.Post(id, session.LastBacklog)
}

// Router returns what sessions know a router by.
func (r *Registry) Router(ref session.RouterRef) *session.Router { return r.host.Router(ref) }

// Totals since the start.
func (r *Registry) Totals() session.Totals { return r.host.Totals() }

// Len counts sessions, also those that are being opened or handed back.
func (r *Registry) Len() int { return int(r.n.Load()) }

// Connected counts sessions without those that have lost their sockets.
func (r *Registry) Connected() int { return r.Len() - r.host.Suspended() }

// LenV2 counts those of V2 clients.
func (r *Registry) LenV2() int { return int(r.v2.Load()) }

// Walk calls f, without a lock, for each session until it is false. One that is
// added meanwhile may be missed.
func (r *Registry) Walk(f func(*session.Session) bool) {
	var batch []*session.Session
	for i := range r.shards {
		sh := &r.shards[i]
		batch = batch[:0]
		sh.mu.RLock()
		for _, s := range sh.sessions {
			batch = append(batch, s)
		}
		sh.mu.RUnlock()
		for _, s := range batch {
			if !f(s) {
				return
			}
		}
	}
}

// WalkUser is Walk over the sessions of one user.
func (r *Registry) WalkUser(tenant, user string, f func(*session.Session) bool) {
	for _, s := range r.users.candidates(tenant, user) {
		if id := s.Identity(); id.Tenant == tenant && id.User == user && !f(s) {
			return
		}
	}
}

// Opened implements session.Owner.
func (r *Registry) Opened(s *session.Session, id session.Identity) { r.users.add(s, id) }

// Watch implements session.Owner.
func (r *Registry) Watch(s *session.Session) { r.sweep.watch(s) }

// Gone implements session.Owner.
func (r *Registry) Gone(s *session.Session, id session.Identity, took bool) {
	if took {
		r.graves.add(s)
	}
	r.users.remove(s, id)
	sh := r.shard(s.ID())
	sh.mu.Lock()
	delete(sh.sessions, s.ID())
	sh.mu.Unlock()
	if s.Version() >= 2 {
		r.v2.Add(-1)
	}
	r.n.Add(-1)
	select {
	case r.gone <- struct{}{}:
	default:
	}
}
