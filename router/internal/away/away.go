// Package away keeps routing going while the route store is away, slow, or has
// lost what it held, and puts the store right when it is back (DESIGN section 5,
// "Redis unreachable").
//
// A Store is in one of three phases:
//
//	up       every call goes to the backend, and the home remembers its users
//	away     the backend does not answer: the mirrors of the users' homes and the
//	         gateways say who is where; changes are made in the mirror
//	healing  the backend answers again: what it missed is written to it; a record
//	         that is missing there proves nothing yet
//
// What makes this simple is that a user's home makes all binds of his devices, and
// that records of one device can be put in an order by themselves (better): what
// several processes remember can be put together in any order.
package away

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/route"
)

type phase int32

const (
	up phase = iota
	away
	healing
)

// defaultMaxUsers bounds the mirror where the options do not: about 300 bytes a
// user.
const defaultMaxUsers = 200_000

// Options is what New needs.
type Options struct {
	// Store is the backend. It is closed by Close.
	Store route.Store
	Self  route.Router
	// Lease is how long a node lives without a word.
	Lease time.Duration
	// MaxUsers bounds the users whose routes are remembered; 0: 200,000.
	MaxUsers  int
	Telemetry *telemetry.Telemetry
}

// Directory is this router's picture of who is alive. None of it but Hear may ask the
// store.
type Directory interface {
	Home(route.UserKey) (home route.Router, self bool)
	// Routers and Ring are the living routers, and a number that rises by one
	// whenever their set changes.
	Routers() []route.Router
	Ring() uint64
	// Gateways are the living ones, by what the store said at Read and what they say
	// themselves.
	Gateways() []route.Node
	Read() time.Time
	Gateway(route.NodeRef) (route.Node, bool)
	// Hear takes a router's word that it lives; it may ask the store.
	Hear(context.Context, route.Router)
}

// Cluster is who else there is.
type Cluster struct {
	Directory Directory
	Peer      func(route.Router) routerv1connect.PeerServiceClient
	Gateway   func(route.Node) gatewayv1connect.GatewayServiceClient
	// Rebuilt is called when routes are right again that were not; it must not block.
	Rebuilt func()
}

// Store implements route.Store over a backend that may be away. Its look-ups may
// block for a second or two then.
type Store struct {
	backend route.Store
	opts    Options
	log     *slog.Logger
	cluster Cluster // set by Start
	mirror  *mirror

	gateways, homes, memories askers
	marks, saves              flights
	search, absent            flights // of findPeer, by save; of learnAbsent

	state atomic.Int32 // a phase; changes under mu
	// presence is the time since the backend was there last, whole; it ends when it
	// is lost. Never nil.
	presence atomic.Pointer[presence]
	losses   atomic.Uint64 // counts how often the backend had lost its content; rises under mu
	// gate is held for reading by whoever changes the mirror instead of the
	// backend, for the moment of the change, and for writing by the step back to
	// up: nothing stays unsaved.
	gate sync.RWMutex

	mu        sync.Mutex
	marker    string              // guarded by mu: the name of the backend's content
	whole     bool                // guarded by mu: the backend said that nothing is missing in it
	sure      uint64              // guarded by mu: the set of routers with which this one's users were all in it
	reached   bool                // guarded by mu: the backend has answered once
	outage    outage              // guarded by mu
	heal      recovery            // guarded by mu
	calm      orderly             // guarded by mu
	partial   time.Time           // guarded by mu: until then leases may be missing in the backend
	last      members             // guarded by mu: the last full lists
	drift     map[share]int       // guarded by mu: connections that were not counted
	newcomers map[string]newcomer // guarded by mu: routers, by id, that the Directory may not list yet
	announced chan struct{}       // guarded by mu: of the last Lapsed, closed when it has been heard
	told      []route.Router      // guarded by mu: who has been told who is absent
	started   time.Time           // guarded by mu
	closed    bool                // guarded by mu: no goroutine is started any more
	suspect   bool                // guarded by mu: a call was given up before the backend had its time
	wg        sync.WaitGroup      // added to under mu while not closed
	ctx       context.Context     // ends with Stop
	cancel    context.CancelFunc
	kick      chan struct{} // capacity 1: the loop should look at once

	outages, rebuilt, lookups, unenforced, overflow *telemetry.Counter
}

