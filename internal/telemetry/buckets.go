package telemetry

import (
	"context"
	"slices"
	"sort"
	"sync/atomic"

	"go.opentelemetry.io/otel/metric"
)

// Buckets is a histogram that the process reads itself, for its peers, besides
// exporting it. Safe for concurrent use. The zero value is of no use.
type Buckets struct {
	bounds []float64
	counts []atomic.Uint64
	h      metric.Float64Histogram // nil: not exported
}

// NewBuckets returns a histogram with the upper bounds, which must rise, that is
// not exported.
func NewBuckets(bounds ...float64) *Buckets {
	return &Buckets{bounds: slices.Clone(bounds), counts: make([]atomic.Uint64, len(bounds)+1)}
}

// Buckets registers an exported histogram with the upper bounds, which must rise.
func (t *Telemetry) Buckets(name, help string, bounds ...float64) *Buckets {
	b := NewBuckets(bounds...)
	h, err := t.meter.Float64Histogram(name, metric.WithDescription(help), metric.WithExplicitBucketBoundaries(bounds...))
	if err != nil {
		panic(err)
	}
	b.h = h
	return b
}

// Record counts v in the first bucket whose bound is not below it.
func (b *Buckets) Record(v float64) {
	b.counts[sort.SearchFloat64s(b.bounds, v)].Add(1)
	if b.h != nil {
		b.h.Record(context.Background(), v)
	}
}

// Read returns the bounds and, one more than those, the counts; the last is of
// what is above all bounds.
func (b *Buckets) Read() (bounds []float64, counts []uint64) {
	counts = make([]uint64, len(b.counts))
	for i := range b.counts {
		counts[i] = b.counts[i].Load()
	}
	return slices.Clone(b.bounds), counts
}
