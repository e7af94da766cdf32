package directory

import (
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/router/internal/memstore"
	"github.com/mics-im/mics/router/internal/route"
)

func TestRoutersAgreeOnTheHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		r1 := start(s, "r1")
		r2 := start(s, "r2")
		time.Sleep(2 * refreshEvery) // fake time
		synctest.Wait()
		mine := 0
		for i := range 200 {
			key := route.UserKey{Tenant: "t", User: string(rune('a' + i))}
			h1, self1 := r1.Home(key)
			h2, self2 := r2.Home(key)
			if h1 != h2 || self1 == self2 {
				t.Fatalf("%v: %v (self %v) and %v (self %v)", key, h1, self1, h2, self2)
			}
			if self1 {
				mine++
			}
		}
		if mine < 50 || mine > 150 {
			t.Errorf("%d of 200 users at one of two routers", mine)
		}
		stop(t, r2)
		time.Sleep(2 * refreshEvery) // fake time
		synctest.Wait()
		if _, self := r1.Home(route.UserKey{Tenant: "t", User: "x"}); !self {
			t.Error("a router that left is still home")
		}
		stop(t, r1)
	})
}

// A router says itself that it has started, or that it is still there. It is believed, with
// the store and without it, unless it has left or a later one is known.
func TestARouterThatSpeaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &moody{Store: memstore.New()}
		d := start(s, "r1")
		defer stop(t, d)
		r2 := router("r2")
		later := r2
		later.Incarnation++
		want := func(routers ...route.Router) {
			t.Helper()
			if got := d.Routers(); !slices.Equal(got[1:], routers) {
				t.Errorf("beside it %v, want %v", got[1:], routers)
			}
		}
		ring := d.Ring()
		d.Hear(t.Context(), r2)
		want(r2)
		if all, err := s.Routers(t.Context()); err != nil || len(all) != 2 {
			t.Errorf("its lease is not renewed: %v, %v", all, err)
		}
		s.away.Store(true)
		d.Hear(t.Context(), later)
		want(later)
		d.Hear(t.Context(), r2)
		want(later)
		d.Left(later.NodeRef)
		want()
		d.Hear(t.Context(), later)
		want()
		if d.Ring() != ring+2 {
			t.Errorf("%d changes of the set", d.Ring()-ring)
		}
	})
}

// A router that is cut off from everything thinks nobody dead. When one speaks again the
// others have a lease for that, too; then their silence counts, and so does the store's word.
func TestARouterThatIsCutOffThinksNobodyDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &moody{Store: memstore.New()}
		d := start(s, "r1")
		defer stop(t, d)
		r2 := start(s.Store, "r2")
		defer stop(t, r2)
		one, two := node("one", 5), node("two", 5)
		for _, n := range []route.Node{one, two} {
			if err := d.Renew(t.Context(), n); err != nil {
				t.Fatal(err)
			}
		}
		alive := func() []bool { return []bool{d.Alive(one.NodeRef), d.Alive(two.NodeRef)} }
		cutOff := func(talks ...route.Node) {
			t.Helper()
			s.away.Store(true)
			if err := keep(d, 3*Lease, talks...); err != nil {
				t.Fatal(err)
			}
		}
		cutOff()
		if got := alive(); !slices.Equal(got, []bool{true, true}) || d.Heard(one.NodeRef) {
			t.Errorf("alive: %v", got)
		}
		for _, tc := range []struct {
			heard time.Duration
			alive []bool
		}{{Lease - 2*refreshEvery, []bool{true, true}}, {3 * refreshEvery, []bool{true, false}}} {
			if err := keep(d, tc.heard, one); err != nil {
				t.Fatal(err)
			}
			if got := alive(); !slices.Equal(got, tc.alive) {
				t.Errorf("alive when one is heard again: %v, want %v", got, tc.alive)
			}
		}
		cutOff()
		if err := r2.Renew(t.Context(), two); err != nil {
			t.Fatal(err)
		}
		s.away.Store(false)
		time.Sleep(2 * refreshEvery) // fake time
		synctest.Wait()
		if got := alive(); !slices.Equal(got, []bool{false, true}) {
			t.Errorf("alive by the store: %v", got)
		}
	})
}

func TestARouterThatCouldNotRenewIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &moody{Store: memstore.New()}
		var told []bool // by the goroutine of d, between waits
		d := New(s, router("r1"), slog.New(slog.DiscardHandler), func() {}, func(taken bool) { told = append(told, taken) })
		s.away.Store(true)
		d.Start()
		defer stop(t, d)
		time.Sleep(2 * refreshEvery) // fake time
		synctest.Wait()
		if len(told) != 0 {
			t.Errorf("told %v before it has a picture", told)
		}
		s.away.Store(false)
		time.Sleep(2 * refreshEvery) // fake time
		synctest.Wait()
		if !slices.Equal(told, []bool{false}) {
			t.Errorf("told %v with its first picture", told)
		}
		told = nil
		r2 := start(s.Store, "r2")
		defer stop(t, r2)
		for _, outage := range []time.Duration{Lease - 2*refreshEvery, Lease + time.Second} {
			time.Sleep(2 * refreshEvery) // fake time
			s.away.Store(true)
			time.Sleep(outage) // fake time
			s.away.Store(false)
			time.Sleep(2 * refreshEvery) // fake time
			synctest.Wait()
			if want := outage > Lease; len(told) == 1 != want || want && told[0] {
				t.Errorf("after %v: told %v", outage, told)
			}
		}
	})
}

// TestAFirstPictureOfAnEmptiedStore is none before the others had time to be in it, if this
// router had begun without the store.
func TestAFirstPictureOfAnEmptiedStore(t *testing.T) {
	for _, blind := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &moody{Store: memstore.New()}
			s.away.Store(blind)
			s.partial.Store(true)
			d := start(s, "r1")
			defer stop(t, d)
			time.Sleep(2 * refreshEvery) // fake time
			s.away.Store(false)
			time.Sleep(arrival - refreshEvery/2) // fake time
			synctest.Wait()
			if d.Read().IsZero() != blind {
				t.Errorf("blind %v: a picture at %v", blind, d.Read())
			}
			time.Sleep(2 * refreshEvery) // fake time
			synctest.Wait()
			if d.Read().IsZero() {
				t.Errorf("blind %v: no picture", blind)
			}
		})
	}
}

// TestARouterSaysThatItLeaves: it is out of the picture at once, also of one that may
// lack some, and while the store still lists it; its next incarnation is let in.
func TestARouterSaysThatItLeaves(t *testing.T) {
	for name, prepare := range map[string]func(*moody){
		"store":         func(*moody) {},
		"emptied store": func(s *moody) { s.partial.Store(true) },
		"no store":      func(s *moody) { s.away.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &moody{Store: memstore.New()}
				changes := 0
				d := New(s, router("r1"), slog.New(slog.DiscardHandler), func() { changes++ }, func(bool) {})
				d.Start()
				defer stop(t, d)
				r2 := start(s.Store, "r2")
				time.Sleep(refreshEvery) // fake time
				synctest.Wait()
				prepare(s)
				before, ring := changes, d.Ring()
				d.Left(router("r2").NodeRef)
				gone := func() bool {
					_, self := d.Home(route.UserKey{Tenant: "t", User: "ann"})
					return len(d.Routers()) == 1 && self && d.Ring() > ring
				}
				if !gone() || changes != before+1 {
					t.Errorf("%v, told %d times", d.Routers(), changes-before)
				}
				time.Sleep(refreshEvery) // fake time
				synctest.Wait()
				if !gone() {
					t.Errorf("it is back: %v", d.Routers())
				}
				stop(t, r2)
				s.partial.Store(false)
				s.away.Store(false)
				next := router("r2")
				next.Incarnation++
				again := New(s.Store, next, slog.New(slog.DiscardHandler), func() {}, func(bool) {})
				again.Start()
				defer stop(t, again)
				time.Sleep(refreshEvery) // fake time
				synctest.Wait()
				if len(d.Routers()) != 2 {
					t.Errorf("the next incarnation is not there: %v", d.Routers())
				}
				time.Sleep(refreshEvery) // fake time
				synctest.Wait()
				d.mu.Lock()
				defer d.mu.Unlock()
				if len(d.left) != 0 {
					t.Errorf("remembers %v", d.left)
				}
			})
		})
	}
}

func TestALeaseThatHasLapsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lapsed atomic.Int64
		s := &stalling{Store: memstore.New()}
		d := New(s, router("r1"), slog.New(slog.DiscardHandler), func() {}, func(taken bool) {
			if taken {
				lapsed.Add(1)
			}
		})
		d.Start()
		defer stop(t, d)
		for _, step := range []struct {
			other bool
			stall time.Duration
			want  int64
		}{{false, 2 * Lease, 0}, {true, Lease / 2, 0}, {true, Lease + refreshEvery, 0}, {true, 2 * Lease, 1}, {true, 0, 1}} {
			if step.other {
				if err := s.RenewRouter(t.Context(), router("r2"), time.Hour); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second) // fake time
			s.stall.Store(int64(step.stall))
			time.Sleep(step.stall + 2*time.Second) // fake time
			synctest.Wait()
			if lapsed.Load() != step.want {
				t.Errorf("%+v: lapsed %d times", step, lapsed.Load())
			}
		}
	})
}
