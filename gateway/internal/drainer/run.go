package drainer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/gateway/internal/session"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// idleStep is how often a gateway that has drained, or is paused, looks for
	// sessions that were being opened when it began.
	idleStep = 500 * time.Millisecond
	// lookEvery is how many steps apart the table of sessions is walked.
	lookEvery = 10
	// askPause is the wait before a client is asked that could not be, and maxAsks how
	// often that is tried: routers that are being replaced make no tokens for a moment.
	askPause = 500 * time.Millisecond
	maxAsks  = 5
)

// run ends the sessions of a gateway, all of them and those that are opened
// meanwhile. One goroutine calls loop; the other methods are safe for concurrent
// use.
type run struct {
	id      string
	reg     *registry.Registry
	mover   *Mover
	started time.Time
	targets Targets
	// onDone is told when nothing is left, and when there is something again.
	onDone func(done bool)
	wake   chan struct{} // capacity 1: the order has changed
	waves  sync.WaitGroup

	mu       sync.Mutex
	pace     float64 // guarded by mu, like what follows
	paused   bool
	clock    clock
	asked    []asked // in the order of their deadlines, about
	unable   []asked // that could not be asked; until: when they may be again
	progress *gatewayv1.DrainProgress

	// Owned by loop.
	pacers                     pacers
	seen                       map[uint64]struct{}
	tries                      map[uint64]int     // of those that could not be asked
	live                       []*session.Session // of which not all is known yet
	sums                       Summary            // of the others, and Forced of all
	idle, movers, others, soon []*session.Session // to be: handed back, asked, told, told without pace
	suspended                  uint64
	forced                     map[uint64]struct{} // were cut
	cutting                    bool
}

// asked is a client that has until then to move.
type asked struct {
	s     *session.Session
	until time.Duration
}

// Summary is what a drain did.
type Summary struct {
	// Sessions that there were; Moved went on elsewhere before this one ended; Told
	// of the others got the close frame; Echoed answered it; Forced were cut at the
	// deadline.
	Sessions, Moved, Told, Echoed, Forced int
	// HandedBack counts messages given back to routers.
	HandedBack int
	// Left is how many sessions no router had taken back.
	Left int
}

// newRun prepares a drain: what is left at last is closed at once. The sessions that
// there are count from now on.
func newRun(reg *registry.Registry, m *Mover, id string, last time.Duration) *run {
	r := &run{
		reg: reg, mover: m, id: id, clock: clock{last: last}, wake: make(chan struct{}, 1),
		seen: map[uint64]struct{}{}, tries: map[uint64]int{}, forced: map[uint64]struct{}{}, started: time.Now(), onDone: func(bool) {},
	}
	r.discover(&r.clock)
	r.publish()
	return r
}

// direct changes how the drain goes on.
func (r *run) direct(pace float64, paused bool, list []*gatewayv1.Target) {
	r.targets.Set(list)
	r.mu.Lock()
	r.pace, r.paused = pace, paused
	r.mu.Unlock()
	r.poke()
}

// finish has the drain be over within that time, also when it is paused.
func (r *run) finish(total time.Duration) {
	r.mu.Lock()
	r.clock.finish(total)
	r.mu.Unlock()
	r.poke()
}

func (r *run) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// state is what a step goes by.
type state struct {
	clock clock
	pace  float64
	// held: nothing is moved or closed.
	held bool
}

// advance lets the clock go on.
func (r *run) advance(d time.Duration) state {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &r.clock
	if !r.paused || c.hard() {
		c.elapsed += d
	}
	return state{clock: *c, pace: r.pace, held: r.paused && (!c.hard() || c.elapsed < c.last)}
}

// errUndrained ends a run and leaves the sessions that are left.
var errUndrained = errors.New("undrained")

