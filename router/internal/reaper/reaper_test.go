package reaper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/memstore"
	"github.com/mics-im/mics/router/internal/redisstore"
	"github.com/mics-im/mics/router/internal/route"
)

func TestMain(m *testing.M) { testkit.MainWithin(m, 20*time.Second) }

const lease = 3 * time.Second

var (
	g1 = route.NodeRef{ID: "g1", Incarnation: 1}
	g2 = route.NodeRef{ID: "g2", Incarnation: 1}
)

// lines is a log that may be read while it is written, and what else a reaper
// tells.
type lines struct {
	full atomic.Bool // no room for ends of sessions

	mu    sync.Mutex
	text  bytes.Buffer
	ended map[route.DeviceKey]int // guarded by mu
	late  int                     // guarded by mu: told while there was no room
}

func (l *lines) end(key route.DeviceKey, node route.NodeRef) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended == nil {
		l.ended = map[route.DeviceKey]int{}
	}
	if l.ended[key]++; node == (route.NodeRef{}) {
		l.ended[key] = -1
	}
	if l.full.Load() {
		l.late++
	}
}

// wantEnded fails unless the ends of the users' sessions were told once each, by
// any of them.
func wantEnded(t *testing.T, from, to int, all ...*lines) {
	t.Helper()
	told := map[route.DeviceKey]int{}
	for _, l := range all {
		l.mu.Lock()
		for k, n := range l.ended {
			told[k] += n
		}
		l.mu.Unlock()
	}
	if len(told) != to-from {
		t.Errorf("%d ends of sessions were told, want %d", len(told), to-from)
	}
	for i := from; i < to; i++ {
		if told[user(i)] != 1 {
			t.Fatalf("the end of session %d was told %d times", i, told[user(i)])
		}
	}
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

// start runs a reaper until the test ends.
func start(t *testing.T, s Store, owner string) (*Reaper, *lines) {
	t.Helper()
	said := &lines{}
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "router", NodeID: owner, LogWriter: said})
	if err != nil {
		t.Fatal(err)
	}
	r := New(Options{
		Store: s, Owner: owner, Telemetry: tel,
		Living: func(route.NodeRef) bool { return false }, GhostTTL: func(string) time.Duration { return time.Hour },
		Ended: func(key route.DeviceKey, node route.NodeRef, _ uint64) { said.end(key, node) },
		Room:  func(string) bool { return !said.full.Load() },
	})
	r.Start()
	t.Cleanup(func() {
		r.Stop()
		_ = tel.Shutdown(context.Background())
	})
	return r, said
}

func renew(t *testing.T, s route.Store, nodes ...route.NodeRef) {
	t.Helper()
	for _, n := range nodes {
		if err := s.RenewNode(t.Context(), route.Node{NodeRef: n}, lease); err != nil {
			t.Fatal(err)
		}
	}
}

func user(i int) route.DeviceKey {
	return route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: fmt.Sprint("u", i)}, Device: "d"}
}

func bind(t *testing.T, s route.Store, n route.NodeRef, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if _, _, err := s.Bind(t.Context(), user(i), route.Location{Node: n, Session: uint64(i)}, 1); err != nil {
			t.Fatal(err)
		}
	}
}

// states counts the users' records by state.
func states(t *testing.T, s route.Store, from, to int) map[route.State]int {
	t.Helper()
	n := map[route.State]int{}
	for i := from; i < to; i++ {
		records, err := s.LookupFresh(t.Context(), user(i).UserKey)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			n[r.State]++
		}
	}
	return n
}

func refused(t *testing.T, s route.Store, n route.NodeRef) {
	t.Helper()
	if err := s.RenewNode(t.Context(), route.Node{NodeRef: n}, lease); !errors.Is(err, route.ErrSuperseded) {
		t.Errorf("%+v was let in: %v", n, err)
	}
}

