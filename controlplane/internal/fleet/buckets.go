package fleet

import (
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
