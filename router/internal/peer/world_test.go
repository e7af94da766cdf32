package peer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/dedup"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/memstore"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/recall"
	"github.com/mics-im/mics/router/internal/route"
)

// world is a cluster of routers in fake time: their real peer code over a network
// in memory, a shared route store, devices that come and go. Every router learns
// of others that come and go at a time of its own, of a death after the lease.
type world struct {
	t     *testing.T
	store *memstore.Store
	// loses tells whether a call's answer is lost, or the call ("to" and its name).
	loses func(w *world, call string) bool

	mu      sync.Mutex
	rng     *rand.Rand                 // guarded by mu
	all     []*member                  // guarded by mu: ever
	members []*member                  // guarded by mu: who is to be in the pictures
	devices map[route.UserKey]*handset // guarded by mu: the map is not changed
	lost    []string                   // guarded by mu
}

// member is one router.
type member struct {
	*Buffer
	w        *world
	self     route.Router
	local    *offline.Buffer
	sents    *dedup.Table[string]
	view     atomic.Pointer[[]route.Router]
	dead     atomic.Bool
	frozen   atomic.Bool // its picture does not change any more
	single   atomic.Int64
	done     []finished   // guarded by w.mu: messages that were SENT here
	delivers atomic.Int64 // messages brought to devices that were there already
}

type finished struct {
	key    dedup.Key
	sender route.UserKey
	at     time.Time
}

func never(*world, string) bool { return false }

// handset is a user's device. It recognises what it has got already.
type handset struct {
	key     route.DeviceKey
	busy    sync.Mutex // one step at a time
	session uint64
	home    atomic.Pointer[member] // that makes its backlog

	// Guarded by world.mu.
	state   state
	queue   []*dispatch.Message // came live while the backlog was made
	got     []string
	wants   []string
	repeats int
}

type state int

const (
	away state = iota
	connecting
	here
)

const lag = 500 * time.Millisecond

var (
	gate    = route.NodeRef{ID: "g", Incarnation: 1}
	errGone = connect.NewError(connect.CodeUnavailable, errors.New("gone"))
)

func newWorld(t *testing.T, seed uint64, routers int, loses func(w *world, call string) bool) *world {
	w := &world{
		t: t, store: memstore.New(), rng: rand.New(rand.NewPCG(seed, 2)), devices: map[route.UserKey]*handset{},
		loses: loses,
	}
	for i := range 4 {
		key := route.UserKey{Tenant: "t", User: fmt.Sprint("u", i)}
		w.devices[key] = &handset{key: route.DeviceKey{UserKey: key, Device: "phone"}}
	}
	for range routers {
		w.join()
	}
	time.Sleep(2 * lag) // fake time
	return w
}