func TestADeadGatewaysRoutesAreGoneWithinTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		const n = 3*batch + 7
		renew(t, s, g1, g2)
		bind(t, s, g1, 0, n)
		bind(t, s, g2, n, n+10)
		r, said := start(t, s, "r1")
		for range 10 { // g1 says nothing any more
			time.Sleep(time.Second)
			renew(t, s, g2)
		}
		if got := states(t, s, 0, n); got[route.Ghost] != n {
			t.Errorf("its routes: %v", got)
		}
		if got := states(t, s, n, n+10); got[route.Live] != 10 {
			t.Errorf("those of the living gateway: %v", got)
		}
		wantEnded(t, 0, n, said)
		if r.cleanups.Value() != 1 || r.routes.Value() != n {
			t.Errorf("%d clean-ups, %d routes", r.cleanups.Value(), r.routes.Value())
		}
		if said.count("dead_node_cleanup_start") != 1 || said.count("dead_node_cleanup_done") != 1 ||
			said.count(fmt.Sprintf(`"node":"g1","incarnation":1,"routes":%d,"duration_ms":`, n)) != 1 {
			t.Errorf("said %s", said.text.String())
		}
		refused(t, s, g1)
		if dead, err := s.DeadNodes(t.Context()); len(dead) != 0 || err != nil {
			t.Errorf("still dead: %v, %v", dead, err)
		}
	})
}

func TestAGatewayThatIsLateMayRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		r, _ := start(t, s, "r1")
		renew(t, s, g1)
		bind(t, s, g1, 0, 1)
		for range 5 {
			time.Sleep(4 * time.Second)
			renew(t, s, g1)
		}
		if got := states(t, s, 0, 1); got[route.Live] != 1 || r.cleanups.Value() != 0 {
			t.Errorf("%v, %d clean-ups", got, r.cleanups.Value())
		}
	})
}

// faulty is a store that may be away, and watches who reaps.
type faulty struct {
	route.Store
	away    atomic.Bool
	reaping atomic.Int64
	most    atomic.Int64
	pause   time.Duration // of a batch
	died    atomic.Bool   // the cleaner does nothing any more, not even unlock
}

var errAway = fmt.Errorf("test: %w", route.ErrUnavailable)

func (f *faulty) DeadNodes(ctx context.Context) ([]route.DeadNode, error) {
	if f.away.Load() {
		return nil, errAway
	}
	return f.Store.DeadNodes(ctx)
}

func (f *faulty) Reap(ctx context.Context, n route.NodeRef, limit int, ttl func(string) time.Duration) ([]route.Ended, bool, error) {
	if f.died.Load() {
		<-ctx.Done()
		return nil, false, ctx.Err()
	}
	f.most.Store(max(f.most.Load(), f.reaping.Add(1)))
	defer f.reaping.Add(-1)
	time.Sleep(f.pause)
	return f.Store.Reap(ctx, n, limit, ttl)
}

func (f *faulty) Unlock(ctx context.Context, name, owner string) error {
	if f.died.Load() {
		return nil
	}
	return f.Store.Unlock(ctx, name, owner)
}

func TestLeasesThatLapsedWhileTheStoreWasAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &faulty{Store: memstore.New()}
		r, _ := start(t, s, "r1")
		renew(t, s, g1)
		bind(t, s, g1, 0, 1)
		time.Sleep(2 * time.Second)
		s.away.Store(true)
		time.Sleep(time.Minute)
		s.away.Store(false)
		for range 5 {
			time.Sleep(time.Second) // gateways speak once a second
			renew(t, s, g1)
		}
		if r.cleanups.Value() != 0 {
			t.Error("a gateway was buried because nobody could hear it")
		}
	})
}

func TestOneCleansAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &faulty{Store: memstore.New(), pause: 400 * time.Millisecond}
		renew(t, s, g1, g2)
		bind(t, s, g1, 0, 10*batch)
		bind(t, s, g2, 10*batch, 11*batch)
		var all []*Reaper
		var said []*lines
		for i := range 3 {
			r, l := start(t, s, fmt.Sprint("r", i))
			all, said = append(all, r), append(said, l)
		}
		time.Sleep(20 * time.Second)
		wantEnded(t, 0, 11*batch, said...)
		cleanups, routes := int64(0), int64(0)
		for _, r := range all {
			cleanups += r.cleanups.Value()
			routes += r.routes.Value()
		}
		if cleanups != 2 || routes != 11*batch || s.most.Load() != 1 {
			t.Errorf("%d clean-ups of %d routes, %d at once", cleanups, routes, s.most.Load())
		}
	})
}

