package storetest

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// holders is one kind of lease holder, gateways or routers.
type holders interface {
	renew(ctx context.Context, r route.NodeRef, lease time.Duration) error
	remove(ctx context.Context, r route.NodeRef) error
	living(ctx context.Context) ([]route.NodeRef, error)
}

type nodeLeases struct{ s route.Store }

func (l nodeLeases) renew(ctx context.Context, r route.NodeRef, lease time.Duration) error {
	return l.s.RenewNode(ctx, route.Node{NodeRef: r}, lease)
}
func (l nodeLeases) remove(ctx context.Context, r route.NodeRef) error { return l.s.RemoveNode(ctx, r) }
func (l nodeLeases) living(ctx context.Context) (refs []route.NodeRef, err error) {
	all, err := l.s.Nodes(ctx)
	for _, n := range all {
		refs = append(refs, n.NodeRef)
	}
	return refs, err
}

type routerLeases struct{ s route.Store }

func (l routerLeases) renew(ctx context.Context, r route.NodeRef, lease time.Duration) error {
	return l.s.RenewRouter(ctx, route.Router{NodeRef: r}, lease)
}
func (l routerLeases) remove(ctx context.Context, r route.NodeRef) error {
	return l.s.RemoveRouter(ctx, r)
}
func (l routerLeases) living(ctx context.Context) (refs []route.NodeRef, err error) {
	all, err := l.s.Routers(ctx)
	for _, n := range all {
		refs = append(refs, n.NodeRef)
	}
	return refs, err
}

func leases(t *testing.T, l holders, pass func(time.Duration)) {
	ctx := t.Context()
	renew := func(r route.NodeRef) {
		t.Helper()
		if err := l.renew(ctx, r, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(r route.NodeRef) {
		t.Helper()
		if err := l.remove(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	living := func(what string, refs ...route.NodeRef) {
		t.Helper()
		got, err := l.living(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want(t, what, got, refs)
	}
	superseded := func(what string, r route.NodeRef) {
		t.Helper()
		if err := l.renew(ctx, r, time.Minute); !errors.Is(err, route.ErrSuperseded) {
			t.Fatalf("%s: an older incarnation was let in: %v", what, err)
		}
	}
	at := func(id string, incarnation uint64) route.NodeRef {
		return route.NodeRef{ID: id, Incarnation: incarnation}
	}

	living("nobody yet")
	renew(at("b", 9))
	renew(at("a", 100))
	renew(at("c", 1<<63+1))
	living("sorted by ID", at("a", 100), at("b", 9), at("c", 1<<63+1))

	// A renewal counts from now.
	pass(40 * time.Second)
	renew(at("b", 9))
	pass(30 * time.Second)
	living("only b was renewed", at("b", 9))

	// The highest incarnation wins, compared as numbers.
	renew(at("b", 10))
	superseded("while its successor lives", at("b", 9))
	living("the successor", at("b", 10))
	remove(at("b", 9))
	remove(at("b", 11))
	remove(at("nobody", 1))
	living("removals of what is not there", at("b", 10))

	// What ran out or was removed is known for an hour, and may come back itself.
	renew(at("a", 100))
	remove(at("b", 10))
	living("removed at once", at("a", 100))
	superseded("after its successor left", at("b", 9))
	pass(3 * time.Minute)
	remove(at("a", 100)) // ran out two minutes ago: changes nothing
	living("all gone")
	superseded("after its successor's lease ran out", at("a", 99))
	pass(route.LeaseMemory - 4*time.Minute)
	living("still all gone")
	superseded("almost an hour after its successor left", at("b", 9))
	superseded("almost an hour after its successor's lease ran out", at("a", 99))
	pass(150 * time.Second)
	renew(at("b", 9))
	renew(at("a", 99))
	living("forgotten after an hour", at("a", 99), at("b", 9))
	remove(at("b", 9))
	renew(at("b", 9))
	living("the same incarnation is back", at("a", 99), at("b", 9))
}

func nodesDescribed(t *testing.T, s route.Store, _ func(time.Duration)) {
	var all []route.Node
	for i, name := range hostile {
		n := route.Node{
			NodeRef: route.NodeRef{ID: name, Incarnation: uint64(i)}, Endpoint: "http://" + name, Track: name + "1", Version: name + "2", Phase: int32(i),
			ClientURL: "ws://" + name,
		}
		all = append(all, n)
		if err := s.RenewNode(t.Context(), n, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	slices.SortFunc(all, func(a, b route.Node) int { return cmp.Compare(a.ID, b.ID) })
	got, err := s.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want(t, "nodes", got, all)
	// A renewal says it anew.
	all[0].Phase, all[0].Endpoint = 99, "elsewhere"
	if err := s.RenewNode(t.Context(), all[0], time.Minute); err != nil {
		t.Fatal(err)
	}
	got, err = s.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want(t, "after a renewal", got, all)
}

func routersDescribed(t *testing.T, s route.Store, _ func(time.Duration)) {
	var all []route.Router
	for i, name := range hostile {
		r := route.Router{NodeRef: route.NodeRef{ID: name, Incarnation: uint64(i)}, Endpoint: "http://" + name, Version: name + "2"}
		all = append(all, r)
		if err := s.RenewRouter(t.Context(), r, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	slices.SortFunc(all, func(a, b route.Router) int { return cmp.Compare(a.ID, b.ID) })
	got, err := s.Routers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want(t, "routers", got, all)
}

func leasesApart(t *testing.T, s route.Store, _ func(time.Duration)) {
	if err := s.RenewNode(t.Context(), route.Node{NodeRef: g1}, time.Minute); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Routers(t.Context()); err != nil || len(got) != 0 {
		t.Fatalf("routers %+v, %v", got, err)
	}
	older := route.NodeRef{ID: g1.ID, Incarnation: g1.Incarnation - 1}
	if err := s.RenewRouter(t.Context(), route.Router{NodeRef: older}, time.Minute); err != nil {
		t.Fatalf("a router of a gateway's name: %v", err)
	}
	if err := s.RemoveRouter(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Nodes(t.Context()); err != nil || len(got) != 1 {
		t.Fatalf("nodes %+v, %v", got, err)
	}
}
