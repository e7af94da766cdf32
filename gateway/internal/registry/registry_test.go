package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/gateway/internal/wstest"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// uplink takes every session back, unless it is told not to.
type uplink struct {
	mu     sync.Mutex
	hold   bool
	finals []*routerv1.ClosedSession
}

func (u *uplink) Publish(*session.Session, string, []byte, string, func([]byte)) {}

func (u *uplink) Release(context.Context, []*session.Session) error { return nil }

func (u *uplink) Final(c *routerv1.ClosedSession, done func()) {
	u.mu.Lock()
	u.finals = append(u.finals, c)
	hold := u.hold
	u.mu.Unlock()
	if !hold {
		done()
	}
}

func newRegistry(t testing.TB, up session.Uplink) *Registry {
	tel, err := telemetry.New(context.Background(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
	return New(Options{Session: session.Config{NodeID: "gw", Uplink: up, Telemetry: tel, Keepalive: time.Minute}})
}

// connect opens a session of the user over a pipe.
func connect(t testing.TB, r *Registry, user string, version uint32) (*session.Session, *wstest.Client) {
	server, peer := net.Pipe()
	c := wstest.New(t, peer)
	c.Allow(wstest.Plenty)
	t.Cleanup(c.End)
	s := r.Add(ws.NewConn(server, nil), session.Params{Tenant: "t", Device: "d", Version: version})
	if user != "" {
		s.Open(session.Admission{Identity: session.Identity{Tenant: "t", User: user, Device: "d"}})
	}
	return s, c
}

func ofUser(r *Registry, user string) (ids []uint64) {
	r.WalkUser("t", user, func(s *session.Session) bool { ids = append(ids, s.ID()); return true })
	slices.Sort(ids)
	return ids
}

func TestTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, &uplink{})
		r.Start()
		ann, _ := connect(t, r, "ann", 1)
		bob, c := connect(t, r, "bob", 2)
		ann2, _ := connect(t, r, "ann", 2)
		opening, _ := connect(t, r, "", 1)
		if ids := []uint64{ann.ID(), bob.ID(), ann2.ID(), opening.ID()}; !slices.Equal(ids, []uint64{1, 2, 3, 4}) {
			t.Errorf("ids %v", ids)
		}
		if r.Len() != 4 || r.LenV2() != 2 || r.Get(2) != bob || r.Get(5) != nil {
			t.Errorf("len %d, V2 %d", r.Len(), r.LenV2())
		}
		if got := ofUser(r, "ann"); !slices.Equal(got, []uint64{1, 3}) {
			t.Errorf("sessions of ann: %v", got)
		}
		seen := 0
		r.Walk(func(*session.Session) bool { seen++; return seen < 3 })
		if seen != 3 {
			t.Errorf("walked over %d", seen)
		}
		_ = c.Conn.Close()
		ann.Abort()
		synctest.Wait()
		if got := ofUser(r, "ann"); !slices.Equal(got, []uint64{3}) || r.Get(2) != nil || r.Len() != 2 || r.LenV2() != 1 || len(ofUser(r, "bob")) != 0 {
			t.Errorf("sessions of ann: %v, len %d", got, r.Len())
		}
		stopped := make(chan error, 1)
		go func() { stopped <- r.Stop(t.Context()) }()
		synctest.Wait()
		opening.Refuse(4001, "auth unavailable", false) // Stop waits for it
		if err := <-stopped; err != nil || r.Len() != 0 {
			t.Errorf("stop: %v, len %d", err, r.Len())
		}
	})
}

func TestStopTellsWhatWasNotHandedBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &uplink{hold: true}
		r := newRegistry(t, up)
		r.Start()
		connect(t, r, "ann", 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) || r.Len() != 1 || len(up.finals) != 1 {
			t.Errorf("stop: %v", err)
		}
	})
}

func TestTheSweeperKeepsDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, &uplink{})
		r.Start()
		_, silent := connect(t, r, "ann", 1)
		s, deaf := connect(t, r, "bob", 1)
		deaf.Echo(false)
		s.Close(session.CodeDraining, "server draining")
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if r.Len() != 1 {
			t.Errorf("a peer that does not echo: %d sessions", r.Len())
		}
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if code, _ := silent.Closed(); code != session.CodeHeartbeat || r.Len() != 0 {
			t.Errorf("a silent peer: code %d, %d sessions", code, r.Len())
		}
		if err := r.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestGoneSessionsRecogniseResends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, &uplink{})
		r.Start()
		s, c := connect(t, r, "ann", 1)
		router := r.Router(session.RouterRef{ID: "r", Incarnation: 1})
		wake := make(chan struct{}, 1)
		router.Attach(wake)
		one := session.NewDelivery(router, &gatewayv1.Delivery{Id: 1})
		if why := r.Deliver(s.ID(), one); why != 0 {
			t.Fatal(why)
		}
		_ = c.Conn.Close()
		synctest.Wait()
		router.Take(wake, 100)
		if r.Get(s.ID()) != nil {
			t.Fatal("not gone")
		}
		if why := r.Deliver(s.ID(), one); why != 0 {
			t.Errorf("resend: %v", why)
		}
		if got := router.Take(wake, 100); len(got) != 1 || got[0].ThroughId != 1 {
			t.Errorf("confirms of the resend: %v", got)
		}
		two := session.NewDelivery(router, &gatewayv1.Delivery{Id: 2})
		if why := r.Deliver(s.ID(), two); why != gatewayv1.Refusal_REASON_UNKNOWN {
			t.Errorf("a new one: %v", why)
		}
		r.Reconfirm(s.ID(), router)
		if got := router.Take(wake, 100); len(got) != 2 || got[0].ThroughId^got[1].ThroughId != 1<<63 || got[0].ThroughId|1<<63 != session.LastBacklog {
			t.Errorf("confirms of a session that is not here: %v", got)
		}
		time.Sleep(graveLife + 2*time.Second)
		if why := r.Deliver(s.ID(), one); why != gatewayv1.Refusal_REASON_UNKNOWN {
			t.Errorf("long after: %v", why)
		}
		if err := r.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestUsersWithTheSameHash(t *testing.T) {
	var u users
	u.init()
	all := make([]*session.Session, 4)
	id := session.Identity{Tenant: "t", User: "ann"}
	for i := range all {
		all[i] = &session.Session{}
		u.add(all[i], id)
	}
	for i, n := range []int{1, 3, 0, 2} { // the middle, the head, the tail, the last
		u.remove(all[n], id)
		u.remove(&session.Session{}, id) // never added
		got := u.candidates("t", "ann")
		if len(got) != 3-i || slices.Contains(got, all[n]) {
			t.Errorf("after removing %d: %d left", n, len(got))
		}
	}
	if len(u.head) != 0 {
		t.Errorf("%d heads left", len(u.head))
	}
}

func TestGravesAreBounded(t *testing.T) {
	r := newRegistry(t, &uplink{})
	for range maxGraves + 5 {
		server, _ := net.Pipe()
		s := r.Add(ws.NewConn(server, nil), session.Params{})
		r.graves.add(s)
	}
	if len(r.graves.byID) != maxGraves || len(r.graves.queue) != maxGraves || r.graves.get(5) != nil || r.graves.get(6) == nil {
		t.Errorf("%d graves", len(r.graves.byID))
	}
}

// BenchmarkIdle is what an open session without traffic costs over loopback TCP,
// all of the server's side: heap and stacks.
func BenchmarkIdle(b *testing.B) {
	const n = 2000
	r := newRegistry(b, &uplink{})
	r.Start()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	var before, after runtime.MemStats
	var peers []net.Conn
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range n {
			peer, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			peers = append(peers, peer)
			conn, err := ln.Accept()
			if err != nil {
				b.Fatal(err)
			}
			s := r.Add(ws.NewConn(conn, nil), session.Params{Tenant: "t", Device: "d", Version: 1})
			s.Open(session.Admission{Identity: session.Identity{Tenant: "t", User: fmt.Sprint("user", i), Device: "d"}})
		}
		time.Sleep(1500 * time.Millisecond) // the goroutines park, the sweeper has been there
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapInuse-before.HeapInuse)/n, "heap-B/session")
		b.ReportMetric(float64(after.StackInuse-before.StackInuse)/n, "stack-B/session")
	}
	for _, p := range peers {
		_ = p.Close()
	}
	if err := r.Stop(context.Background()); err != nil {
		b.Error(err)
	}
}
