// Package steer brings clients to the track that the canary rule wants them on: it
// keeps the newest rule, also when nobody repeats it, counts the sessions that are
// on the wrong track, and has them move, at the pace that it was told.
package steer

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"time"

	"github.com/mics-im/mics/gateway/internal/drainer"
	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/internal/cohort"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

const (
	// step is how far apart waves are, scanEvery how often all sessions are looked
	// at while there is a rule: a hash each, some milliseconds for 100,000.
	step      = 50 * time.Millisecond
	scanEvery = time.Second
	// countEvery bounds how often all sessions are counted for who asks.
	countEvery = 100 * time.Millisecond
	// maxTold bounds the devices that are remembered as told; 16 MiB or so. Beyond
	// it nobody is told until the next generation.
	maxTold = 1 << 20
	// maxPace bounds what may be asked for, in sessions per second.
	maxPace = 1e6
	// maxTenants bounds a rule.
	maxTenants = 10_000
)

// Mover has sessions go elsewhere; *drainer.Mover does.
type Mover interface {
	Ask(ctx context.Context, sessions []*session.Session, a drainer.Ask) (asked, unable []*session.Session)
	Tell(ctx context.Context, sessions []*session.Session, p drainer.Patience)
}

// Options of a Steerer; all are required.
type Options struct {
	Registry *registry.Registry
	Mover    Mover
	// Track of this gateway.
	Track string
	// Quiet says that no session is to be moved now: the gateway drains.
	Quiet     func() bool
	Telemetry *telemetry.Telemetry
}

// Counts are of the last look at all sessions.
type Counts struct {
	Generation uint64
	// Misplaced sessions are on the wrong track; MisplacedV1 of them are of V1
	// clients; OfCanary are those whose users belong to the canary.
	Misplaced, MisplacedV1, OfCanary uint64
	// Places are all sessions by their users' places; nil if nobody wants to know.
	// Nobody changes it.
	Places []uint32
}

// Steerer is safe for concurrent use.
type Steerer struct {
	o    Options
	log  *slog.Logger
	seed maphash.Seed
	wake chan struct{} // capacity 1: there is a rule, or another one

	asked, moved, stayed, overflow *telemetry.Counter
	stable, canary                 drainer.Targets

	ctx    context.Context // of waves; ends with Stop
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	rule    cohort.Rule // guarded by mu, like what follows
	pace    float64
	moveV1  bool
	places  bool // are to be counted
	counts  Counts
	counted time.Time
	ruled   time.Time // when the rule came
	// told are the devices of V1 clients that were told to go in this generation, by
	// hash: nobody can see where those come from who are on the wrong track again.
	told map[uint64]struct{}
	// taken are the sessions that are in queue, or were, in this generation, and the
	// number of the look that has seen them last.
	taken map[uint64]uint64
	looks uint64
	queue []*session.Session // that are to be asked
	going []going            // that were asked, in the order of their deadlines, about
	gone  uint64             // that have moved, in this generation
	ended bool
}

type going struct {
	s     *session.Session
	until time.Time
}

// New returns a steerer without a rule; Start and Stop it.
func New(o Options) *Steerer {
	t := o.Telemetry
	s := &Steerer{
		o: o, log: t.Log, seed: maphash.MakeSeed(), wake: make(chan struct{}, 1), told: map[uint64]struct{}{}, taken: map[uint64]uint64{},
		asked:    t.Counter("mics_steer_asked_total", "sessions asked to move because they are on the wrong track"),
		moved:    t.Counter("mics_steer_moved_total", "of those that were asked, sessions that moved"),
		stayed:   t.Counter("mics_steer_stayed_total", "of those that were asked, sessions that did not move in time, and stay"),
		overflow: t.Counter("mics_steer_overflow_total", "sessions of V1 clients not told to go because too many were in this generation"),
	}
	t.Gauge("mics_steer_misplaced", "sessions on the wrong track, by the canary rule", func() int64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return int64(s.counts.Misplaced)
	})
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Start begins to move sessions, once there is a rule.
func (s *Steerer) Start() { s.wg.Go(s.loop) }

