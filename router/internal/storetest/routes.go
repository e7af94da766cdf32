package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/route"
)

func bindCountsEpochs(t *testing.T, s route.Store, _ func(time.Duration)) {
	for i := range uint64(3) {
		if epoch, _ := bind(t, s, phone, g1, i); epoch != i+1 {
			t.Fatalf("bind %d: epoch %d", i, epoch)
		}
	}
	if epoch, prev := bind(t, s, device("ann", "desk"), g1, 9); epoch != 1 || prev != nil {
		t.Fatalf("another device: epoch %d, previous %+v", epoch, prev)
	}
	// A change of state costs no epoch, and the epoch survives it.
	change(t, s, ghost(phone, g1, 3, time.Hour))
	if epoch, _ := bind(t, s, phone, g2, 4); epoch != 4 {
		t.Fatalf("after a ghost: epoch %d", epoch)
	}
}

func bindReturnsPrevious(t *testing.T, s route.Store, _ func(time.Duration)) {
	if _, prev := bind(t, s, phone, g1, 1); prev != nil {
		t.Fatalf("a new device replaced %+v", prev)
	}
	_, _, err := s.Bind(t.Context(), phone, route.Location{Node: g2, Session: 5}, 2)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "live", lookup(t, s, phone.UserKey), []route.Record{
		{Device: "phone", State: route.Live, Node: g2, Session: 5, Epoch: 2, Version: 2},
	})
	change(t, s, route.Change{Key: phone, Node: g2, Epoch: 2, To: route.Closing})
	_, prev := bind(t, s, phone, g1, 6)
	if prev == nil || *prev != (route.Record{Device: "phone", State: route.Closing, Node: g2, Session: 5, Epoch: 2, Version: 2}) {
		t.Fatalf("replaced a closing record: %+v", prev)
	}
	change(t, s, ghost(phone, g1, 3, time.Hour))
	if _, prev = bind(t, s, phone, g1, 7); prev == nil || prev.State != route.Ghost || prev.Epoch != 3 || prev.Session != 6 || prev.Until.Before(time.Now()) {
		t.Fatalf("replaced a ghost: %+v", prev)
	}
}

func concurrentBinds(t *testing.T, s route.Store, _ func(time.Duration)) {
	const n = 100
	var mu sync.Mutex
	at := map[uint64]uint64{} // epoch → session
	var wg sync.WaitGroup
	for session := range uint64(n) {
		wg.Go(func() {
			epoch, _, err := s.Bind(context.Background(), phone, route.Location{Node: g1, Session: session}, 1)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			at[epoch] = session
			mu.Unlock()
		})
	}
	wg.Wait()
	got := lookup(t, s, phone.UserKey)
	if len(at) != n || len(got) != 1 || got[0].Epoch != n || got[0].Session != at[n] {
		t.Fatalf("%d epochs, record %+v, last session %d", len(at), got, at[n])
	}
}

func emptyNames(t *testing.T, s route.Store, _ func(time.Duration)) {
	for _, k := range []route.DeviceKey{
		{UserKey: route.UserKey{Tenant: "", User: "u"}, Device: "d"},
		{UserKey: route.UserKey{Tenant: "t", User: ""}, Device: "d"},
		{UserKey: route.UserKey{Tenant: "t", User: "u"}, Device: ""},
	} {
		if _, _, err := s.Bind(t.Context(), k, route.Location{Node: g1}, 1); !errors.Is(err, route.ErrInvalid) {
			t.Errorf("Bind(%+v): %v", k, err)
		}
		if _, err := s.Change(t.Context(), []route.Change{ghost(k, g1, 1, time.Hour)}); !errors.Is(err, route.ErrInvalid) {
			t.Errorf("Change(%+v): %v", k, err)
		}
		if got := lookup(t, s, k.UserKey); len(got) != 0 {
			t.Errorf("%+v left %+v", k, got)
		}
	}
}

