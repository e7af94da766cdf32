// Package dedup remembers which messages were taken, so that a client's repeat
// is answered and not delivered again (CONTRACT section 1.2).
package dedup

import (
	"sync"
	"time"
)

// Key is a 128-bit hash of (tenant, user, device, msg_id) and the fingerprint
// of recipient and body.
type Key [16]byte

// bucketWidth is the precision with which an entry expires.
const bucketWidth = 5 * time.Second

// State says what is known of a message.
type State uint8

const (
	// New: never seen, or its last try failed. The caller now owns it and must
	// call Finish.
	New State = iota
	// UnderWay: somebody else owns it; the waiter will be called.
	UnderWay
	// Sent: it was answered SENT.
	Sent
)

// Table is safe for concurrent use. An entry that was sent costs about 40
// bytes; at most max of them are kept, the oldest bucket goes first.
type Table[R any] struct {
	max     int
	evicted func(n int)

	mu       sync.Mutex
	underWay map[Key][]func(R) // guarded by mu: waiters of what is being processed
	sent     map[Key]int64     // guarded by mu: bucket in which it expires
	buckets  map[int64][]Key   // guarded by mu: what expires in a bucket
	oldest   int64             // guarded by mu: no bucket before this one exists
}

// New returns a table of at most max sent messages; evicted, if not nil, is
// told how many were forgotten before their time. It is called with the
// table locked.
func NewTable[R any](max int, evicted func(n int)) *Table[R] {
	return &Table[R]{
		max:      max,
		evicted:  evicted,
		underWay: make(map[Key][]func(R)),
		sent:     make(map[Key]int64),
		buckets:  make(map[int64][]Key),
		oldest:   bucketOf(time.Now()),
	}
}

func bucketOf(t time.Time) int64 { return t.UnixNano() / int64(bucketWidth) }

// Begin looks a message up. With UnderWay, wait is kept and called once with
// the outcome, from the goroutine that calls Finish.
func (t *Table[R]) Begin(k Key, wait func(R)) State {
	now := bucketOf(time.Now())
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(now)
	if waiters, ok := t.underWay[k]; ok {
		t.underWay[k] = append(waiters, wait)
		return UnderWay
	}
	if _, ok := t.sent[k]; ok {
		return Sent
	}
	t.underWay[k] = nil
	return New
}

// Finish ends what Begin answered with New. A message that was sent is
// remembered for window; one that failed is forgotten, so that its repeat is
// processed anew. Waiters are called with the outcome.
func (t *Table[R]) Finish(k Key, sent bool, window time.Duration, outcome R) {
	t.mu.Lock()
	waiters := t.underWay[k]
	delete(t.underWay, k)
	if sent {
		t.remember(k, bucketOf(time.Now().Add(window))+1)
	}
	t.mu.Unlock()
	for _, w := range waiters {
		w(outcome)
	}
}

// Len returns the number of sent messages remembered.
func (t *Table[R]) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.sent)
}

func (t *Table[R]) remember(k Key, bucket int64) {
	for len(t.sent) >= t.max && len(t.buckets) > 0 {
		t.drop(t.oldest, true)
	}
	t.sent[k] = bucket
	t.buckets[bucket] = append(t.buckets[bucket], k)
	if bucket < t.oldest {
		t.oldest = bucket
	}
}

// expire drops every bucket whose time is over.
func (t *Table[R]) expire(now int64) {
	if len(t.buckets) == 0 {
		t.oldest = now
		return
	}
	for t.oldest < now {
		t.drop(t.oldest, false)
	}
}

// drop forgets one bucket and moves oldest on.
func (t *Table[R]) drop(bucket int64, early bool) {
	keys := t.buckets[bucket]
	for _, k := range keys {
		if t.sent[k] == bucket {
			delete(t.sent, k)
		}
	}
	delete(t.buckets, bucket)
	t.oldest = bucket + 1
	if early && len(keys) > 0 && t.evicted != nil {
		t.evicted(len(keys))
	}
}
