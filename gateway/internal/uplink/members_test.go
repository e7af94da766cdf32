package uplink

import (
	"slices"
	"testing"
	"time"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func undelivered(size int) []*gatewayv1.Undelivered {
	return []*gatewayv1.Undelivered{{Message: make([]byte, size)}}
}

func TestMerge(t *testing.T) {
	a1, a2, b := member{"a", 1, "http://a:1"}, member{"a", 2, "http://a:2"}, member{"b", 9, "http://b:1"}
	for _, answers := range [][][]member{{{a1, b}, {a2}}, {{a2}, {b, a1}}, {{b}, {a2}, nil}} {
		if got := merge(answers); !slices.Equal(got, []member{a2, b}) {
			t.Errorf("merge(%v) = %v", answers, got)
		}
	}
	if got := merge(nil); len(got) != 0 {
		t.Errorf("merge of nothing: %v", got)
	}
	got := toMembers([]*routerv1.RouterInfo{
		{NodeId: "a", Incarnation: 1, Endpoint: "http://a:1/"}, {NodeId: "b", Endpoint: "dns://b:1"},
		{Endpoint: "http://c:1"}, {NodeId: "d", Endpoint: "nonsense"},
	})
	if !slices.Equal(got, []member{a1}) {
		t.Errorf("toMembers: %v", got)
	}
}

func TestReachable(t *testing.T) {
	set := []member{{id: "linked"}, {id: "new"}, {id: "lost"}}
	down := map[string]time.Duration{"new": time.Second, "lost": 4 * time.Second}
	f := func(m member) time.Duration { return down[m.id] }
	if got := reachable(set, f, 3*time.Second); !slices.Equal(got, set[:2]) {
		t.Errorf("got %v", got)
	}
	down["linked"] = time.Hour
	if got := reachable(set, f, 3*time.Second); !slices.Equal(got, set) {
		t.Errorf("a gateway that reaches nobody left somebody out: %v", got)
	}
}

func TestLease(t *testing.T) {
	t0 := time.Unix(1000, 0)
	at := func(s float64) time.Time { return t0.Add(time.Duration(s * float64(time.Second))) }
	var l lease
	if l.check(t0) != same || l.held(t0) {
		t.Error("never had a lease")
	}
	l.renewed(at(0), 3*time.Second)
	l.renewed(at(-1), 3*time.Second) // a slower router's answer
	for i, c := range []struct {
		at   float64
		want change
		held bool
	}{{2.9, same, true}, {3, fencedNow, false}, {3.1, same, false}} {
		if got := l.check(at(c.at)); got != c.want || l.held(at(c.at)) != c.held {
			t.Errorf("step %d: %v, held %v", i, got, l.held(at(c.at)))
		}
	}
	l.renewed(at(4), 3*time.Second)
	if l.check(at(5)) != unfencedNow || l.check(at(5)) != same {
		t.Error("not unfenced once")
	}
}
