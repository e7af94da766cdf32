package steer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/drainer"
	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/gateway/internal/wstest"
	"github.com/mics-im/mics/internal/cohort"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/ring"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// uplink is routers that make tokens.
type uplink struct {
	mu     sync.Mutex
	broken bool // guarded by mu
}

func (*uplink) Publish(*session.Session, string, []byte, string, func([]byte)) {}
func (*uplink) Release(context.Context, []*session.Session) error              { return nil }
func (*uplink) Final(_ *routerv1.ClosedSession, done func())                   { done() }

func (u *uplink) Migrate(_ context.Context, sessions []*session.Session, _ time.Duration) ([]string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.broken {
		return nil, errors.New("no router")
	}
	tokens := make([]string, len(sessions))
	for i := range tokens {
		tokens[i] = "token"
	}
	return tokens, nil
}

// world is a stable gateway with clients, in fake time.
type world struct {
	*Steerer
	t     *testing.T
	up    *uplink
	reg   *registry.Registry
	quiet atomic.Bool

	migrated bool // who connects was asked to move, elsewhere

	over      chan struct{} // closed when clients are to end
	followers sync.WaitGroup

	mu    sync.Mutex
	asked map[string][]string // URLs by user; guarded by mu
	stays bool                // clients do not move; guarded by mu
}

func inTime(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, up: &uplink{}, asked: map[string][]string{}, over: make(chan struct{})}
		w.reg = registry.New(registry.Options{Session: session.Config{NodeID: "gw", Uplink: w.up, Telemetry: tel, ResumeWindow: time.Minute}})
		w.reg.Start()
		w.Steerer = New(Options{
			Registry: w.reg, Mover: drainer.NewMover(w.up, tel.Log), Track: cohort.Stable, Telemetry: tel, Quiet: func() bool { return w.quiet.Load() },
		})
		w.Start()
		f(t, w)
		close(w.over)
		w.followers.Wait()
		w.Stop()
		if err := w.reg.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		_ = tel.Shutdown(t.Context())
	})
}

// connect lets users in; those of V2 clients move when they are asked to.
func (w *world) connect(version uint32, users ...string) (clients []*wstest.Client) {
	w.t.Helper()
	for _, user := range users {
		server, peer := net.Pipe()
		c := wstest.New(w.t, peer)
		c.Allow(wstest.Plenty)
		w.t.Cleanup(c.End)
		s := w.reg.Add(ws.NewConn(server, nil), session.Params{Tenant: "t", Device: "d", Version: version})
		s.Open(session.Admission{
			Identity: session.Identity{Tenant: "t", User: user, Device: "d"}, Heartbeat: 24 * time.Hour,
			Resumed: w.migrated, Migrated: w.migrated, NextSeq: 1,
		})
		clients = append(clients, c)
		if version >= 2 {
			w.followers.Go(func() { w.follow(user, s, c) })
		}
	}
	synctest.Wait()
	return clients
}

func (w *world) follow(user string, s *session.Session, c *wstest.Client) {
	seen := 0
	for {
		n := 0
		for _, f := range c.Frames() {
			m := f.GetMigrate()
			if m == nil {
				continue
			}
			if n++; n <= seen {
				continue
			}
			seen = n
			w.mu.Lock()
			url := m.GetUrl()
			if at, ok := strings.CutSuffix(url, "home="+ring.Hint(ring.Hash("t", user))); ok {
				url = at[:len(at)-1]
			} else if url != "" {
				w.t.Errorf("%q does not tell the home", url)
			}
			w.asked[user] = append(w.asked[user], url)
			stays := w.stays
			w.mu.Unlock()
			if !stays {
				s.Freeze(context.Background(), session.Takeover{Code: session.CodeReplaced, Reason: "replaced", Resume: true})
			}
		}
		if code, _ := c.Closed(); code != 0 {
			return
		}
		select {
		case <-w.over:
			return
		case <-time.After(5 * time.Millisecond): // fake time
		}
	}
}

// requests returns how often users were asked, in all, and of one the most.
func (w *world) requests() (all, most int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, u := range w.asked {
		all += len(u)
		most = max(most, len(u))
	}
	return all, most
}

func names(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprint("u", i))
	}
	return out
}

func steer(generation uint64, weight uint32, pace float64) *gatewayv1.SteerRequest {
	return &gatewayv1.SteerRequest{
		Rule: &gatewayv1.CanaryRule{Generation: generation, Salt: "c-1", Weight: weight}, SessionsPerSecond: pace,
		Canary: []*gatewayv1.Target{{Url: "ws://c0", Weight: 1}, {Url: "ws://c1", Weight: 3}}, Stable: []*gatewayv1.Target{{Url: "ws://s0", Weight: 1}},
	}
}

func (w *world) steer(req *gatewayv1.SteerRequest) *gatewayv1.SteerResponse {
	w.t.Helper()
	res, err := w.Steer(req)
	if err != nil {
		w.t.Fatal(err)
	}
	return res
}

