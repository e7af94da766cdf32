package uplink

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/routertest"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/ring"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func TestOpenSessionTriesTheNextRouter(t *testing.T) {
	away := func(r *routertest.Router) {
		r.Open = func(*routerv1.OpenSessionRequest) (*routerv1.OpenSessionResponse, error) {
			return nil, fault.New(fault.Unavailable, "away")
		}
	}
	run(t, []string{base("a")}, func(w *world) {
		a, b := w.router("a", away), w.router("b")
		w.cluster.Set(a, b)
		w.u.Start()
		w.pass(time.Second)
		for i := range 4 {
			res, unsure, err := w.u.OpenSession(w.t.Context(), &routerv1.OpenSessionRequest{SessionId: 9, Token: "x"}, 0)
			if err != nil || res.GetUserId() != "u-x" || unsure != (i%2 == 1) {
				t.Fatalf("%d: got %v, unsure %v, %v", i, res, unsure, err)
			}
		}
		if n := len(a.Opened()); n != 2 {
			t.Errorf("a was asked %d times, not in turn", n)
		}
		b.Do(away)
		_, unsure, err := w.u.OpenSession(w.t.Context(), &routerv1.OpenSessionRequest{SessionId: 10}, 0)
		if fault.KindOf(err) != fault.Unavailable || !unsure {
			t.Errorf("got %v, unsure %v", err, unsure)
		}
		if n := len(a.Opened()) + len(b.Opened()); n != 2+4+openTries {
			t.Errorf("asked %d times in all", n)
		}
	})
}

func TestOpenSessionAsksTheHomeFirst(t *testing.T) {
	run(t, []string{base("a")}, func(w *world) {
		a, b := w.router("a"), w.router("b")
		w.cluster.Set(a, b)
		w.u.Start()
		w.pass(time.Second)
		home := ring.Hash(tenant, userOf("b", "a"))
		open := func(times int, home uint64) {
			for range times {
				if _, unsure, err := w.u.OpenSession(w.t.Context(), &routerv1.OpenSessionRequest{SessionId: 9}, home); err != nil || unsure {
					t.Fatalf("unsure %v, %v", unsure, err)
				}
			}
		}
		open(5, home)
		if n, m := len(a.Opened()), len(b.Opened()); n != 0 || m != 5 {
			t.Errorf("a was asked %d times, b, the home, %d times", n, m)
		}
		b.Kill()
		w.pass(10 * time.Millisecond) // its lease is not over
		open(5, home)
		if n := len(a.Opened()); n != 5 {
			t.Errorf("with the home dead, a was asked %d times", n)
		}
	})
}

func TestOpenSessionElsewhereThanAtHome(t *testing.T) {
	run(t, []string{base("a")}, func(w *world) {
		a, b := w.router("a"), w.router("b", func(r *routertest.Router) {
			r.Open = func(*routerv1.OpenSessionRequest) (*routerv1.OpenSessionResponse, error) {
				return nil, fault.New(fault.Unavailable, "going")
			}
		})
		w.cluster.Set(a, b)
		w.u.Start()
		w.pass(time.Second)
		for range 4 {
			_, unsure, err := w.u.OpenSession(w.t.Context(), &routerv1.OpenSessionRequest{SessionId: 9}, ring.Hash(tenant, userOf("b", "a")))
			if err != nil || !unsure {
				t.Errorf("unsure %v, %v", unsure, err)
			}
		}
		if n, m := len(a.Opened()), len(b.Opened()); n != 4 || m != 4 {
			t.Errorf("asked %d and %d times", n, m)
		}
	})
}

