// Package drainer ends all sessions of a gateway, paced, so that their clients do
// not all come back elsewhere at once (DESIGN section 6).
package drainer

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/gateway/internal/session"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// Routers is what a drain needs of them.
type Routers interface {
	// Release tells the homes that the sessions' routes go. It returns when all have
	// answered or ctx ends; the error says how many were not told.
	Release(ctx context.Context, sessions []*session.Session) error
	// Migrate returns tokens with which the sessions' clients can move until the
	// deadline, one per session, empty for one that cannot; the error says why.
	Migrate(ctx context.Context, sessions []*session.Session, deadline time.Duration) ([]string, error)
}

// Summary is what a drain did.
type Summary struct {
	// Sessions that there were; Moved went on elsewhere before this one ended; Told
	// of the others got the close frame; Echoed answered it; Forced were cut at the
	// deadline.
	Sessions, Moved, Told, Echoed, Forced int
	// HandedBack counts messages given back to routers.
	HandedBack int
	// Left is how many sessions no router had taken back when Drain returned.
	Left int
}

const (
	// spread is the share of the timeout over which sessions are told, and cutAt
	// where those that have not ended are cut. The rest is for handing back.
	spread = 0.8
	cutAt  = 0.9
	// moveSpread is the share of the timeout over which V2 clients are to begin to
	// move, and moveBy when those that have not moved are told like any other.
	moveSpread = 0.5
	moveBy     = 0.75
	// moveLead is how early a client is asked, moveBatch how many at once.
	moveLead  = time.Second
	moveBatch = 512
	// perSession is how far apart sessions are at most: a small gateway need not
	// take long.
	perSession = 20 * time.Millisecond
	// step is the distance of waves: the sessions due within one are released in
	// one call.
	step = 50 * time.Millisecond
	// releaseShare and answerShare of the timeout bound what a wave waits for
	// before its sessions are closed all the same.
	releaseShare = 0.2
	answerShare  = 0.1
	maxRelease   = 2 * time.Second
	maxAnswer    = time.Second
)

// Drain ends every session within the timeout; it returns when there is none left
// or the timeout is over. When ctx ends, what is left is cut at once.
//
// V2 clients are asked to move first; what is left of them at a deadline, or cannot
// be asked, is treated like V1: each wave's routes are released first; then each
// session is flushed and closed with 4200 as soon as its messages are answered, and
// read until it echoes, all of which the sessions do by themselves: none waits for
// another, and a peer that does not echo holds nothing up. Sessions without a
// socket are handed back at once.
func Drain(ctx context.Context, reg *registry.Registry, up Routers, timeout time.Duration, log *slog.Logger) Summary {
	d := &drain{reg: reg, up: up, timeout: timeout, log: log, seen: map[uint64]bool{}, start: time.Now()}
	if reg.Len() == 0 {
		return Summary{}
	}
	ctx, cancel := context.WithDeadline(ctx, d.start.Add(timeout))
	defer cancel()
	d.run(ctx)
	cancel() // waves that still wait for a router
	d.waves.Wait()
	return d.summary()
}

type drain struct {
	reg     *registry.Registry
	up      Routers
	timeout time.Duration
	log     *slog.Logger
	start   time.Time

	// Owned by the goroutine of Drain.
	seen   map[uint64]bool
	all    []*session.Session
	plan   []planned // by due, those that are to be told and not due yet
	movers []planned // by due, those that are to be asked
	forced int

	waves sync.WaitGroup

	mu     sync.Mutex
	asked  []*session.Session // guarded by mu
	unable []planned          // guarded by mu: those that could not be asked
}

type planned struct {
	s   *session.Session
	due time.Duration
}

func (d *drain) part(share float64) time.Duration { return time.Duration(share * float64(d.timeout)) }

func (d *drain) run(ctx context.Context) {
	d.discover(0)
	tick := time.NewTicker(max(time.Millisecond, min(step, d.part(0.02))))
	defer tick.Stop()
	cut := false
	for n := 0; ; n++ {
		elapsed := time.Since(d.start)
		if n%10 == 0 && !cut {
			d.discover(elapsed) // OpenSessions that were under way
		}
		d.ask(ctx, elapsed)
		d.collect(elapsed)
		d.wave(ctx, elapsed)
		if d.reg.Len() == 0 {
			return
		}
		if elapsed >= d.part(cutAt) && !cut {
			cut = true
			d.cut()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if !cut {
				d.cut()
			}
			return
		}
	}
}

// discover plans the sessions that are new.
func (d *drain) discover(elapsed time.Duration) {
	var movers, others []*session.Session
	d.reg.Walk(func(s *session.Session) bool {
		if d.seen[s.ID()] {
			return true
		}
		stage := s.Stage()
		switch {
		case stage == session.Suspended:
			s.Close(session.CodeDraining, "server draining")
		case s.Suspect():
			d.plan = append(d.plan, planned{s, elapsed})
		case s.Version() < 2 || stage == session.Ending || elapsed >= d.part(moveBy):
			others = append(others, s)
		case stage == session.Opening:
			return true // it can be asked when it is open
		default:
			movers = append(movers, s)
		}
		d.seen[s.ID()] = true
		d.all = append(d.all, s)
		return true
	})
	d.plan = spreadOut(d.plan, others, elapsed, d.part(spread))
	d.movers = spreadOut(d.movers, movers, elapsed, d.part(moveSpread))
}