// loop runs the drain until nothing is left and nothing may come, or ctx ends. Then
// what is left is cut, unless errUndrained is the cause.
func (r *run) loop(ctx context.Context) {
	defer r.waves.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // waves that still wait for a router
	st := r.advance(0)
	tick := time.NewTicker(st.clock.step())
	defer tick.Stop()
	last := time.Now()
	done, slow := false, false
	for n := 0; ; n++ {
		now := time.Now()
		passed := now.Sub(last)
		last = now
		st = r.advance(passed)
		look := n%lookEvery == 0 || slow || r.reg.Len() == 0
		if look {
			r.discover(&st.clock)
		}
		if !st.held {
			r.step(ctx, st, passed, look)
		}
		if look {
			r.publish()
		}
		if is := r.reg.Len() == 0; is != done {
			done = is
			r.publish() // the last one may have gone since
			r.onDone(done)
		}
		if is := done || st.held; is != slow {
			slow = is
			tick.Reset(stepTime(&st.clock, slow))
		}
		if st.clock.hard() && (done || st.clock.elapsed >= st.clock.end()) {
			r.publish()
			return
		}
		select {
		case <-tick.C:
		case <-r.wake:
			tick.Reset(stepTime(&st.clock, slow))
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), errUndrained) {
				r.discover(&st.clock)
				r.cut()
			}
			r.publish()
			return
		}
	}
}

// stepTime is how long a step takes; slow: there is nothing to do.
func stepTime(c *clock, slow bool) time.Duration {
	if slow {
		return idleStep
	}
	return c.step()
}

// step does what is due.
func (r *run) step(ctx context.Context, st state, passed time.Duration, look bool) {
	c := &st.clock
	for _, s := range take(&r.idle, len(r.idle)) {
		s.Close(session.CodeDraining, drainingText)
	}
	r.collect(c)
	moves, tells := r.pacers.grant(c, st.pace, passed, len(r.movers), len(r.others))
	patience := Patience{
		Release: min(MostPatience.Release, (c.last-c.base)/4),
		Answers: min(MostPatience.Answers, (c.last-c.base)/8),
	}
	if batch := take(&r.movers, moves); len(batch) > 0 {
		within := min(MoveWithin, c.moveBy()-c.elapsed)
		r.waves.Go(func() { r.ask(ctx, batch, within, c.step()) }) // ends with its calls, bounded
	}
	batch := append(take(&r.soon, len(r.soon)), take(&r.others, tells)...)
	if len(batch) > 0 {
		r.waves.Go(func() { r.mover.Tell(ctx, batch, patience) }) // ends with its release, bounded
	}
	if c.elapsed >= c.cut() && (look || !r.cutting) {
		r.cutting = true
		r.discover(c)
		r.cut()
	}
}

// discover sorts the sessions that are new.
func (r *run) discover(c *clock) {
	r.reg.Walk(func(s *session.Session) bool {
		if _, ok := r.seen[s.ID()]; ok {
			return true
		}
		stage := s.Stage()
		switch {
		case stage == session.Ending && s.Outcome().Moved:
			return true // before we came; its socket is only kept for a moment
		case stage == session.Suspended:
			r.idle = append(r.idle, s)
			r.suspended++
		case s.Suspect():
			r.soon = append(r.soon, s)
		case s.Version() < 2 || stage == session.Ending || c.elapsed >= c.moveBy():
			r.others = append(r.others, s)
		case stage == session.Opening:
			return true // it can be asked when it is open
		default:
			r.movers = append(r.movers, s)
		}
		r.seen[s.ID()] = struct{}{}
		r.live = append(r.live, s)
		return true
	})
}

