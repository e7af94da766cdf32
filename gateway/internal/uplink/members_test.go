package uplink

import (
	"context"
	"errors"
	"slices"
	"strings"
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

func TestEndpoints(t *testing.T) {
	good := []string{"http://a:1", "https://b", "http://c/", "dns://routers:9080", "http://[::1]:2"}
	list, err := parseEndpoints(good)
	want := []endpoint{{url: "http://a:1"}, {url: "https://b"}, {url: "http://c"}, {host: "routers", port: "9080"}, {url: "http://[::1]:2"}}
	if err != nil || !slices.Equal(list, want) {
		t.Fatalf("got %v, %v", list, err)
	}
	bad := []string{"", "a:1", "ftp://a", "http://", "dns://a", "http://a/path", "http://u:p@a", "http://a?x=1", "http://a:0", "dns://a:x"}
	err = CheckEndpoints(bad)
	for _, s := range bad {
		if one := CheckEndpoints([]string{s}); one == nil || !strings.Contains(err.Error(), one.Error()) {
			t.Errorf("%q: %v", s, one)
		}
	}
	if CheckEndpoints(nil) == nil || CheckURL("dns://a:1") == nil || CheckURL("http://a:1") != nil {
		t.Error("checks")
	}
	lookup := func(_ context.Context, host string) ([]string, error) {
		if host == "gone" {
			return nil, errors.New("no such host")
		}
		return []string{"10.0.0.1", "fd00::1"}, nil
	}
	urls, err := list[3].resolve(t.Context(), lookup)
	if err != nil || !slices.Equal(urls, []string{"http://10.0.0.1:9080", "http://[fd00::1]:9080"}) {
		t.Errorf("got %v, %v", urls, err)
	}
	if _, err := (endpoint{host: "gone", port: "1"}).resolve(t.Context(), lookup); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("got %v", err)
	}
}