func (w *world) random(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

func (w *world) close() {
	for _, m := range w.all {
		m.frozen.Store(true)
		m.Close()
	}
}

// join adds a router.
func (w *world) join() *member {
	w.mu.Lock()
	id := fmt.Sprint("r", len(w.all))
	w.mu.Unlock()
	return w.start(route.NodeRef{ID: id, Incarnation: 1})
}

// restart kills a router that comes back at once, before anybody has missed it.
func (w *world) restart(m *member) {
	m.frozen.Store(true)
	m.dead.Store(true)
	w.pause(1000)
	w.drop(m)
	w.start(route.NodeRef{ID: m.self.ID, Incarnation: m.self.Incarnation + 1})
}

func (w *world) start(self route.NodeRef) *member {
	w.mu.Lock()
	m := &member{w: w, self: route.Router{NodeRef: self}}
	m.local = offline.New(offline.Limits{MaxMessagesPerUser: 10_000, MaxBytesPerUser: 1 << 30, MaxBytes: 1 << 30}, func(_ string, why offline.Drop, n int) {
		w.t.Errorf("%d dropped: %s", n, why)
	})
	m.sents = dedup.NewTable[string](1<<20, nil)
	now := w.picture(m)
	w.mu.Unlock()
	m.view.Store(&[]route.Router{m.self}) // until the directory has been read
	m.Buffer = NewBuffer(Options{
		Directory: m, Members: m, Local: m.local, Recall: recall.New(func(int) {}), Lookup: m.lookup, Sents: m.sents, Deliver: m.deliver,
		Client: func(to route.Router) routerv1connect.PeerServiceClient { return wire2{from: m, id: to.ID} },
		TTL:    func(string) time.Duration { return time.Hour },
		Admitting: func(key route.UserKey) bool {
			p := w.devices[key]
			return p != nil && p.home.Load() == m
		},
		Hooks: Hooks{SingleCopy: func(n int) { m.single.Add(int64(n)) }},
	})
	m.sents.OnSent(m.Sent)
	m.opts.Recall.OnEnded(m.Took)
	m.view.Store(&now)
	m.Rebalance()
	m.Lapsed(false)
	w.mu.Lock()
	w.all, w.members = append(w.all, m), append(w.members, m)
	w.mu.Unlock()
	w.tell(0)
	return m
}

func (w *world) picture(more ...*member) []route.Router {
	var out []route.Router
	for _, m := range append(slices.Clone(w.members), more...) {
		out = append(out, m.self)
	}
	slices.SortFunc(out, func(a, b route.Router) int { return compare(a.ID, b.ID) })
	return out
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// tell lets every router know who is there, after the delay and some time.
func (w *world) tell(after time.Duration) {
	w.mu.Lock()
	all := slices.Clone(w.all)
	w.mu.Unlock()
	for _, m := range all {
		time.AfterFunc(after+time.Duration(w.random(int(lag/time.Millisecond)))*time.Millisecond, func() {
			if m.frozen.Load() {
				return
			}
			w.mu.Lock()
			now := w.picture()
			w.mu.Unlock()
			m.view.Store(&now)
			m.Rebalance()
		})
	}
}

func (w *world) drop(m *member) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.members = slices.DeleteFunc(w.members, func(o *member) bool { return o == m })
}

// kill ends a router without a word.
func (w *world) kill(m *member) {
	m.frozen.Store(true)
	m.dead.Store(true)
	time.AfterFunc(3*time.Second, func() {
		w.drop(m)
		w.tell(0)
	})
}

// shut stops a router in order.
func (w *world) shut(m *member) {
	m.frozen.Store(true)
	w.drop(m)
	w.tell(0)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	m.Leave()
	if err := m.HandOn(ctx); err != nil {
		w.t.Errorf("%s: %v", m.self.ID, err)
	}
	time.Sleep(time.Second) // fake time: what is under way comes to its end
	m.dead.Store(true)
}

func (w *world) named(id string) *member {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range slices.Backward(w.all) { // its last start
		if m.self.ID == id {
			return m
		}
	}
	return nil
}

// someone returns a living router that is to be in the pictures.
func (w *world) someone() *member {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if m := w.members[w.rng.IntN(len(w.members))]; !m.dead.Load() {
			return m
		}
	}
}

// homeOf returns the user's home as some router sees it; it may be dead.
func (w *world) homeOf(key route.UserKey) *member {
	home, _ := w.someone().home(key)
	return w.named(home.ID)
}

func (m *member) Self() route.Router      { return m.self }
func (m *member) Routers() []route.Router { return *m.view.Load() }
func (m *member) Alive(route.NodeRef) bool {
	return true // the one gateway
}
func (m *member) Home(route.UserKey) (route.Router, bool) { panic("there are members") }

func (m *member) lookup(ctx context.Context, key route.UserKey) ([]route.Record, error) {
	m.w.pause(3)
	if m.dead.Load() {
		return nil, errGone
	}
	return m.w.store.LookupFresh(ctx, key)
}

func (m *member) deliver(key route.DeviceKey, msgs []*dispatch.Message) {
	m.delivers.Add(int64(len(msgs)))
	for _, msg := range msgs {
		if !m.dead.Load() {
			m.w.live(m.w.devices[key.UserKey], msg)
		}
	}
}

func (w *world) pause(ms int) {
	time.Sleep(time.Duration(w.random(ms*1000)) * time.Microsecond) // fake time
}

