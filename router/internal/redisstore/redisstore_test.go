package redisstore

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/storetest"
	"github.com/redis/rueidis"
)

func TestMain(m *testing.M) {
	// rueidis closes what a cluster client did not need five seconds later.
	testkit.MainWithin(m, 20*time.Second)
}

// open opens a store with patience for a busy machine.
func open(t testing.TB, connection string) *Store { return openWithin(t, connection, 30*time.Second) }

func openWithin(t testing.TB, connection string, timeout time.Duration) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Connection: connection, timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// client is the store's own client.
func client(t testing.TB, s *Store) rueidis.Client {
	t.Helper()
	testkit.Eventually(t, "the store is connected", func() bool { return s.client.Load() != nil })
	return *s.client.Load()
}

var (
	phone = route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: "ann"}, Device: "phone"}
	node  = route.NodeRef{ID: "g", Incarnation: 1}
)

func bind(t testing.TB, s *Store, session uint64) (epoch uint64) {
	t.Helper()
	epoch, _, err := s.Bind(t.Context(), phone, route.Location{Node: node, Session: session}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return epoch
}

// contract runs the suite on what connection leads to.
func contract(t *testing.T, connection string) {
	storetest.Run(t, func(t *testing.T, f func(*testing.T, route.Store, func(time.Duration))) {
		s := open(t, connection)
		for _, n := range client(t, s).Nodes() {
			if err := n.Do(t.Context(), n.B().Flushall().Build()).Error(); err != nil {
				t.Fatal(err)
			}
		}
		f(t, s, func(d time.Duration) { pass(t, s, d) })
	})
}

func TestContract(t *testing.T) { contract(t, testkit.Redis(t)) }

func TestContractOnACluster(t *testing.T) {
	var seeds []string
	servers := testkit.RedisCluster(t, 3)
	for _, s := range servers {
		seeds = append(seeds, s.Addr)
	}
	t.Run("ByOneOfItsNodes", func(t *testing.T) { contract(t, seeds[1]) })
	contract(t, strings.Join(seeds, ","))
	for _, s := range servers {
		// A store that spoke to one shard only would have passed, too.
		stats, err := s.Do("INFO", "commandstats")
		if err != nil || !strings.Contains(stats[0], "cmdstat_evalsha:") {
			t.Errorf("%s ran no script: %v", s.Addr, err)
		}
	}
}

// pass moves what Redis remembers d into the past, as if d had gone by: it
// subtracts d from every time in the formats that the package comment tells.
func pass(t *testing.T, s *Store, d time.Duration) {
	t.Helper()
	c := client(t, s)
	do := func(cmd rueidis.Completed) rueidis.RedisResult {
		t.Helper()
		res := c.Do(t.Context(), cmd)
		if err := res.Error(); err != nil {
			t.Fatal(err)
		}
		return res
	}
	for _, n := range c.Nodes() {
		keys, err := n.Do(t.Context(), n.B().Keys().Pattern("*mics:*").Build()).AsStrSlice()
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			kind, err := do(c.B().Type().Key(key).Build()).ToString()
			if err != nil {
				t.Fatal(err)
			}
			if kind == "hash" {
				fields, err := do(c.B().Hgetall().Key(key).Build()).AsStrMap()
				if err != nil {
					t.Fatal(err)
				}
				for name, value := range fields {
					if aged := age(key, name, value, d); aged != value {
						do(c.B().Hset().Key(key).FieldValue().FieldValue(name, aged).Build())
					}
				}
			}
			if kind == "zset" {
				members, err := do(c.B().Zrange().Key(key).Min("0").Max("-1").Build()).AsStrSlice()
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range members {
					do(c.B().Zincrby().Key(key).Increment(float64(-d.Milliseconds())).Member(m).Build())
				}
			}
			left, err := do(c.B().Pttl().Key(key).Build()).AsInt64()
			if err != nil {
				t.Fatal(err)
			}
			if left >= 0 { // PEXPIRE with nothing left deletes
				do(c.B().Pexpire().Key(key).Milliseconds(left - d.Milliseconds()).Build())
			}
		}
	}
}

func age(key, name, value string, d time.Duration) string {
	at, unit := -1, time.Millisecond
	switch {
	case strings.HasSuffix(key, "}:r"):
		if parts := strings.Split(value, ":"); parts[1] == strconv.Itoa(int(route.Ghost)) {
			at = 5
		}
	case strings.HasSuffix(key, "}:rate"):
		if name == "at" {
			at, unit = 0, time.Microsecond
		}
	case key == deadKey:
	default: // leases and counts
		at = 1
	}
	if at < 0 {
		return value
	}
	parts := strings.Split(value, ":")
	n, err := strconv.ParseInt(parts[at], 10, 64)
	if err != nil {
		panic(err)
	}
	parts[at] = strconv.FormatInt(max(0, n-int64(d/unit)), 10)
	return strings.Join(parts, ":")
}

