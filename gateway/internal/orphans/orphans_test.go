package orphans

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/gateway/internal/uplink"
	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/gateway/internal/wstest"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// routers are the living ones; they hold what they are asked to unless they are
// full.
type routers struct {
	mu     sync.Mutex
	living []session.RouterRef
	full   bool
	asked  int
	held   []string // session and message
}

func (r *routers) Living() []session.RouterRef {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.living)
}

func (r *routers) set(full bool, living ...session.RouterRef) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.full, r.living = full, living
}

func (r *routers) Hold(_ context.Context, sessions []*routerv1.HoldSession) []uplink.Held {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	out := make([]uplink.Held, len(sessions))
	for i, s := range sessions {
		if r.full {
			continue
		}
		out[i].Keeper = r.living[0]
		for _, m := range s.Messages {
			r.held = append(r.held, fmt.Sprintf("%s/%s/%s", s.TenantId, s.UserId, m.Key[:4]))
			out[i].IDs = append(out[i].IDs, 1<<63+uint64(len(r.held)))
		}
	}
	return out
}

// taker is an uplink that takes every session back.
type taker struct{}

func (taker) Publish(*session.Session, string, []byte, string, func([]byte)) {}
func (taker) Release(context.Context, []*session.Session) error              { return nil }
func (taker) Final(_ *routerv1.ClosedSession, done func())                   { done() }

func TestEveryOrphanFindsAKeeperWhenThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		reg := registry.New(registry.Options{Session: session.Config{NodeID: "gw", Uplink: taker{}, Telemetry: tel}})
		reg.Start()
		dead, home := session.RouterRef{ID: "r1", Incarnation: 1}, session.RouterRef{ID: "r2", Incarnation: 1}
		world := &routers{living: []session.RouterRef{home, dead}}
		r := New(reg, tel)
		r.Start(world)
		var want []string
		for n := range 3 {
			server, peer := net.Pipe()
			c := wstest.New(t, peer)
			c.Allow(wstest.Plenty)
			defer c.End()
			s := reg.Add(ws.NewConn(server, nil), session.Params{Tenant: "t", Device: "d", Version: 2})
			user := fmt.Sprint("user", n)
			s.Open(session.Admission{Identity: session.Identity{Tenant: "t", User: user, Device: "d"}})
			for id := range 2 {
				key := fmt.Appendf(nil, "%02d%02d............", n, id)
				s.Deliver(session.NewDelivery(reg.Router(dead), &gatewayv1.Delivery{Id: uint64(n*2 + id + 1), Key: key}))
				want = append(want, fmt.Sprintf("t/%s/%s", user, key[:4]))
			}
		}
		r.Changed()
		synctest.Wait()
		if world.asked != 0 {
			t.Errorf("asked %d times while all are alive", world.asked)
		}
		world.set(true, home)
		r.Changed()
		time.Sleep(3 * retryEvery) // fake time
		synctest.Wait()
		if len(world.held) != 0 || world.asked < 3 {
			t.Errorf("held %v after %d calls without room", world.held, world.asked)
		}
		world.set(false, home)
		time.Sleep(2 * retryEvery) // fake time
		synctest.Wait()
		asked := world.asked
		time.Sleep(10 * retryEvery) // fake time
		synctest.Wait()
		slices.Sort(world.held)
		if !slices.Equal(world.held, want) || world.asked != asked {
			t.Errorf("held %v, want %v; %d calls more afterwards", world.held, want, world.asked-asked)
		}
		r.Stop()
		if err := reg.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		_ = tel.Shutdown(t.Context())
	})
}

func TestBatches(t *testing.T) {
	if n := batchOf(make([]session.Orphans, maxSessions+1)); n != maxSessions {
		t.Errorf("%d sessions in one call, at most %d are allowed", n, maxSessions)
	}
	if n := batchOf(make([]session.Orphans, 3)); n != 3 {
		t.Errorf("%d of 3", n)
	}
}
