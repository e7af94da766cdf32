package redisstore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/route"
)

// every calls each method that asks Redis, all at once, and returns what failed
// otherwise than with ErrUnavailable.
func every(ctx context.Context, s *Store) map[string]error {
	odd := map[string]error{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for name, call := range map[string]func() error{
		"Bind": func() error { _, _, err := s.Bind(ctx, phone, route.Location{Node: node}, 1); return err },
		"Change": func() error {
			_, err := s.Change(ctx, []route.Change{{Key: phone, Node: node, To: route.Ghost}})
			return err
		},
		"Lookup":  func() error { _, err := s.Lookup(ctx, []route.UserKey{{Tenant: "t", User: "new"}}); return err },
		"Fresh":   func() error { _, err := s.LookupFresh(ctx, phone.UserKey); return err },
		"Renew":   func() error { return s.RenewNode(ctx, route.Node{NodeRef: node}, time.Minute) },
		"Remove":  func() error { return s.RemoveNode(ctx, node) },
		"Nodes":   func() error { _, err := s.Nodes(ctx); return err },
		"RenewR":  func() error { return s.RenewRouter(ctx, route.Router{NodeRef: node}, time.Minute) },
		"RemoveR": func() error { return s.RemoveRouter(ctx, node) },
		"Routers": func() error { _, err := s.Routers(ctx); return err },
		"Acquire": func() error { _, _, err := s.AcquireConn(ctx, "t", node, 1, nil); return err },
		"Release": func() error { return s.ReleaseConns(ctx, "t", node, 1) },
		"Lease":   func() error { _, err := s.LeaseTokens(ctx, "t", 1, 1); return err },
		"Ping":    func() error { return s.Ping(ctx) },
		"Dead":    func() error { _, err := s.DeadNodes(ctx); return err },
		"Bury":    func() error { _, err := s.Bury(ctx, node); return err },
		"Reap": func() error {
			_, _, err := s.Reap(ctx, node, 1, func(string) time.Duration { return 0 })
			return err
		},
		"Forget": func() error { return s.ForgetNode(ctx, node) },
		"Restore": func() error {
			_, err := s.Restore(ctx, []route.Restored{{Key: phone, Record: route.Record{State: route.Live, Node: node}}})
			return err
		},
		"Conns":    func() error { return s.SetConns(ctx, "t", node, 1) },
		"Marker":   func() error { _, err := s.Marker(ctx); return err },
		"SetWhole": func() error { return s.SetWhole(ctx, "m", true) },
		"Lock":     func() error { _, err := s.Lock(ctx, "l", "me", time.Second); return err },
		"Unlock":   func() error { return s.Unlock(ctx, "l", "me") },
	} {
		wg.Go(func() {
			if err := call(); !errors.Is(err, route.ErrUnavailable) {
				mu.Lock()
				odd[name] = err
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return odd
}

// available waits until the store works and has bound the phone.
func available(t *testing.T, s *Store) (epoch uint64) {
	t.Helper()
	testkit.Eventually(t, "the store works", func() bool {
		var err error
		epoch, _, err = s.Bind(t.Context(), phone, route.Location{Node: node, Session: 1}, 1)
		return err == nil && s.Ping(t.Context()) == nil
	})
	return epoch
}

func TestARedisThatHangsIsUnavailable(t *testing.T) {
	server := testkit.StartRedis(t)
	s := openWithin(t, server.Addr, 0)
	available(t, s)
	server.Pause(t)
	// No deadline of the caller's: the store has its own.
	if odd := every(context.Background(), s); len(odd) != 0 {
		t.Errorf("not ErrUnavailable: %v", odd)
	}
	server.Resume(t)
	available(t, s)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if odd := every(ended, s); len(odd) != 0 {
		t.Errorf("with a context that has ended, not ErrUnavailable: %v", odd)
	}
}

func TestARedisThatRestartsEmptyIsFoundAgain(t *testing.T) {
	server := testkit.StartRedis(t)
	s := openWithin(t, server.Addr, 0)
	available(t, s)
	testkit.Eventually(t, "the route is cached", func() bool {
		got, err := s.Lookup(t.Context(), []route.UserKey{phone.UserKey})
		return err == nil && len(got[0]) == 1
	})
	server.Kill()
	if odd := every(t.Context(), s); len(odd) != 0 {
		t.Errorf("not ErrUnavailable: %v", odd)
	}
	server.Restart(t)
	testkit.Eventually(t, "the cache forgot what Redis forgot", func() bool {
		got, err := s.Lookup(t.Context(), []route.UserKey{phone.UserKey})
		return err == nil && len(got[0]) == 0
	})
	// The scripts are gone too.
	testkit.Eventually(t, "a batch works", func() bool {
		_, err := s.Change(t.Context(), slices.Repeat([]route.Change{{Key: phone, Node: node, Epoch: 1, To: route.Ghost}}, 10))
		return err == nil
	})
	available(t, s)
}

func TestOpenDoesNotNeedRedis(t *testing.T) {
	server := testkit.StartRedis(t)
	server.Kill()
	said := &lines{got: make(chan string, 16)}
	s, err := Open(t.Context(), Options{Connection: server.Addr + ",password=hunter2", Log: slog.New(slog.NewTextHandler(said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if odd := every(t.Context(), s); len(odd) != 0 {
		t.Errorf("not ErrUnavailable: %v", odd)
	}
	if line := <-said.got; !strings.Contains(line, "redis_unavailable") || strings.Contains(line, "hunter2") {
		t.Errorf("log: %s", line)
	}
	server.Restart(t)
	if _, err := server.Do("CONFIG", "SET", "requirepass", "hunter2"); err != nil {
		t.Fatal(err)
	}
	available(t, s)
	for line := range said.got {
		if strings.Contains(line, "hunter2") {
			t.Errorf("log: %s", line)
		}
		if strings.Contains(line, "redis_connected") {
			break
		}
	}
}

func TestAPasswordThatIsRefusedIsNotRepeated(t *testing.T) {
	server := testkit.StartRedis(t)
	if _, err := server.Do("CONFIG", "SET", "requirepass", "right"); err != nil {
		t.Fatal(err)
	}
	for _, connection := range []string{server.Addr + ",password=hunter2", "redis://:hunter2@" + server.Addr} {
		said := &lines{got: make(chan string, 16)}
		s, err := Open(t.Context(), Options{Connection: connection, Log: slog.New(slog.NewTextHandler(said, nil))})
		if err != nil {
			t.Fatal(err)
		}
		err = s.Ping(t.Context())
		if line := <-said.got; !errors.Is(err, route.ErrUnavailable) || strings.Contains(err.Error()+line, "hunter2") {
			t.Errorf("%v, log %s", err, line)
		}
		_ = s.Close()
	}
	available(t, open(t, "redis://:right@"+server.Addr))
	available(t, open(t, server.Addr+",password=right"))
}

func TestCloseEndsAnAttemptToConnect(t *testing.T) {
	// A listener that never answers: connected, and silent.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s, err := Open(ctx, Options{Connection: ln.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(t.Context()); !errors.Is(err, route.ErrUnavailable) {
		t.Error(err)
	}
	_ = s.Close() // goleak watches
}

func TestAFailoverBySentinelIsFollowed(t *testing.T) {
	g := testkit.StartSentinels(t)
	var hosts []string
	for _, s := range g.Sentinels {
		hosts = append(hosts, s.Addr)
	}
	connection := strings.Join(hosts, ",") + ",serviceName=" + g.Set
	t.Run("Contract", func(t *testing.T) { contract(t, connection) })
	if _, err := g.Master.Do("FLUSHALL"); err != nil { // what the contract's last part has left
		t.Fatal(err)
	}
	s := openWithin(t, connection, 0)
	epoch := available(t, s)
	role := func(r *testkit.RedisServer) string {
		out, err := r.Do("ROLE")
		if err != nil {
			return err.Error()
		}
		return out[0]
	}
	testkit.Eventually(t, "the route is on the replica", func() bool {
		n, err := g.Replica.Do("EXISTS", userKey(phone.UserKey))
		return err == nil && n[0] == "1"
	})
	if r := role(g.Replica); r != "slave" {
		t.Fatalf("the replica is a %s", r)
	}
	g.Master.Kill()
	if err := s.Ping(t.Context()); err == nil {
		t.Fatal("the master is dead, and something else answers")
	}
	testkit.Eventually(t, "the replica is the master", func() bool { return role(g.Replica) == "master" })
	available(t, s)
	got, err := s.LookupFresh(t.Context(), phone.UserKey)
	if err != nil || len(got) != 1 || got[0].Epoch <= epoch {
		t.Fatalf("%+v, %v: the new master did not know the route", got, err)
	}
	testkit.Eventually(t, "Lookup follows", func() bool {
		got, err := s.Lookup(t.Context(), []route.UserKey{phone.UserKey})
		return err == nil && len(got[0]) == 1 && got[0][0].Session == 1
	})
}

func TestAClusterNodeThatDiesTakesItsSlotsOnly(t *testing.T) {
	servers := testkit.RedisCluster(t, 3)
	s := openWithin(t, servers[0].Addr, 0)
	available(t, s)
	keys := make([]route.UserKey, 60)
	for i := range keys {
		k := route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: strconv.Itoa(i)}, Device: "d"}
		keys[i] = k.UserKey
		testkit.Eventually(t, "the route is bound", func() bool {
			_, _, err := s.Bind(t.Context(), k, route.Location{Node: node, Session: 1}, 1)
			return err == nil
		})
	}
	for _, r := range servers {
		// What is left serves although the cluster is not whole.
		if _, err := r.Do("CONFIG", "SET", "cluster-require-full-coverage", "no"); err != nil {
			t.Fatal(err)
		}
	}
	servers[2].Kill()
	found, lost := 0, 0
	for _, k := range keys {
		if found > 0 && lost > 0 {
			return
		}
		switch got, err := s.LookupFresh(t.Context(), k); {
		case err == nil && len(got) == 1:
			found++
		case errors.Is(err, route.ErrUnavailable):
			lost++
		default:
			t.Fatalf("%+v: %+v, %v", k, got, err)
		}
	}
	t.Errorf("%d found, %d lost", found, lost)
}

// lines is a writer that hands each write on; what does not fit is dropped.
type lines struct{ got chan string }

var _ io.Writer = (*lines)(nil)

func (l *lines) Write(p []byte) (int, error) {
	select {
	case l.got <- string(p):
	default:
	}
	return len(p), nil
}
