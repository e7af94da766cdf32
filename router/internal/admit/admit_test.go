package admit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/fault"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/route"
)

// TestNobodyWaitsForAnotherUsersGateway: a user's connects are one after the
// other; another user does not wait.
func TestNobodyWaitsForAnotherUsersGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 1, "ann", "phone")
		c.slow["g1"] = 500 * time.Millisecond
		start := time.Now()
		var wg sync.WaitGroup
		took := make([]time.Duration, 3)
		for i, user := range []string{"ann", "ann", "ben"} {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond) // fake time
				n.opens(1, uint64(i+2), user, "phone")
				took[i] = time.Since(start).Truncate(100 * time.Millisecond)
			})
		}
		wg.Wait()
		if !slices.Equal(took, []time.Duration{500 * time.Millisecond, time.Second, 0}) {
			t.Errorf("took %v", took)
		}
		if len(n.locks.users) != 0 {
			t.Errorf("%d locks are left", len(n.locks.users))
		}
	})
}

func failing(call string) func(string) error {
	return func(c string) error {
		if c == call {
			return errDown
		}
		return nil
	}
}

func TestAnOpeningSaidAgainGetsTheSameAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		defer c.close()
		away, home := c.nodes[0], c.nodes[1]
		home.keeps("1")
		first := away.opens(1, 5, "ann", "phone")
		second := home.opens(1, 5, "ann", "phone")
		same(t, "backlog", texts(second.Backlog), "1")
		if second.Epoch != first.Epoch || second.Backlog[0].Id != first.Backlog[0].Id || second.RouterId != "r2" || c.conns(1) != 1 || len(c.asked) != 0 {
			t.Errorf("%v, then %v, %d connections, %d handovers", first, second, c.conns(1), len(c.asked))
		}
		if _, err := away.open(1, 5, "ben", "phone"); err == nil {
			t.Error("one session was opened for two users")
		}
		// It is not remembered for ever.
		time.Sleep(2 * remembered) // fake time
		home.opens(1, 6, "ben", "phone")
		if len(home.ledger.entries) != 1 || len(home.ledger.order) != 1 {
			t.Errorf("%d entries", len(home.ledger.entries))
		}
	})
}

func TestASessionThatNeverOpenedIsTakenBack(t *testing.T) {
	never := func(session uint64) *routerv1.ClosedSession {
		return &routerv1.ClosedSession{SessionId: session, TenantId: "a", Stage: routerv1.ClosedSession_STAGE_FINAL, NeverOpened: true}
	}
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		home := c.nodes[2]
		home.keeps("1")
		c.nodes[0].opens(1, 5, "ann", "phone")
		told := func(i int, session uint64) { // gateways tell every router
			for _, n := range c.nodes {
				n.closes(i, never(session))
			}
		}
		told(1, 5)
		told(1, 5)
		if r := c.record(phone); r.State != route.Ghost || c.conns(1) != 0 {
			t.Errorf("route %+v, %d connections", r, c.conns(1))
		}
		for _, n := range c.nodes {
			if len(n.abandoned) != 2 || n.abandoned[0] != (route.Location{Node: g(1), Session: 5}) {
				t.Errorf("%s abandoned %v", n.self.ID, n.abandoned)
			}
		}
		// One that is given up before its opening has come through never opens.
		told(1, 6)
		if _, err := c.nodes[1].open(1, 6, "ann", "phone"); fault.KindOf(err) != fault.FailedPrecondition && fault.KindOf(err) != fault.Unavailable {
			t.Errorf("opened: %v", err)
		}
		if r := c.record(phone); r.State != route.Ghost || c.conns(1) != 0 {
			t.Errorf("route %+v, %d connections", r, c.conns(1))
		}
		// What is somebody else's by now is left alone.
		c.nodes[0].opens(1, 7, "ann", "phone")
		c.nodes[0].opens(2, 8, "ann", "phone")
		told(1, 7)
		if r := c.record(phone); r.State != route.Live || r.Session != 8 || c.conns(2) != 1 {
			t.Errorf("route %+v", r)
		}
		home.store.fail = failing("change")
		err := home.CloseSessions(t.Context(), &routerv1.CloseSessionsRequest{Gateway: wireRef(g(2)), Sessions: []*routerv1.ClosedSession{never(8)}})
		if fault.KindOf(err) != fault.Unavailable {
			t.Errorf("the home could not undo it, and said %v", err)
		}
		home.store.fail = failing("")
		told(2, 8)
		if r := c.record(phone); r.State != route.Ghost {
			t.Errorf("route %+v", r)
		}
	})
}

