package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/route"
)

func restore(t *testing.T, s route.Store, wantSet int, records ...route.Restored) {
	t.Helper()
	if set, err := s.Restore(t.Context(), records); err != nil || set != wantSet {
		t.Fatalf("restored %d of %+v: %v, want %d", set, records, err, wantSet)
	}
}

func restoreKnowsNewer(t *testing.T, s route.Store, _ func(time.Duration)) {
	until := time.UnixMilli(time.Now().Add(time.Hour).UnixMilli())
	live := func(n route.NodeRef, session, epoch uint64) route.Record {
		return route.Record{Device: "phone", State: route.Live, Node: n, Session: session, Epoch: epoch, Version: 2}
	}
	with := func(r route.Record, state route.State) route.Record {
		r.State = state
		if state == route.Ghost {
			r.Until = until
		}
		return r
	}
	here := live(g1, 5, 1<<40)
	for i, tc := range []struct {
		name     string
		old, new route.Record
		set      bool
	}{
		{"none", route.Record{}, here, true},
		{"none, a ghost", route.Record{}, with(here, route.Ghost), true},
		{"none, closing", route.Record{}, with(here, route.Closing), true},
		{"a lower epoch", live(g2, 1, 1<<40-1), here, true},
		{"a lower epoch on the same node", live(g1, 4, 1<<40-1), with(here, route.Ghost), true},
		{"a higher epoch", live(g2, 1, 1<<40+1), here, false},
		{"a ghost of a higher epoch", with(live(g2, 1, 1<<40+1), route.Ghost), here, false},
		{"its own", here, here, true},
		{"its own, which has ended", with(here, route.Ghost), here, true},
		{"its own, which is closing", with(here, route.Closing), here, true},
		{"its own, which has ended, closing", with(here, route.Ghost), with(here, route.Closing), false},
		{"its own has ended since", here, with(here, route.Ghost), true},
		{"its own is closing since", here, with(here, route.Closing), true},
		{"live elsewhere", live(g2, 5, 1<<40), here, false},
		{"live in another session", live(g1, 6, 1<<40), here, false},
		{"live in another incarnation", live(route.NodeRef{ID: g1.ID, Incarnation: 8}, 5, 1<<40), here, false},
		{"absent elsewhere", with(live(g2, 5, 1<<40), route.Ghost), here, true},
	} {
		key := device(fmt.Sprintf("u%d", i), "phone")
		wanted := tc.new
		if tc.old.Epoch != 0 {
			restore(t, s, 1, route.Restored{Key: key, Record: tc.old})
			if !tc.set {
				wanted = tc.old
			}
		}
		wantSet := 0
		if tc.set {
			wantSet = 1
		}
		if tc.old.Epoch != 0 && tc.old.YieldsTo(tc.new) != tc.set {
			t.Errorf("%s: YieldsTo is not %v", tc.name, tc.set)
		}
		restore(t, s, wantSet, route.Restored{Key: key, Record: tc.new})
		want(t, tc.name, lookup(t, s, key.UserKey), []route.Record{wanted})
	}
	// The epoch goes on from there, and other devices are left alone.
	key := device("u0", "phone")
	restore(t, s, 1, route.Restored{Key: device("u0", "desk"), Record: live(g2, 1, 3)})
	if epoch, prev := bind(t, s, key, g2, 9); epoch != 1<<40+1 || prev == nil || *prev != here {
		t.Errorf("epoch %d after %+v", epoch, prev)
	}
	if got := lookup(t, s, key.UserKey); len(got) != 2 || got[0].Epoch != 3 {
		t.Errorf("records %+v", got)
	}
	testkit.Eventually(t, "Lookup sees a restored record", func() bool {
		got, err := s.Lookup(t.Context(), []route.UserKey{{Tenant: "t", User: "u1"}})
		return err == nil && len(got[0]) == 1
	})
}