func changeCompares(t *testing.T, s route.Store, _ func(time.Duration)) {
	bind(t, s, phone, g1, 4)
	epoch, _ := bind(t, s, phone, g1, 5)
	before := lookup(t, s, phone.UserKey)
	for name, edit := range map[string]func(*route.Change){
		"a later epoch":       func(c *route.Change) { c.Epoch++ },
		"an earlier epoch":    func(c *route.Change) { c.Epoch-- },
		"another node":        func(c *route.Change) { c.Node.ID = "g2" },
		"another incarnation": func(c *route.Change) { c.Node.Incarnation++ },
		"another session":     func(c *route.Change) { c.Session = 4 },
		"another device":      func(c *route.Change) { c.Key.Device = "desk" },
		"another user":        func(c *route.Change) { c.Key.User = "bob" },
		"another tenant":      func(c *route.Change) { c.Key.Tenant = "u" },
	} {
		for _, ttl := range []time.Duration{time.Hour, 0} {
			c := ghost(phone, g1, epoch, ttl)
			edit(&c)
			if change(t, s, c)[0] {
				t.Errorf("applied to %s", name)
			}
		}
	}
	want(t, "after changes that match nothing", lookup(t, s, phone.UserKey), before)
	told := ghost(phone, g1, epoch, time.Hour)
	told.Session = 5
	if !change(t, s, told)[0] {
		t.Error("not applied to its very session")
	}
	if change(t, s, told)[0] || change(t, s, ghost(phone, g1, epoch, 0))[0] {
		t.Error("a ghost changed")
	}
	// Session 0 says nothing, also of a session that has that number.
	epoch, _ = bind(t, s, phone, g1, 0)
	told.Epoch = epoch
	if change(t, s, told)[0] {
		t.Error("applied to another session of the same node")
	}
	if !change(t, s, ghost(phone, g1, epoch, time.Hour))[0] {
		t.Error("not applied without a session")
	}
}

func changesInOrder(t *testing.T, s route.Store, _ func(time.Duration)) {
	epoch, _ := bind(t, s, phone, g1, 1)
	desk := device("ann", "desk")
	bind(t, s, desk, g2, 2)
	closing := route.Change{Key: phone, Node: g1, Epoch: epoch, To: route.Closing}
	stranger := closing
	stranger.Key.User = "nobody"
	got := change(t, s, closing, stranger, closing, ghost(phone, g1, epoch, time.Hour), closing, ghost(desk, g2, 1, time.Hour))
	want(t, "applied", got, []bool{true, false, true, true, false, true})
	for _, r := range lookup(t, s, phone.UserKey) {
		if r.State != route.Ghost {
			t.Errorf("left %+v", r)
		}
	}
	change(t, s) // none is fine
}

func invalidChange(t *testing.T, s route.Store, _ func(time.Duration)) {
	epoch, _ := bind(t, s, phone, g1, 1)
	before := lookup(t, s, phone.UserKey)
	for _, to := range []route.State{0, route.Live, route.Ghost + 1} {
		bad := route.Change{Key: phone, Node: g1, Epoch: epoch, To: to}
		if _, err := s.Change(t.Context(), []route.Change{ghost(phone, g1, epoch, time.Hour), bad}); !errors.Is(err, route.ErrInvalid) {
			t.Errorf("to state %d: %v", to, err)
		}
		want(t, "after an invalid change", lookup(t, s, phone.UserKey), before)
	}
}

func ghostWithoutTime(t *testing.T, s route.Store, _ func(time.Duration)) {
	for _, ttl := range []time.Duration{0, -1, -time.Hour} {
		epoch, _ := bind(t, s, phone, g1, 1)
		if epoch != 1 {
			t.Fatalf("epoch %d of a device that is not remembered", epoch)
		}
		if !change(t, s, ghost(phone, g1, epoch, ttl))[0] {
			t.Fatal("not applied")
		}
		if got := lookup(t, s, phone.UserKey); len(got) != 0 {
			t.Fatalf("TTL %d left %+v", ttl, got)
		}
	}
}

