package event

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// settle takes the answer for a partition's head.
func (r *runner) settle(pt *part, answer error, now time.Time) {
	b := pt.head
	v, unclear := judge(answer)
	f := b.flight()
	f.unclear = f.unclear || unclear
	switch v {
	case stored:
		r.stored(pt)
	case lostCount:
		*pt.line() = producer{}
		f.stamped = false
		r.failed(pt, answer, now)
	case large, refused:
		pt.line().abandon(f)
		switch {
		case len(b.items) > 1:
			pt.split()
		case !b.dying:
			r.die(pt, answer)
		case v == large:
			r.lose(pt, DropTooLarge)
		default:
			r.lose(pt, DropRejected)
		}
	default:
		pt.stale = v == moved
		r.failed(pt, answer, now)
	}
}

// failed counts an attempt and decides what comes next.
func (r *runner) failed(pt *part, why error, now time.Time) {
	pt.attempts++
	most := r.p.opts.MaxAttempts
	if pt.rounds > 0 {
		most = 1 // both topics have been given their attempts
	}
	switch {
	case pt.attempts < most:
		pt.next = now.Add(doubled(r.p.opts.RetryBackoff, pt.attempts-1))
	case !pt.head.dying:
		r.die(pt, why)
	default:
		r.keep(pt, why, now)
	}
}

// die turns the head to the dead letters.
func (r *runner) die(pt *part, why error) {
	b := pt.head
	if !b.failed {
		b.failed = true
		r.p.metrics.failed.Add(int64(len(b.items)))
	}
	b.dying, b.reason = true, reasonOf(why)
	pt.attempts, pt.next, pt.stale = 0, time.Time{}, false
}

// keep holds a head that neither topic took, to try both again: the fallback.
func (r *runner) keep(pt *part, why error, now time.Time) {
	b := pt.head
	if !b.kept {
		b.kept = true
		r.p.metrics.fallback.Add(int64(len(b.items)))
	}
	r.troubled = true
	if !r.tell(why) {
		r.warn("mq_unavailable", now, "err", reasonOf(why), "kept", len(b.items))
	}
	b.dying = pt.id < 0
	pt.next = now.Add(r.pause(pt.rounds))
	pt.attempts, pt.stale = 0, true
	pt.rounds++
}

// pause is the n-th pause, a little random so that lanes do not come all at
// once.
func (r *runner) pause(n int) time.Duration {
	d := doubled(firstPause, n)
	if r.stopping {
		d = min(d, stopPause)
	}
	return d - rand.N(d/4)
}

func doubled(d time.Duration, times int) time.Duration {
	return min(d<<min(times, 16), max(d, mostPause))
}

// stored ends the head: one of the topics has it.
func (r *runner) stored(pt *part) {
	b := pt.head
	var result error
	if b.dying {
		r.p.metrics.dead.Add(int64(len(b.items)))
		r.warn("mq_dead_lettered", time.Now(), "events", len(b.items), "reason", b.reason)
		result = fmt.Errorf("%w: %s", ErrDeadLettered, b.reason)
		b.dead = flight{} // its number is used
	} else {
		for _, it := range b.items {
			if c := r.p.metrics.published[it.Type]; c != nil {
				c.Inc()
			}
		}
		b.main = flight{}
	}
	r.end(pt, result)
	if r.troubled {
		r.troubled, r.told = false, ""
		r.log.Info("mq_recovered", "topic", Topic(r.tenant))
		r.hasten(time.Now())
	}
}

// lose ends the head: nobody takes it.
func (r *runner) lose(pt *part, why Drop) {
	b := pt.head
	r.warn("mq_dropped", time.Now(), "events", len(b.items), "reason", string(why), "err", b.reason)
	r.p.metrics.drop(why, len(b.items))
	r.end(pt, fmt.Errorf("%w: %s", ErrDropped, why))
}

// end forgets the head.
func (r *runner) end(pt *part, result error) {
	b := pt.head
	pt.main.abandon(&b.main)
	pt.dead.abandon(&b.dead)
	if b.kept {
		r.p.metrics.fallback.Add(-int64(len(b.items)))
	}
	pt.head, pt.attempts, pt.rounds, pt.next, pt.stale = nil, 0, 0, time.Time{}, false
	r.finish(b.items, result)
}

// drop gives events up that are part of no batch.
func (r *runner) drop(items []*item, why Drop) {
	if len(items) == 0 {
		return
	}
	r.p.metrics.drop(why, len(items))
	r.finish(items, fmt.Errorf("%w: %s", ErrDropped, why))
}

func (r *runner) finish(items []*item, result error) {
	r.release(items)
	for _, it := range items {
		if it.Done != nil {
			it.Done(result)
		}
	}
}

// warn logs trouble of the lane now and then.
func (r *runner) warn(event string, now time.Time, attrs ...any) {
	const every = 10 * time.Second
	if !r.warned.IsZero() && now.Sub(r.warned) < every {
		return
	}
	r.warned = now
	r.log.Warn(event, attrs...)
}