// spreadOut adds sessions to a plan, between now and the end.
func spreadOut(plan []planned, sessions []*session.Session, now, end time.Duration) []planned {
	n := len(sessions)
	for i, s := range sessions {
		plan = append(plan, planned{s, now + due(i, n, end-now, rand.Float64())})
	}
	slices.SortFunc(plan, func(a, b planned) int { return cmp.Compare(a.due, b.due) })
	return plan
}

// due is when the i-th of n sessions is told, of which each has its slot in the
// window and is somewhere in it by jitter, in [0, 1).
func due(i, n int, window time.Duration, jitter float64) time.Duration {
	window = max(0, min(window, time.Duration(n)*perSession))
	return time.Duration((float64(i) + jitter) / float64(n) * float64(window))
}

// take removes from a plan what is due.
func take(plan *[]planned, now time.Duration) []planned {
	n := 0
	for n < len(*plan) && (*plan)[n].due <= now {
		n++
	}
	batch := (*plan)[:n:n]
	*plan = (*plan)[n:]
	return batch
}

// ask has the clients asked whose time to move is near, in goroutines, because it
// waits for routers.
func (d *drain) ask(ctx context.Context, elapsed time.Duration) {
	for batch := range slices.Chunk(take(&d.movers, elapsed+moveLead), moveBatch) {
		d.waves.Go(func() { d.migrate(ctx, batch) }) // ends with its call, bounded
	}
}

// migrate asks clients to move. The one that is due later is told to wait until
// then: clients cannot know the fleet.
func (d *drain) migrate(ctx context.Context, batch []planned) {
	sessions := make([]*session.Session, len(batch))
	for i, p := range batch {
		sessions[i] = p.s
	}
	end := d.part(moveBy)
	tokens, err := d.up.Migrate(ctx, sessions, end-time.Since(d.start))
	if err != nil {
		d.log.Warn("drain_migrate_failed", "sessions", len(batch), "error", err)
	}
	for i, p := range batch {
		now := time.Since(d.start)
		ok := i < len(tokens) && tokens[i] != "" && now < end && p.s.Migrate(&messagev1.Migrate{
			Reason: "draining", DeadlineMs: (end - now).Milliseconds(), DelayMs: max(0, p.due-now).Milliseconds(), ResumeToken: tokens[i],
		})
		d.mu.Lock()
		if ok {
			d.asked = append(d.asked, p.s)
		} else {
			d.unable = append(d.unable, p)
		}
		d.mu.Unlock()
	}
}

// collect plans those that do not move: what could not be asked, in its turn, and
// what has been, at the deadline.
func (d *drain) collect(elapsed time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.unable) > 0 {
		d.plan = append(d.plan, d.unable...)
		d.unable = nil
		d.plan = spreadOut(d.plan, nil, 0, 0)
	}
	if elapsed < d.part(moveBy) || len(d.asked) == 0 {
		return
	}
	for _, s := range d.asked {
		if st := s.Stage(); st != session.Ending {
			d.plan = append(d.plan, planned{s, elapsed})
		}
	}
	d.asked = nil
	d.plan = spreadOut(d.plan, nil, 0, 0)
}

// wave tells the sessions that are due, in a goroutine of its own, because it
// waits for routers.
func (d *drain) wave(ctx context.Context, elapsed time.Duration) {
	due := take(&d.plan, elapsed)
	if len(due) == 0 {
		return
	}
	batch := make([]*session.Session, len(due))
	for i := range batch {
		batch[i] = due[i].s
	}
	d.waves.Go(func() { d.tell(ctx, batch) }) // ends with its release, bounded
}

// tell releases the routes of the sessions and has them closed.
func (d *drain) tell(ctx context.Context, batch []*session.Session) {
	var routed []*session.Session
	for _, s := range batch {
		if _, ok := s.Info(); ok {
			s.Released()
			routed = append(routed, s)
		}
	}
	if len(routed) > 0 {
		ctx, cancel := context.WithTimeout(ctx, min(maxRelease, d.part(releaseShare)))
		if err := d.up.Release(ctx, routed); err != nil {
			// What is delivered to them is refused or handed back, and so not lost.
			d.log.Warn("drain_release_failed", "sessions", len(routed), "error", err)
		}
		cancel()
	}
	for _, s := range batch {
		s.CloseAnswered(session.CodeDraining, "server draining", min(maxAnswer, d.part(answerShare)))
	}
}

// cut ends what is left.
func (d *drain) cut() {
	d.discover(d.timeout)
	d.plan, d.movers = nil, nil
	for _, s := range d.all {
		if o := s.Outcome(); !o.Ended {
			d.forced++
			s.Abort()
		}
	}
}

func (d *drain) summary() Summary {
	sum := Summary{Sessions: len(d.all), Forced: d.forced}
	for _, s := range d.all {
		o := s.Outcome()
		switch {
		case o.Moved:
			sum.Moved++
		case o.Told:
			sum.Told++
		}
		if o.Echoed {
			sum.Echoed++
		}
		if !o.Gone {
			sum.Left++
		}
		sum.HandedBack += o.HandedBack
	}
	return sum
}