// presence is one time in which the backend is there.
type presence struct {
	ctx context.Context
	end context.CancelFunc
}

// begin is the beginning of a presence.
func (s *Store) begin() {
	p := &presence{}
	p.ctx, p.end = context.WithCancel(s.ctx)
	if old := s.presence.Swap(p); old != nil {
		old.end()
	}
}

// outage is one absence of the backend, until it counts as back.
type outage struct {
	since time.Time // zero: there is none
	err   error
	asked chan struct{} // closed when the other routers have been asked
	peer  *route.Router // one that reaches the backend
	alone bool          // none of the other routers answered
}

// share is a node's part of a tenant's connections.
type share struct {
	tenant string
	node   route.NodeRef
}

var _ route.Store = (*Store)(nil)

// New registers the metrics. Until Start the Store only passes calls on.
func New(o Options) *Store {
	if o.MaxUsers <= 0 {
		o.MaxUsers = defaultMaxUsers
	}
	t := o.Telemetry
	s := &Store{backend: o.Store, opts: o, log: t.Log, drift: map[share]int{}, newcomers: map[string]newcomer{}, kick: make(chan struct{}, 1), marks: newFlights(), saves: newFlights(), search: newFlights(), absent: newFlights()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.begin()
	s.outages = t.Counter("mics_redis_outages_total", "Times that the route store was lost.")
	s.rebuilt = t.Counter("mics_routes_rebuilt_total", "Routes written to a route store that had lost them.")
	s.lookups = t.Counter("mics_away_lookups_total", "Users looked up while the route store was away or not whole.")
	s.unenforced = t.Counter("mics_limits_unenforced_total", "Connections admitted without asking their tenant's limit.")
	s.overflow = t.Counter("mics_away_questions_refused_total", "Users not asked for because too many waited for one process.")
	s.mirror = newMirror(o.MaxUsers, t.Counter("mics_away_records_forgotten_total", "Changes of routes that were not in the store yet and had to be forgotten."))
	t.Gauge("mics_redis_up", "Whether the route store answers.", func() int64 {
		if s.phase() != away && s.Reached() {
			return 1
		}
		return 0
	})
	t.Gauge("mics_away_users", "Users whose routes this router remembers beside the store.", func() int64 { return int64(s.mirror.len()) })
	return s
}

// Start begins to watch the backend. Call it once, before anything but c's
// Directory uses the Store.
func (s *Store) Start(c Cluster) {
	s.cluster = c
	s.mu.Lock()
	s.started = time.Now()
	s.mu.Unlock()
	s.spawn(s.run)
	s.spawn(s.runTelling)
}

// Lapsed says that this router is new among those of the Directory, or as good as new.
// Others may have bound its users' devices: what it remembers of them is not all any
// more. And it tells them that it is there: until they have read the store again, and for
// as long as that is away, they would go on as if it were not. It does not block.
func (s *Store) Lapsed() {
	s.mirror.unsure()
	heard := make(chan struct{})
	s.mu.Lock()
	s.announced = heard
	s.mu.Unlock()
	s.spawn(func() {
		defer close(heard)
		s.askOthers(s.cluster.Directory.Routers(), s.question(), nil)
	})
}

// AwaitHeard waits until the other routers have heard what Lapsed told them last, a second
// at most.
func (s *Store) AwaitHeard() {
	s.mu.Lock()
	heard := s.announced
	s.mu.Unlock()
	if heard != nil {
		<-heard
	}
}

// Stop ends the watch and waits for it. What is not saved by then the backend does
// not learn from this router; who is absent the other routers do. It may be called
// without Start.
func (s *Store) Stop() {
	if s.cluster.Directory != nil {
		s.tell(s.ctx)
	}
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

// spawn runs f in a goroutine that Stop waits for, or after Stop, when s.ctx has
// ended, in the caller's.
func (s *Store) spawn(f func()) {
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.wg.Go(f)
	}
	s.mu.Unlock()
	if closed {
		f()
	}
}

func (s *Store) phase() phase { return phase(s.state.Load()) }

// Reached tells whether the backend has ever answered.
func (s *Store) Reached() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reached
}

