package drainer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/gateway/internal/wstest"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// uplink notes when what happened.
type uplink struct {
	mu       sync.Mutex
	released map[uint64]time.Time
	calls    int
	back     int // messages handed back
	slow     time.Duration
	deaf     bool // Release never answers
	answer   []func([]byte)
	moves    bool // Migrate makes tokens
	fails    int  // ... but not the next times
	asked    []int
	deadline time.Duration // of the last Migrate
}

func (u *uplink) Publish(_ *session.Session, _ string, _ []byte, _ string, done func([]byte)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.answer = append(u.answer, done)
}

func (u *uplink) Release(ctx context.Context, sessions []*session.Session) error {
	u.mu.Lock()
	u.calls++
	deaf, slow := u.deaf, u.slow
	u.mu.Unlock()
	if deaf {
		<-ctx.Done()
		return errors.New("nobody answers")
	}
	time.Sleep(slow)
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range sessions {
		u.released[s.ID()] = time.Now()
	}
	return nil
}

func (u *uplink) Migrate(_ context.Context, sessions []*session.Session, deadline time.Duration) ([]string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked = append(u.asked, len(sessions))
	u.deadline = deadline
	if u.fails > 0 {
		u.fails--
		return nil, errors.New("the routers are being replaced")
	}
	if !u.moves {
		return nil, errors.New("nobody makes tokens")
	}
	tokens := make([]string, len(sessions))
	for i, s := range sessions {
		tokens[i] = fmt.Sprint("token", s.ID())
	}
	return tokens, nil
}

func (u *uplink) Final(c *routerv1.ClosedSession, done func()) {
	u.mu.Lock()
	u.back += len(c.Undelivered)
	u.mu.Unlock()
	done()
}

type world struct {
	t   *testing.T
	up  *uplink
	reg *registry.Registry
	tel *telemetry.Telemetry
}

func inTime(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, up: &uplink{released: map[uint64]time.Time{}}, tel: tel}
		w.reg = registry.New(registry.Options{Session: session.Config{NodeID: "gw", Uplink: w.up, Telemetry: tel, ResumeWindow: time.Minute}})
		w.reg.Start()
		f(t, w)
		if err := w.reg.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		_ = tel.Shutdown(t.Context())
	})
}

func (w *world) connect(version uint32) (*session.Session, *wstest.Client) {
	s, c, open := w.opening(version)
	open()
	return s, c
}

// opening is a session that is admitted by open.
func (w *world) opening(version uint32) (s *session.Session, c *wstest.Client, open func()) {
	server, peer := net.Pipe()
	c = wstest.New(w.t, peer)
	c.Allow(wstest.Plenty)
	w.t.Cleanup(c.End)
	s = w.reg.Add(ws.NewConn(server, nil), session.Params{Tenant: "t", Device: "d", Version: version})
	return s, c, func() {
		s.Open(session.Admission{Identity: session.Identity{Tenant: "t", User: fmt.Sprint("user", s.ID()), Device: "d"}, Heartbeat: 24 * time.Hour})
	}
}

func (w *world) drain(timeout time.Duration) Summary {
	return Drain(context.Background(), w.reg, w.up, timeout, w.tel.Log)
}

// closedAt notes when each client is told.
func closedAt(c *wstest.Client, at *time.Time) {
	for {
		if code, _ := c.Closed(); code != 0 {
			*at = time.Now()
			return
		}
		time.Sleep(5 * time.Millisecond) // fake time
	}
}

func TestNothingToDrain(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		start := time.Now()
		if sum := w.drain(10 * time.Second); sum != (Summary{}) || time.Since(start) != 0 {
			t.Errorf("%+v after %v", sum, time.Since(start))
		}
	})
}

func TestRoutesGoBeforeSessionsInWaves(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.up.slow = 30 * time.Millisecond
		const n = 200
		told := make([]time.Time, n)
		clients := make([]*wstest.Client, n)
		for i := range n {
			_, clients[i] = w.connect(1)
			go closedAt(clients[i], &told[i])
		}
		start := time.Now()
		sum := w.drain(10 * time.Second)
		took := time.Since(start)
		synctest.Wait()
		if want := (Summary{Sessions: n, Told: n, Echoed: n}); sum != want {
			t.Errorf("%+v, want %+v", sum, want)
		}
		// 200 sessions, 20 ms apart.
		if took < 3500*time.Millisecond || took > 4500*time.Millisecond {
			t.Errorf("took %v", took)
		}
		early := 0
		for i := range n {
			if code, reason := clients[i].Closed(); code != 4200 || reason != "server draining" {
				t.Errorf("closed with %d %q", code, reason)
			}
			if r := w.up.released[uint64(i+1)]; r.IsZero() || told[i].Before(r) {
				t.Errorf("session %d was told at %v, released at %v", i+1, told[i], r)
			}
			if told[i].Sub(start) < took/2 {
				early++
			}
		}
		if early < n/3 || early > 2*n/3 {
			t.Errorf("%d of %d were told in the first half", early, n)
		}
		if w.up.calls < 20 || w.up.calls > 81 {
			t.Errorf("%d calls of Release: neither one for all nor one for each", w.up.calls)
		}
	})
}