func TestAnotherRouterGoesOnWhenTheCleanerDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := memstore.New()
		mortal := &faulty{Store: backend, pause: 100 * time.Millisecond}
		renew(t, backend, g1)
		bind(t, backend, g1, 0, 10*batch)
		first, _ := start(t, mortal, "r1")
		for first.routes.Value() < 3*batch {
			time.Sleep(10 * time.Millisecond)
		}
		mortal.died.Store(true)
		second, said := start(t, backend, "r2")
		time.Sleep(lockTTL + 2*lookEvery)
		if got := first.routes.Value() + second.routes.Value(); got < 10*batch {
			t.Errorf("%d routes cleaned up", got)
		}
		if second.cleanups.Value() != 1 || said.count("cleaning had begun") != 1 {
			t.Errorf("%d clean-ups: %s", second.cleanups.Value(), said.text.String())
		}
	})
}

func TestEndsOfSessionsWaitForRoomButNotForLong(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := memstore.New()
			renew(t, s, g1)
			bind(t, s, g1, 0, 2*batch)
			r, said := start(t, s, "r1")
			said.full.Store(true)
			time.Sleep(lease + grace + 3*lookEvery/2) // a look has been, and its patience is not over
			if n := r.routes.Value(); n != batch {
				t.Errorf("%d routes while there was no room", n)
			}
			if !stuck {
				said.full.Store(false)
			}
			time.Sleep(patience)
			wantEnded(t, 0, 2*batch, said)
			if late := said.late; (late > 0) != stuck || r.cleanups.Value() != 1 {
				t.Errorf("stuck %v: %d told without room, %d clean-ups", stuck, late, r.cleanups.Value())
			}
		})
	}
}

func TestAnOrderlyStopIsTidiedQuietly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		r, said := start(t, s, "r1")
		renew(t, s, g1, g2)
		bind(t, s, g2, 0, 1)
		for _, n := range []route.NodeRef{g1, g2} {
			if err := s.RemoveNode(t.Context(), n); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * lookEvery)
		if r.cleanups.Value() != 1 || said.count("g1") != 0 || said.count("g2") != 2 {
			t.Errorf("%d clean-ups: %s", r.cleanups.Value(), said.text.String())
		}
		refused(t, s, g1)
		refused(t, s, g2)
	})
}

func TestStopWithoutStart(t *testing.T) {
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "router", NodeID: "r", LogWriter: &lines{}})
	if err != nil {
		t.Fatal(err)
	}
	New(Options{Store: memstore.New(), Telemetry: tel}).Stop()
	_ = tel.Shutdown(t.Context())
}

func TestOnRedis(t *testing.T) {
	addr := testkit.Redis(t)
	open := func() *redisstore.Store {
		s, err := redisstore.Open(t.Context(), redisstore.Options{Connection: addr})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		testkit.Eventually(t, "Redis answers", func() bool { return s.Ping(t.Context()) == nil })
		return s
	}
	s := open()
	const n = 2*batch + 50
	if err := s.RenewNode(t.Context(), route.Node{NodeRef: g1}, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := s.RenewNode(t.Context(), route.Node{NodeRef: g2}, time.Hour); err != nil {
		t.Fatal(err)
	}
	var records []route.Restored
	for i := range n {
		at := route.NodeRef{ID: []string{"g1", "g2"}[i%2], Incarnation: 1}
		records = append(records, route.Restored{Key: user(i), Record: route.Record{State: route.Live, Node: at, Session: uint64(i), Epoch: 1, Version: 1}})
	}
	if set, err := s.Restore(t.Context(), records); set != n || err != nil {
		t.Fatal(set, err)
	}
	var all []*Reaper
	for i := range 3 {
		r, _ := start(t, open(), fmt.Sprint("r", i))
		all = append(all, r)
	}
	testkit.Eventually(t, "somebody has cleaned up", func() bool {
		done := int64(0)
		for _, r := range all {
			done += r.cleanups.Value()
		}
		return done == 1
	})
	if got := states(t, s, 0, n); got[route.Ghost] != n/2 || got[route.Live] != n/2 {
		t.Errorf("left %v", got)
	}
	refused(t, s, g1)
}
