// Package peer is what routers do for each other's users. It finds a user's home
// router and keeps there, or here when this router is it, the user's offline
// buffer; it keeps a copy of it at the next router in the ranking, and moves it
// when routers come and go (DESIGN section 5).
//
// A router holds its own entries (offline.Buffer), and copies of those of others
// (replicas). Copies are brought up to date by a link to each other router, user
// by user: what is sent is the user's present state, with the messages that the
// other side has not got yet. So a call that failed is simply made again, and
// there is no log that could overflow.
//
// What a router holds for users whose home is elsewhere it moves there: its own
// entries when their home has changed, and copies whose owner is gone, which
// become its own first. Until that is over, a device that connects at the home
// gets what other routers still hold for it (TakeFor).
package peer

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/dedup"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/recall"
	"github.com/mics-im/mics/router/internal/route"
)

// Directory tells who is a user's home.
type Directory interface {
	Home(route.UserKey) (home route.Router, self bool)
	Alive(route.NodeRef) bool
}

// Members tells which routers are alive, the same that Directory ranks. The slice
// that Routers returns is not modified, and a new one when it has changed.
type Members interface {
	Self() route.Router
	Routers() []route.Router
}

// Lookup reads a user's records past every cache.
type Lookup func(ctx context.Context, key route.UserKey) ([]route.Record, error)

// Sents remembers what was answered SENT.
type Sents interface {
	Learn(dedup.Record)
	Records(func([]dedup.Record) bool)
}

// Hooks are counters; they must not block. Those that are nil are not called.
type Hooks struct {
	// SyncFailed counts calls to the holder of copies that failed; they are made
	// again.
	SyncFailed func()
	// SingleCopy counts entries that SENT was said for, although the copy could
	// not be made in time; it is made later.
	SingleCopy func(n int)
	// Moved counts entries that went to another home.
	Moved func(n int)
	// Overflowed counts what was not passed on because too much waited: marks of
	// users, for which everything is sent anew later, and records of sent
	// messages and of what devices took, which are not.
	Overflowed func(n int)
	// CopiesRefused counts entries of other routers for which there was no room.
	CopiesRefused func(n int)
}

// Options configure a Buffer. Members, Sents, Deliver and Hooks may be missing.
type Options struct {
	Directory Directory
	// Members nil: what is kept has one copy and never moves.
	Members Members
	Local   *offline.Buffer
	// Recall knows what devices took whose sessions this router was told the end of.
	Recall *recall.Memory
	Lookup Lookup
	// Client returns the client of another router.
	Client func(route.Router) routerv1connect.PeerServiceClient
	// Admitting tells whether a device of the user is being let in here: what is kept
	// for him does not go elsewhere meanwhile. Nil: never.
	Admitting func(route.UserKey) bool
	// TTL is how long the tenant keeps messages; zero: not at all.
	TTL func(tenant string) time.Duration
	// Sents nil: other routers do not learn what was sent.
	Sents Sents
	// Deliver brings a message to a device of the user that came back before what
	// was kept for it had reached its home; if it has left again, into the
	// buffer. Messages of one user come in order. It must not block. Nil: they
	// stay until the device connects again.
	Deliver func(route.DeviceKey, []*dispatch.Message)
	// Surrender returns what has been promised to a device, is not in the buffer, and is
	// on its way to no session that lives, and forgets it; lost is a session that does not.
	// Nil: there is nothing else than the buffer.
	Surrender func(ctx context.Context, key route.DeviceKey, lost route.Location) []*dispatch.Message
	Hooks     Hooks
}

// Buffer implements dispatch.Buffer over all routers.
type Buffer struct {
	opts  Options
	seed  maphash.Seed
	lanes [lanes]*rpc.Queue[dispatch.BufferEntry]
	laned sync.WaitGroup

	replicas *replicas
	streams  atomic.Uint64
	present  atomic.Pointer[view]
	vmu      sync.Mutex   // serialises changes of present
	left     atomic.Int64 // since when this router leaves, Unix time in nanoseconds; changes under vmu

	lmu   sync.Mutex
	links map[route.NodeRef]*link // guarded by lmu

	amu sync.Mutex // held while entries are in no place where a backlog would be looked for

	smu      sync.Mutex
	toSettle map[route.UserKey][]string // guarded by smu: devices, not told yet

	rmu      sync.Mutex
	rechecks map[route.UserKey]struct{} // guarded by rmu: adopted, devices may be there

	keepKick, moveKick, pushKick chan struct{} // capacity 1
	ctx                          context.Context
	cancel                       context.CancelFunc
	wg                           sync.WaitGroup
}

// NewBuffer returns a buffer; Close ends it. It takes Local's OnChange.
func NewBuffer(opts Options) *Buffer {
	b := &Buffer{
		opts: opts, seed: maphash.MakeSeed(),
		links: map[route.NodeRef]*link{}, rechecks: map[route.UserKey]struct{}{}, toSettle: map[route.UserKey][]string{},
		keepKick: make(chan struct{}, 1), moveKick: make(chan struct{}, 1), pushKick: make(chan struct{}, 1),
	}
	b.opts.Hooks = opts.Hooks.whole()
	if b.opts.Admitting == nil {
		b.opts.Admitting = func(route.UserKey) bool { return false }
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	if opts.Members != nil {
		b.replicas = newReplicas(opts.Local.Limits().MaxBytes, b.opts.Hooks.CopiesRefused)
		pushed := b.view()
		opts.Local.OnChange(func(key route.UserKey) { b.mark([]route.UserKey{key}, nil) })
		b.wg.Go(b.keeper)
		b.wg.Go(b.mover)
		b.wg.Go(func() { b.pusher(pushed) })
	}
	for i := range b.lanes {
		q := rpc.NewQueue[dispatch.BufferEntry](maxQueued)
		b.lanes[i] = q
		b.laned.Go(func() { b.serve(q) })
	}
	return b
}

// Close takes nothing more and waits until what is queued has been put. No other
// method may be running or be called any more.
func (b *Buffer) Close() {
	for _, q := range b.lanes {
		q.Close()
	}
	b.laned.Wait()
	b.cancel()
	b.wg.Wait()
	b.lmu.Lock()
	defer b.lmu.Unlock()
	for _, l := range b.links {
		l.close()
	}
}

// CopiesBytes is the size of what is kept here for other routers.
func (b *Buffer) CopiesBytes() int64 {
	if b.replicas == nil {
		return 0
	}
	return b.replicas.size()
}

// SyncQueue is how many users' states and records of sent messages wait to be
// passed on to other routers.
func (b *Buffer) SyncQueue() int64 {
	b.lmu.Lock()
	defer b.lmu.Unlock()
	n := 0
	for _, l := range b.links {
		n += l.waiting()
	}
	return int64(n)
}

// whole replaces what is missing.
func (h Hooks) whole() Hooks {
	if h.SyncFailed == nil {
		h.SyncFailed = func() {}
	}
	for _, f := range []*func(int){&h.SingleCopy, &h.Moved, &h.Overflowed, &h.CopiesRefused} {
		if *f == nil {
			*f = func(int) {}
		}
	}
	return h
}

// kick wakes the owner of the channel.
func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sleep waits; false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