func TestPeersThatDoNotEchoHoldNobodyUp(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		const n = 1000
		for i := range n {
			_, c := w.connect(1)
			c.Echo(i%3 != 0)
		}
		start := time.Now()
		sum := w.drain(10 * time.Second)
		if sum.Sessions != n || sum.Told != n || sum.Echoed != n-n/3-1 || sum.Left != 0 {
			t.Errorf("%+v", sum)
		}
		if took := time.Since(start); took < 8*time.Second || took > 10*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestWhatIsUnansweredIsWaitedForAndWhatIsUnconfirmedComesBack(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		s, c := w.connect(2)
		c.Echo(false)
		r := w.reg.Router(session.RouterRef{ID: "r", Incarnation: 1})
		for id := range uint64(3) {
			w.reg.Deliver(s.ID(), session.NewDelivery(r, &gatewayv1.Delivery{Id: id + 1}))
		}
		c.Message(&messagev1.MessageRequest{MsgId: "1", ToUserId: "bob"})
		synctest.Wait()
		c.Ack(1)
		go func() {
			time.Sleep(500 * time.Millisecond)
			w.up.mu.Lock()
			done := w.up.answer[0]
			w.up.mu.Unlock()
			done(nil)
		}()
		sum := w.drain(10 * time.Second)
		if want := (Summary{Sessions: 1, Told: 1, HandedBack: 2}); sum != want || w.up.back != 2 {
			t.Errorf("%+v, want %+v", sum, want)
		}
		if len(c.Acks()) != 1 {
			t.Errorf("acks %v", c.Acks())
		}
	})
}

func TestNoRouterAnswers(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.up.deaf = true
		_, c := w.connect(1)
		start := time.Now()
		sum := w.drain(5 * time.Second)
		if want := (Summary{Sessions: 1, Told: 1, Echoed: 1}); sum != want || time.Since(start) > 2*time.Second {
			t.Errorf("%+v after %v", sum, time.Since(start))
		}
		if code, _ := c.Closed(); code != 4200 {
			t.Errorf("closed with %d", code)
		}
	})
}

func TestAtTheDeadlineTheRestIsCut(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		_, c := w.connect(1)
		c.Echo(false)
		server, _ := net.Pipe()
		opening := w.reg.Add(ws.NewConn(server, nil), session.Params{Tenant: "t", Version: 1})
		start := time.Now()
		sum := w.drain(time.Second)
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %v", took)
		}
		if want := (Summary{Sessions: 2, Told: 1, Forced: 2, Left: 1}); sum != want {
			t.Errorf("%+v, want %+v", sum, want)
		}
		opening.Refuse(4001, "auth unavailable", false)
	})
}

func TestASessionThatOpensMeanwhileIsDrainedToo(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		server, peer := net.Pipe()
		c := wstest.New(t, peer)
		c.Allow(wstest.Plenty)
		defer c.End()
		s := w.reg.Add(ws.NewConn(server, nil), session.Params{Tenant: "t", Version: 1})
		go func() {
			time.Sleep(2 * time.Second)
			s.Open(session.Admission{Identity: session.Identity{Tenant: "t", User: "ann", Device: "d"}})
		}()
		sum := w.drain(10 * time.Second)
		if code, _ := c.Closed(); code != 4200 || sum.Told != 1 || sum.Left != 0 {
			t.Errorf("closed with %d, %+v", code, sum)
		}
	})
}

func TestDrainEndsWithItsContext(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		for range 500 {
			w.connect(1)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		sum := Drain(ctx, w.reg, w.up, 10*time.Second, w.tel.Log)
		if sum.Sessions != 500 || sum.Forced == 0 || sum.Told+sum.Forced < 500 || time.Since(start) != time.Second {
			t.Errorf("%+v after %v", sum, time.Since(start))
		}
	})
}
