// Package dispatch brings messages to devices: live ones through the stream to
// their gateway, absent ones into the offline buffer. It keeps a sender's order
// to every recipient while routes change, looks again, a bounded number of
// times, when a gateway says that a session is not (or no longer) there, and
// keeps a copy of what a gateway has accepted until the gateway confirms it: a
// gateway that dies loses nothing (DESIGN section 5).
package dispatch

import (
	"context"
	"hash/maphash"
	"sync"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// Message is what is delivered; its bytes are shared by all who get it.
type Message struct {
	Bytes       []byte // a serialized MessageRequest; never modified
	Unmoderated bool
	TraceParent string
	// Key names the message to whoever has to recognise a repeat; zero: nobody
	// can.
	Key [16]byte
	// At is when the cluster took it, Unix time in nanoseconds, as its offline buffer
	// has it; zero: not known, as of what a session hands back. Of two messages on
	// their way to a device the earlier one goes first, wherever they come from.
	At int64
	// Front: it was in the front of the buffer.
	Front bool
}

// First tells whether the message goes before all of known time when it is kept again.
func (m *Message) First() bool { return m.Front || m.At == 0 }

// Recipient is a user and the records found for him, possibly from a cache.
type Recipient struct {
	Key     route.UserKey
	Records []route.Record
}

// Job is one message for one or many users.
type Job struct {
	Message    *Message
	Recipients []Recipient
	// MaxBuffered bounds how many absent users get a buffer entry; 0: no bound.
	MaxBuffered int
	// Done is called once, when the cluster has taken responsibility for all it
	// will take. It must not block.
	Done func(Result)
}

// Result counts users. A user with a live device that took the message counts
// as delivered, also when another device's copy was buffered.
type Result struct {
	Delivered, Buffered, Skipped int
}

// Directory tells which gateways are alive.
type Directory interface {
	Alive(route.NodeRef) bool
	Gateway(route.NodeRef) (route.Node, bool)
}

// Routes is what dispatch needs of the route store.
type Routes interface {
	LookupFresh(ctx context.Context, key route.UserKey) ([]route.Record, error)
	Change(ctx context.Context, changes []route.Change) ([]bool, error)
}

// BufferResult is what became of a buffer entry.
type BufferResult uint8

const (
	// Stored: it is kept.
	Stored BufferResult = iota
	// Online: a device of the entry is live; nothing was kept.
	Online
	// NotKept: the tenant or a bound does not allow it.
	NotKept
)

// BufferEntry is a message for absent devices.
type BufferEntry struct {
	Key     route.UserKey
	Devices []string // none: whichever device comes first
	Message *Message
	// Front: handed back by a closing session, older than what is there. Else it goes
	// behind what the cluster took before it (Message.At).
	Front bool
	// Done is called once; it must not block.
	Done func(BufferResult)
}

// Buffer keeps messages for absent devices at their user's home. Put never
// blocks; entries of one user are taken in order.
type Buffer interface {
	Put(BufferEntry)
}

// Hooks are the dispatcher's counters; every one is called without a lock that
// it could need, and must not block.
type Hooks struct {
	// Refused counts deliveries that a gateway did not take, by reason.
	Refused func(reason string)
	// Forwarded measures a delivery from its queue to the gateway's answer.
	Forwarded func(node route.NodeRef, d time.Duration)
	// ForwardFailed counts deliveries that a gateway which is gone had not taken.
	ForwardFailed func(node route.NodeRef)
	// Recovered counts copies that a gateway had accepted and not confirmed when
	// it was gone: they are delivered again.
	Recovered func(n int)
	// Settled says that a session has confirmed the whole backlog held for it.
	Settled func(key route.DeviceKey)
	// Lost counts copies that were promised and could not be kept.
	Lost func()
}

// Options configure a Dispatcher; all are required.
type Options struct {
	Directory Directory
	Routes    Routes
	Buffer    Buffer
	Dial      Dialer
	Hooks     Hooks
	// GhostTTL is how long a device is remembered whose route turned out wrong.
	GhostTTL func(tenant string) time.Duration
	// Router names this router in its streams.
	Router route.NodeRef
}

const shardCount = 64

// Dispatcher is safe for concurrent use.
type Dispatcher struct {
	opts   Options
	seed   maphash.Seed
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	shards [shardCount]shard

	mu    sync.Mutex
	links map[route.NodeRef]*link // guarded by mu
}

type shard struct {
	mu    sync.Mutex
	users map[route.UserKey]*flow // guarded by mu: users with something under way
}

// New returns a dispatcher; Close ends it.
func New(opts Options) *Dispatcher {
	d := &Dispatcher{opts: opts, seed: maphash.MakeSeed(), links: map[route.NodeRef]*link{}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	for i := range d.shards {
		d.shards[i].users = map[route.UserKey]*flow{}
	}
	return d
}

// Close ends all streams and waits for the dispatcher's goroutines. What is
// still under way is not answered any more.
func (d *Dispatcher) Close() {
	d.cancel()
	d.mu.Lock()
	for _, l := range d.links {
		l.stop()
	}
	d.mu.Unlock()
	d.wg.Wait()
}

// Send starts a job; it does not block on the network. Jobs that one goroutine
// sends one after another reach a device in that order.
func (d *Dispatcher) Send(j Job) {
	t := newTracker(len(j.Recipients), j.MaxBuffered, j.Done)
	out := outbox{d: d, msg: j.Message}
	for i, r := range j.Recipients {
		it := item{msg: j.Message, tracker: t, user: i}
		s := d.shard(r.Key)
		s.mu.Lock()
		d.submit(s.flow(r.Key), it, r.Records, &out)
		s.mu.Unlock()
	}
	out.flush()
	t.finish(t.all, 0) // the job's own hold on the tracker
}

// SendTo delivers a message to one device only, or into its buffer if it has
// left; for messages pulled for, or handed back by, that device. It looks the
// device up afresh.
func (d *Dispatcher) SendTo(key route.DeviceKey, m *Message, done func(Result)) {
	t := newTracker(1, 0, done)
	s := d.shard(key.UserKey)
	s.mu.Lock()
	f := s.flow(key.UserKey)
	t.hold()
	f.waiting = append(f.waiting, item{msg: m, tracker: t, device: key.Device, order: f.nextOrder()})
	d.settle(f)
	s.mu.Unlock()
	t.finish(t.all, 0)
}

// HeldCopies is how many copies wait for a confirm.
func (d *Dispatcher) HeldCopies() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := int64(0)
	for _, l := range d.links {
		n += int64(l.size())
	}
	return n
}

func (d *Dispatcher) shard(key route.UserKey) *shard {
	return &d.shards[maphash.Comparable(d.seed, key)%shardCount]
}

// flow returns the user's flow, a new one if nothing is under way for him. The
// shard is locked; whoever adds nothing to a new one must forget it.
func (s *shard) flow(key route.UserKey) *flow {
	f := s.users[key]
	if f == nil {
		f = &flow{key: key}
		s.users[key] = f
	}
	return f
}

// link returns the stream to a gateway, nil if the gateway is not known.
func (d *Dispatcher) link(ref route.NodeRef) *link {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.links[ref]; l != nil {
		return l
	}
	node, ok := d.opts.Directory.Gateway(ref)
	if !ok || d.ctx.Err() != nil {
		return nil
	}
	l := newLink(d, node)
	d.links[ref] = l
	d.wg.Go(l.run)
	return l
}

// Prune ends the streams to gateways that are no longer alive: what was under
// way to them is looked up again. The owner calls it when the directory changes.
func (d *Dispatcher) Prune() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ref, l := range d.links {
		if !d.opts.Directory.Alive(ref) {
			l.stop()
			delete(d.links, ref)
		}
	}
}
