package away

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

func key(user, device string) route.DeviceKey {
	return route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: user}, Device: device}
}

// homedAt is a device whose user has his home there.
func (w *world) homedAt(m *member) route.DeviceKey {
	for i := 0; ; i++ {
		if k := key(fmt.Sprint("user", i), "d"); w.routers[0].home(k.UserKey) == m {
			return k
		}
	}
}

// connect opens a session of the device at its user's home.
func (w *world) connect(k route.DeviceKey, g *gateway) (route.Location, uint64, *route.Record) {
	w.t.Helper()
	loc := g.next()
	epoch, prev, err := w.routers[0].home(k.UserKey).Bind(w.t.Context(), k, loc, 2)
	if err != nil {
		w.t.Errorf("bind %v: %v", k, err)
	}
	g.hold(k, loc, epoch)
	return loc, epoch, prev
}

// leave ends it.
func (w *world) leave(k route.DeviceKey, loc route.Location, epoch uint64) {
	w.t.Helper()
	w.at(loc.Node).drop(loc.Session)
	w.routers[0].home(k.UserKey).ends(k, loc, epoch)
}

// ends tells the router that a session has ended.
func (m *member) ends(k route.DeviceKey, loc route.Location, epoch uint64) {
	m.w.t.Helper()
	applied, err := m.Change(m.w.t.Context(), []route.Change{{
		Key: k, Node: loc.Node, Session: loc.Session, Epoch: epoch, To: route.Ghost, GhostTTL: ghostTTL,
	}})
	if err != nil || !applied[0] {
		m.w.t.Errorf("the end of %v at %v, epoch %d: %v, %v; in the mirror %+v", k, loc, epoch, applied, err, m.mirror.device(k))
	}
}

// finds checks that the device is in one of these states as the router finds it.
func (m *member) finds(k route.DeviceKey, states ...route.State) {
	m.w.t.Helper()
	found, err := m.LookupFresh(m.w.t.Context(), k.UserKey)
	if i, ok := find(found, k.Device); err != nil || !ok || !slices.Contains(states, found[i].State) {
		m.w.t.Errorf("%s finds %+v, %v, want %v in %v", m.opts.Self.ID, found, err, k, states)
	}
}

// want checks what every router finds; loc nil: a ghost.
func (w *world) want(k route.DeviceKey, loc *route.Location) {
	w.t.Helper()
	for _, m := range w.routers {
		fresh, err := m.LookupFresh(w.t.Context(), k.UserKey)
		if err != nil {
			w.t.Errorf("%s, %v: %v", m.opts.Self.ID, k, err)
		}
		cached, err := m.Lookup(w.t.Context(), []route.UserKey{k.UserKey})
		if err != nil {
			w.t.Errorf("%s, %v: %v", m.opts.Self.ID, k, err)
			return
		}
		for _, records := range [][]route.Record{fresh, cached[0]} {
			i, found := find(records, k.Device)
			switch {
			case !found, loc == nil && records[i].State != route.Ghost, loc != nil && (records[i].State != route.Live || records[i].Location() != *loc):
				w.t.Errorf("%s, %v: %+v, want a live one at %v\n%s", m.opts.Self.ID, k, records, loc, m.logs.String())
			}
		}
	}
}

// clear makes the mirror one of a router that is new to its users.
func (m *mirror) clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.order.Init()
	clear(m.users)
	clear(m.dirty)
}

// clearMirrors leaves the routers nothing but the store, as if they had just started.
func (w *world) clearMirrors() {
	for _, m := range w.routers {
		m.mirror.clear()
	}
}

func pass(d time.Duration) {
	time.Sleep(d) // fake time
	synctest.Wait()
}

