package load

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	// subBits: values of one power of two share 1<<subBits buckets, so that a
	// bucket is at most 1/64 of its value wide.
	subBits = 6
	buckets = (64 - subBits + 1) << subBits
)

// histogram counts durations in buckets. The zero value is empty; safe for
// concurrent use.
type histogram struct {
	counts [buckets]atomic.Uint64
	max    atomic.Int64
}

func bucketOf(v uint64) int {
	shift := max(bits.Len64(v)-subBits-1, 0)
	return shift<<subBits + int(v>>shift)
}

// top is the largest value of a bucket.
func top(bucket int) uint64 {
	if bucket < 2<<subBits {
		return uint64(bucket)
	}
	shift := bucket>>subBits - 1
	return uint64(bucket-shift<<subBits+1)<<shift - 1
}

// add counts d; a negative one as 0.
func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	h.counts[bucketOf(uint64(d))].Add(1)
	for {
		m := h.max.Load()
		if int64(d) <= m || h.max.CompareAndSwap(m, int64(d)) {
			return
		}
	}
}

func (h *histogram) count() (n uint64) {
	for i := range h.counts {
		n += h.counts[i].Load()
	}
	return n
}

// quantile is the duration that a share q of all do not exceed, rounded up to
// the top of its bucket, and never above the maximum; 0 if there are none.
func (h *histogram) quantile(q float64) time.Duration {
	n := h.count()
	rank := uint64(q * float64(n))
	if n > 0 && rank >= n {
		rank = n - 1
	}
	var seen uint64
	for i := range h.counts {
		seen += h.counts[i].Load()
		if seen > rank {
			return min(time.Duration(top(i)), h.largest())
		}
	}
	return 0
}

func (h *histogram) largest() time.Duration { return time.Duration(h.max.Load()) }
