package directory

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/router/internal/memstore"
	"github.com/mics-im/mics/router/internal/route"
)

func router(id string) route.Router {
	return route.Router{NodeRef: route.NodeRef{ID: id, Incarnation: 1}, Endpoint: "http://" + id}
}

func start(s Store, id string) *Directory {
	d := New(s, router(id), slog.New(slog.DiscardHandler), func() {}, func(bool) {})
	d.Start()
	return d
}

func stop(t *testing.T, d *Directory) {
	t.Helper()
	if err := d.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

var gateway = route.Node{NodeRef: route.NodeRef{ID: "g1", Incarnation: 5}, Endpoint: "http://g1", Phase: 1}

func TestAGatewayLivesAsLongAsItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := start(memstore.New(), "r1")
		defer stop(t, d)
		if err := d.Renew(t.Context(), gateway); err != nil {
			t.Fatal(err)
		}
		if !d.Alive(gateway.NodeRef) {
			t.Fatal("registered here and not known at once")
		}
		older := route.NodeRef{ID: "g1", Incarnation: 4}
		if d.Alive(older) {
			t.Fatal("an earlier incarnation counts as alive")
		}
		time.Sleep(Lease + refreshEvery) // fake time
		synctest.Wait()
		if d.Alive(gateway.NodeRef) {
			t.Fatal("alive past its lease")
		}
	})
}

// What came for the sessions of a gateway that was taken for dead is in the buffer.
func TestAGatewayThatWasTakenForDeadReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &moody{Store: memstore.New()}
		var told atomic.Uint64
		var d *Directory
		d = New(s, router("r1"), slog.New(slog.DiscardHandler), func() { told.Store(d.Returns()) }, func(bool) {})
		d.Start()
		defer stop(t, d)
		renew := func(n route.Node, want uint64) {
			t.Helper()
			if err := d.Renew(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			if d.Returns() != want || told.Load() != want {
				t.Errorf("%d have returned, told of %d, want %d", d.Returns(), told.Load(), want)
			}
		}
		other := route.Node{NodeRef: route.NodeRef{ID: "g2", Incarnation: 1}, Endpoint: "http://g2", Phase: 1}
		renew(gateway, 0)
		renew(other, 0)
		s.away.Store(true)
		for range 8 { // the other one is heard: this router is not cut off
			time.Sleep(Lease / 4) // fake time
			renew(other, 0)
		}
		if d.Alive(gateway.NodeRef) {
			t.Fatal("alive past its lease")
		}
		s.away.Store(false)
		time.Sleep(refreshEvery) // fake time
		synctest.Wait()
		renew(gateway, 1)
		next := gateway
		next.Incarnation++
		renew(next, 1)
	})
}

func TestNewsThatReachedAnotherRouterFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		r1 := start(s, "r1")
		defer stop(t, r1)
		r2 := start(s, "r2")
		defer stop(t, r2)
		if err := r1.Renew(t.Context(), gateway); err != nil {
			t.Fatal(err)
		}
		if !r2.Alive(gateway.NodeRef) {
			t.Fatal("a gateway that is new to this router was taken for dead")
		}
	})
}

// moody fails, or knows little, when told to.
type moody struct {
	Store
	away    atomic.Bool
	partial atomic.Bool
}

var errAway = errors.New("away")

func (m *moody) RenewNode(ctx context.Context, n route.Node, lease time.Duration) error {
	if m.away.Load() {
		return errAway
	}
	return m.Store.RenewNode(ctx, n, lease)
}

func (m *moody) RenewRouter(ctx context.Context, r route.Router, lease time.Duration) error {
	if m.away.Load() {
		return errAway
	}
	return m.Store.RenewRouter(ctx, r, lease)
}

func (m *moody) Nodes(ctx context.Context) ([]route.Node, error) {
	switch {
	case m.away.Load():
		return nil, errAway
	case m.partial.Load():
		return nil, route.ErrPartial
	}
	return m.Store.Nodes(ctx)
}

func (m *moody) Routers(ctx context.Context) ([]route.Router, error) {
	if m.partial.Load() {
		return nil, route.ErrPartial
	}
	return m.Store.Routers(ctx)
}

// keep renews gateways for a while.
func keep(d *Directory, during time.Duration, gateways ...route.Node) error {
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(Lease / 3) { // fake time
		for _, n := range gateways {
			if err := d.Renew(context.Background(), n); err != nil {
				return err
			}
		}
	}
	return nil
}

func node(id string, incarnation uint64) route.Node {
	return route.Node{NodeRef: route.NodeRef{ID: id, Incarnation: incarnation}, Endpoint: "http://" + id, Phase: 1}
}

func TestThePictureOutlivesTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &moody{Store: memstore.New()}
		d := start(s, "r1")
		defer stop(t, d)
		r2 := start(s.Store, "r2")
		speaks, falls, zombie := node("speaks", 5), node("silent", 5), node("zombie", 5)
		for _, n := range []route.Node{speaks, falls, zombie} {
			if err := d.Renew(t.Context(), n); err != nil {
				t.Fatal(err)
			}
		}
		if err := keep(d, 2*Lease, speaks, falls); err != nil {
			t.Fatal(err)
		}
		if d.Alive(zombie.NodeRef) || len(d.Gateways()) != 2 || len(d.Routers()) != 2 {
			t.Fatalf("%v, %v", d.Gateways(), d.Routers())
		}
		synctest.Wait() // the look that is due now is over
		stop(t, r2)
		ring := d.Ring()
		s.away.Store(true)
		if err := keep(d, Lease/3, speaks); err != nil {
			t.Fatal(err)
		}
		if !d.Alive(falls.NodeRef) {
			t.Error("taken for dead before its lease was over")
		}
		if err := keep(d, 10*Lease, speaks); err != nil {
			t.Fatalf("a gateway's word is not enough: %v", err)
		}
		if !d.Alive(speaks.NodeRef) || !d.Heard(speaks.NodeRef) || d.Alive(falls.NodeRef) || d.Heard(falls.NodeRef) || d.Err() == nil {
			t.Errorf("the one that speaks %v, the other %v, error %v", d.Alive(speaks.NodeRef), d.Alive(falls.NodeRef), d.Err())
		}
		if len(d.Routers()) != 2 || d.Ring() != ring {
			t.Errorf("the routers are %v, the %dth set instead of %d", d.Routers(), d.Ring(), ring)
		}
		for what, c := range map[string]struct {
			n    route.Node
			want error
		}{
			"a new gateway":                     {node("new", 1), nil},
			"a later incarnation":               {node("speaks", 6), nil},
			"the one that was silent":           {falls, nil},
			"a gateway that may be buried":      {zombie, errAway},
			"a later incarnation of a zombie's": {node("zombie", 6), nil},
		} {
			if err := d.Renew(t.Context(), c.n); !errors.Is(err, c.want) || d.Alive(c.n.NodeRef) != (c.want == nil) {
				t.Errorf("%s: %v, alive %v", what, err, d.Alive(c.n.NodeRef))
			}
		}
		if err := d.Renew(t.Context(), speaks); !errors.Is(err, route.ErrSuperseded) || d.Alive(speaks.NodeRef) {
			t.Errorf("an earlier incarnation: %v", err)
		}
		s.away.Store(false)
		time.Sleep(2 * refreshEvery) // fake time
		synctest.Wait()
		if len(d.Routers()) != 1 || d.Ring() != ring+1 || d.Err() != nil {
			t.Errorf("the routers are %v, the %dth set, %v", d.Routers(), d.Ring(), d.Err())
		}
	})
}

func TestAStoreThatWasEmptiedKillsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &moody{Store: memstore.New()}
		d := start(s, "r1")
		defer stop(t, d)
		r2 := start(s.Store, "r2")
		defer stop(t, r2)
		if err := r2.Renew(t.Context(), gateway); err != nil {
			t.Fatal(err)
		}
		time.Sleep(refreshEvery) // fake time
		synctest.Wait()
		s.partial.Store(true)
		time.Sleep(Lease - 2*refreshEvery) // fake time
		synctest.Wait()
		if !d.Alive(gateway.NodeRef) || len(d.Routers()) != 2 || d.Err() != nil {
			t.Errorf("alive %v, routers %v, %v", d.Alive(gateway.NodeRef), d.Routers(), d.Err())
		}
		// But not for ever.
		time.Sleep(3 * refreshEvery) // fake time
		synctest.Wait()
		if d.Alive(gateway.NodeRef) || len(d.Routers()) != 1 {
			t.Errorf("alive %v, routers %v", d.Alive(gateway.NodeRef), d.Routers())
		}
	})
}

func TestTheStoreMayKnowBetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		d := start(s, "r1")
		defer stop(t, d)
		if err := d.Renew(t.Context(), gateway); err != nil {
			t.Fatal(err)
		}
		next := node("g1", 6)
		if err := s.RenewNode(t.Context(), next, Lease); err != nil {
			t.Fatal(err)
		}
		if err := d.Renew(t.Context(), gateway); !errors.Is(err, route.ErrSuperseded) || d.Alive(gateway.NodeRef) || d.Heard(gateway.NodeRef) || !d.Alive(next.NodeRef) {
			t.Errorf("%v, alive %v, the next one %v", err, d.Alive(gateway.NodeRef), d.Alive(next.NodeRef))
		}
	})
}

func TestEveryChangeIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		var said atomic.Int64
		d := New(s, router("r1"), slog.New(slog.DiscardHandler), func() { said.Add(1) }, func(bool) {})
		d.Start()
		defer stop(t, d)
		expect := func(what string, want int64) {
			t.Helper()
			time.Sleep(2 * refreshEvery) // fake time
			synctest.Wait()
			if got := said.Swap(0); got != want {
				t.Errorf("%s: said %d times, want %d", what, got, want)
			}
		}
		expect("nothing", 0)
		other := start(s, "r2")
		expect("a router came", 1)
		if err := other.Renew(t.Context(), gateway); err != nil || !d.Alive(gateway.NodeRef) {
			t.Fatalf("the gateway is not known: %v", err)
		}
		expect("a gateway came, and was asked for", 1)
		if err := other.Remove(t.Context(), gateway.NodeRef); err != nil {
			t.Fatal(err)
		}
		expect("a gateway left", 1)
		stop(t, other)
		expect("a router left", 1)
	})
}

// stalling is a store whose look-ups stop the whole router now and then.
type stalling struct {
	Store
	stall atomic.Int64
}

func (s *stalling) Nodes(ctx context.Context) ([]route.Node, error) {
	time.Sleep(time.Duration(s.stall.Swap(0))) // fake time
	return s.Store.Nodes(ctx)
}
