package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

func deadNodesKnown(t *testing.T, s route.Store, pass func(time.Duration)) {
	at := func(id string, inc uint64) route.NodeRef { return route.NodeRef{ID: id, Incarnation: inc} }
	dead(t, s, "nobody yet")
	renew(t, s, at("b", 9), time.Minute)
	renew(t, s, at("a", 1<<63+1), time.Minute)
	renew(t, s, at("c", 3), time.Hour)
	renew(t, s, at("d", 4), time.Hour)
	if err := s.RenewRouter(t.Context(), route.Router{NodeRef: at("r", 1)}, time.Second); err != nil {
		t.Fatal(err)
	}
	dead(t, s, "all live")
	pass(61 * time.Second)
	dead(t, s, "two lapsed", route.DeadNode{NodeRef: at("a", 1<<63+1), Why: route.Lapsed}, route.DeadNode{NodeRef: at("b", 9), Why: route.Lapsed})
	renew(t, s, at("b", 9), time.Hour) // late, but nobody has buried it
	renew(t, s, at("a", 1<<63+2), time.Hour)
	renew(t, s, at("c", 4), time.Hour)
	for _, n := range []route.NodeRef{at("d", 4), at("d", 3), at("nobody", 1)} {
		if err := s.RemoveNode(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	a, c, d := route.DeadNode{NodeRef: at("a", 1<<63+1), Why: route.Superseded}, route.DeadNode{NodeRef: at("c", 3), Why: route.Superseded}, route.DeadNode{NodeRef: at("d", 4), Why: route.Stopped}
	dead(t, s, "superseded and stopped", a, c, d)
	renew(t, s, at("d", 4), time.Minute) // it is back itself
	dead(t, s, "without the one that came back", a, c)
	if err := s.RemoveNode(t.Context(), at("d", 4)); err != nil {
		t.Fatal(err)
	}
	renew(t, s, at("d", 5), time.Minute)
	dead(t, s, "a successor changes nothing about an orderly stop", a, c, d)

	bury(t, s, at("c", 3), true)
	c.Why = route.Buried
	dead(t, s, "buried", a, c, d)
	forget(t, s, at("c", 3))
	forget(t, s, at("c", 3))
	dead(t, s, "forgotten", a, d)
	// What is not dealt with outlasts the memory of leases.
	pass(61 * time.Minute)
	lapsed := []route.DeadNode{a, {NodeRef: at("a", 1<<63+2), Why: route.Lapsed}, {NodeRef: at("b", 9), Why: route.Lapsed}, {NodeRef: at("c", 4), Why: route.Lapsed}, d, {NodeRef: at("d", 5), Why: route.Lapsed}}
	dead(t, s, "an hour later", lapsed...)
	pass(2 * route.LeaseMemory)
	if _, err := s.Nodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	renew(t, s, at("z", 1), 1000*time.Hour)
	dead(t, s, "much later", lapsed...)
	pass(2 * time.Minute)
	for _, n := range lapsed {
		bury(t, s, n.NodeRef, true)
		forget(t, s, n.NodeRef)
	}
	dead(t, s, "all dealt with")
}

func buriedRefused(t *testing.T, s route.Store, pass func(time.Duration)) {
	refused := func(what string, n route.NodeRef) {
		t.Helper()
		if err := s.RenewNode(t.Context(), route.Node{NodeRef: n}, time.Minute); !errors.Is(err, route.ErrSuperseded) {
			t.Fatalf("%s: a buried incarnation was let in: %v", what, err)
		}
	}
	next := route.NodeRef{ID: g1.ID, Incarnation: g1.Incarnation + 1}
	renew(t, s, g1, time.Minute)
	bury(t, s, g1, false) // it lives
	renew(t, s, g1, time.Minute)
	pass(61 * time.Second)
	bury(t, s, g1, true)
	bury(t, s, g1, true)
	refused("at once", g1)
	forget(t, s, g1)
	refused("cleaned up", g1)
	pass(2 * route.LeaseMemory)
	refused("its lease forgotten", g1)
	renew(t, s, g2, time.Minute)
	dead(t, s, "after its lease was forgotten")
	renew(t, s, next, time.Minute)
	dead(t, s, "its successor lives")
	bury(t, s, g1, true)
	renew(t, s, next, time.Minute)
	forget(t, s, g1)
	refused("the successor lives", g1)
	pass(route.BurialMemory - 2*time.Hour)
	bury(t, s, g2, true)
	forget(t, s, g2)
	refused("almost a week later", g1)
	pass(3 * time.Hour)
	bury(t, s, route.NodeRef{ID: "other", Incarnation: 1}, true)
	renew(t, s, g1, time.Minute) // a bound on what is remembered, not a promise
	if err := s.RenewNode(t.Context(), route.Node{NodeRef: g2}, time.Minute); !errors.Is(err, route.ErrSuperseded) {
		t.Fatalf("the other was buried a few hours ago: %v", err)
	}
}