func ghostsAreForgotten(t *testing.T, s route.Store, pass func(time.Duration)) {
	desk, pad := device("ann", "desk"), device("ann", "pad")
	for _, k := range []route.DeviceKey{phone, desk, pad} {
		bind(t, s, k, g1, 1)
	}
	change(t, s, ghost(phone, g1, 1, time.Minute), ghost(desk, g1, 1, time.Hour), ghost(pad, g1, 1, 2*time.Hour))
	names := func() (fresh, cached []string) {
		all, err := s.Lookup(t.Context(), []route.UserKey{phone.UserKey})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all[0] {
			cached = append(cached, r.Device)
		}
		for _, r := range lookup(t, s, phone.UserKey) {
			fresh = append(fresh, r.Device)
		}
		return fresh, cached
	}
	for _, step := range []struct {
		d    time.Duration
		left []string
	}{{0, []string{"desk", "pad", "phone"}}, {61 * time.Second, []string{"desk", "pad"}}, {time.Hour, []string{"pad"}}} {
		pass(step.d)
		testkit.Eventually(t, fmt.Sprintf("Lookup returns %v", step.left), func() bool {
			fresh, cached := names()
			return slices.Equal(fresh, step.left) && slices.Equal(cached, step.left)
		})
	}
	if epoch, prev := bind(t, s, phone, g1, 2); epoch != 1 || prev != nil {
		t.Errorf("a forgotten device: epoch %d, previous %+v", epoch, prev)
	}
	if change(t, s, ghost(desk, g1, 1, time.Hour))[0] {
		t.Error("a forgotten ghost changed")
	}
	if epoch, prev := bind(t, s, pad, g1, 2); epoch != 2 || prev == nil {
		t.Errorf("a remembered device: epoch %d, previous %+v", epoch, prev)
	}
}

func liveOutliveGhosts(t *testing.T, s route.Store, pass func(time.Duration)) {
	desk := device("ann", "desk")
	bind(t, s, phone, g1, 1)
	bind(t, s, desk, g1, 2)
	// All are ghosts for a moment; then one is back.
	change(t, s, ghost(phone, g1, 1, time.Minute), ghost(desk, g1, 1, time.Minute))
	bind(t, s, desk, g2, 3)
	pass(1000 * time.Hour)
	want(t, "after a long time", lookup(t, s, phone.UserKey), []route.Record{
		{Device: "desk", State: route.Live, Node: g2, Session: 3, Epoch: 2, Version: 1},
	})
	change(t, s, route.Change{Key: desk, Node: g2, Epoch: 2, To: route.Closing})
	pass(1000 * time.Hour)
	if got := lookup(t, s, phone.UserKey); len(got) != 1 || got[0].State != route.Closing {
		t.Fatalf("a closing record went by itself: %+v", got)
	}
}

func roundedUp(t *testing.T, s route.Store, _ func(time.Duration)) {
	bind(t, s, phone, g1, 1)
	before := time.Now()
	change(t, s, ghost(phone, g1, 1, time.Hour+1))
	after := time.Now()
	got := lookup(t, s, phone.UserKey)
	if len(got) != 1 || got[0].State != route.Ghost {
		t.Fatalf("records %+v", got)
	}
	const ms = time.Millisecond
	first, last := before.Truncate(ms).Add(time.Hour+ms), after.Truncate(ms).Add(time.Hour+ms)
	if u := got[0].Until; u.Before(first) || u.After(last) {
		t.Errorf("remembered until %v, want %v to %v", u, first, last)
	}
}

