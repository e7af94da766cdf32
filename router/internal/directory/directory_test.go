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
	d := New(s, router(id), slog.New(slog.DiscardHandler), func() {})
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

// brokenStore fails when told to.
type brokenStore struct {
	Store
	broken atomic.Bool
}

func (b *brokenStore) Nodes(ctx context.Context) ([]route.Node, error) {
	if b.broken.Load() {
		return nil, errors.New("away")
	}
	return b.Store.Nodes(ctx)
}

func TestThePictureOutlivesTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &brokenStore{Store: memstore.New()}
		d := start(s, "r1")
		defer stop(t, d)
		if err := d.Renew(t.Context(), gateway); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s.broken.Store(true)
		time.Sleep(10 * Lease) // fake time
		synctest.Wait()
		if !d.Alive(gateway.NodeRef) || d.Err() == nil {
			t.Fatalf("alive %v, error %v: with the store away the last picture stands, and says so", d.Alive(gateway.NodeRef), d.Err())
		}
	})
}