func restoredReaped(t *testing.T, s route.Store, _ func(time.Duration)) {
	renew(t, s, g1, time.Hour)
	next := route.NodeRef{ID: g1.ID, Incarnation: g1.Incarnation + 1}
	stranger := route.NodeRef{ID: "stranger", Incarnation: 1}
	for i, n := range []route.NodeRef{g1, g2, next, stranger} {
		restore(t, s, 2,
			route.Restored{Key: device(n.ID, fmt.Sprint(i)), Record: route.Record{State: route.Live, Node: n, Session: 1, Epoch: 1}},
			route.Restored{Key: device(n.ID, "absent"), Record: route.Record{State: route.Ghost, Node: stranger, Session: 2, Epoch: uint64(i + 1), Until: time.Now().Add(time.Hour)}})
	}
	// A gateway that nobody has heard of since the store lost everything may yet
	// come, or never.
	lapsed := func(n route.NodeRef) route.DeadNode { return route.DeadNode{NodeRef: n, Why: route.Lapsed} }
	dead(t, s, "unknown", lapsed(next), lapsed(g2), lapsed(stranger))
	renew(t, s, g2, time.Hour)
	renew(t, s, next, time.Hour)
	dead(t, s, "two came", route.DeadNode{NodeRef: g1, Why: route.Superseded}, lapsed(stranger))
	bury(t, s, stranger, true)
	reaped(t, s, stranger, 0, 1)
	forget(t, s, stranger)
	bury(t, s, g1, true)
	reaped(t, s, g1, 0, 1)
	forget(t, s, g1)
	dead(t, s, "all dealt with")
	restore(t, s, 1, route.Restored{Key: phone, Record: route.Record{State: route.Closing, Node: g1, Session: 3, Epoch: 1}})
	dead(t, s, "restored on a buried node", route.DeadNode{NodeRef: g1, Why: route.Buried})
	reaped(t, s, g1, 0, 1)
}

func restoredGhosts(t *testing.T, s route.Store, pass func(time.Duration)) {
	ghostFor := func(d time.Duration) route.Record {
		return route.Record{State: route.Ghost, Node: g1, Session: 1, Epoch: 7, Until: time.Now().Add(d)}
	}
	desk := device("ann", "desk")
	restore(t, s, 0, route.Restored{Key: phone, Record: ghostFor(-time.Second)})
	if got := lookup(t, s, phone.UserKey); len(got) != 0 {
		t.Fatalf("restored %+v", got)
	}
	restore(t, s, 2, route.Restored{Key: phone, Record: ghostFor(time.Minute)}, route.Restored{Key: desk, Record: ghostFor(time.Hour)})
	pass(61 * time.Second)
	if got := lookup(t, s, phone.UserKey); len(got) != 1 || got[0].Device != "desk" {
		t.Fatalf("a minute later: %+v", got)
	}
	restore(t, s, 1, route.Restored{Key: phone, Record: route.Record{State: route.Live, Node: g1, Session: 3, Epoch: 1}})
	pass(time.Hour)
	if got := lookup(t, s, phone.UserKey); len(got) != 1 || got[0].Device != "phone" {
		t.Fatalf("an hour later: %+v", got)
	}
	// Its time was over while the store was away.
	restore(t, s, 1, route.Restored{Key: phone, Record: route.Record{State: route.Ghost, Node: g1, Session: 3, Epoch: 1, Until: time.Now().Add(-time.Minute)}})
	if got := lookup(t, s, phone.UserKey); len(got) != 0 {
		t.Fatalf("left %+v", got)
	}
}

func invalidRestore(t *testing.T, s route.Store, _ func(time.Duration)) {
	good := route.Restored{Key: phone, Record: route.Record{State: route.Live, Node: g1, Epoch: 1}}
	for name, edit := range map[string]func(*route.Restored){
		"no tenant": func(r *route.Restored) { r.Key.Tenant = "" },
		"no user":   func(r *route.Restored) { r.Key.User = "" },
		"no device": func(r *route.Restored) { r.Key.Device = "" },
		"no state":  func(r *route.Restored) { r.Record.State = 0 },
		"state 4":   func(r *route.Restored) { r.Record.State = route.Ghost + 1 },
	} {
		bad := good
		edit(&bad)
		if set, err := s.Restore(t.Context(), []route.Restored{good, bad}); set != 0 || !errors.Is(err, route.ErrInvalid) {
			t.Errorf("%s: %d, %v", name, set, err)
		}
	}
	if got := lookup(t, s, phone.UserKey); len(got) != 0 {
		t.Errorf("left %+v", got)
	}
	restore(t, s, 0)
}