// Degraded says what this router does without, for /readyz.
func (s *Store) Degraded() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.phase() == away:
		return []string{fmt.Sprintf("redis: %v", s.outage.err)}
	case s.phase() == healing:
		return []string{"redis: routes are being written back"}
	}
	return nil
}

func (s *Store) markerNow() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.marker
}

func (s *Store) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// failed tells whether the backend did not answer: what was asked must be answered
// without it. If ctx has ended it may be the caller who did not wait: then err is
// for him, and the backend is asked whether it is there.
func (s *Store) failed(ctx context.Context, err error) bool {
	if !errors.Is(err, route.ErrUnavailable) {
		return false
	}
	if ctx.Err() != nil {
		s.mu.Lock()
		s.suspect = true
		s.mu.Unlock()
		s.wake()
		return false
	}
	s.lost(err)
	return true
}

// lost begins an outage, or ends an attempt to come back from one.
func (s *Store) lost(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase() == away {
		s.outage.err = err
		return
	}
	now := time.Now()
	if s.outage.since.IsZero() {
		s.outage.since = now
		s.outages.Inc()
	}
	s.outage = outage{since: s.outage.since, err: err, asked: make(chan struct{})}
	s.calm = s.calm.lost(now)
	s.state.Store(int32(away))
	s.presence.Load().end()
	s.log.Warn("redis_lost", "err", err.Error())
	s.wake()
}

// verify tells whether the backend still holds what it held, and begins to put it
// right if it does not. Whoever finds something missing asks here.
func (s *Store) verify() bool { return s.marks.do(s.check) }

// certain is verify for an answer to a call before which there had been so many
// losses: it may have been lost, and put right again, since.
func (s *Store) certain(losses uint64) bool { return s.verify() && s.losses.Load() == losses }

func (s *Store) check() bool {
	if s.phase() == away {
		return false
	}
	ring := s.ring()
	m, err := s.backend.Marker(s.ctx)
	if err != nil {
		if s.ctx.Err() == nil {
			s.lost(err)
		}
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reached = true
	first := s.marker == ""
	same := !m.Created && (first || s.marker == m.ID)
	s.marker, s.whole = m.ID, m.Whole
	// Users whose home this router is only now may be among those whose routes nobody
	// has written yet: who was to do it may have died.
	unsure := same && !m.Whole && (first || s.sure != ring) && !s.heal.rebuild
	if m.Whole {
		s.sure = ring
	}
	if same && !unsure {
		return s.phase() == up
	}
	s.losses.Add(1)
	switch {
	case unsure:
		s.log.Warn("redis_not_whole")
	case first:
		s.log.Info("redis_empty") // as it is before the first router has ever come
	default:
		s.log.Warn("redis_emptied")
	}
	s.partial = time.Now().Add(s.opts.Lease)
	s.mirror.doubt(time.Time{}, s.mine)
	s.heal = recovery{began: time.Now(), rebuild: true, emptied: first || !unsure}
	if s.phase() == up {
		s.state.Store(int32(healing))
		s.wake()
	}
	return false
}

// turn keeps the mirror in step with the set of routers.
func (s *Store) turn() {
	if s.cluster.Directory != nil {
		s.mirror.turn(s.ring(), s.mine)
	}
}

// ring is the number of the present set of routers.
func (s *Store) ring() uint64 {
	if d := s.cluster.Directory; d != nil {
		return d.Ring()
	}
	return 0
}

func (s *Store) mine(key route.UserKey) bool {
	if s.cluster.Directory == nil {
		return false
	}
	_, self := s.cluster.Directory.Home(key)
	return self
}

// Ping implements route.Store.
func (s *Store) Ping(ctx context.Context) error {
	if s.phase() == away {
		return s.unavailable()
	}
	return s.backend.Ping(ctx)
}

// Close closes the backend.
func (s *Store) Close() error { return s.backend.Close() }

func (s *Store) unavailable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.outage.err != nil {
		return s.outage.err
	}
	return route.ErrUnavailable
}
