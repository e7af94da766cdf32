package storetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

func renew(t *testing.T, s route.Store, n route.NodeRef, lease time.Duration) {
	t.Helper()
	if err := s.RenewNode(t.Context(), route.Node{NodeRef: n}, lease); err != nil {
		t.Fatal(err)
	}
}

func bury(t *testing.T, s route.Store, n route.NodeRef, want bool) {
	t.Helper()
	if buried, err := s.Bury(t.Context(), n); err != nil || buried != want {
		t.Fatalf("bury %+v: %v, %v, want %v", n, buried, err, want)
	}
}

func forget(t *testing.T, s route.Store, n route.NodeRef) {
	t.Helper()
	if err := s.ForgetNode(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

func dead(t *testing.T, s route.Store, what string, nodes ...route.DeadNode) {
	t.Helper()
	got, err := s.DeadNodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want(t, what, got, nodes)
}

// reapAll reaps until nothing is left and returns the batches' sizes.
func reapAll(t *testing.T, s route.Store, n route.NodeRef, limit int, ttl time.Duration) (batches []int) {
	t.Helper()
	for range 10_000 {
		ended, more, err := s.Reap(t.Context(), n, limit, func(string) time.Duration { return ttl })
		if err != nil {
			t.Fatal(err)
		}
		batches = append(batches, len(ended))
		if !more {
			return batches
		}
	}
	t.Fatal("reaping does not end")
	return nil
}

// reaped reaps until nothing is left, which must be as many.
func reaped(t *testing.T, s route.Store, n route.NodeRef, ttl time.Duration, want int) {
	t.Helper()
	if got := sum(reapAll(t, s, n, 10, ttl)); got != want {
		t.Fatalf("reaped %d routes of %+v, want %d", got, n, want)
	}
}

func sum(batches []int) (n int) {
	for _, b := range batches {
		n += b
	}
	return n
}

func reapingMakesGhosts(t *testing.T, s route.Store, pass func(time.Duration)) {
	desk, pad, tv := device("ann", "desk"), device("ann", "pad"), device("ann", "tv")
	again := route.NodeRef{ID: g1.ID, Incarnation: g1.Incarnation + 1}
	bob := route.DeviceKey{UserKey: route.UserKey{Tenant: "other", User: "bob"}, Device: "phone"}
	bind(t, s, phone, g1, 1)
	bind(t, s, phone, g1, 2)
	bind(t, s, desk, g1, 3)
	bind(t, s, pad, again, 4)
	bind(t, s, tv, g2, 5)
	bind(t, s, bob, g1, 6)
	change(t, s, route.Change{Key: desk, Node: g1, Session: 3, Epoch: 1, To: route.Closing})
	bury(t, s, g1, true)
	before := time.Now()
	ended, more, err := s.Reap(t.Context(), g1, 100, func(tenant string) time.Duration {
		if tenant == "t" {
			return time.Hour
		}
		return 0
	})
	if more || err != nil {
		t.Fatal(more, err)
	}
	slices.SortFunc(ended, func(a, b route.Ended) int { return cmp.Compare(a.Key.Device+a.Key.User, b.Key.Device+b.Key.User) })
	want(t, "ended", ended, []route.Ended{{Key: desk, Epoch: 1}, {Key: phone, Epoch: 2}, {Key: bob, Epoch: 1}})
	if got := lookup(t, s, bob.UserKey); len(got) != 0 {
		t.Errorf("remembered without a time: %+v", got)
	}
	got := lookup(t, s, phone.UserKey)
	for i := range got {
		if got[i].State == route.Ghost {
			if u := got[i].Until; u.Before(before.Add(time.Hour-time.Millisecond)) || u.After(time.Now().Add(time.Hour+time.Second)) {
				t.Errorf("%s is remembered until %v", got[i].Device, u)
			}
			got[i].Until = time.Time{}
		}
	}
	want(t, "records", got, []route.Record{
		{Device: "desk", State: route.Ghost, Node: g1, Session: 3, Epoch: 1, Version: 1},
		{Device: "pad", State: route.Live, Node: again, Session: 4, Epoch: 1, Version: 1},
		{Device: "phone", State: route.Ghost, Node: g1, Session: 2, Epoch: 2, Version: 1},
		{Device: "tv", State: route.Live, Node: g2, Session: 5, Epoch: 1, Version: 1},
	})
	reaped(t, s, g1, time.Minute, 0)
	pass(61 * time.Minute)
	if got := lookup(t, s, phone.UserKey); len(got) != 2 {
		t.Errorf("an hour later: %+v", got)
	}
	if epoch, prev := bind(t, s, phone, g2, 7); epoch != 1 || prev != nil {
		t.Errorf("epoch %d after %+v", epoch, prev)
	}
}

func reapingInBatches(t *testing.T, s route.Store, _ func(time.Duration)) {
	const n = 700
	records := make([]route.Restored, 0, n+1)
	for i := range n {
		k := device(fmt.Sprintf("u%d", i), "d")
		records = append(records, route.Restored{Key: k, Record: route.Record{State: route.Live, Node: g1, Session: uint64(i), Epoch: 1}})
	}
	if set, err := s.Restore(t.Context(), records); set != n || err != nil {
		t.Fatal(set, err)
	}
	bind(t, s, device("u0", "other"), g2, 1)
	bury(t, s, g1, true)
	const limit = 100
	batches := reapAll(t, s, g1, limit, time.Hour)
	// A batch may be a little larger where a backend rounds up.
	if sum(batches) != n || slices.Max(batches) > limit+16 || len(batches) < n/(limit+16) {
		t.Fatalf("batches of %v", batches)
	}
	for i := range n {
		for _, r := range lookup(t, s, route.UserKey{Tenant: "t", User: fmt.Sprintf("u%d", i)}) {
			if r.State != route.Ghost && r.Node != g2 {
				t.Fatalf("user %d: %+v", i, r)
			}
		}
	}
	forget(t, s, g1)
	dead(t, s, "nothing left")
}

func reapingDropsCounts(t *testing.T, s route.Store, _ func(time.Duration)) {
	both := []route.NodeRef{g1, g2}
	for i := range 3 {
		acquire(t, s, g1, 0, both, true, i)
		bind(t, s, device(fmt.Sprintf("u%d", i), "d"), g1, uint64(i))
	}
	acquire(t, s, g2, 0, both, true, 3)
	bury(t, s, g1, true)
	reaped(t, s, g1, time.Hour, 3)
	// Also where its node still counts as living.
	acquire(t, s, g2, 2, both, true, 1)
	release(t, s, g1, 1)
	acquire(t, s, g2, 2, both, false, 2)
}

// onlyRoutesAreReaped: sessions that have ended or moved leave nothing to reap.
func onlyRoutesAreReaped(t *testing.T, s route.Store, _ func(time.Duration)) {
	desk, pad := device("ann", "desk"), device("bob", "pad")
	bind(t, s, phone, g1, 1)
	bind(t, s, desk, g1, 2)
	bind(t, s, pad, g1, 3)
	bind(t, s, phone, g2, 4) // moved
	ended := ghost(desk, g1, 1, time.Hour)
	ended.Session = 2
	change(t, s, ended, ghost(pad, g1, 1, 0)) // the second does not tell its session
	bind(t, s, desk, g1, 5)                   // back again
	bury(t, s, g1, true)
	if got := sum(reapAll(t, s, g1, 10, time.Hour)); got != 1 {
		t.Errorf("reaped %d", got)
	}
	for _, r := range lookup(t, s, phone.UserKey) {
		if (r.State == route.Live) != (r.Device == "phone") {
			t.Errorf("left %+v", r)
		}
	}
	if got := lookup(t, s, pad.UserKey); len(got) != 0 {
		t.Errorf("left %+v", got)
	}
}

func lateBindReaped(t *testing.T, s route.Store, _ func(time.Duration)) {
	bury(t, s, g1, true)
	reaped(t, s, g1, time.Hour, 0)
	bind(t, s, phone, g1, 1)
	// Between the last look and this: it is not forgotten over it.
	forget(t, s, g1)
	buried := route.DeadNode{NodeRef: g1, Why: route.Buried}
	dead(t, s, "a route came in between", buried)
	reaped(t, s, g1, time.Hour, 1)
	forget(t, s, g1)
	dead(t, s, "nothing left")
	bind(t, s, phone, g1, 2)
	dead(t, s, "a route came afterwards", buried)
	reaped(t, s, g1, 0, 1)
	if got := lookup(t, s, phone.UserKey); len(got) != 0 {
		t.Errorf("left %+v", got)
	}
}

// bindsDuringReaping: whenever a route appears on a node that is cleaned up at
// the same time, somebody cleans it up.
func bindsDuringReaping(t *testing.T, s route.Store, _ func(time.Duration)) {
	const binders, each = 8, 40
	var wg sync.WaitGroup
	half := make(chan struct{})
	for i := range binders {
		wg.Go(func() {
			for j := range each {
				if i == 0 && j == each/2 {
					close(half)
				}
				k := device(fmt.Sprintf("u%d-%d", i, j), "d")
				var err error
				if i%2 == 0 {
					_, _, err = s.Bind(context.Background(), k, route.Location{Node: g1, Session: uint64(j)}, 1)
				} else {
					_, err = s.Restore(context.Background(), []route.Restored{{Key: k, Record: route.Record{State: route.Live, Node: g1, Session: uint64(j), Epoch: 1}}})
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	<-half
	clean := func() (left bool) {
		all, err := s.DeadNodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range all {
			bury(t, s, n.NodeRef, true)
			reapAll(t, s, n.NodeRef, 50, time.Hour)
			forget(t, s, n.NodeRef)
		}
		return len(all) > 0
	}
	bury(t, s, g1, true)
	bound := make(chan struct{})
	go func() {
		defer close(bound)
		wg.Wait()
	}()
	for done := false; !done; {
		clean()
		select {
		case <-bound:
			done = true
		default:
		}
	}
	for clean() {
	}
	for i := range binders {
		for j := range each {
			got := lookup(t, s, route.UserKey{Tenant: "t", User: fmt.Sprintf("u%d-%d", i, j)})
			if len(got) != 1 || got[0].State != route.Ghost {
				t.Errorf("user %d-%d: %+v", i, j, got)
			}
		}
	}
}

// reapedByOne: of several that reap at once, while devices come back elsewhere,
// one alone is told of each session that ended; whoever bound a device first
// was told by that.
func reapedByOne(t *testing.T, s route.Store, _ func(time.Duration)) {
	const users, reapers = 300, 3
	for i := range users {
		bind(t, s, device(fmt.Sprintf("u%d", i), "d"), g1, uint64(i))
	}
	bury(t, s, g1, true)
	var mu sync.Mutex
	told := map[route.DeviceKey]int{}
	tell := func(k route.DeviceKey) {
		mu.Lock()
		defer mu.Unlock()
		told[k]++
	}
	var wg sync.WaitGroup
	for range reapers {
		wg.Go(func() {
			for more := true; more; {
				var ended []route.Ended
				var err error
				if ended, more, err = s.Reap(context.Background(), g1, 20, func(string) time.Duration { return time.Hour }); err != nil {
					t.Error(err)
				}
				for _, e := range ended {
					if e.Epoch != 1 {
						t.Errorf("ended: %+v", e)
					}
					tell(e.Key)
				}
			}
		})
	}
	wg.Go(func() {
		for i := users - 1; i >= 0; i -= 3 {
			k := device(fmt.Sprintf("u%d", i), "d")
			_, prev, err := s.Bind(context.Background(), k, route.Location{Node: g2, Session: uint64(i)}, 1)
			if err != nil || prev == nil {
				t.Errorf("bind %d: %+v, %v", i, prev, err)
			} else if prev.State != route.Ghost {
				tell(k)
			}
		}
	})
	wg.Wait()
	for i := range users {
		if k := device(fmt.Sprintf("u%d", i), "d"); told[k] != 1 {
			t.Errorf("%+v: told %d times", k, told[k])
		}
	}
}

func hostileReaped(t *testing.T, s route.Store, pass func(time.Duration)) {
	for i, id := range hostile {
		n := route.NodeRef{ID: id, Incarnation: uint64(i)}
		renew(t, s, n, time.Minute)
		for j, name := range hostile {
			bind(t, s, route.DeviceKey{UserKey: route.UserKey{Tenant: name, User: hostile[(i+j)%len(hostile)]}, Device: name}, n, uint64(j))
		}
	}
	pass(61 * time.Second)
	all, err := s.DeadNodes(t.Context())
	if err != nil || len(all) != len(hostile) {
		t.Fatalf("dead: %+v, %v", all, err)
	}
	if !slices.IsSortedFunc(all, func(a, b route.DeadNode) int { return cmp.Compare(a.ID, b.ID) }) {
		t.Errorf("not sorted: %+v", all)
	}
	for _, n := range all {
		if want := hostile[n.Incarnation]; n.ID != want || n.Why != route.Lapsed {
			t.Errorf("%+v, want %q", n, want)
		}
		bury(t, s, n.NodeRef, true)
		if got := sum(reapAll(t, s, n.NodeRef, 100, 0)); got != len(hostile) {
			t.Errorf("%q: reaped %d", n.ID, got)
		}
		forget(t, s, n.NodeRef)
	}
	dead(t, s, "all dealt with")
}
