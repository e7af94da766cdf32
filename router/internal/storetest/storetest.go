// Package storetest is the contract of route.Store as tests, run on every
// backend.
package storetest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/route"
)

// Run runs the suite; open returns a store that nobody else uses and closes it
// with the test.
func Run(t *testing.T, open func(t *testing.T) route.Store) {
	for name, f := range map[string]func(*testing.T, route.Store){
		"BindCountsEpochs":             bindCountsEpochs,
		"ConcurrentBindsAreOrdered":    concurrentBinds,
		"ChangeComparesNodeAndEpoch":   changeCompares,
		"GhostsAreForgotten":           ghostsAreForgotten,
		"HostileNamesStayApart":        hostileNames,
		"LeasesRunOutAndFence":         leases,
		"RouterLeases":                 routerLeases,
		"ConnectionsAreSummedOverLive": connections,
		"TokensAreBounded":             tokens,
	} {
		t.Run(name, func(t *testing.T) { f(t, open(t)) })
	}
}

var (
	phone = route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: "ann"}, Device: "phone"}
	g1    = route.NodeRef{ID: "g1", Incarnation: 7}
	g2    = route.NodeRef{ID: "g2", Incarnation: 1}
)

func bind(t *testing.T, s route.Store, k route.DeviceKey, n route.NodeRef, session uint64) (uint64, *route.Record) {
	t.Helper()
	epoch, prev, err := s.Bind(t.Context(), k, route.Location{Node: n, Session: session}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return epoch, prev
}

func lookup(t *testing.T, s route.Store, k route.UserKey) []route.Record {
	t.Helper()
	r, err := s.LookupFresh(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func change(t *testing.T, s route.Store, c ...route.Change) []bool {
	t.Helper()
	applied, err := s.Change(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return applied
}

func bindCountsEpochs(t *testing.T, s route.Store) {
	if epoch, prev := bind(t, s, phone, g1, 1); epoch != 1 || prev != nil {
		t.Fatalf("first bind: epoch %d, previous %v", epoch, prev)
	}
	epoch, prev := bind(t, s, phone, g2, 5)
	if epoch != 2 || prev == nil || prev.Node != g1 || prev.Session != 1 || prev.Epoch != 1 || prev.State != route.Live {
		t.Fatalf("second bind: epoch %d, previous %+v", epoch, prev)
	}
	desk := phone
	desk.Device = "desk"
	bind(t, s, desk, g1, 2)
	got := lookup(t, s, phone.UserKey)
	if len(got) != 2 || got[0].Device != "desk" || got[1].Node != g2 || got[1].Version != 1 {
		t.Fatalf("records %+v", got)
	}
	many, err := s.Lookup(t.Context(), []route.UserKey{{Tenant: "t", User: "nobody"}, phone.UserKey})
	if err != nil || len(many) != 2 || len(many[0]) != 0 || !slices.Equal(many[1], got) {
		t.Fatalf("Lookup: %+v, %v", many, err)
	}
}

func concurrentBinds(t *testing.T, s route.Store) {
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

func changeCompares(t *testing.T, s route.Store) {
	epoch, _ := bind(t, s, phone, g1, 1)
	ghost := route.Change{Key: phone, Node: g1, Epoch: epoch, To: route.Ghost, GhostTTL: time.Minute}
	for name, wrong := range map[string]route.Change{
		"epoch":       {Key: phone, Node: g1, Epoch: epoch + 1, To: route.Ghost, GhostTTL: time.Minute},
		"node":        {Key: phone, Node: g2, Epoch: epoch, To: route.Ghost, GhostTTL: time.Minute},
		"incarnation": {Key: phone, Node: route.NodeRef{ID: "g1", Incarnation: 8}, Epoch: epoch, To: route.Ghost, GhostTTL: time.Minute},
	} {
		if change(t, s, wrong)[0] {
			t.Errorf("applied with another %s", name)
		}
	}
	closing := ghost
	closing.To = route.Closing
	if got := change(t, s, closing, ghost); !got[0] || !got[1] {
		t.Fatalf("live → closing → ghost: %v", got)
	}
	if change(t, s, ghost)[0] {
		t.Error("a ghost changed again")
	}
	got := lookup(t, s, phone.UserKey)
	if len(got) != 1 || got[0].State != route.Ghost || got[0].Until.Before(time.Now()) {
		t.Fatalf("records %+v", got)
	}
	if next, prev := bind(t, s, phone, g2, 2); next != epoch+1 || prev.State != route.Ghost {
		t.Errorf("the epoch fell or the ghost was forgotten: %d, %+v", next, prev)
	}
	gone := route.Change{Key: phone, Node: g2, Epoch: epoch + 1, To: route.Ghost}
	if !change(t, s, gone)[0] || len(lookup(t, s, phone.UserKey)) != 0 {
		t.Error("without a TTL the record should be gone")
	}
}

func ghostsAreForgotten(t *testing.T, s route.Store) {
	epoch, _ := bind(t, s, phone, g1, 1)
	change(t, s, route.Change{Key: phone, Node: g1, Epoch: epoch, To: route.Ghost, GhostTTL: 50 * time.Millisecond})
	testkit.Eventually(t, "the ghost is forgotten", func() bool { return len(lookup(t, s, phone.UserKey)) == 0 })
	if epoch, prev := bind(t, s, phone, g1, 2); epoch != 1 || prev != nil {
		t.Errorf("epoch %d, previous %+v after it was forgotten", epoch, prev)
	}
}

func hostileNames(t *testing.T, s route.Store) {
	names := []string{"a", "}", "{", "{a}", "a/b", "a%2Fb", "%", "日本", "a\x00b", "a:b", " "}
	n := uint64(0)
	for _, tenant := range names {
		for _, user := range names {
			n++
			bind(t, s, route.DeviceKey{UserKey: route.UserKey{Tenant: tenant, User: user}, Device: user}, g1, n)
		}
	}
	n = 0
	for _, tenant := range names {
		for _, user := range names {
			n++
			got := lookup(t, s, route.UserKey{Tenant: tenant, User: user})
			if len(got) != 1 || got[0].Session != n || got[0].Device != user || got[0].Epoch != 1 {
				t.Errorf("%q/%q: %+v, want session %d", tenant, user, got, n)
			}
		}
	}
}

func leases(t *testing.T, s route.Store) {
	ctx := t.Context()
	n := route.Node{NodeRef: g1, Endpoint: "http://127.0.0.1:1", Track: "stable", Version: "v1", Phase: 1}
	if err := s.RenewNode(ctx, n, time.Minute); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Nodes(ctx); err != nil || !slices.Equal(got, []route.Node{n}) {
		t.Fatalf("nodes %+v, %v", got, err)
	}
	newer := n
	newer.Incarnation++
	newer.Phase = 2
	if err := s.RenewNode(ctx, newer, 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := s.RenewNode(ctx, n, time.Minute); !errors.Is(err, route.ErrSuperseded) {
		t.Fatalf("an older incarnation was let back in: %v", err)
	}
	testkit.Eventually(t, "the lease runs out", func() bool {
		got, err := s.Nodes(ctx)
		return err == nil && len(got) == 0
	})
	if err := s.RenewNode(ctx, n, time.Minute); !errors.Is(err, route.ErrSuperseded) {
		t.Fatalf("an older incarnation was let back in after its successor's lease: %v", err)
	}
	if err := s.RenewNode(ctx, newer, time.Minute); err != nil {
		t.Fatalf("the same incarnation may come back: %v", err)
	}
	if err := s.RemoveNode(ctx, n.NodeRef); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Nodes(ctx); len(got) != 1 {
		t.Fatal("removing an older incarnation removed the newer")
	}
	if err := s.RemoveNode(ctx, newer.NodeRef); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Nodes(ctx); len(got) != 0 {
		t.Fatalf("removed, but still there: %+v", got)
	}
}

func routerLeases(t *testing.T, s route.Store) {
	ctx := t.Context()
	var want []route.Router
	for _, id := range []string{"r2", "r1"} {
		r := route.Router{NodeRef: route.NodeRef{ID: id, Incarnation: 3}, Endpoint: "http://" + id, Version: "v"}
		want = append(want, r)
		if err := s.RenewRouter(ctx, r, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	slices.Reverse(want)
	if got, err := s.Routers(ctx); err != nil || !slices.Equal(got, want) {
		t.Fatalf("routers %+v, %v", got, err)
	}
	if err := s.RemoveRouter(ctx, want[0].NodeRef); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Routers(ctx); len(got) != 1 || got[0] != want[1] {
		t.Fatalf("after removal %+v", got)
	}
}

func connections(t *testing.T, s route.Store) {
	ctx := t.Context()
	acquire := func(n route.NodeRef, limit int, live ...route.NodeRef) (bool, int) {
		t.Helper()
		ok, cur, err := s.AcquireConn(ctx, "t", n, limit, live)
		if err != nil {
			t.Fatal(err)
		}
		return ok, cur
	}
	for i := range 3 {
		if ok, cur := acquire(g1, 5, g1, g2); !ok || cur != i {
			t.Fatalf("connection %d: %v, sum %d", i, ok, cur)
		}
	}
	acquire(g2, 5, g1, g2)
	acquire(g2, 5, g1, g2)
	if ok, cur := acquire(g2, 5, g1, g2); ok || cur != 5 {
		t.Fatalf("over the limit: %v, sum %d", ok, cur)
	}
	if ok, cur := acquire(g2, 5, g2); !ok || cur != 2 {
		t.Fatalf("a dead node's share must disappear with it: %v, sum %d", ok, cur)
	}
	if err := s.ReleaseConns(ctx, "t", g2, 100); err != nil {
		t.Fatal(err)
	}
	if ok, cur := acquire(g2, 1, g2); !ok || cur != 0 {
		t.Fatalf("a count fell below zero or stayed: %v, sum %d", ok, cur)
	}
	if ok, _ := acquire(g2, 0, g2); !ok {
		t.Fatal("limit 0 means no limit")
	}
}

func tokens(t *testing.T, s route.Store) {
	const rate = 1000
	took := 0
	for i := range 50 {
		n, err := s.LeaseTokens(t.Context(), "t", rate, 100)
		if err != nil {
			t.Fatal(err)
		}
		if n < 0 || n > 100 {
			t.Fatalf("asked for 100, got %d", n)
		}
		if i == 0 && n != 100 {
			t.Fatalf("a full bucket gave %d", n)
		}
		took += n
	}
	if took < rate {
		t.Fatalf("took %d, a second's worth is %d", took, rate)
	}
	other, err := s.LeaseTokens(t.Context(), "other", rate, 10)
	if err != nil || other != 10 {
		t.Fatalf("another tenant's bucket: %d, %v", other, err)
	}
}
