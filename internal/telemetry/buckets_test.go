package telemetry

import (
	"slices"
	"testing"
)

func TestBucketsAreReadAndExported(t *testing.T) {
	tel, _ := newTelemetry(t)
	b := tel.Buckets("mics_ws_accept_ms", "help", 1, 10)
	for _, v := range []float64{0.5, 1, 1.5, 10, 11, 1e9} {
		b.Record(v)
	}
	bounds, counts := b.Read()
	if !slices.Equal(bounds, []float64{1, 10}) || !slices.Equal(counts, []uint64{2, 2, 2}) {
		t.Errorf("bounds %v, counts %v", bounds, counts)
	}
	has(t, scrape(t, tel), `mics_ws_accept_ms_bucket{le="10"} 4`)
	own := NewBuckets(5)
	own.Record(5.1)
	if _, counts := own.Read(); !slices.Equal(counts, []uint64{0, 1}) {
		t.Errorf("counts %v", counts)
	}
}
