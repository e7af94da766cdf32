// Package drainer ends all sessions of a gateway, paced, so that their clients do
// not all come back elsewhere at once (DESIGN section 6).
package drainer

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/gateway/internal/session"
)

// Summary is what a drain did.
type Summary struct {
	// Sessions that there were; Told got the close frame; Echoed answered it;
	// Forced were cut at the deadline.
	Sessions, Told, Echoed, Forced int
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
// or the timeout is over. When ctx ends, what is left is cut at once. Each wave's
// routes are released first; then each session is flushed and closed with 4200 as
// soon as its messages are answered, and read until it echoes, all of which the
// sessions do by themselves: none waits for another, and a peer that does not echo
// holds nothing up.
func Drain(ctx context.Context, reg *registry.Registry, up session.Uplink, timeout time.Duration, log *slog.Logger) Summary {
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
	up      session.Uplink
	timeout time.Duration
	log     *slog.Logger
	start   time.Time

	// Owned by the goroutine of Drain.
	seen   map[uint64]bool
	all    []*session.Session
	plan   []planned // by due, those that are not due yet
	forced int

	waves sync.WaitGroup
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
	var suspects, others []*session.Session
	d.reg.Walk(func(s *session.Session) bool {
		switch {
		case d.seen[s.ID()]:
			return true
		case s.Suspect():
			suspects = append(suspects, s)
		default:
			others = append(others, s)
		}
		d.seen[s.ID()] = true
		d.all = append(d.all, s)
		return true
	})
	for _, s := range suspects {
		d.plan = append(d.plan, planned{s, elapsed})
	}
	n := len(others)
	for i, s := range others {
		d.plan = append(d.plan, planned{s, elapsed + due(i, n, d.part(spread)-elapsed, rand.Float64())})
	}
	slices.SortFunc(d.plan, func(a, b planned) int { return int(a.due - b.due) })
}

// due is when the i-th of n sessions is told, of which each has its slot in the
// window and is somewhere in it by jitter, in [0, 1).
func due(i, n int, window time.Duration, jitter float64) time.Duration {
	window = max(0, min(window, time.Duration(n)*perSession))
	return time.Duration((float64(i) + jitter) / float64(n) * float64(window))
}

// wave tells the sessions that are due, in a goroutine of its own, because it
// waits for routers.
func (d *drain) wave(ctx context.Context, elapsed time.Duration) {
	n := 0
	for n < len(d.plan) && d.plan[n].due <= elapsed {
		n++
	}
	if n == 0 {
		return
	}
	batch := make([]*session.Session, n)
	for i := range batch {
		batch[i] = d.plan[i].s
	}
	d.plan = d.plan[n:]
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
	d.discover(0)
	d.plan = nil
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
		if o.Told {
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