// collect turns to those that do not move: what could not be asked in its turn, what
// has not moved by its deadline, and at the end what there was no time to ask.
func (r *run) collect(c *clock) {
	r.mu.Lock()
	r.unable = slices.DeleteFunc(r.unable, func(u asked) bool {
		id := u.s.ID()
		switch {
		case u.s.Stage() == session.Ending || r.tries[id]+1 >= maxAsks || c.elapsed >= c.moveBy():
			r.others = append(r.others, u.s)
		case c.elapsed < u.until:
			return false
		default:
			r.tries[id]++
			r.movers = append(r.movers, u.s)
		}
		return true
	})
	n := 0
	for n < len(r.asked) && (c.elapsed >= r.asked[n].until || c.elapsed >= c.moveBy()) {
		if s := r.asked[n].s; s.Stage() != session.Ending {
			r.soon = append(r.soon, s) // it has had its turn
		}
		n++
	}
	r.asked = slices.Delete(r.asked, 0, n)
	r.mu.Unlock()
	if c.elapsed >= c.moveBy() {
		r.others = append(r.others, take(&r.movers, len(r.movers))...)
	}
}

// take removes the first n.
func take(list *[]*session.Session, n int) []*session.Session {
	batch := (*list)[:n:n]
	if *list = (*list)[n:]; len(*list) == 0 {
		*list = nil
	}
	return batch
}

// ask asks clients to move.
func (r *run) ask(ctx context.Context, batch []*session.Session, within, spread time.Duration) {
	yes, no := r.mover.Ask(ctx, batch, Ask{
		Reason: "draining", Within: within, Spread: min(spread, within/2), URL: func(*session.Session) string { return r.targets.Next() },
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range yes {
		r.asked = append(r.asked, asked{s, r.clock.elapsed + within})
	}
	for _, s := range no {
		r.unable = append(r.unable, asked{s, r.clock.elapsed + askPause})
	}
}

// cut ends what is left. A session that is being opened ends when that is over.
func (r *run) cut() {
	r.idle, r.movers, r.others, r.soon = nil, nil, nil, nil
	for _, s := range r.live {
		if _, ok := r.forced[s.ID()]; !ok && !s.Outcome().Ended {
			r.forced[s.ID()] = struct{}{}
			s.Abort()
		}
	}
}

// summary is what has come of the sessions so far; it lets go of those of which all
// is known. left are those that have not ended.
func (r *run) summary() (sum Summary, left, leftV2 int) {
	kept := r.live[:0]
	var open Summary
	for _, s := range r.live {
		o := s.Outcome()
		if o.Gone {
			r.sums.add(o)
			continue
		}
		kept = append(kept, s)
		open.add(o)
		if !o.Ended {
			left++
			if s.Version() >= 2 {
				leftV2++
			}
		}
	}
	clear(r.live[len(kept):])
	r.live = kept
	return Summary{
		Sessions: len(r.seen), Moved: r.sums.Moved + open.Moved, Told: r.sums.Told + open.Told, Echoed: r.sums.Echoed + open.Echoed,
		Forced: len(r.forced), HandedBack: r.sums.HandedBack + open.HandedBack, Left: len(kept),
	}, left, leftV2
}

func (s *Summary) add(o session.Outcome) {
	switch {
	case o.Moved:
		s.Moved++
	case o.Told:
		s.Told++
		if o.Echoed {
			s.Echoed++
		}
	}
	s.HandedBack += o.HandedBack
}

// publish makes the progress known.
func (r *run) publish() {
	sum, left, leftV2 := r.summary()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress = &gatewayv1.DrainProgress{
		OperationId: r.id, Sessions: uint64(sum.Sessions), Left: uint64(left), LeftV2: uint64(leftV2), Moved: uint64(sum.Moved),
		Closed: uint64(sum.Told), Echoed: uint64(sum.Echoed), GaveUp: uint64(sum.Forced), HandedOver: uint64(sum.HandedBack),
		NotTakenBack: uint64(sum.Left - left), Suspended: r.suspended, StartedAtMs: r.started.UnixMilli(), Done: sum.Left == 0,
	}
}

// Progress is how far it was a moment ago.
func (r *run) Progress() *gatewayv1.DrainProgress {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := proto.CloneOf(r.progress)
	p.Paused, p.SessionsPerSecond = r.paused, r.pace
	return p
}
