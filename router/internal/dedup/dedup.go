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

// Record is a message that was answered SENT, as other routers need to know it.
type Record struct {
	Key Key
	// User is the sending user's ring.Hash: it tells which routers remember it.
	User uint64
	// Window is how long it is to be remembered from now on.
	Window time.Duration
}

// Table is safe for concurrent use. An entry that was sent costs 40 to 55
// bytes (BenchmarkEntry); at most max of them are kept, the oldest bucket goes
// first.
type Table[R any] struct {
	max     int
	evicted func(n int)
	onSent  func(Record) // set before use

	mu       sync.Mutex
	underWay map[Key][]func(R) // guarded by mu: waiters of what is being processed
	sent     map[prefix]slot   // guarded by mu
	arena    arena             // guarded by mu: what sent refers to
	buckets  map[int64][]slot  // guarded by mu: first slots of the chunks of what expires in a bucket
	oldest   int64             // guarded by mu: no bucket before this one exists
}

// New returns a table of at most max sent messages; evicted, if not nil, is
// told how many were forgotten before their time. It is called with the
// table locked.
func NewTable[R any](max int, evicted func(n int)) *Table[R] {
	return &Table[R]{
		max:      max,
		evicted:  evicted,
		onSent:   func(Record) {},
		underWay: make(map[Key][]func(R)),
		sent:     make(map[prefix]slot),
		buckets:  make(map[int64][]slot),
		oldest:   bucketOf(time.Now()),
	}
}

// OnSent has f called with every message that FinishOf says was sent. f must not
// block. It is for the owner, before the table is used.
func (t *Table[R]) OnSent(f func(Record)) { t.onSent = f }

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
	if _, ok := t.find(k); ok {
		return Sent
	}
	t.underWay[k] = nil
	return New
}

// Finish is FinishOf for a message that no other router needs to know of.
func (t *Table[R]) Finish(k Key, sent bool, window time.Duration, outcome R) {
	t.finish(Record{Key: k, Window: window}, sent, func(Record) {}, outcome)
}

// FinishOf ends what Begin answered with New. A message that was sent is
// remembered for its window; one that failed is forgotten, so that its repeat is
// processed anew. Waiters are called with the outcome.
func (t *Table[R]) FinishOf(r Record, sent bool, outcome R) {
	t.finish(r, sent, t.onSent, outcome)
}

func (t *Table[R]) finish(r Record, sent bool, tell func(Record), outcome R) {
	t.mu.Lock()
	waiters := t.underWay[r.Key]
	delete(t.underWay, r.Key)
	if sent {
		t.remember(r)
	}
	t.mu.Unlock()
	if sent {
		tell(r) // it is among the Records already
	}
	for _, w := range waiters {
		w(outcome)
	}
}

// Learn takes another router's word that a message was sent.
func (t *Table[R]) Learn(r Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(bucketOf(time.Now()))
	t.remember(r)
}

// Records calls f with all that is remembered and has a user, in parts that are
// collected under the lock; f may block. It ends when f returns false.
func (t *Table[R]) Records(f func([]Record) bool) {
	t.mu.Lock()
	t.expire(bucketOf(time.Now()))
	next := t.oldest
	t.mu.Unlock()
	for {
		part, after, more := t.part(next)
		if len(part) > 0 && !f(part) || !more {
			return
		}
		next = after
	}
}

// part returns the records of the first bucket that is not before from, and what
// comes after it.
func (t *Table[R]) part(from int64) (records []Record, after int64, more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first, found := int64(0), false
	for n := range t.buckets {
		if n >= from && (!found || n < first) {
			first, found = n, true
		}
	}
	if !found {
		return nil, 0, false
	}
	// In the middle of the bucket before: Learn adds one, and an entry that is
	// passed on again and again must not live longer each time.
	window := max(time.Until(time.Unix(0, first*int64(bucketWidth)-int64(bucketWidth)/2)), 0)
	for _, at := range t.buckets[first] {
		for i, e := range t.arena.chunk(at).entries() {
			if e.user != 0 && t.sent[e.key.prefix()] == at+slot(i) {
				records = append(records, Record{Key: e.key, User: e.user, Window: window})
			}
		}
	}
	return records, first + 1, true
}

// Len returns the number of sent messages remembered.
func (t *Table[R]) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.sent)
}

// find returns where the message is.
func (t *Table[R]) find(k Key) (slot, bool) {
	at, ok := t.sent[k.prefix()]
	return at, ok && t.arena.at(at).key == k
}

func (t *Table[R]) remember(r Record) {
	n := bucketOf(time.Now().Add(r.Window)) + 1
	if at, ok := t.find(r.Key); ok && t.arena.chunk(at).bucket >= n {
		return
	}
	for len(t.sent) >= t.max && len(t.buckets) > 0 {
		t.drop(t.oldest, true)
	}
	chunks := t.buckets[n]
	if len(chunks) == 0 || t.arena.chunk(chunks[len(chunks)-1]).n == chunkSize {
		chunks = append(chunks, t.arena.alloc(n))
		t.buckets[n] = chunks
	}
	at := chunks[len(chunks)-1]
	t.sent[r.Key.prefix()] = at + t.arena.chunk(at).add(entry{r.Key, r.User})
	if n < t.oldest {
		t.oldest = n
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
func (t *Table[R]) drop(n int64, early bool) {
	forgotten := 0
	for _, at := range t.buckets[n] {
		for i, e := range t.arena.chunk(at).entries() {
			if t.sent[e.key.prefix()] == at+slot(i) {
				delete(t.sent, e.key.prefix())
				forgotten++
			}
		}
		t.arena.release(at)
	}
	delete(t.buckets, n)
	t.oldest = n + 1
	if early && forgotten > 0 && t.evicted != nil {
		t.evicted(forgotten)
	}
}