func TestAnOutage(t *testing.T) {
	for name, lose := range map[string]func(w *world){
		"refuses": func(w *world) { w.down.Store(true) },
		"hangs":   func(w *world) { w.slow.Store(int64(time.Hour)) },
		"crawls":  func(w *world) { w.slow.Store(int64(time.Second)) },
	} {
		t.Run(name, func(t *testing.T) {
			for long, d := range map[string]time.Duration{"for a moment": time.Second, "for long": time.Minute} {
				t.Run(long, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						w := newWorld(t, 3, 3)
						stays, moves, goes, comes := key("ann", "stays"), key("ann", "moves"), key("bob", "goes"), key("eve", "comes")
						at, e1, _ := w.connect(stays, w.gateways[0])
						_, e2, _ := w.connect(moves, w.gateways[1])
						goneAt, e3, _ := w.connect(goes, w.gateways[2])
						lose(w)
						pass(d)
						w.want(stays, &at)
						movedTo, e4, prev := w.connect(moves, w.gateways[2])
						if prev == nil || e4 <= e2 {
							t.Errorf("the device moved from %v, epoch %d to %d", prev, e2, e4)
						}
						w.leave(goes, goneAt, e3)
						cameTo, e5, prev := w.connect(comes, w.gateways[0])
						if prev != nil || e5 <= e1 {
							t.Errorf("a new device replaces %v, epoch %d", prev, e5)
						}
						w.want(moves, &movedTo)
						w.want(goes, nil)
						w.want(comes, &cameTo)
						for _, m := range w.routers {
							if len(m.Degraded()) == 0 {
								t.Error("nobody is told")
							}
						}
						w.down.Store(false)
						w.slow.Store(0)
						pass(20 * time.Second)
						w.clearMirrors()
						w.want(stays, &at)
						w.want(moves, &movedTo)
						w.want(goes, nil)
						w.want(comes, &cameTo)
						w.end()
					})
				})
			}
		})
	}
}

func TestAFlushIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 3)
		k1, k2, ghost := key("ann", "a"), key("ann", "b"), key("bob", "c")
		at1, _, _ := w.connect(k1, w.gateways[0])
		at2, e2, _ := w.connect(k2, w.gateways[1])
		goneAt, e3, _ := w.connect(ghost, w.gateways[1])
		w.leave(ghost, goneAt, e3)
		for _, m := range w.routers {
			for range 3 {
				if ok, _, err := m.AcquireConn(t.Context(), "t", at1.Node, 0, nil); !ok || err != nil {
					t.Fatal(err)
				}
			}
		}
		w.flush()
		// The very next call.
		moved, e, prev := w.connect(k2, w.gateways[2])
		if prev == nil || prev.Location() != at2 || e <= e2 {
			t.Errorf("it replaces %v, epoch %d after %d", prev, e, e2)
		}
		w.at(at2.Node).drop(at2.Session)
		w.want(k1, &at1)
		w.want(k2, &moved)
		w.want(ghost, nil)
		for _, m := range w.routers {
			if len(m.dir.Gateways()) != 3 || len(m.dir.Routers()) != 3 {
				t.Errorf("%v, %v", m.dir.Gateways(), m.dir.Routers())
			}
		}
		pass(10 * time.Second)
		w.clearMirrors()
		w.want(k1, &at1)
		w.want(k2, &moved)
		w.want(ghost, nil)
		for _, g := range w.gateways[:1] { // nothing goes on at it
			_, n, err := w.redis.Load().AcquireConn(t.Context(), "t", g.node.NodeRef, 1<<30, nil)
			if want := len(g.held); err != nil || n != want {
				t.Errorf("%s: %d connections are counted instead of %d, %v", g.node.ID, n, want, err)
			}
		}
		w.end()
	})
}

func TestColdMirrorsAfterAFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 2)
		k := key("ann", "a")
		at, e, _ := w.connect(k, w.gateways[0])
		w.clearMirrors()
		w.flush()
		moved, e2, prev := w.connect(k, w.gateways[1])
		if prev == nil || prev.Location() != at || e2 <= e {
			t.Errorf("it replaces %v, epoch %d after %d", prev, e2, e)
		}
		w.at(at.Node).drop(at.Session)
		w.want(k, &moved)
		pass(10 * time.Second)
		w.want(k, &moved)
		w.end()
	})
}

// TestAHomeThatAnswersLate: it waits for the store itself still. Who is absent nobody else
// knows.
func TestAHomeThatAnswersLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2)
		goes, stays := key("ann", "goes"), key("ann", "stays")
		at, e, _ := w.connect(goes, w.gateways[0])
		w.connect(stays, w.gateways[1])
		w.down.Store(true)
		pass(2 * time.Second)
		w.leave(goes, at, e)
		home := w.routers[0].home(goes.UserKey)
		for _, m := range w.routers {
			if m == home {
				continue
			}
			home.hangs.Store(1)
			found, err := m.Lookup(t.Context(), []route.UserKey{goes.UserKey})
			if err != nil {
				t.Fatal(err)
			}
			if i, ok := find(found[0], "goes"); !ok || found[0][i].State != route.Ghost || len(found[0]) != 2 {
				t.Errorf("%s: %+v", m.opts.Self.ID, found[0])
			}
		}
		home.hangs.Store(0)
		w.down.Store(false)
		pass(10 * time.Second)
		w.end()
	})
}

func TestAGatewayThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 2)
		k := key("ann", "a")
		at, _, _ := w.connect(k, w.gateways[0])
		w.clearMirrors()
		w.down.Store(true)
		pass(time.Second)
		w.gateways[1].mute.Store(true)
		for _, m := range w.routers {
			if got, err := m.LookupFresh(t.Context(), k.UserKey); err == nil {
				t.Errorf("%s knows for certain: %v", m.opts.Self.ID, got)
			}
		}
		w.gateways[1].dead.Store(true)
		pass(5 * time.Second)
		w.want(k, &at)
		w.down.Store(false)
		pass(10 * time.Second)
		w.want(k, &at)
		w.end()
	})
}

func TestLimitsWithoutTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1)
		m, g := w.routers[0], w.gateways[0].node.NodeRef
		acquire := func() bool {
			ok, _, err := m.AcquireConn(t.Context(), "t", g, 2, nil)
			if err != nil {
				t.Fatal(err)
			}
			return ok
		}
		if got := []bool{acquire(), acquire(), acquire()}; !slices.Equal(got, []bool{true, true, false}) {
			t.Fatalf("the limit is not 2: %v", got)
		}
		w.down.Store(true)
		if !acquire() || m.unenforced.Value() != 1 {
			t.Error("a limit that cannot be asked for does not hold, and is counted")
		}
		if n, err := m.LeaseTokens(t.Context(), "t", 1, 1); err == nil {
			t.Errorf("%d tokens without a store", n)
		}
		if err := m.ReleaseConns(t.Context(), "t", g, 2); err != nil {
			t.Error(err)
		}
		if _, err := m.DeadNodes(t.Context()); err == nil {
			t.Error("the dead are known without a store")
		}
		w.down.Store(false)
		pass(10 * time.Second)
		if !acquire() || acquire() {
			t.Error("one of two places was left")
		}
		w.end()
	})
}

// A look at the routes that begins when the store has gone and nobody has noticed ends as
// soon as somebody has.
func TestALookBeginsAsTheStoreGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 2)
		k := key("ann", "a")
		at, _, _ := w.connect(k, w.gateways[0])
		w.clearMirrors()
		w.slow.Store(int64(time.Hour))
		m := w.routers[0].home(k.UserKey)
		var first sync.WaitGroup
		first.Go(func() { _, _ = m.LookupFresh(t.Context(), key("bob", "b").UserKey) }) // whose second is over first
		pass(900 * time.Millisecond)
		began := time.Now() // fake time
		found, err := m.LookupFresh(t.Context(), k.UserKey)
		if i, ok := find(found, k.Device); err != nil || !ok || found[i].Location() != at || time.Since(began) > 500*time.Millisecond {
			t.Errorf("%v later: %+v, %v", time.Since(began), found, err)
		}
		first.Wait()
		w.slow.Store(0)
		pass(20 * time.Second)
		w.end()
	})
}

// A device leaves in the moment in which the store has gone and nobody has noticed: it
// is to be known as absent as soon as the outage is.
func TestWhoLeavesAsTheStoreGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 2)
		stays, goes := key("ann", "stays"), key("ann", "goes")
		at, _, _ := w.connect(stays, w.gateways[0])
		goneAt, epoch, _ := w.connect(goes, w.gateways[1])
		w.clearMirrors()
		w.slow.Store(int64(time.Hour))
		home := w.routers[0].home(stays.UserKey)
		var other sync.WaitGroup
		other.Go(func() { _, _ = home.LookupFresh(t.Context(), key("bob", "b").UserKey) }) // whose second is over first
		pass(900 * time.Millisecond)
		other.Go(func() { w.leave(goes, goneAt, epoch) })
		// Its caller may wait longer: until the change is saved at another router.
		pass(200 * time.Millisecond)
		if r := home.mirror.device(goes); r == nil || r.State != route.Ghost {
			t.Errorf("200 ms later the device is %+v", r)
		}
		other.Wait()
		w.want(goes, nil)
		w.want(stays, &at)
		w.slow.Store(0)
		pass(20 * time.Second)
		w.want(goes, nil)
		w.end()
	})
}
