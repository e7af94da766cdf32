package uplink

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// Bounds of one CloseSessions call.
const (
	maxCloseSessions = 512
	maxCloseBytes    = 8 << 20
)

// closing is a ClosedSession that a router has to take.
type closing struct {
	s    *routerv1.ClosedSession
	done func() // called once, when taken
	// ctx ends when the caller of Release gives up; nil for a final.
	ctx context.Context
	// only is set for one of the copies of a session that never opened.
	only *closeQueue
}

func (c *closing) abandoned() bool { return c.ctx != nil && c.ctx.Err() != nil }

func (c *closing) size() int {
	n := 0
	for _, u := range c.s.GetUndelivered() {
		n += len(u.GetMessage()) + len(u.GetKey())
	}
	return n
}

// closeQueue is what one router has to be told, in order. Guarded by the mu of
// its closer.
type closeQueue struct {
	items []*closing
	gone  bool
	wake  chan struct{} // room for one token
}

func newCloseQueue() *closeQueue { return &closeQueue{wake: make(chan struct{}, 1)} }

// closer keeps what is to be told about closed sessions until a router has taken
// it, each at its user's then home. It holds at most one release and one final
// per session of the gateway. Safe for concurrent use; done functions are called
// without its lock.
//
// Of a session that never opened the user is unknown, and so is the router that
// may have admitted it: all of them are told, and those that are forgotten
// meanwhile need not be.
type closer struct {
	mu      sync.Mutex
	homeOf  func(tenant, user string) *closeQueue // nil result: no router is known
	homes   []*closeQueue
	queues  []*closeQueue // all that are not gone
	orphans []*closing    // no router was known
	finals  int           // finals that no router has taken yet
	idle    []chan struct{}
}

func newCloser() *closer {
	return &closer{homeOf: func(string, string) *closeQueue { return nil }}
}

// release tells the home that the session's route goes, until ctx ends.
func (c *closer) release(ctx context.Context, s *routerv1.ClosedSession, done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(&closing{s: s, done: done, ctx: ctx})
}

// final hands an ended session over.
func (c *closer) final(s *routerv1.ClosedSession, done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finals++
	c.put(&closing{s: s, done: func() {
		c.mu.Lock()
		c.finals--
		if c.finals == 0 {
			for _, ch := range c.idle {
				close(ch)
			}
			c.idle = nil
		}
		c.mu.Unlock()
		done()
	}})
}

// put queues an item where it belongs now.
func (c *closer) put(i *closing) {
	q := i.only
	if q == nil && i.s.GetNeverOpened() {
		c.putEverywhere(i)
		return
	}
	if q == nil {
		q = c.homeOf(i.s.GetTenantId(), i.s.GetUserId())
	}
	if q == nil {
		c.orphans = append(c.orphans, i)
		return
	}
	q.items = append(q.items, i)
	signal(q.wake)
}

func (c *closer) putEverywhere(i *closing) {
	if len(c.homes) == 0 {
		c.orphans = append(c.orphans, i)
		return
	}
	var left atomic.Int64
	left.Store(int64(len(c.homes)))
	done := func() {
		if left.Add(-1) == 0 {
			i.done()
		}
	}
	for _, q := range c.homes {
		c.put(&closing{s: i.s, done: done, only: q})
	}
}

// setHomes says where users have their homes from now on, and moves what is
// queued there.
func (c *closer) setHomes(homes []*closeQueue, homeOf func(tenant, user string) *closeQueue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.homes, c.homeOf = homes, homeOf
	items := c.orphans
	c.orphans = nil
	for _, q := range c.queues {
		for _, i := range q.items {
			if i.only == nil {
				items = append(items, i)
			}
		}
		q.items = slices.DeleteFunc(q.items, func(i *closing) bool { return i.only == nil })
	}
	for _, i := range items {
		c.put(i)
	}
}

// add adds a router's queue.
func (c *closer) add(q *closeQueue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queues = append(c.queues, q)
}

// forget takes a router's queue away; homeOf does not return it any more.
func (c *closer) forget(q *closeQueue) {
	c.mu.Lock()
	q.gone = true
	c.queues = slices.DeleteFunc(c.queues, func(o *closeQueue) bool { return o == q })
	items := q.items
	q.items = nil
	dropped := c.requeue(q, items)
	c.mu.Unlock()
	finish(dropped)
}

// back takes items that could not be told. What still belongs to the router goes
// to the front, in order.
func (c *closer) back(q *closeQueue, items []*closing) {
	c.mu.Lock()
	dropped := c.requeue(q, items)
	c.mu.Unlock()
	finish(dropped)
}

// requeue returns the items whose router is gone and which nobody else needs to
// be told.
func (c *closer) requeue(q *closeQueue, items []*closing) (dropped []*closing) {
	var front []*closing
	for _, i := range items {
		switch {
		case i.only == q && q.gone:
			dropped = append(dropped, i)
		case !q.gone && (i.only == q || c.homeOf(i.s.GetTenantId(), i.s.GetUserId()) == q):
			front = append(front, i)
		default:
			c.put(i)
		}
	}
	if len(front) > 0 {
		q.items = append(front, q.items...)
		signal(q.wake)
	}
	return dropped
}

// take returns the next items of a call, at most limit.
func (c *closer) take(q *closeQueue, limit int) []*closing {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*closing
	n, size := 0, 0
	for _, i := range q.items {
		if len(out) == limit || len(out) > 0 && size+i.size() > maxCloseBytes {
			break
		}
		n++
		if i.abandoned() {
			continue
		}
		size += i.size()
		out = append(out, i)
	}
	q.items = slices.Delete(q.items, 0, n)
	return out
}

// wait returns when every final has been taken, or with ctx's error.
func (c *closer) wait(ctx context.Context) error {
	c.mu.Lock()
	if c.finals == 0 {
		c.mu.Unlock()
		return nil
	}
	ch := make(chan struct{})
	c.idle = append(c.idle, ch)
	c.mu.Unlock()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// waiting returns how many finals no router has taken yet.
func (c *closer) waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.finals
}

func finish(items []*closing) {
	for _, i := range items {
		i.done()
	}
}

func signal(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}
