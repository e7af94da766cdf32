package load

import (
	"encoding/json"
	"fmt"
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

// Histogram counts durations in buckets. The zero value is empty; safe for
// concurrent use.
type Histogram struct {
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

// Add counts d; a negative one as 0.
func (h *Histogram) Add(d time.Duration) {
	d = max(d, 0)
	h.counts[bucketOf(uint64(d))].Add(1)
	h.raise(d)
}

func (h *Histogram) raise(d time.Duration) {
	for {
		m := h.max.Load()
		if int64(d) <= m || h.max.CompareAndSwap(m, int64(d)) {
			return
		}
	}
}

// Merge counts what o has counted as well.
func (h *Histogram) Merge(o *Histogram) {
	for i := range o.counts {
		if n := o.counts[i].Load(); n > 0 {
			h.counts[i].Add(n)
		}
	}
	h.raise(o.Largest())
}

// Count is how many there are.
func (h *Histogram) Count() (n uint64) {
	for i := range h.counts {
		n += h.counts[i].Load()
	}
	return n
}

// Quantile is the duration that a share q of all do not exceed, rounded up to
// the top of its bucket, and never above the maximum; 0 if there are none.
func (h *Histogram) Quantile(q float64) time.Duration {
	n := h.Count()
	rank := uint64(q * float64(n))
	if n > 0 && rank >= n {
		rank = n - 1
	}
	var seen uint64
	for i := range h.counts {
		seen += h.counts[i].Load()
		if seen > rank {
			return min(time.Duration(top(i)), h.Largest())
		}
	}
	return 0
}

// Largest is the largest of them, exactly.
func (h *Histogram) Largest() time.Duration { return time.Duration(h.max.Load()) }

// packed is a Histogram between processes.
type packed struct {
	Counts map[int]uint64 `json:"counts,omitempty"`
	Max    int64          `json:"max,omitempty"`
}

// MarshalJSON is for another process of the same program.
func (h *Histogram) MarshalJSON() ([]byte, error) {
	p := packed{Counts: map[int]uint64{}, Max: h.max.Load()}
	for i := range h.counts {
		if n := h.counts[i].Load(); n > 0 {
			p.Counts[i] = n
		}
	}
	return json.Marshal(p)
}

// UnmarshalJSON adds what MarshalJSON wrote.
func (h *Histogram) UnmarshalJSON(b []byte) error {
	var p packed
	if err := json.Unmarshal(b, &p); err != nil {
		return err
	}
	for i, n := range p.Counts {
		if i < 0 || i >= buckets {
			return fmt.Errorf("a histogram has no bucket %d", i)
		}
		h.counts[i].Add(n)
	}
	h.raise(time.Duration(p.Max))
	return nil
}