// What a session took before it was given up may be with nobody else: its sender may have
// died since. It is newer than its backlog, and older than what is kept after it.
func TestWhatASessionTookThatNeverOpened(t *testing.T) {
	never := &routerv1.ClosedSession{SessionId: 6, TenantId: "a", Stage: routerv1.ClosedSession_STAGE_FINAL, NeverOpened: true, Undelivered: undelivered("2", "3", "0")}
	never.Undelivered[2].TakenAt = 1 // a router that stood still had taken it
	for _, waits := range []bool{false, true} {
		t.Run(fmt.Sprintf("the opening has no answer %v", waits), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 2)
				defer c.close()
				other, home := c.nodes[0], c.nodes[1]
				home.opens(1, 5, "ann", "phone")
				home.closes(1, closed(5, 1, final))
				if home.waits = waits; waits {
					home.keeps("1")
				}
				if _, err := other.open(1, 6, "ann", "phone"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second) // fake time
				home.keeps("4")
				for range 2 { // the first answer may be lost
					for _, n := range c.nodes {
						n.closes(1, never)
					}
				}
				want := []string{"0", "2", "3", "4"}
				if waits {
					want = []string{"0", "1", "2", "3", "4"}
				}
				same(t, "kept", home.kept(), want...)
				same(t, "kept elsewhere", other.kept())
				same(t, "sent", home.sent)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // nobody has begun to let it in
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.closes(1, never)
		if n.offline.Bytes() != 0 {
			t.Error("kept for nobody")
		}
	})
}

func TestAfterAStallOnlyWhoStillWaitsIsLetIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 5, "ann", "phone")
		c.stalled.Store(true)
		open := func(ctx context.Context, session uint64) error {
			_, err := n.OpenSession(ctx, &routerv1.OpenSessionRequest{
				Gateway: wireRef(g(2)), SessionId: session, TenantId: "a", Token: "ann", DeviceId: "phone", Version: 1,
			})
			return err
		}
		ctx, giveUp := context.WithCancel(t.Context())
		gaveUp, waits := make(chan error), make(chan error)
		go func() { gaveUp <- open(ctx, 6) }()
		go func() { waits <- open(t.Context(), 7) }()
		time.Sleep(300 * time.Millisecond) // fake time
		giveUp()
		if err := <-gaveUp; err == nil {
			t.Error("let in although it had gone")
		}
		c.stalled.Store(false)
		if err := <-waits; err != nil {
			t.Error(err)
		}
		if r := c.record(route.DeviceKey{UserKey: route.UserKey{Tenant: "a", User: "ann"}, Device: "phone"}); r.Session != 7 || r.Epoch != 2 {
			t.Errorf("the route is %+v", r)
		}
	})
}

func TestAnOpeningGivenUpWhileItIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 5, "ann", "phone")
		c.slow["g1"] = 500 * time.Millisecond
		done := make(chan error, 1)
		go func() {
			_, err := n.open(2, 6, "ann", "phone")
			done <- err
		}()
		time.Sleep(100 * time.Millisecond) // fake time
		n.closes(2, &routerv1.ClosedSession{SessionId: 6, TenantId: "a", NeverOpened: true})
		synctest.Wait()
		select {
		case err := <-done:
			if fault.KindOf(err) != fault.FailedPrecondition {
				t.Errorf("got %v", err)
			}
		default:
			t.Error("the gateway has its answer, and may confirm what is about to be held for the session")
		}
		if r := c.record(phone); r.State != route.Ghost || c.conns(1)+c.conns(2) != 0 {
			t.Errorf("route %+v, %d and %d connections", r, c.conns(1), c.conns(2))
		}
	})
}

func TestWhatAuthSays(t *testing.T) {
	for name, tc := range map[string]struct {
		res    *hookv1.AuthResponse
		err    error
		code   int32
		reason string
	}{
		"denied":         {&hookv1.AuthResponse{Reason: "expired"}, nil, 4001, "expired"},
		"denied, silent": {&hookv1.AuthResponse{}, nil, 4001, "unauthorized"},
		"denied, long":   {&hookv1.AuthResponse{Reason: strings.Repeat("é", 100)}, nil, 4001, strings.Repeat("é", 61)},
		"unavailable":    {nil, errDown, 4001, "auth unavailable"},
		"no user":        {&hookv1.AuthResponse{Ok: true}, nil, 4001, "auth unavailable"},
		"long user":      {&hookv1.AuthResponse{Ok: true, UserId: strings.Repeat("x", 129)}, nil, 4001, "auth unavailable"},
		"odd user":       {&hookv1.AuthResponse{Ok: true, UserId: "a\x00b"}, nil, 4001, "auth unavailable"},
		"odd device":     {&hookv1.AuthResponse{Ok: true, UserId: "a", DeviceId: "\n"}, nil, 4001, "auth unavailable"},
		"another device": {&hookv1.AuthResponse{Ok: true, UserId: "zoë", DeviceId: "d2"}, nil, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1)
				defer c.close()
				c.auth = func(string, string) (*hookv1.AuthResponse, error) { return tc.res, tc.err }
				res, err := c.nodes[0].open(1, 1, "token", "phone")
				if err != nil || res.Refusal.GetCloseCode() != tc.code || res.Refusal.GetReason() != tc.reason {
					t.Fatalf("got %v, %v", res, err)
				}
				if tc.code == 0 && (res.UserId != "zoë" || res.DeviceId != "d2" || c.record(route.DeviceKey{UserKey: route.UserKey{Tenant: "a", User: "zoë"}, Device: "d2"}) == nil) {
					t.Errorf("got %v", res)
				}
			})
		})
	}
}

