package storetest

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// acquire counts one connection of tenant t and fails the test unless the
// answer is as wanted.
func acquire(t *testing.T, s route.Store, n route.NodeRef, limit int, live []route.NodeRef, wantOK bool, wantSum int) {
	t.Helper()
	ok, sum, err := s.AcquireConn(t.Context(), "t", n, limit, live)
	if err != nil {
		t.Fatal(err)
	}
	if ok != wantOK || sum != wantSum {
		t.Fatalf("acquire on %s with limit %d, living %v: %v, sum %d, want %v, %d", n.ID, limit, live, ok, sum, wantOK, wantSum)
	}
}

func release(t *testing.T, s route.Store, n route.NodeRef, count int) {
	t.Helper()
	if err := s.ReleaseConns(t.Context(), "t", n, count); err != nil {
		t.Fatal(err)
	}
}

func connectionsSummed(t *testing.T, s route.Store, _ func(time.Duration)) {
	both := []route.NodeRef{g1, g2}
	for i := range 3 {
		acquire(t, s, g1, 5, both, true, i)
	}
	acquire(t, s, g2, 5, []route.NodeRef{g2, g1, g1, g2}, true, 3) // named twice, counted once
	acquire(t, s, g2, 5, both, true, 4)
	acquire(t, s, g2, 5, both, false, 5)
	acquire(t, s, g1, 5, both, false, 5)
	acquire(t, s, g1, 4, both, false, 5) // a limit that was lowered
	acquire(t, s, g1, 0, both, true, 5)  // no limit
	// A dead node's share disappears with it, and so does that of a node's
	// earlier incarnation.
	acquire(t, s, g2, 5, []route.NodeRef{g2}, true, 2)
	again := route.NodeRef{ID: g2.ID, Incarnation: g2.Incarnation + 1}
	acquire(t, s, again, 5, []route.NodeRef{again}, true, 0)
}

func nodeItselfLives(t *testing.T, s route.Store, _ func(time.Duration)) {
	for i := range 2 {
		acquire(t, s, g1, 2, nil, true, i)
	}
	acquire(t, s, g1, 2, nil, false, 2)
	acquire(t, s, g2, 3, []route.NodeRef{g1}, true, 2)
	acquire(t, s, g2, 3, []route.NodeRef{g1}, false, 3)
}

func refusedNotCounted(t *testing.T, s route.Store, _ func(time.Duration)) {
	acquire(t, s, g1, 1, nil, true, 0)
	for range 3 {
		acquire(t, s, g1, 1, nil, false, 1)
	}
	acquire(t, s, g1, 2, nil, true, 1)
}

func connectionsReleased(t *testing.T, s route.Store, _ func(time.Duration)) {
	for i := range 5 {
		acquire(t, s, g1, 0, nil, true, i)
	}
	acquire(t, s, g2, 0, nil, true, 0)
	for _, none := range []int{0, -1, math.MinInt32} {
		release(t, s, g1, none)
	}
	release(t, s, route.NodeRef{ID: "g1", Incarnation: 99}, 5)
	release(t, s, route.NodeRef{ID: "nobody"}, 5)
	both := []route.NodeRef{g1, g2}
	acquire(t, s, g1, 6, both, false, 6)
	release(t, s, g1, 2)
	acquire(t, s, g1, 6, both, true, 4)
	release(t, s, g1, 100)
	release(t, s, g1, 1)
	acquire(t, s, g1, 2, both, true, 1)
	acquire(t, s, g1, 2, both, false, 2)
}

func countsForgotten(t *testing.T, s route.Store, pass func(time.Duration)) {
	both, alone := []route.NodeRef{g1, g2}, []route.NodeRef{g2}
	for i := range 3 {
		acquire(t, s, g1, 0, nil, true, i)
	}
	pass(time.Hour)
	release(t, s, g1, 1) // touches it
	acquire(t, s, g2, 0, alone, true, 0)
	pass(route.CountMemory - time.Minute)
	// A picture of who lives may lack a node for a while: its count must not be
	// lost over that.
	acquire(t, s, g2, 0, alone, true, 1)
	acquire(t, s, g2, 4, both, false, 4)
	pass(2 * time.Minute)
	acquire(t, s, g2, 4, alone, true, 2)
	acquire(t, s, g2, 4, both, true, 3)
}

func livingCountsLast(t *testing.T, s route.Store, pass func(time.Duration)) {
	both := []route.NodeRef{g1, g2}
	acquire(t, s, g1, 0, both, true, 0)
	for i := range 3 {
		pass(route.CountMemory + time.Hour)
		acquire(t, s, g2, 0, both, true, i+1)
	}
	pass(route.CountMemory + time.Hour)
	acquire(t, s, g1, 4, both, false, 4)
}

func concurrentConnections(t *testing.T, s route.Store, _ func(time.Duration)) {
	const limit = 30
	both := []route.NodeRef{g1, g2}
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for i := range 3 * limit {
		wg.Go(func() {
			ok, sum, err := s.AcquireConn(context.Background(), "t", both[i%2], limit, both)
			if err != nil || sum > limit || ok != (sum < limit) {
				t.Errorf("%v, sum %d, %v", ok, sum, err)
			}
			if ok {
				admitted.Add(1)
			}
		})
	}
	wg.Wait()
	if admitted.Load() != limit {
		t.Fatalf("%d admitted, the limit is %d", admitted.Load(), limit)
	}
}

