package signals

import (
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/route"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func table(t *testing.T, alive func(route.NodeRef) bool) *Table {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	return New(alive, tel)
}

func always(route.NodeRef) bool { return true }

func TestCountsAreEachGatewaysOwn(t *testing.T) {
	tb := table(t, always)
	b, a := tb.Of(route.NodeRef{ID: "g", Incarnation: 2}), tb.Of(route.NodeRef{ID: "g", Incarnation: 1})
	failed := errors.New("failed")
	a.Hook(nil)
	a.Hook(failed)
	a.Auth(3*time.Millisecond, nil)
	a.Auth(time.Second, nil)
	a.Auth(time.Second, failed)
	a.Forward(false)
	a.Forward(true)
	a.Forward(true)
	a.Limited()
	b.Message()
	if tb.Of(route.NodeRef{ID: "g", Incarnation: 1}) != a {
		t.Error("counts are not kept")
	}
	got := tb.Read()
	if len(got) != 2 || got[0].GetIncarnation() != 1 || got[1].GetMessages() != 1 {
		t.Fatalf("%v", got)
	}
	g := got[0]
	if g.GetHooksOk() != 3 || g.GetHooksFailed() != 2 || g.GetForwardsOk() != 1 || g.GetForwardsFailed() != 2 || g.GetRateLimited() != 1 || g.GetMessages() != 0 {
		t.Errorf("%v", g)
	}
	if h := g.GetAuthMs(); !slices.Equal(h.GetCounts(), []uint64{0, 0, 1, 0, 0, 0, 0, 0, 1}) || len(h.GetBounds()) != 8 {
		t.Errorf("%v: refused and failed calls have no time", h)
	}
}

func TestNothingIsCountedWithoutATable(t *testing.T) {
	var tb *Table
	g := tb.Of(route.NodeRef{ID: "g"})
	g.Hook(nil)
	g.Auth(1, nil)
	g.Forward(true)
	g.Limited()
	g.Message()
	if tb.Read() != nil {
		t.Error("counts")
	}
}

func TestTheDeadStayForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		alive := true
		tb := table(t, func(route.NodeRef) bool { return alive })
		tb.Of(route.NodeRef{ID: "g"}).Message()
		alive = false
		if len(tb.Read()) != 1 {
			t.Fatal("gone at once")
		}
		time.Sleep(keepDead - time.Second) // fake time
		alive = true
		tb.Read() // out of reach for a while only
		alive = false
		tb.Read()
		time.Sleep(keepDead - time.Second) // fake time
		if len(tb.Read()) != 1 {
			t.Fatal("the time is counted from its end")
		}
		time.Sleep(time.Second) // fake time
		if len(tb.Read()) != 0 {
			t.Error("kept for ever")
		}
	})
}

func TestTheTableIsBounded(t *testing.T) {
	alive := true
	tb := table(t, func(route.NodeRef) bool { return alive })
	for i := range maxGateways {
		tb.Of(route.NodeRef{ID: "g", Incarnation: uint64(i)})
	}
	if tb.Of(route.NodeRef{ID: "one more"}) != nil || tb.overflow.Value() != 1 {
		t.Error("no bound, or an overflow without a count")
	}
	alive = false
	if tb.Of(route.NodeRef{ID: "one more"}) == nil {
		t.Error("the dead keep the living out")
	}
}

func BenchmarkForward(b *testing.B) {
	tb := &Table{alive: always, gateways: map[route.NodeRef]*entry{}}
	ref := route.NodeRef{ID: "mics-gateway-0", Incarnation: 1}
	b.ReportAllocs()
	for b.Loop() {
		tb.Of(ref).Forward(false)
	}
}