func TestAnotherRoutersChangeInvalidatesTheCache(t *testing.T) {
	addr := testkit.Redis(t)
	a, b := open(t, addr), open(t, addr)
	for session := range uint64(20) {
		bind(t, a, session)
		testkit.Eventually(t, "the other router sees the new route", func() bool {
			got, err := b.Lookup(t.Context(), []route.UserKey{phone.UserKey})
			return err == nil && len(got[0]) == 1 && got[0][0].Session == session
		})
	}
}

func TestLookupAnswersFromMemory(t *testing.T) {
	server := testkit.StartRedis(t)
	s := open(t, server.Addr)
	bind(t, s, 1)
	keys := []route.UserKey{phone.UserKey}
	calls := func() string {
		stats, err := server.Do("INFO", "commandstats")
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(stats[0], "cmdstat_hgetall:")
		line, _, _ := strings.Cut(after, ",")
		return line
	}
	testkit.Eventually(t, "a look-up that asks Redis nothing", func() bool {
		before := calls()
		for range 100 {
			if got, err := s.Lookup(t.Context(), keys); err != nil || len(got[0]) != 1 {
				t.Fatal(got, err)
			}
		}
		return calls() == before
	})
}

func TestAHashOfGhostsGoesByItself(t *testing.T) {
	server := testkit.StartRedis(t)
	s := open(t, server.Addr)
	epoch := bind(t, s, 1)
	if _, err := s.Change(t.Context(), []route.Change{{Key: phone, Node: node, Session: 1, Epoch: epoch, To: route.Ghost, GhostTTL: 30 * time.Millisecond}}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "nothing is left in Redis", func() bool {
		n, err := server.Do("DBSIZE")
		return err == nil && n[0] == "0"
	})
}

func TestLimitsLeaveNothingBehind(t *testing.T) {
	server := testkit.StartRedis(t)
	s := open(t, server.Addr)
	for range 3 {
		if ok, _, err := s.AcquireConn(t.Context(), "t", node, 5, nil); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if err := s.ReleaseConns(t.Context(), "t", node, 3); err != nil {
		t.Fatal(err)
	}
	if n, err := s.LeaseTokens(t.Context(), "t", 10, 1); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	testkit.Eventually(t, "nothing is left in Redis", func() bool {
		n, err := server.Do("DBSIZE")
		return err == nil && n[0] == "0"
	})
}

func TestWhatNoVersionWroteIsLeftOut(t *testing.T) {
	server := testkit.StartRedis(t)
	s := open(t, server.Addr)
	bind(t, s, 1)
	renew := func(id string) {
		if err := s.RenewNode(t.Context(), route.Node{NodeRef: route.NodeRef{ID: id, Incarnation: 1}}, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	renew("ok")
	key := userKey(phone.UserKey)
	for _, hset := range [][]string{
		{key, "junk", "junk"},
		{key, "later", "7:1:5:1:2:0:g:what:comes:later"},
		{tenantKey("t", "conns"), "junk", "junk"},
		{tenantKey("t", "conns"), countField(node), "junk"},
		{tenantKey("t", "rate"), "tokens", "junk"},
		{nodesKey, "junk", "junk"},
		{nodesKey, "junk2", incarnation(1) + ":99999999999999:junk"},
	} {
		if _, err := server.Do(append([]string{"HSET"}, hset...)...); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.LookupFresh(t.Context(), phone.UserKey); err != nil || len(got) != 2 || got[0].Device != "later" || got[1].Device != "phone" {
		t.Errorf("records %+v, %v", got, err)
	}
	if got, err := s.Nodes(t.Context()); err != nil || len(got) != 1 || got[0].ID != "ok" {
		t.Errorf("nodes %+v, %v", got, err)
	}
	renew("junk") // takes its place
	if ok, sum, err := s.AcquireConn(t.Context(), "t", node, 5, nil); err != nil || !ok || sum != 0 {
		t.Errorf("counted %d: %v, %v", sum, ok, err)
	}
	if n, err := s.LeaseTokens(t.Context(), "t", 10, 5); err != nil || n != 5 {
		t.Errorf("tokens %d, %v", n, err)
	}
	// What a later version appends survives a change by this one.
	later := phone
	later.Device = "later"
	applied, err := s.Change(t.Context(), []route.Change{{Key: later, Node: node, Epoch: 7, To: route.Closing}})
	if err != nil || !applied[0] {
		t.Fatalf("%v, %v", applied, err)
	}
	if got, err := server.Do("HGET", key, "later"); err != nil || got[0] != "7:2:5:1:2:0:g:what:comes:later" {
		t.Errorf("it became %q, %v", got, err)
	}
	if got, err := server.Do("HEXISTS", key, "junk"); err != nil || got[0] != "0" {
		t.Errorf("junk is kept: %q, %v", got, err)
	}
}

func BenchmarkBind(b *testing.B) {
	s := open(b, testkit.Redis(b))
	for b.Loop() {
		bind(b, s, 1)
	}
}

func BenchmarkLookupCached(b *testing.B) {
	s := open(b, testkit.Redis(b))
	keys := []route.UserKey{phone.UserKey}
	bind(b, s, 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Lookup(b.Context(), keys); err != nil {
			b.Fatal(err)
		}
	}
}
