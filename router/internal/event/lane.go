package event

import (
	"sync"
)

// item is an event in a lane.
type item struct {
	Event
	seq  uint64 // tenant_seq
	size int    // estimate, in bytes
	// raw is an event that was serialized before, from the dead letters: it keeps
	// its number.
	raw   []byte
	value []byte // serialized and signed, once it is part of a batch
}

// lane is one tenant's queue. Its goroutine (runner.go) lives while something is
// in it, and some time longer. tenant_seq is given at the entrance, so that what
// is taken is numbered without a gap, in the order of sending.
type lane struct {
	p      *Publisher
	tenant string
	usable bool
	wake   chan struct{} // of the goroutine; has room for one

	mu      sync.Mutex
	seq     uint64  // guarded by mu: the last number given
	queue   []*item // guarded by mu: not with the runner yet
	pending int     // guarded by mu: events not done, the runner's too
	bytes   int     // guarded by mu: of those
	running bool    // guarded by mu
	asleep  bool    // guarded by mu: the goroutine waits for whatever comes
	urgent  bool    // guarded by mu: somebody waits for an event in queue
}

// put takes an event, or says why not. Two bounds hold for a lane: its own, and
// as much as is still free for all, so that lanes which stand still leave room
// for those that do not.
func (l *lane) put(it *item) Drop {
	p := l.p
	switch {
	case !l.usable:
		return DropTopic
	case p.closed.Load():
		return DropStopped
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending >= p.opts.MaxPendingPerTenant {
		return DropTenantQueue
	}
	if n := p.total.Add(1); l.pending+int(n) > p.opts.QueueCapacity {
		p.total.Add(-1)
		return DropQueue
	}
	if n := p.bytes.Add(int64(it.size)); int64(l.bytes)+n > int64(p.opts.QueueMaxBytes) {
		p.total.Add(-1)
		p.bytes.Add(-int64(it.size))
		return DropBytes
	}
	if !l.running {
		if !p.enter() {
			p.total.Add(-1)
			p.bytes.Add(-int64(it.size))
			return DropStopped
		}
		l.running = true
		go func() {
			defer p.wg.Done()
			newRunner(l).run()
		}()
	}
	if it.raw == nil {
		l.seq++
		it.seq = l.seq
	}
	l.pending++
	l.bytes += it.size
	l.queue = append(l.queue, it)
	if first := it.Done != nil && !l.urgent; l.asleep || first {
		l.asleep = false
		l.urgent = l.urgent || first
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	return ""
}

// room tells whether one more event finds a place, whatever its size.
func (l *lane) room() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := &l.p.opts
	return l.pending < o.MaxPendingPerTenant && l.pending+int(l.p.total.Load()) < o.QueueCapacity && int64(l.bytes)+l.p.bytes.Load() < int64(o.QueueMaxBytes)
}

// hurry tells whether somebody waits for an event in the queue.
func (l *lane) hurry() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.urgent
}

// drain returns what is in the queue.
func (l *lane) drain() []*item {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue
	l.queue, l.urgent = nil, false
	return q
}

// sleep prepares the goroutine for waiting. It tells whether anything is in the
// queue already; if not the next event wakes it.
func (l *lane) sleep() (queued bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asleep = len(l.queue) == 0
	return !l.asleep
}

// leave ends the goroutine's part in the lane if nothing is left in it.
func (l *lane) leave() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending > 0 {
		return false
	}
	l.running, l.asleep = false, false
	return true
}

// release gives the places of events back that are done.
func (l *lane) release(items []*item) {
	bytes := 0
	for _, it := range items {
		bytes += it.size
	}
	l.mu.Lock()
	l.pending -= len(items)
	l.bytes -= bytes
	l.mu.Unlock()
	l.p.total.Add(-int64(len(items)))
	l.p.bytes.Add(-int64(bytes))
}
