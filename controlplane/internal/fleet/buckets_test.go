package fleet

import (
	"math"
	"testing"
)

func TestBuckets(t *testing.T) {
	a := Buckets{[]float64{1, 10}, []uint64{1, 2, 3}}
	b := Buckets{[]float64{1, 10}, []uint64{2, 5, 3}}
	if d := b.Since(a); d.Total() != 4 || d.Quantile(0.5) != 10 || d.Quantile(0) != 1 {
		t.Errorf("%+v", d)
	}
	if d := a.Since(b); d.Total() != 6 { // another process
		t.Errorf("%+v", d)
	}
	if q := b.Quantile(1); !math.IsInf(q, 1) {
		t.Errorf("above all bounds: %v", q)
	}
	if s := a.Plus(Buckets{[]float64{5}, []uint64{7, 1}}); s.Total() != 14 || s.Quantile(0.5) != 5 {
		t.Errorf("%+v", s)
	}
	if (Buckets{}).Quantile(0.5) != 0 || (Buckets{Bounds: []float64{1}}).Since(Buckets{}).Total() != 0 {
		t.Error("nothing is something")
	}
}
