package tenant

import (
	"sync"
	"time"
)

const (
	// leasesPerSecond: a lease is worth a tenth of a second, so that a router
	// that needs its tenant's whole rate leases ten times a second, whatever the
	// rate.
	leasesPerSecond = 10
	// retryLease is the least time between a lease that was not granted in full
	// and the next one.
	retryLease = time.Second / leasesPerSecond / 2
	// dryFor is how long such a lease says that the rate is used up; then the
	// store's bucket is full again if nobody took from it.
	dryFor = time.Second
)

// bucket is a router's part of a tenant's message rate. The zero value is
// empty. It is safe for concurrent use and does no I/O: take says when to
// lease, granted and failed take the answer.
type bucket struct {
	mu       sync.Mutex
	rate     int       // guarded by mu, as all below: what tokens were leased for
	tokens   float64   // negative: admitted ahead of a lease
	leasing  bool      // an answer is awaited
	dryUntil time.Time // a lease was not granted in full a moment ago
	retryAt  time.Time // no lease before
	// local: the store failed, and tokens grow by themselves since localAt.
	local   bool
	localAt time.Time
}

// take takes one token if there is one. want > 0 tells the caller to lease that
// many and to report the answer. routers is how many share the rate.
func (b *bucket) take(rate, routers int, now time.Time) (ok bool, want int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	chunk := (rate + leasesPerSecond - 1) / leasesPerSecond
	if rate != b.rate {
		// What was leased, owed or refused under another rate says nothing now.
		b.rate, b.dryUntil, b.retryAt = rate, time.Time{}, time.Time{}
		b.tokens = max(min(b.tokens, float64(chunk)), -float64(rate))
	}
	if b.local {
		b.tokens = min(float64(rate), b.tokens+now.Sub(b.localAt).Seconds()*float64(rate))
		b.localAt = now
	}
	floor := 0.0
	if !b.local && !now.Before(b.dryUntil) {
		floor = -float64((rate + routers - 1) / routers)
	}
	if b.tokens-1 >= floor {
		b.tokens--
		ok = true
	}
	low := b.local || b.tokens <= float64(chunk)/2
	if low && !b.leasing && !now.Before(b.retryAt) {
		b.leasing = true
		want = chunk
		if b.tokens < 0 {
			want += int(-b.tokens)
		}
	}
	return ok, want
}

// granted takes the store's answer to a lease of want.
func (b *bucket) granted(n, want int, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.local {
		// What was admitted meanwhile was not the store's to count.
		b.local, b.tokens = false, 0
	}
	b.leasing = false
	b.tokens += float64(n)
	if n < want {
		b.retryAt = now.Add(max(retryLease, time.Second/time.Duration(max(b.rate, 1))))
		b.dryUntil = now.Add(dryFor)
	}
}

// failed takes the store's failure: the rate is local until a lease succeeds.
func (b *bucket) failed(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leasing = false
	b.retryAt = now.Add(storeRetry)
	if !b.local {
		b.local, b.localAt = true, now
		// A full bucket less what was admitted ahead: what the store would have
		// had at best.
		b.tokens = min(float64(b.rate), b.tokens+float64(b.rate))
	}
}
