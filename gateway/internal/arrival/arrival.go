// Package arrival audits the sessions that go on here after they were elsewhere, or
// without a socket: whether their deliveries go on with the seq after the last that
// the client has seen, each once, and for how long nothing could be delivered.
package arrival

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

const (
	// maxOrigins bounds the table; what comes from later origins is counted as
	// from overflowOrigin.
	maxOrigins     = 1024
	overflowOrigin = "other"
)

// gapBounds are in milliseconds: close together where drains are paced by them.
var gapBounds = []float64{1, 2, 5, 10, 15, 20, 25, 35, 50, 75, 100, 200, 500, 1000, 2000, 5000}

// Audit compares the seqs of a backlog (0: not numbered yet) with what the client,
// which has seen everything up to lastSeq, must get before nextSeq. lost are missing,
// repeated are those that it has seen, that come twice, or that nextSeq will use again.
func Audit(lastSeq, nextSeq uint64, seqs []uint64) (lost, repeated uint64) {
	if !slices.IsSorted(seqs) {
		seqs = slices.Sorted(slices.Values(seqs))
	}
	seen := lastSeq
	for _, seq := range seqs {
		switch {
		case seq == 0:
		case seq <= seen || seq >= nextSeq:
			repeated++
		default:
			lost += seq - seen - 1
			seen = seq
		}
	}
	if nextSeq > seen+1 {
		lost += nextSeq - seen - 1
	}
	return lost, repeated
}

// Arrival is one session that went on here.
type Arrival struct {
	Origin *gatewayv1.GatewayRef
	// Migrated: its client was asked to move; else its socket was lost.
	Migrated       bool
	Lost, Repeated uint64
	// Gap is from the freeze of the old session to the ConnectAck of the new.
	Gap time.Duration
}

// Table counts arrivals by origin. Safe for concurrent use.
type Table struct {
	kinds          *telemetry.CounterVec
	lost, repeated *telemetry.Counter
	overflow       *telemetry.Counter
	gap            *telemetry.Buckets

	mu      sync.Mutex
	origins map[origin]*sums // guarded by mu; only grows, up to maxOrigins+1
}

type origin struct {
	node        string
	incarnation uint64
}

type sums struct {
	migrated, resumed, lost, repeated atomic.Uint64
	gap                               *telemetry.Buckets
	gapMax                            atomic.Uint64 // bits of a float64 that is not negative
}

// New returns an empty table and registers its metrics.
func New(t *telemetry.Telemetry) *Table {
	b := &Table{
		kinds:    t.CounterVec("mics_arrivals_total", "sessions that went on here", "kind"),
		lost:     t.Counter("mics_arrivals_lost_total", "deliveries that were missing when a session went on here"),
		repeated: t.Counter("mics_arrivals_repeated_total", "deliveries that came again when a session went on here"),
		overflow: t.Counter("mics_arrivals_origins_overflow_total", "arrivals counted without their origin, because there were too many"),
		gap:      t.Buckets("mics_arrival_gap_ms", "from the freeze of the old session to the ConnectAck of the new", gapBounds...),
		origins:  map[origin]*sums{},
	}
	b.kinds.With("migrated")
	b.kinds.With("resumed")
	return b
}

// Add counts an arrival.
func (b *Table) Add(a Arrival) {
	s := b.sums(origin{a.Origin.GetNodeId(), a.Origin.GetIncarnation()})
	if a.Migrated {
		s.migrated.Add(1)
		b.kinds.With("migrated").Inc()
	} else {
		s.resumed.Add(1)
		b.kinds.With("resumed").Inc()
	}
	s.lost.Add(a.Lost)
	s.repeated.Add(a.Repeated)
	b.lost.Add(int64(min(a.Lost, math.MaxInt64)))
	b.repeated.Add(int64(min(a.Repeated, math.MaxInt64)))
	ms := max(0, float64(a.Gap)/float64(time.Millisecond))
	s.gap.Record(ms)
	b.gap.Record(ms)
	for old := s.gapMax.Load(); ms > math.Float64frombits(old); old = s.gapMax.Load() {
		if s.gapMax.CompareAndSwap(old, math.Float64bits(ms)) {
			break
		}
	}
}

func (b *Table) sums(o origin) *sums {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.origins[o]
	if s == nil && len(b.origins) >= maxOrigins {
		b.overflow.Inc()
		o = origin{node: overflowOrigin}
		s = b.origins[o]
	}
	if s == nil {
		s = &sums{gap: telemetry.NewBuckets(gapBounds...)}
		b.origins[o] = s
	}
	return s
}

// List returns the sums by origin, in the order of names.
func (b *Table) List() []*gatewayv1.Arrivals {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]*gatewayv1.Arrivals, 0, len(b.origins))
	for o, s := range b.origins {
		bounds, counts := s.gap.Read()
		out = append(out, &gatewayv1.Arrivals{
			FromNodeId: o.node, FromIncarnation: o.incarnation,
			Migrated: s.migrated.Load(), Resumed: s.resumed.Load(), Lost: s.lost.Load(), RepeatedDeliveries: s.repeated.Load(),
			GapMs: &gatewayv1.Histogram{Bounds: bounds, Counts: counts}, GapMaxMs: math.Float64frombits(s.gapMax.Load()),
		})
	}
	slices.SortFunc(out, func(x, y *gatewayv1.Arrivals) int {
		return cmp.Or(cmp.Compare(x.FromNodeId, y.FromNodeId), cmp.Compare(x.FromIncarnation, y.FromIncarnation))
	})
	return out
}
