package redisstore

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/storetest"
)

func open(t testing.TB, addr string) *Store {
	t.Helper()
	s, err := Open(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestContract(t *testing.T) {
	addr := testkit.Redis(t)
	storetest.Run(t, func(t *testing.T) route.Store {
		s := open(t, addr)
		if err := s.c.Do(t.Context(), s.c.B().Flushall().Build()).Error(); err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestAnotherRoutersChangeInvalidatesTheCache(t *testing.T) {
	addr := testkit.Redis(t)
	a, b := open(t, addr), open(t, addr)
	key := route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: "ann"}, Device: "phone"}
	for session := range uint64(20) {
		if _, _, err := a.Bind(t.Context(), key, route.Location{Node: route.NodeRef{ID: "g", Incarnation: 1}, Session: session}, 1); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "the other router sees the new route", func() bool {
			got, err := b.Lookup(t.Context(), []route.UserKey{key.UserKey})
			return err == nil && len(got[0]) == 1 && got[0][0].Session == session
		})
	}
}

func TestAHashOfGhostsGoesByItself(t *testing.T) {
	s := open(t, testkit.Redis(t))
	key := route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: "ann"}, Device: "phone"}
	node := route.NodeRef{ID: "g", Incarnation: 1}
	epoch, _, err := s.Bind(t.Context(), key, route.Location{Node: node, Session: 1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Change(t.Context(), []route.Change{{Key: key, Node: node, Epoch: epoch, To: route.Ghost, GhostTTL: 30 * time.Millisecond}}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "nothing is left in Redis", func() bool {
		n, err := s.c.Do(t.Context(), s.c.B().Dbsize().Build()).AsInt64()
		return err == nil && n == 0
	})
}

func TestConnectionStrings(t *testing.T) {
	for in, want := range map[string][]string{
		"127.0.0.1:6380":                     {"127.0.0.1:6380"},
		"redis":                              {"redis:6379"},
		"a:1, b:2,password=p=q,user=u":       {"a:1", "b:2"},
		"a:1,abortConnect=false,ssl=true":    {"a:1"},
		"redis://u:p@localhost:7000/2":       {"localhost:7000"},
		"s1:26379,s2:26379,serviceName=mics": {"s1:26379", "s2:26379"},
	} {
		opt, err := Options(in)
		if err != nil || !slices.Equal(opt.InitAddress, want) {
			t.Errorf("%q: %v, %v", in, opt.InitAddress, err)
		}
	}
	for in, want := range map[string]string{
		"":                      "no host:port",
		"a:1,tieBreaker=x":      `"tieBreaker"`,
		"a:1,defaultDatabase=x": "defaultDatabase",
		"a:1,ssl=perhaps":       "ssl",
		"http://a":              "",
	} {
		if _, err := Options(in); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "REDIS__CONNECTION") {
			t.Errorf("%q: %v, want it to say %q", in, err, want)
		}
	}
}

func BenchmarkBind(b *testing.B) {
	s := open(b, testkit.Redis(b))
	key := route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: "ann"}, Device: "phone"}
	for b.Loop() {
		if _, _, err := s.Bind(b.Context(), key, route.Location{Session: 1}, 1); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookupCached(b *testing.B) {
	s := open(b, testkit.Redis(b))
	keys := []route.UserKey{{Tenant: "t", User: "ann"}}
	if _, _, err := s.Bind(b.Context(), route.DeviceKey{UserKey: keys[0], Device: "phone"}, route.Location{Session: 1}, 1); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Lookup(b.Context(), keys); err != nil {
			b.Fatal(err)
		}
	}
}