// receive gives the phone a message; the world is locked.
func (p *handset) receive(text string) {
	if slices.Contains(p.got, text) {
		p.repeats++
		return
	}
	p.got = append(p.got, text)
}

// connect brings the phone to its home, if that answers: its route is registered,
// then what was kept for it is taken.
func (w *world) connect(p *handset) {
	p.busy.Lock()
	defer p.busy.Unlock()
	home := w.homeOf(p.key.UserKey)
	if home.Leaving() { // it passes the opening on
		next, _ := home.home(p.key.UserKey)
		home = w.named(next.ID)
	}
	w.mu.Lock()
	ok := p.state == away && !home.dead.Load()
	if ok {
		p.state = connecting
	}
	w.mu.Unlock()
	if !ok {
		return
	}
	p.home.Store(home)
	defer p.home.Store(nil)
	p.session++
	epoch, _, err := w.store.Bind(context.Background(), p.key, route.Location{Node: gate, Session: p.session}, 2)
	if err != nil {
		w.t.Error(err)
	}
	w.pause(3)
	front, rest, _, err := home.TakeFor(context.Background(), p.key, route.Location{})
	if err != nil {
		w.t.Error(err)
	}
	w.pause(3)
	if home.dead.Load() { // the gateway has no answer
		w.leaveAs(p, epoch)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range append(front, rest...) {
		p.receive(string(m.Bytes))
	}
	for _, m := range p.queue {
		p.receive(string(m.Bytes))
	}
	p.queue, p.state = nil, here
}

// leave ends the phone's session.
func (w *world) leave(p *handset) {
	p.busy.Lock()
	defer p.busy.Unlock()
	w.mu.Lock()
	ok := p.state == here
	w.mu.Unlock()
	if !ok {
		return
	}
	records, err := w.store.LookupFresh(context.Background(), p.key.UserKey)
	if err != nil || len(records) != 1 {
		w.t.Fatal(records, err)
	}
	w.leaveAs(p, records[0].Epoch)
}

// leaveAs makes the phone a ghost; what is queued for it is kept.
func (w *world) leaveAs(p *handset, epoch uint64) {
	if _, err := w.store.Change(context.Background(), []route.Change{{
		Key: p.key, Node: gate, Session: p.session, Epoch: epoch, To: route.Ghost, GhostTTL: time.Hour,
	}}); err != nil {
		w.t.Error(err)
	}
	w.mu.Lock()
	p.state = away
	queue := p.queue
	p.queue = nil
	w.mu.Unlock()
	for _, m := range queue {
		w.send(p, m)
	}
}

// live gives the phone a message if it is there, else it is sent again.
func (w *world) live(p *handset, m *dispatch.Message) {
	w.mu.Lock()
	switch p.state {
	case here:
		p.receive(string(m.Bytes))
		w.mu.Unlock()
	case connecting:
		p.queue = append(p.queue, m)
		w.mu.Unlock()
	default:
		w.mu.Unlock()
		go w.send(p, m)
	}
}

// send is a simple dispatcher with the patience of a gateway: it returns when the
// cluster has taken the message.
func (w *world) send(p *handset, m *dispatch.Message) {
	for range 100 {
		at := w.someone()
		records, err := w.store.LookupFresh(context.Background(), p.key.UserKey)
		if err != nil {
			w.t.Error(err)
		}
		plan := route.PlanFor(records, "", at.Alive, time.Now())
		if len(plan.Live) > 0 {
			w.mu.Lock()
			there := p.state != away
			w.mu.Unlock()
			if there {
				w.live(p, m)
				return
			}
			w.pause(5)
			continue
		}
		results := make(chan dispatch.BufferResult, 1)
		at.Put(dispatch.BufferEntry{Key: p.key.UserKey, Devices: plan.Absent, Message: m, Done: func(r dispatch.BufferResult) { results <- r }})
		if r := <-results; r == dispatch.Stored && !at.dead.Load() {
			return
		}
		w.pause(20)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = append(w.lost, string(m.Bytes))
}
