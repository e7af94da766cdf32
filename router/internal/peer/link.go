package peer

import (
	"context"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/dedup"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	// syncTimeout bounds one call; syncPause is the wait before it is made again.
	syncTimeout = 2 * time.Second
	syncPause   = 100 * time.Millisecond
	// heartbeat is how often a link calls without a reason: the other side may have
	// taken this router for dead for a moment, and given its copies up.
	heartbeat = 2 * time.Second
	// maxSyncUsers, maxSyncSents and maxSyncBytes bound one call.
	maxSyncUsers = 512
	maxSyncSents = 8192
	maxSyncBytes = 8 << 20
	// maxDirty bounds the users whose state waits to be sent. Beyond it the marks
	// are given up, and everything is sent anew.
	maxDirty = 1 << 20
	// maxSents bounds the records that wait; beyond it the newest are not passed on.
	maxSents = 1 << 16
	// maxTook and maxSyncTook are the same for what devices took.
	maxTook     = 1 << 12
	maxSyncTook = 512
)

// link brings the copies at one other router up to date.
type link struct {
	b      *Buffer
	to     route.Router
	client routerv1connect.PeerServiceClient
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when run has ended
	wake   chan struct{} // capacity 1
	room   chan struct{} // capacity 1: there is room among sents

	seq uint64 // owned by run

	mu      sync.Mutex
	stream  uint64                     // guarded by mu
	dirty   map[route.UserKey][]*wait  // guarded by mu: users to be sent, and who waits for it
	order   []route.UserKey            // guarded by mu: of dirty, oldest mark first
	held    map[route.UserKey]struct{} // guarded by mu: users of whom the other side has something
	sents   []dedup.Record             // guarded by mu
	took    []*routerv1.SyncTook       // guarded by mu
	closed  bool                       // guarded by mu
	under   int                        // guarded by mu: how much is in the call that is under way
	lossy   bool                       // guarded by mu: marks were given up
	failing time.Time                  // guarded by mu: since when calls fail; zero: they do not
}

func newLink(b *Buffer, to route.Router) *link {
	l := &link{
		b: b, to: to, client: b.opts.Client(to), done: make(chan struct{}),
		wake: make(chan struct{}, 1), room: make(chan struct{}, 1),
		dirty: map[route.UserKey][]*wait{}, held: map[route.UserKey]struct{}{}, stream: b.streams.Add(1),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// close ends the link, waits for it, and returns what it had yet to send.
func (l *link) close() map[route.UserKey][]*wait {
	l.cancel()
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return l.dirty
}

// mark lets the users' states be sent; each of the waits is finished once per
// user. It is false when the link has been closed: nothing was marked then.
func (l *link) mark(keys []route.UserKey, waits ...*wait) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	for _, key := range keys {
		old, marked := l.dirty[key]
		if !marked && len(l.dirty) >= maxDirty {
			l.lossy = true
			l.b.opts.Hooks.Overflowed(1)
			for _, w := range waits {
				w.finish(false)
			}
			continue
		}
		l.dirty[key] = append(old, waits...)
		if !marked {
			l.order = append(l.order, key)
		}
	}
	kick(l.wake)
	return true
}

// push adds a record of a message that was sent, and never blocks.
func (l *link) push(r dedup.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sents) >= maxSents {
		l.b.opts.Hooks.Overflowed(1)
		return
	}
	l.sents = append(l.sents, r)
	kick(l.wake)
}

// pushTook adds what a device took, and never blocks.
func (l *link) pushTook(t *routerv1.SyncTook) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.took) >= maxTook {
		l.b.opts.Hooks.Overflowed(1)
		return
	}
	l.took = append(l.took, t)
	kick(l.wake)
}

// pushAll adds records and waits for room; it gives up when the link or ctx ends.
func (l *link) pushAll(ctx context.Context, records []dedup.Record) {
	for len(records) > 0 {
		l.mu.Lock()
		n := min(len(records), max(maxSents/2-len(l.sents), 0))
		l.sents = append(l.sents, records[:n]...)
		l.mu.Unlock()
		if n > 0 {
			records = records[n:]
			kick(l.wake)
			continue
		}
		select {
		case <-l.room:
		case <-l.ctx.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

func (l *link) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.dirty) + len(l.sents) + len(l.took) + l.under
}

// suspect tells that the other side has not answered for so long that nobody
// should wait for it.
func (l *link) suspect() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.failing.IsZero() && time.Since(l.failing) >= holdFor
}

// copies tells over which stream copies are made now.
func (l *link) copies() (stream uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stream
}

func (l *link) run() {
	defer close(l.done)
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		beating := false
		select {
		case <-l.wake:
		case <-beat.C:
			beating = l.seq > 0 && l.b.left.Load() == 0
		case <-l.ctx.Done():
			return
		}
		for l.ctx.Err() == nil {
			batch := l.next()
			if len(batch.users)+len(batch.req.Sents)+len(batch.req.Took) == 0 && !beating {
				break
			}
			beating = false
			l.exchange(batch)
			l.mu.Lock()
			l.under = 0
			l.mu.Unlock()
		}
	}
}

// batch is one call.
type batch struct {
	req    *routerv1.SyncRequest
	users  []sent
	stream uint64
}

// sent is one user's part of it.
type sent struct {
	key     route.UserKey
	waits   []*wait
	entries []offline.Held
	more    bool // not all of them are in it
}