func TestOpenSessionWhenTheRouterDiesMeanwhile(t *testing.T) {
	run(t, []string{base("a")}, func(w *world) {
		asked, dead := make(chan struct{}), make(chan struct{})
		a := w.router("a", func(r *routertest.Router) {
			r.Open = func(*routerv1.OpenSessionRequest) (*routerv1.OpenSessionResponse, error) {
				close(asked)
				<-dead
				return &routerv1.OpenSessionResponse{}, nil
			}
		})
		b := w.router("b")
		w.cluster.Set(a, b)
		w.u.Start()
		w.pass(time.Second)
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			<-asked
			a.Kill()
		}()
		for range 2 { // one of them asks a first
			if _, _, err := w.u.OpenSession(w.t.Context(), &routerv1.OpenSessionRequest{SessionId: 9}, 0); err != nil {
				t.Errorf("got %v", err)
			}
		}
		close(dead)
		<-killed // or the test hangs: a was never asked
	})
}

func TestLostRouterIsKnownAtOnce(t *testing.T) {
	run(t, []string{base("a")}, func(w *world) {
		a := w.router("a")
		w.cluster.Set(a)
		w.u.Start()
		w.pass(time.Second)
		a.Kill()
		synctest.Wait()
		if w.u.Linked() != 0 {
			t.Error("still linked")
		}
	})
}

func TestClosedSessionsAreRetriedUntilTaken(t *testing.T) {
	run(t, []string{base("a")}, func(w *world) {
		a := w.router("a", func(r *routertest.Router) { r.CloseErr = fault.New(fault.Unavailable, "away") })
		w.cluster.Set(a)
		w.u.Start()
		w.pass(time.Second)
		var taken atomic.Int32
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
		defer cancel()
		released := make(chan error, 1)
		go func() { released <- w.u.release(ctx, []*routerv1.ClosedSession{{SessionId: 1}, {SessionId: 2}}) }()
		for i := range uint64(3) {
			w.u.Final(&routerv1.ClosedSession{SessionId: i}, func() { taken.Add(1) })
		}
		w.pass(2 * time.Second)
		if err := <-released; err == nil || !strings.Contains(err.Error(), "2 of 2") {
			t.Errorf("Release: %v", err)
		}
		if err := w.u.Flush(ctx); err == nil {
			t.Error("flushed what no router has taken")
		}
		a.Do(func(r *routertest.Router) { r.CloseErr = nil })
		if err := w.u.Flush(w.t.Context()); err != nil {
			t.Fatal(err)
		}
		w.pass(0)
		var ids []uint64
		for _, c := range a.Closed() {
			ids = append(ids, c.GetSessionId())
		}
		if !slices.Equal(ids, []uint64{0, 1, 2}) || taken.Load() != 3 {
			t.Errorf("taken %d: %v (what nobody waits for is not told)", taken.Load(), ids)
		}
		if err := w.u.release(w.t.Context(), []*routerv1.ClosedSession{{SessionId: 3}}); err != nil {
			t.Error(err)
		}
	})
}

func TestSessionThatNeverOpenedIsToldToAll(t *testing.T) {
	run(t, []string{base("a")}, func(w *world) {
		taken := false
		w.u.Final(&routerv1.ClosedSession{SessionId: 5, TenantId: tenant, NeverOpened: true}, func() { taken = true })
		a, b := w.router("a"), w.router("b", func(r *routertest.Router) { r.CloseErr = fault.New(fault.Unavailable, "away") })
		w.cluster.Set(a, b)
		w.u.Start()
		w.pass(time.Second)
		if len(a.Closed()) != 1 || taken {
			t.Fatalf("a was told %d times, done %v", len(a.Closed()), taken)
		}
		w.cluster.Set(a)
		b.Kill() // forgotten: what it had admitted is void
		w.pass(3 * time.Second)
		if !taken || len(a.Closed()) != 1 {
			t.Fatalf("done %v, a was told %d times", taken, len(a.Closed()))
		}
	})
}

func TestRefusedClosedSessionKeepsNobodyBack(t *testing.T) {
	run(t, []string{base("a")}, func(w *world) {
		a := w.router("a", func(r *routertest.Router) { r.CloseErr = fault.New(fault.Invalid, "nonsense") })
		w.cluster.Set(a)
		w.u.Start()
		for i := range uint64(5) {
			w.u.Final(&routerv1.ClosedSession{SessionId: i}, func() {})
		}
		if err := w.u.Flush(w.t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