func tenantsCountApart(t *testing.T, s route.Store, _ func(time.Duration)) {
	for i, tenant := range hostile {
		for n := range i + 1 {
			if ok, sum, err := s.AcquireConn(t.Context(), tenant, g1, i+1, nil); err != nil || !ok || sum != n {
				t.Fatalf("%q: %v, %d, %v", tenant, ok, sum, err)
			}
		}
	}
	for i, tenant := range hostile {
		if ok, sum, err := s.AcquireConn(t.Context(), tenant, g1, i+1, nil); err != nil || ok || sum != i+1 {
			t.Fatalf("%q: %v, %d, %v", tenant, ok, sum, err)
		}
		node := route.NodeRef{ID: tenant, Incarnation: 1}
		if ok, sum, err := s.AcquireConn(t.Context(), "t", node, 1, nil); err != nil || !ok || sum != 0 {
			t.Fatalf("node %q: %v, %d, %v", tenant, ok, sum, err)
		}
		if got, err := s.LeaseTokens(t.Context(), tenant, 1, 5); err != nil || got != 1 {
			t.Fatalf("%q's bucket gave %d, %v", tenant, got, err)
		}
	}
}

func lease(t *testing.T, s route.Store, rate, n int) int {
	t.Helper()
	got, err := s.LeaseTokens(t.Context(), "t", rate, n)
	if err != nil {
		t.Fatal(err)
	}
	if got < 0 || got > max(n, 0) {
		t.Fatalf("wanted %d, got %d", n, got)
	}
	return got
}

// meter bounds what a bucket may have given since start, on any machine.
type meter struct {
	rate   int
	start  time.Time
	passed time.Duration
	took   int
}

func (m *meter) add(t *testing.T, n int) {
	t.Helper()
	m.took += n
	most := float64(m.rate) * (1 + (time.Since(m.start) + m.passed).Seconds())
	if float64(m.took) > most+1 {
		t.Fatalf("%d tokens in %v at a rate of %d", m.took, time.Since(m.start)+m.passed, m.rate)
	}
}

func bucketHolds(t *testing.T, s route.Store, pass func(time.Duration)) {
	m := meter{rate: 1000, start: time.Now()}
	if n := lease(t, s, 1000, 100); n != 100 {
		t.Fatalf("a full bucket gave %d", n)
	}
	m.add(t, 100)
	for range 50 {
		m.add(t, lease(t, s, 1000, 100))
	}
	if m.took < 1000 {
		t.Fatalf("took %d, a second's worth is 1000", m.took)
	}
	// However long nobody asks, it holds no more than a second's worth.
	pass(time.Hour)
	if n := lease(t, s, 1000, 1_000_000); n != 1000 {
		t.Fatalf("after an hour it gave %d", n)
	}
	if n, err := s.LeaseTokens(t.Context(), "other", 1000, 10); err != nil || n != 10 {
		t.Fatalf("another tenant's bucket: %d, %v", n, err)
	}
}

func bucketRefills(t *testing.T, s route.Store, pass func(time.Duration)) {
	const rate = 10
	m := meter{rate: rate, start: time.Now()}
	m.add(t, lease(t, s, rate, rate))
	for range 20 {
		pass(500 * time.Millisecond)
		m.passed += 500 * time.Millisecond
		n := lease(t, s, rate, rate)
		if n < rate/2 {
			t.Fatalf("half a second gave %d", n)
		}
		m.add(t, n)
	}
	// What is too little for a token is not lost.
	lease(t, s, rate, rate)
	got := 0
	for range 40 {
		pass(25 * time.Millisecond)
		got += lease(t, s, rate, 1)
	}
	if got < rate-1 {
		t.Fatalf("a second in small steps gave %d", got)
	}
}

func noTokens(t *testing.T, s route.Store, _ func(time.Duration)) {
	for _, rate := range []int{0, -1, math.MinInt32} {
		if n := lease(t, s, rate, 10); n != 0 {
			t.Errorf("rate %d gave %d", rate, n)
		}
		if n := lease(t, s, 10, rate); n != 0 {
			t.Errorf("a want of %d gave %d", rate, n)
		}
	}
	if n := lease(t, s, 10, 10); n != 10 {
		t.Errorf("the bucket was touched: %d left", n)
	}
}

func bucketFollowsRate(t *testing.T, s route.Store, pass func(time.Duration)) {
	lease(t, s, 1000, 1)
	if n := lease(t, s, 10, 1000); n != 10 {
		t.Fatalf("a lower rate's bucket gave %d", n)
	}
	pass(time.Minute)
	if n := lease(t, s, math.MaxInt32, math.MaxInt32); n != math.MaxInt32 {
		t.Fatalf("the highest rate's bucket gave %d", n)
	}
}

func concurrentLeases(t *testing.T, s route.Store, _ func(time.Duration)) {
	const rate = 100
	start := time.Now()
	var took atomic.Int64
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			n, err := s.LeaseTokens(context.Background(), "t", rate, 10)
			if err != nil {
				t.Error(err)
			}
			took.Add(int64(n))
		})
	}
	wg.Wait()
	m := meter{rate: rate, start: start}
	m.add(t, int(took.Load()))
	if m.took < rate {
		t.Fatalf("took %d, a second's worth is %d", m.took, rate)
	}
}