// next makes a call of what waits.
func (l *link) next() batch {
	self := l.b.opts.Members.Self()
	l.mu.Lock()
	if l.b.left.Load() != 0 {
		// Copies of what a router had that has left are not its own any more.
		for _, waits := range l.dirty {
			for _, w := range waits {
				w.finish(true)
			}
		}
		clear(l.dirty)
		l.order, l.lossy = nil, false
	}
	if l.lossy && len(l.dirty) == 0 {
		l.mu.Unlock()
		l.begin()
		l.mu.Lock()
	}
	b := batch{stream: l.stream, req: &routerv1.SyncRequest{
		From: ref(self.NodeRef), ToIncarnation: l.to.Incarnation, Stream: l.stream,
	}}
	n := min(len(l.sents), maxSyncSents)
	for _, r := range l.sents[:n] {
		b.req.Sents = append(b.req.Sents, &routerv1.SyncSent{Key: r.Key[:], UserHash: r.User, WindowMs: uint32(max(r.Window.Milliseconds(), 0))})
	}
	l.sents = slices.Delete(l.sents, 0, n)
	took := min(len(l.took), maxSyncTook)
	b.req.Took = slices.Clone(l.took[:took])
	l.took = slices.Delete(l.took, 0, took)
	l.under = n + took
	l.mu.Unlock()
	kick(l.room)
	for room := maxSyncBytes; room > 0 && len(b.users) < maxSyncUsers; {
		l.mu.Lock()
		if len(l.order) == 0 {
			l.order = nil
			l.mu.Unlock()
			break
		}
		u := sent{key: l.order[0], waits: l.dirty[l.order[0]]}
		l.order = l.order[1:]
		delete(l.dirty, u.key)
		l.under++
		l.mu.Unlock()
		if !l.elsewhere(u.key) {
			u.entries, u.more = l.b.opts.Local.Snapshot(u.key, b.stream, room)
		}
		user := &routerv1.SyncUser{TenantId: u.key.Tenant, UserId: u.key.User, SettledDevices: l.b.takeSettled(u.key)}
		for _, h := range u.entries {
			e := &routerv1.HeldEntry{Id: h.ID, Taken: h.Taken}
			if !h.Known {
				e.Entry = wireEntry(u.key, h.Entry)
				room -= len(h.Bytes) + wireOverhead
			}
			user.Entries = append(user.Entries, e)
		}
		room -= wireOverhead
		b.users = append(b.users, u)
		b.req.Users = append(b.req.Users, user)
	}
	return b
}

// elsewhere tells that the user's copies are at another router, all of them, so
// that those here can go.
func (l *link) elsewhere(key route.UserKey) bool {
	d := l.b.view().duty(key)
	if d.copy == nil || d.copy.NodeRef == l.to.NodeRef {
		return false
	}
	other := l.b.link(*d.copy)
	return other != nil && l.b.opts.Local.HasCopies(key, other.copies())
}

// exchange makes the call until it is answered, or the link ends: then the users
// are marked again, for whoever has the copies next.
func (l *link) exchange(b batch) {
	l.seq++
	b.req.Seq = l.seq
	for {
		ctx, cancel := context.WithTimeout(l.ctx, syncTimeout)
		res, err := l.client.Sync(ctx, connect.NewRequest(b.req))
		cancel()
		if err == nil {
			l.answered(b, res.Msg)
			return
		}
		if l.ctx.Err() != nil || !l.failed() {
			for _, u := range b.users {
				l.mark([]route.UserKey{u.key}, u.waits...)
			}
			return
		}
		if l.b.left.Load() != 0 { // as in next
			for _, u := range b.users {
				for _, w := range u.waits {
					w.finish(true)
				}
			}
			if b.users, b.req.Users = nil, nil; len(b.req.Sents)+len(b.req.Took) == 0 {
				return
			}
		}
	}
}

// failed notes it and pauses; false when the link ends.
func (l *link) failed() bool {
	l.b.opts.Hooks.SyncFailed()
	l.mu.Lock()
	if l.failing.IsZero() {
		l.failing = time.Now()
	}
	l.mu.Unlock()
	return sleep(l.ctx, syncPause)
}

func (l *link) answered(b batch, res *routerv1.SyncResponse) {
	l.mu.Lock()
	l.failing = time.Time{}
	l.mu.Unlock()
	if !res.InStep {
		for _, u := range b.users {
			l.mark([]route.UserKey{u.key}, u.waits...)
		}
		l.begin()
		return
	}
	for i, u := range b.users {
		l.mu.Lock()
		if len(u.entries) > 0 {
			l.held[u.key] = struct{}{}
		} else {
			delete(l.held, u.key)
		}
		l.mu.Unlock()
		missing := slices.Contains(res.Missing, uint32(i))
		full := slices.Contains(res.Full, uint32(i))
		switch {
		case missing:
			l.b.opts.Local.Uncopied(u.key, b.stream)
		case !full && len(u.entries) > 0:
			l.b.opts.Local.Copied(u.key, u.entries, b.stream)
		}
		if missing || u.more && !full {
			l.mark([]route.UserKey{u.key}, u.waits...)
			continue
		}
		for _, w := range u.waits {
			w.finish(!full)
		}
	}
}

// begin starts a new stream: the other side has nothing, and gets everything.
func (l *link) begin() {
	l.mu.Lock()
	l.stream, l.lossy = l.b.streams.Add(1), false
	clear(l.held)
	l.mu.Unlock()
	l.seq = 0
	v := l.b.view()
	l.b.opts.Local.Users(func(key route.UserKey) bool {
		if d := v.duty(key); d.copy != nil && d.copy.NodeRef == l.to.NodeRef {
			l.mark([]route.UserKey{key})
		}
		return l.ctx.Err() == nil
	})
}
