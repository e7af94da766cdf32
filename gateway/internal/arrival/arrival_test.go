package arrival

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestAudit(t *testing.T) {
	for name, c := range map[string]struct {
		last, next     uint64
		seqs           []uint64
		lost, repeated uint64
	}{
		"nothing was outstanding":      {7, 8, nil, 0, 0},
		"a new session":                {0, 1, nil, 0, 0},
		"all of it":                    {7, 10, []uint64{8, 9}, 0, 0},
		"and some without a seq":       {7, 10, []uint64{8, 9, 0, 0}, 0, 0},
		"the first is missing":         {7, 10, []uint64{9}, 1, 0},
		"one between is missing":       {7, 11, []uint64{8, 10}, 1, 0},
		"the last is missing":          {7, 10, []uint64{8}, 1, 0},
		"all are missing":              {7, 10, nil, 2, 0},
		"one that was seen":            {7, 10, []uint64{7, 8, 9}, 0, 1},
		"one comes twice":              {7, 10, []uint64{8, 8, 9}, 0, 1},
		"one that will be used again":  {7, 10, []uint64{8, 9, 10}, 0, 1},
		"out of order, but all of it":  {7, 10, []uint64{9, 8}, 0, 0},
		"the client is ahead of seqs":  {9, 8, nil, 0, 0},
		"one missing and one repeated": {3, 7, []uint64{3, 4, 6}, 1, 1},
	} {
		if lost, repeated := Audit(c.last, c.next, c.seqs); lost != c.lost || repeated != c.repeated {
			t.Errorf("%s: %d lost, %d repeated, want %d and %d", name, lost, repeated, c.lost, c.repeated)
		}
	}
}

func TestTable(t *testing.T) {
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tel.Shutdown(t.Context()) }()
	b := New(tel)
	from := &gatewayv1.GatewayRef{NodeId: "g2", Incarnation: 5}
	b.Add(Arrival{Origin: from, Migrated: true, Gap: 30 * time.Millisecond})
	b.Add(Arrival{Origin: from, Lost: 2, Repeated: 1, Gap: 90 * time.Millisecond})
	b.Add(Arrival{Origin: from, Migrated: true, Gap: 4 * time.Millisecond})
	list := b.List()
	if len(list) != 1 {
		t.Fatalf("%v", list)
	}
	a := list[0]
	if a.FromNodeId != "g2" || a.FromIncarnation != 5 || a.Migrated != 2 || a.Resumed != 1 || a.Lost != 2 || a.RepeatedDeliveries != 1 || a.GapMaxMs != 90 {
		t.Errorf("%v", a)
	}
	sum := uint64(0)
	for _, n := range a.GapMs.Counts {
		sum += n
	}
	if sum != 3 || len(a.GapMs.Counts) != len(a.GapMs.Bounds)+1 || b.lost.Value() != 2 {
		t.Errorf("%v", a.GapMs)
	}
	for i := range maxOrigins + 10 {
		b.Add(Arrival{Origin: &gatewayv1.GatewayRef{NodeId: fmt.Sprint("n", i), Incarnation: 1}})
	}
	if n := len(b.List()); n != maxOrigins+1 || b.overflow.Value() != 11 {
		t.Errorf("%d origins, %d overflows", n, b.overflow.Value())
	}
}
