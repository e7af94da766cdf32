package drain

import (
	"math"
	"slices"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// histogram counts values by upper bounds, rising; counts has one more, for what is
// above all of them. The zero histogram is empty.
type histogram struct {
	bounds []float64
	counts []uint64
}

func histogramOf(h *gatewayv1.Histogram) histogram {
	return histogram{h.GetBounds(), h.GetCounts()}
}

// valid tells whether h came from a program that counts as this one does.
func (h histogram) valid() bool { return len(h.counts) == len(h.bounds)+1 }

func (h histogram) total() (n uint64) {
	if !h.valid() {
		return 0
	}
	for _, c := range h.counts {
		n += c
	}
	return n
}

// difference is what was counted between a and b, see fleet.Buckets.Since.
func difference(a, b histogram) histogram {
	d := fleet.Buckets{Bounds: b.bounds, Counts: b.counts}.Since(fleet.Buckets{Bounds: a.bounds, Counts: a.counts})
	return histogram{d.Bounds, d.Counts}
}

// plus adds two. Bounds that differ are merged: a count stays below the upper bound
// that it had.
func (h histogram) plus(o histogram) histogram {
	switch {
	case !h.valid() || h.total() == 0:
		return o
	case !o.valid() || o.total() == 0:
		return h
	}
	bounds := append(slices.Clone(h.bounds), o.bounds...)
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	out := histogram{bounds, make([]uint64, len(bounds)+1)}
	for _, x := range []histogram{h, o} {
		for i, c := range x.counts {
			at := len(bounds)
			if i < len(x.bounds) {
				at, _ = slices.BinarySearch(bounds, x.bounds[i])
			}
			out.counts[at] += c
		}
	}
	return out
}

// quantile is the upper bound of the bucket in which the q-quantile lies: never
// less than it. +Inf above all bounds, 0 if nothing was counted.
func (h histogram) quantile(q float64) float64 {
	n := h.total()
	if n == 0 {
		return 0
	}
	rank := uint64(math.Ceil(q * float64(n)))
	var seen uint64
	for i, c := range h.counts {
		if seen += c; seen >= max(rank, 1) && i < len(h.bounds) {
			return h.bounds[i]
		}
	}
	return math.Inf(1)
}