// TestAHomeThatLeavesPassesOpeningsOn to the next home, which admits whatever it knows
// itself; what has been passed on once is not passed on again.
func TestAHomeThatLeavesPassesOpeningsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		next, other, home := c.nodes[0], c.nodes[1], c.nodes[2]
		home.leaving.Store(true)
		for i, asked := range []*node{other, home} {
			if res := asked.opens(1, uint64(i+1), "ann", "phone"); res.RouterId != next.self.ID {
				t.Errorf("%s was asked, and %v", asked.self.ID, res)
			}
		}
		next.leaving.Store(true)
		if res := other.opens(1, 3, "ann", "phone"); res.RouterId != next.self.ID {
			t.Errorf("all leave: %v", res)
		}
	})
}

func TestTheHomeLearnsTheTenantsConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		defer c.close()
		c.auth = func(token, _ string) (*hookv1.AuthResponse, error) {
			return &hookv1.AuthResponse{Ok: true, UserId: token, Config: &hookv1.TenantRuntimeConfig{HeartbeatTimeoutSeconds: 7}}, nil
		}
		if res := c.nodes[0].opens(1, 1, "ann", "phone"); res.HeartbeatTimeoutSeconds != 7 {
			t.Errorf("%v", res)
		}
		if tn, _ := c.nodes[1].tenants.Get("a"); tn.HeartbeatTimeout() != 7*time.Second {
			t.Errorf("the home has %v", tn.HeartbeatTimeout())
		}
	})
}

func TestRequestsThatNobodyMayMake(t *testing.T) {
	c := newCluster(t, 1)
	defer c.close()
	n := c.nodes[0]
	good := func() *routerv1.OpenSessionRequest {
		return &routerv1.OpenSessionRequest{Gateway: wireRef(g(1)), SessionId: 1, TenantId: "a", Token: "ann", DeviceId: "phone", Version: 1}
	}
	for name, edit := range map[string]func(*routerv1.OpenSessionRequest){
		"version": func(r *routerv1.OpenSessionRequest) { r.Version = 3 },
		"device":  func(r *routerv1.OpenSessionRequest) { r.DeviceId = "" },
		"token":   func(r *routerv1.OpenSessionRequest) { r.Token = strings.Repeat("x", 4097) },
	} {
		req := good()
		edit(req)
		if _, err := n.OpenSession(t.Context(), req); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	unknown := good()
	unknown.TenantId = "b"
	if res, err := n.OpenSession(t.Context(), unknown); err != nil || res.Refusal.GetCloseCode() != 4002 || res.Refusal.GetReason() != "invalid tenant" {
		t.Errorf("%v, %v", res, err)
	}
	c.dead[g(1)] = true
	if _, err := n.OpenSession(t.Context(), good()); fault.KindOf(err) != fault.FailedPrecondition {
		t.Errorf("a dead gateway: %v", err)
	}
	if _, err := n.Admit(t.Context(), &routerv1.AdmitRequest{Gateway: wireRef(g(1)), TenantId: "a", UserId: "u", DeviceId: "d", Version: 1}); fault.KindOf(err) != fault.FailedPrecondition {
		t.Errorf("a dead gateway: %v", err)
	}
	for name, s := range map[string]*routerv1.ClosedSession{
		"no stage": closed(1, 1, routerv1.ClosedSession_STAGE_UNSPECIFIED),
		"no user":  {SessionId: 1, TenantId: "a", DeviceId: "d", Stage: routerv1.ClosedSession_STAGE_FINAL},
	} {
		err := n.CloseSessions(t.Context(), &routerv1.CloseSessionsRequest{Gateway: wireRef(g(1)), Sessions: []*routerv1.ClosedSession{s}})
		if fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