func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestTheWrongTrackEmptiesAtThePace(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.connect(2, names(200)...)
		res := w.steer(steer(3, 5000, 20))
		of := w.Counts().OfCanary
		if res.GetMisplaced() != of || of < 80 || of > 120 || res.GetGeneration() != 3 {
			t.Fatalf("%v, %d of 200 belong to canary", res, of)
		}
		after(2 * time.Second)
		if n, _ := w.requests(); n < 36 || n > 46 {
			t.Errorf("%d asked after 2 s at 20 a second", n)
		}
		after(20 * time.Second)
		n, most := w.requests()
		if uint64(n) != of || most != 1 {
			t.Errorf("%d asked of %d, one of them %d times", n, of, most)
		}
		if c := w.Counts(); c.Misplaced != 0 || c.Generation != 3 {
			t.Errorf("%+v", c)
		}
		if res := w.steer(steer(3, 5000, 20)); res.GetMoved() != of {
			t.Errorf("%v, %d were to move", res, of)
		}
		urls := map[string]int{}
		for _, u := range w.asked {
			urls[u[0]]++
		}
		if urls["ws://c1"] < 2*urls["ws://c0"] || urls["ws://c0"] == 0 {
			t.Errorf("%v: the weights are 1 to 3", urls)
		}
	})
}

func TestWhoComesLaterIsSteeredToo(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.steer(steer(1, cohort.Full, 100))
		for i := range 3 { // she loses her connection, and the load balancer sends her here
			w.connect(2, "ann")
			after(3 * time.Second)
			if n, _ := w.requests(); n != i+1 {
				t.Errorf("%d asked after %d connects", n, i+1)
			}
		}
	})
}

// Whoever was asked to move and lands on the wrong track all the same is left alone
// until there is another rule: the load balancer would send him there again.
func TestNobodyIsSentInCircles(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.steer(steer(1, cohort.Full, 100))
		after(time.Second)
		w.migrated = true
		w.connect(2, "ann")
		after(10 * time.Second)
		if n, _ := w.requests(); n != 0 || w.Counts().Misplaced != 1 {
			t.Errorf("%d asked, %+v", n, w.Counts())
		}
		w.steer(steer(2, cohort.Full, 100))
		after(3 * time.Second)
		if n, _ := w.requests(); n != 1 {
			t.Errorf("%d asked by the next rule", n)
		}
	})
}

func TestOnlyTheNewestRuleCounts(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.connect(2, names(10)...)
		w.steer(steer(5, 0, 100))
		if res := w.steer(steer(4, cohort.Full, 100)); res.GetGeneration() != 5 || res.GetMisplaced() != 0 {
			t.Errorf("%v", res)
		}
		after(5 * time.Second)
		if n, _ := w.requests(); n != 0 {
			t.Errorf("%d asked by an older rule", n)
		}
	})
}

func TestNobodyMovesWithoutAPaceOrInADrain(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.connect(2, names(10)...)
		w.steer(steer(1, cohort.Full, 0))
		after(5 * time.Second)
		w.quiet.Store(true)
		w.steer(steer(1, cohort.Full, 100))
		after(5 * time.Second)
		if n, _ := w.requests(); n != 0 || w.Counts().Misplaced != 10 {
			t.Errorf("%d asked, %+v", n, w.Counts())
		}
		w.quiet.Store(false)
		after(3 * time.Second)
		if n, _ := w.requests(); n != 10 {
			t.Errorf("%d asked", n)
		}
	})
}

func TestV1OnlyIfTheOperatorSaysSo(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		clients := w.connect(1, names(5)...)
		req := steer(1, cohort.Full, 100)
		w.steer(req)
		after(5 * time.Second)
		if c := w.Counts(); c.Misplaced != 5 || c.MisplacedV1 != 5 {
			t.Errorf("%+v", c)
		}
		if code, _ := clients[0].Closed(); code != 0 {
			t.Fatalf("closed with %d", code)
		}
		req.MoveV1 = true
		w.steer(req)
		after(5 * time.Second)
		for _, c := range clients {
			if code, _ := c.Closed(); code != session.CodeDraining {
				t.Errorf("closed with %d", code)
			}
		}
		// They come back to the wrong track: that is the load balancer's business.
		again := w.connect(1, names(5)...)
		after(5 * time.Second)
		if code, _ := again[0].Closed(); code != 0 {
			t.Error("closed twice in a generation")
		}
	})
}

func TestWithoutTokensTheyAreAskedLater(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.connect(2, names(10)...)
		w.up.broken = true
		w.steer(steer(1, cohort.Full, 100))
		after(5 * time.Second)
		if n, _ := w.requests(); n != 0 {
			t.Fatal("asked without a token")
		}
		w.up.mu.Lock()
		w.up.broken = false
		w.up.mu.Unlock()
		after(5 * time.Second)
		if n, most := w.requests(); n != 10 || most != 1 {
			t.Errorf("%d asked, one %d times", n, most)
		}
	})
}

func TestWhoDoesNotMoveStays(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.stays = true
		clients := w.connect(2, names(3)...)
		w.steer(steer(1, cohort.Full, 100))
		after(2 * drainer.MoveWithin)
		if n, most := w.requests(); n != 3 || most != 1 || w.Counts().Misplaced != 3 || w.stayed.Value() != 3 {
			t.Errorf("%d asked, one %d times, %+v, %d stayed", n, most, w.Counts(), w.stayed.Value())
		}
		if code, _ := clients[0].Closed(); code != 0 {
			t.Errorf("closed with %d: nobody is cut off for a canary", code)
		}
	})
}

func TestSteerRefuses(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		for want, req := range map[string]*gatewayv1.SteerRequest{
			"generation is required": {},
			"weight must be":         steer(1, cohort.Full+1, 1),
			"sessions_per_second":    steer(1, 1, -1),
			"url must be":            {Rule: steer(1, 1, 1).GetRule(), Canary: []*gatewayv1.Target{{Url: "http://x"}}},
			"at most 10000 tenants":  {Rule: &gatewayv1.CanaryRule{Generation: 1, Tenants: make([]string, maxTenants+1)}},
		} {
			if _, err := w.Steer(req); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
	})
}