func lookupOrder(t *testing.T, s route.Store, _ func(time.Duration)) {
	bob := device("bob", "x")
	for _, d := range []string{"pad", "b", "a", "desk"} {
		bind(t, s, device("ann", d), g1, 1)
	}
	bind(t, s, bob, g2, 2)
	nobody := route.UserKey{Tenant: "t", User: "nobody"}
	var got [][]string
	testkit.Eventually(t, "Lookup finds all", func() bool {
		all, err := s.Lookup(t.Context(), []route.UserKey{bob.UserKey, nobody, phone.UserKey, bob.UserKey})
		if err != nil || len(all) != 4 {
			t.Fatalf("%d answers to 4 keys, %v", len(all), err)
		}
		got = make([][]string, len(all))
		for i, records := range all {
			for _, r := range records {
				got[i] = append(got[i], r.Device)
			}
		}
		return len(got[0]) == 1 && len(got[2]) == 4 && len(got[3]) == 1
	})
	if !slices.Equal(got[2], []string{"a", "b", "desk", "pad"}) || len(got[1]) != 0 || got[0][0] != "x" || got[3][0] != "x" {
		t.Fatalf("devices %q", got)
	}
	if none, err := s.Lookup(t.Context(), nil); err != nil || len(none) != 0 {
		t.Fatalf("no keys: %v, %v", none, err)
	}
}

func lookupCatchesUp(t *testing.T, s route.Store, _ func(time.Duration)) {
	for session := range uint64(20) {
		epoch, _ := bind(t, s, phone, g1, session)
		testkit.Eventually(t, "Lookup sees what LookupFresh sees", func() bool {
			got, err := s.Lookup(t.Context(), []route.UserKey{phone.UserKey})
			if err != nil {
				t.Fatal(err)
			}
			return slices.Equal(got[0], lookup(t, s, phone.UserKey)) && len(got[0]) == 1 && got[0][0].Epoch == epoch
		})
	}
}

func manyUsers(t *testing.T, s route.Store, _ func(time.Duration)) {
	const n = 2500
	keys := make([]route.UserKey, n)
	changes := make([]route.Change, 0, 2*n)
	var wg sync.WaitGroup
	for i := range n {
		k := device(fmt.Sprintf("u%d", i), "d")
		keys[i] = k.UserKey
		changes = append(changes, route.Change{Key: k, Node: g1, Epoch: 1, To: route.Closing})
		if i%2 == 0 {
			changes = append(changes, ghost(k, g1, 1, 0))
		}
		wg.Go(func() { bind(t, s, k, g1, uint64(i)) })
	}
	wg.Wait()
	all, err := s.Lookup(t.Context(), keys)
	if err != nil || len(all) != n {
		t.Fatalf("%d answers, %v", len(all), err)
	}
	for i, got := range all {
		if len(got) != 1 || got[0].Session != uint64(i) {
			t.Fatalf("user %d: %+v", i, got)
		}
	}
	for i, ok := range change(t, s, changes...) {
		if !ok {
			t.Fatalf("change %d of %d was not applied", i, len(changes))
		}
	}
	for i, k := range keys {
		if got := lookup(t, s, k); len(got) != i%2 || len(got) == 1 && got[0].State != route.Closing {
			t.Fatalf("user %d: %+v", i, got)
		}
	}
}

func hostileNames(t *testing.T, s route.Store, _ func(time.Duration)) {
	session := uint64(0)
	for pass := range 2 {
		n := uint64(0)
		for _, tenant := range hostile {
			for i, user := range hostile {
				n++
				k := route.DeviceKey{UserKey: route.UserKey{Tenant: tenant, User: user}, Device: user}
				node := route.NodeRef{ID: hostile[len(hostile)-1-i], Incarnation: n}
				if pass == 0 {
					session++
					bind(t, s, k, node, session)
					continue
				}
				got := lookup(t, s, k.UserKey)
				if len(got) != 1 || got[0].Session != n || got[0].Device != user || got[0].Epoch != 1 || got[0].Node != node {
					t.Errorf("%q/%q: %+v, want session %d on %+v", tenant, user, got, n, node)
				}
				if !change(t, s, route.Change{Key: k, Node: node, Epoch: 1, To: route.Closing}, ghost(k, node, 1, time.Hour))[1] {
					t.Errorf("%q/%q on %+v: not changed", tenant, user, node)
				}
				if got := lookup(t, s, k.UserKey); len(got) != 1 || got[0].Node != node || got[0].State != route.Ghost {
					t.Errorf("%q/%q became %+v", tenant, user, got)
				}
			}
		}
	}
}
