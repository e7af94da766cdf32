package fleet

import (
	"math"
	"slices"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// Buckets are the counts of a histogram since its process began: Bounds are upper
// and rise, Counts has one more, for what is above all of them.
type Buckets struct {
	Bounds []float64
	Counts []uint64
}

// BucketsOf reads what a node says.
func BucketsOf(h *gatewayv1.Histogram) Buckets { return Buckets{h.GetBounds(), h.GetCounts()} }

func (b Buckets) valid() bool { return len(b.Counts) == len(b.Bounds)+1 }

// Since is what has been counted after was; all of it if was is of other bounds or of
// another process. It shares no counts with b. Nonsense is empty.
func (b Buckets) Since(was Buckets) Buckets {
	if !b.valid() {
		return Buckets{}
	}
	out := Buckets{b.Bounds, slices.Clone(b.Counts)}
	if !was.valid() || !slices.Equal(was.Bounds, b.Bounds) {
		return out
	}
	for i, c := range was.Counts {
		if c > out.Counts[i] {
			return Buckets{b.Bounds, slices.Clone(b.Counts)}
		}
		out.Counts[i] -= c
	}
	return out
}

// Total is how many values were counted; nonsense has none.
func (b Buckets) Total() (n uint64) {
	if !b.valid() {
		return 0
	}
	for _, c := range b.Counts {
		n += c
	}
	return n
}

// Plus adds two. Bounds that differ are merged: a count stays below the upper bound
// that it had.
func (b Buckets) Plus(o Buckets) Buckets {
	switch {
	case b.Total() == 0:
		return o
	case o.Total() == 0:
		return b
	}
	bounds := append(slices.Clone(b.Bounds), o.Bounds...)
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	out := Buckets{bounds, make([]uint64, len(bounds)+1)}
	for _, x := range []Buckets{b, o} {
		for i, c := range x.Counts {
			at := len(bounds)
			if i < len(x.Bounds) {
				at, _ = slices.BinarySearch(bounds, x.Bounds[i])
			}
			out.Counts[at] += c
		}
	}
	return out
}

// Quantile is the upper bound of the bucket in which the q-quantile lies: never
// less than it. +Inf above all bounds, 0 if nothing was counted.
func (b Buckets) Quantile(q float64) float64 {
	n := b.Total()
	if n == 0 {
		return 0
	}
	rank := uint64(math.Ceil(q * float64(n)))
	var seen uint64
	for i, c := range b.Counts {
		if seen += c; seen >= max(rank, 1) && i < len(b.Bounds) {
			return b.Bounds[i]
		}
	}
	return math.Inf(1)
}