// Stop ends it. Sessions that were asked may still move.
func (s *Steerer) Stop() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

// Counts of all sessions as they are, or were within countEvery: the control plane
// adds up what gateways say, and a session that moves is to be counted once.
func (s *Steerer) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rule.Generation() != 0 && time.Since(s.counted) >= countEvery {
		s.scan()
	}
	return s.counts
}

// Steer takes a rule, if it is newer than the one in force; of the one in force a
// repeat changes the pace and the targets; an older one changes nothing.
func (s *Steerer) Steer(req *gatewayv1.SteerRequest) (*gatewayv1.SteerResponse, error) {
	if err := check(req); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, fault.New(fault.Unavailable, "the gateway is ending")
	}
	generation := req.GetRule().GetGeneration()
	if generation >= s.rule.Generation() {
		s.pace, s.moveV1, s.places = req.GetSessionsPerSecond(), req.GetMoveV1(), req.GetCountPlaces()
		s.stable.Set(req.GetStable())
		s.canary.Set(req.GetCanary())
	}
	if generation > s.rule.Generation() {
		s.rule = cohort.Compile(req.GetRule())
		clear(s.told)
		clear(s.taken)
		s.ruled = time.Now()
		s.queue, s.going, s.gone = nil, nil, 0
		s.scan()
		s.log.Info("canary_rule", "generation", generation, "weight", req.GetRule().GetWeight(), "misplaced", s.counts.Misplaced)
	}
	select {
	case s.wake <- struct{}{}:
	default: // it is awake
	}
	return &gatewayv1.SteerResponse{Generation: s.rule.Generation(), Misplaced: s.counts.Misplaced, Moved: s.gone}, nil
}

func check(req *gatewayv1.SteerRequest) error {
	r := req.GetRule()
	switch {
	case r.GetGeneration() == 0:
		return fault.New(fault.Invalid, "rule with a generation is required")
	case r.GetWeight() > cohort.Full:
		return fault.New(fault.Invalid, fmt.Sprintf("rule: weight must be at most %d", cohort.Full))
	case len(r.GetTenants())+len(r.GetTenantsDenied()) > maxTenants:
		return fault.New(fault.Invalid, fmt.Sprintf("rule: at most %d tenants", maxTenants))
	case !(req.GetSessionsPerSecond() >= 0 && req.GetSessionsPerSecond() <= maxPace):
		return fault.New(fault.Invalid, fmt.Sprintf("sessions_per_second must be between 0 and %g", maxPace))
	}
	if err := drainer.CheckTargets(req.GetStable()); err != nil {
		return err
	}
	return drainer.CheckTargets(req.GetCanary())
}

// loop scans and moves until Stop.
func (s *Steerer) loop() {
	select {
	case <-s.wake: // the first rule
	case <-s.ctx.Done():
		return
	}
	tick := time.NewTicker(step)
	defer tick.Stop()
	var pace drainer.Pacer
	last, scanned := time.Now(), time.Now()
	for {
		now := time.Now()
		if now.Sub(scanned) >= scanEvery {
			scanned = now
			s.mu.Lock()
			s.scan()
			s.mu.Unlock()
		}
		busy := s.wave(&pace, now.Sub(last), now)
		last = now
		next := tick.C
		if !busy { // there is time until the next scan
			next = time.After(scanEvery)
		}
		select {
		case <-next:
		case <-s.wake:
		case <-s.ctx.Done():
			return
		}
	}
}

// scan looks at all sessions: it counts, and queues who is to be asked. mu is held.
func (s *Steerer) scan() {
	c := Counts{Generation: s.rule.Generation()}
	if s.places {
		c.Places = make([]uint32, cohort.Full)
	}
	s.looks++
	s.o.Registry.Walk(func(one *session.Session) bool {
		stage := one.Stage()
		if stage != session.Open && stage != session.Suspended {
			return true
		}
		id := one.Identity()
		if c.Places != nil {
			c.Places[s.rule.Place(id.Tenant, id.User)]++
		}
		track := s.rule.Track(id.Tenant, id.User)
		if track == cohort.Canary {
			c.OfCanary++
		}
		if track == s.o.Track || track == "" {
			return true
		}
		c.Misplaced++
		if one.Version() < 2 {
			c.MisplacedV1++
		}
		s.enqueue(one, id, stage)
		return true
	})
	for id, seen := range s.taken {
		if seen != s.looks { // it has ended, or is on the right track by now
			delete(s.taken, id)
		}
	}
	s.counts, s.counted = c, time.Now()
}

