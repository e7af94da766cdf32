package rpc

import (
	"context"
	"sync"
)

// Queue is a bounded queue of many producers and one consumer, who takes all
// that is there at once: whatever queued up while the last batch was under way
// goes out in the next one. So an idle link has the latency of one item and a
// busy one the throughput of large batches, without timers.
type Queue[T any] struct {
	max  int
	wake chan struct{} // capacity 1: there is something, or it is closed

	mu     sync.Mutex
	items  []T  // guarded by mu
	closed bool // guarded by mu
}

// NewQueue returns a queue of at most max items.
func NewQueue[T any](max int) *Queue[T] {
	return &Queue[T]{max: max, wake: make(chan struct{}, 1)}
}

// Push adds v and never blocks. It is false when the queue is full or closed:
// v was not taken, and the caller decides what that means.
func (q *Queue[T]) Push(v T) bool {
	q.mu.Lock()
	if q.closed || len(q.items) >= q.max {
		q.mu.Unlock()
		return false
	}
	q.items = append(q.items, v)
	first := len(q.items) == 1
	q.mu.Unlock()
	if first {
		q.signal()
	}
	return true
}

func (q *Queue[T]) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Take waits until there is something and returns all of it, in order. spare is
// reused for what comes next; it is nil or what the last Take returned, at that
// length. ok is false when the queue is closed and empty, or ctx has ended.
func (q *Queue[T]) Take(ctx context.Context, spare []T) (items []T, ok bool) {
	// Its length, not its capacity: what lies behind is zero already, and after
	// one large burst every small batch would pay for the burst's size.
	clear(spare)
	for {
		q.mu.Lock()
		if len(q.items) > 0 {
			items = q.items
			q.items = spare[:0]
			q.mu.Unlock()
			return items, true
		}
		closed := q.closed
		q.mu.Unlock()
		if closed {
			return nil, false
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return nil, false
		}
	}
}

// Close lets Push fail from now on; what is queued can still be taken.
func (q *Queue[T]) Close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
}

// Len returns how many items wait.
func (q *Queue[T]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}
