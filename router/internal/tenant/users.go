package tenant

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

const (
	userShards = 64
	// sweepEvery bounds how often a full shard is swept, because a sweep looks
	// at all of it.
	sweepEvery = 100 * time.Millisecond
)

type userKey struct {
	tenant *Tenant
	user   string
}

// users are the users' message rates. A rate of r per second with bursts of r
// is one number per user (GCRA): the time at which his bucket is full again.
// When that has passed the entry says nothing and goes.
type users struct {
	seed      maphash.Seed
	perShard  int
	forgotten atomic.Int64 // entries dropped before their time
	shards    [userShards]userShard
}

type userShard struct {
	mu     sync.Mutex
	fullAt map[userKey]int64 // guarded by mu: Unix nanoseconds
	sweep  int               // guarded by mu: size at which to sweep next
	swept  int64             // guarded by mu: when that was last, Unix nanoseconds
}

func (u *users) init(maxUsers int) {
	u.seed = maphash.MakeSeed()
	u.perShard = max(1, maxUsers/userShards)
	for i := range u.shards {
		u.shards[i].fullAt = map[userKey]int64{}
		u.shards[i].sweep = min(64, u.perShard)
	}
}

// take takes one token of the user's rate if there is one and also agrees,
// which is asked only then, with the user's shard locked.
func (u *users) take(k userKey, rate int, now time.Time, also func() bool) bool {
	s := &u.shards[maphash.Comparable(u.seed, k)%userShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	at := now.UnixNano()
	step := int64(time.Second) / int64(rate)
	full, known := s.fullAt[k]
	next := max(full, at) + step
	// After the last of rate tokens the bucket is full again in a second.
	if next-at > step*int64(rate) || !also() {
		return false
	}
	if !known && len(s.fullAt) >= s.sweep {
		u.makeRoom(s, at)
	}
	s.fullAt[k] = next
	return true
}

// makeRoom drops what says nothing any more. Overflow: with all room taken by
// users who sent within the last second any one of them is forgotten, which
// refills his bucket, and counted.
func (u *users) makeRoom(s *userShard, at int64) {
	if len(s.fullAt) < u.perShard || at-s.swept >= int64(sweepEvery) {
		for k, full := range s.fullAt {
			if full <= at {
				delete(s.fullAt, k)
			}
		}
		s.swept = at
		s.sweep = min(max(64, 2*len(s.fullAt)), u.perShard)
	}
	for k := range s.fullAt {
		if len(s.fullAt) < u.perShard {
			return
		}
		delete(s.fullAt, k)
		u.forgotten.Add(1)
	}
}
