package drainer

import (
	"sync"
	"time"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

const (
	// perSession is how far apart sessions are at most by the gateway's own plan: a
	// small gateway need not take long.
	perSession = 20 * time.Millisecond
	// burst is what a pace may catch up with after a stall.
	burst = 200 * time.Millisecond
	// minTail and maxTail are what closing at once may take: as long as a slow peer
	// needs for its answer (session), and no longer than queued frames may take.
	minTail = 2 * time.Second
	maxTail = 5 * time.Second
)

// Shares of the time until what is left is closed at once: until when V2 clients
// are asked to move by the gateway's own plan, and when those that have not moved
// are told like any other; the tail after it, twice.
const (
	moveShare   = 0.625
	moveByShare = 0.9375
	tailShare   = 0.125
)

// clock is the time of a drain: it stands still while the drain is paused.
//
//	base ── asking V2 clients ── movesEnd ── moveBy ── last ── cut ── end
//	        telling the others, paced ───────────────▶  at once │ handing back
type clock struct {
	elapsed    time.Duration
	base, last time.Duration
	// bound is when all is to be over, whatever it is told; 0: not at all. Half of
	// what then is left for closing at once is for handing back, from cutBy on.
	bound, cutBy time.Duration
}

// finish has all of it be over so long from now, or earlier.
func (c *clock) finish(total time.Duration) {
	bound := c.elapsed + total
	if c.hard() && c.bound <= bound {
		return
	}
	if last := c.elapsed + max(total*4/5, total-2*maxTail); last < c.last {
		c.base, c.last = c.elapsed, last
	}
	c.bound, c.cutBy = bound, bound-max(0, bound-max(c.last, c.elapsed))/2
}

func (c *clock) hard() bool { return c.bound > 0 }

func (c *clock) share(f float64) time.Duration {
	return c.base + time.Duration(f*float64(c.last-c.base))
}

func (c *clock) movesEnd() time.Duration { return c.share(moveShare) }
func (c *clock) moveBy() time.Duration   { return c.share(moveByShare) }

func (c *clock) tail() time.Duration {
	return min(max(time.Duration(tailShare*float64(c.last-c.base)), minTail), maxTail)
}

// cut is when what has not ended is cut, and end when a drain with a bound gives up
// waiting for what no router has taken back.
func (c *clock) cut() time.Duration {
	cut := c.last + c.tail()
	if c.hard() {
		cut = min(cut, c.cutBy)
	}
	return cut
}

func (c *clock) end() time.Duration {
	end := c.last + 2*c.tail()
	if c.hard() {
		end = min(end, c.bound)
	}
	return end
}

// step is how far apart waves are: sessions within one are released in one call.
func (c *clock) step() time.Duration {
	const step, least = 50 * time.Millisecond, time.Millisecond
	return max(least, min(step, (c.last-c.base)/40))
}

// Pacer lets sessions through at a rate; the zero value does. It is for one
// goroutine.
type Pacer struct{ credit float64 }

// Grant returns how many of n may go now, when d has passed since it was asked
// last; rate is per second. What it lets nobody have for lack of sessions is not saved up.
func (p *Pacer) Grant(rate float64, d time.Duration, n int) int {
	p.credit += rate * d.Seconds()
	p.credit = min(p.credit, max(1, rate*max(burst, d).Seconds()))
	k := min(n, int(p.credit))
	p.credit -= float64(k)
	if k == n {
		p.credit = min(p.credit, 1)
	}
	return k
}

// pacers share out a drain's time.
type pacers struct{ all, moves, tells Pacer }

// grant returns how many of the clients that can move are asked to, and how many of
// the others are told, when d has passed. rate is sessions per second of both
// together, those that can move first; 0: spread over the clock's time.
func (p *pacers) grant(c *clock, rate float64, d time.Duration, movers, others int) (moves, tells int) {
	if c.elapsed >= c.last {
		return 0, others // movers have become others
	}
	if rate > 0 {
		n := p.all.Grant(rate, d, movers+others)
		moves = min(n, movers)
		return moves, n - moves
	}
	return p.moves.Grant(spread(movers, c.movesEnd()-c.elapsed), d, movers),
		p.tells.Grant(spread(others, c.last-c.elapsed), d, others)
}

// spread is the rate that spreads n sessions over the time.
func spread(n int, over time.Duration) float64 {
	const least = float64(time.Second / perSession)
	if over <= 0 {
		return max(least, float64(n)/time.Millisecond.Seconds())
	}
	return max(least, float64(n)/over.Seconds())
}

// Targets share sessions out by weight, evenly at every moment (smooth weighted
// round robin). Safe for concurrent use; the zero value sends everybody to the usual URL.
type Targets struct {
	mu   sync.Mutex
	list []weighted // guarded by mu
}

type weighted struct {
	url            string
	weight, credit int64
}

// Set replaces the targets; without a weight they are all alike.
func (t *Targets) Set(list []*gatewayv1.Target) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = t.list[:0]
	some := false
	for _, target := range list {
		t.list = append(t.list, weighted{url: target.GetUrl(), weight: int64(target.GetWeight())})
		some = some || target.GetWeight() > 0
	}
	for i := range t.list {
		if !some {
			t.list[i].weight = 1
		}
	}
}

// Next is where the next client is sent; empty: to its usual URL.
func (t *Targets) Next() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var best *weighted
	var sum int64
	for i := range t.list {
		w := &t.list[i]
		w.credit += w.weight
		sum += w.weight
		if w.weight > 0 && (best == nil || w.credit > best.credit) {
			best = w
		}
	}
	if best == nil {
		return ""
	}
	best.credit -= sum
	return best.url
}