// enqueue puts a session on the wrong track into the queue if it is to be asked:
// once in a generation, and not if it has just come from where it was asked to go
// elsewhere. mu is held.
func (s *Steerer) enqueue(one *session.Session, id session.Identity, stage session.Stage) {
	if _, again := s.taken[one.ID()]; again {
		s.taken[one.ID()] = s.looks
		return
	}
	if stage != session.Open || one.Suspect() {
		return
	}
	if one.Version() < 2 {
		if !s.moveV1 || !s.tell(id) {
			return
		}
	} else if migrated, since := one.Migrated(); migrated && since.After(s.ruled) {
		return // the load balancer sends it here, and would again
	}
	s.taken[one.ID()] = s.looks
	s.queue = append(s.queue, one)
}

// tell notes that a V1 client's device is told to go; false: it was before, or
// there is no room to remember it. mu is held.
func (s *Steerer) tell(id session.Identity) bool {
	device := maphash.Comparable(s.seed, id)
	if _, again := s.told[device]; again {
		return false
	}
	if len(s.told) >= maxTold {
		s.overflow.Inc()
		return false
	}
	s.told[device] = struct{}{}
	return true
}

// wave takes those whose turn it is, and tells whether there is more to do.
func (s *Steerer) wave(pace *drainer.Pacer, passed time.Duration, now time.Time) (busy bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle(now)
	rate := s.pace
	if s.o.Quiet() {
		rate = 0
	}
	n := 0
	if rate > 0 {
		n = pace.Grant(rate, passed, len(s.queue))
	}
	var ask, tell []*session.Session
	for _, one := range s.queue[:n] {
		switch {
		case one.Stage() != session.Open: // has gone by itself, or lost its socket
			delete(s.taken, one.ID())
		case one.Version() < 2:
			tell = append(tell, one)
		default:
			ask = append(ask, one)
		}
	}
	s.queue = s.queue[n:]
	if len(ask)+len(tell) > 0 {
		s.wg.Go(func() { s.move(ask, tell) }) // ends with its calls, bounded
	}
	return rate > 0 && len(s.queue) > 0 || len(s.going) > 0
}

// move asks clients, and tells those that cannot be asked.
func (s *Steerer) move(ask, tell []*session.Session) {
	until := time.Now().Add(drainer.MoveWithin)
	var asked, unable []*session.Session
	if len(ask) > 0 {
		asked, unable = s.o.Mover.Ask(s.ctx, ask, drainer.Ask{Reason: "canary", Within: drainer.MoveWithin, Spread: step, URL: s.target})
	}
	if len(tell) > 0 {
		s.o.Mover.Tell(s.ctx, tell, drainer.MostPatience)
	}
	s.asked.Add(int64(len(asked) + len(tell)))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range unable { // no router made a token: it may be asked later
		delete(s.taken, one.ID())
	}
	for _, one := range append(asked, tell...) {
		s.going = append(s.going, going{one, until})
	}
}

// target is where a session on the wrong track goes.
func (s *Steerer) target(*session.Session) string {
	if s.o.Track == cohort.Canary {
		return s.stable.Next()
	}
	return s.canary.Next()
}

// settle counts what has moved or is late. mu is held.
func (s *Steerer) settle(now time.Time) {
	kept := s.going[:0]
	for _, g := range s.going {
		switch o := g.s.Outcome(); {
		case o.Moved, o.Told && g.s.Version() < 2:
			s.gone++
			s.moved.Inc()
		case o.Ended: // by itself
		case !now.Before(g.until):
			s.stayed.Inc()
		default:
			kept = append(kept, g)
		}
	}
	clear(s.going[len(kept):])
	s.going = kept
}