func manyRestored(t *testing.T, s route.Store, _ func(time.Duration)) {
	const n = 2500
	var records []route.Restored
	var keys []route.UserKey
	for i := range n {
		k := device(fmt.Sprintf("u%d", i), "d")
		keys = append(keys, k.UserKey)
		records = append(records, route.Restored{Key: k, Record: route.Record{State: route.Live, Node: g1, Session: uint64(i), Epoch: 1}})
	}
	bind(t, s, records[7].Key, g2, 1)
	restore(t, s, n-1, records...)
	all, err := s.Lookup(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range all {
		if i != 7 && (len(got) != 1 || got[0].Session != uint64(i)) {
			t.Fatalf("user %d: %+v", i, got)
		}
	}
}

func countsSet(t *testing.T, s route.Store, _ func(time.Duration)) {
	both := []route.NodeRef{g1, g2}
	set := func(n route.NodeRef, count int) {
		t.Helper()
		if err := s.SetConns(t.Context(), "t", n, count); err != nil {
			t.Fatal(err)
		}
	}
	set(g1, 3)
	acquire(t, s, g2, 4, both, true, 3)
	acquire(t, s, g2, 4, both, false, 4)
	set(g1, 0)
	acquire(t, s, g2, 2, both, true, 1)
	set(g2, 7)
	set(g1, -1)
	acquire(t, s, g1, 7, both, false, 7)
	if ok, n, err := s.AcquireConn(t.Context(), "other", g1, 1, both); !ok || n != 0 || err != nil {
		t.Errorf("another tenant: %v, %d, %v", ok, n, err)
	}
}

// restoredWhole looks for users while they are restored: each is there with all his devices,
// or not yet.
func restoredWhole(t *testing.T, s route.Store, _ func(time.Duration)) {
	const users, devices = 5, 300
	var all []route.Restored
	for u := range users {
		for d := range devices {
			all = append(all, route.Restored{
				Key:    route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: fmt.Sprint("u", u)}, Device: fmt.Sprint("d", d)},
				Record: route.Record{State: route.Live, Node: g1, Session: uint64(u*devices + d + 1), Epoch: 1, Version: 2},
			})
		}
	}
	done := make(chan error, 1)
	go func() {
		n, err := s.Restore(t.Context(), all)
		if err == nil && n != len(all) {
			err = fmt.Errorf("%d of %d set", n, len(all))
		}
		done <- err
	}()
	for u := 0; u < users; {
		records, err := s.LookupFresh(t.Context(), all[u*devices].Key.UserKey)
		if err != nil {
			t.Fatal(err)
		}
		switch len(records) {
		case 0:
		case devices:
			u++
		default:
			t.Fatalf("user %d is seen with %d of %d devices", u, len(records), devices)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func markerStays(t *testing.T, s route.Store, pass func(time.Duration)) {
	first, err := s.Marker(t.Context())
	if err != nil || !first.Created || first.Whole || first.ID == "" {
		t.Fatalf("%+v, %v", first, err)
	}
	want := func(whole bool) {
		t.Helper()
		if m, err := s.Marker(t.Context()); err != nil || m != (route.Marker{ID: first.ID, Whole: whole}) {
			t.Fatalf("%+v, %v, want %q, %v", m, err, first.ID, whole)
		}
	}
	set := func(id string, whole bool) {
		t.Helper()
		if err := s.SetWhole(t.Context(), id, whole); err != nil {
			t.Fatal(err)
		}
	}
	want(false)
	set("of a content that is gone", true)
	want(false)
	set(first.ID, true)
	pass(1000 * time.Hour)
	want(true)
	set("of a content that is gone", false)
	want(true)
	set(first.ID, false)
	want(false)
}

func oneHoldsALock(t *testing.T, s route.Store, pass func(time.Duration)) {
	lock := func(name, owner string, want bool) {
		t.Helper()
		if ok, err := s.Lock(t.Context(), name, owner, time.Minute); err != nil || ok != want {
			t.Fatalf("%s locks %s: %v, %v", owner, name, ok, err)
		}
	}
	unlock := func(owner string) {
		t.Helper()
		if err := s.Unlock(t.Context(), "a", owner); err != nil {
			t.Fatal(err)
		}
	}
	lock("a", "me", true)
	lock("a", "you", false)
	lock("b", "you", true)
	unlock("you")
	lock("a", "you", false)
	pass(40 * time.Second)
	lock("a", "me", true) // prolonged
	pass(40 * time.Second)
	lock("a", "you", false)
	lock("b", "me", true) // ran out
	unlock("me")
	unlock("me")
	lock("a", "you", true)
	pass(61 * time.Second)
	unlock("me")
	lock("a", "me", true)
}

func concurrentLocks(t *testing.T, s route.Store, _ func(time.Duration)) {
	var held atomic.Int64
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			ok, err := s.Lock(context.Background(), "l", fmt.Sprint(i), time.Hour)
			if err != nil {
				t.Error(err)
			}
			if ok {
				held.Add(1)
			}
		})
	}
	wg.Wait()
	if held.Load() != 1 {
		t.Errorf("%d hold the lock", held.Load())
	}
}
