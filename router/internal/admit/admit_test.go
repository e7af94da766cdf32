package admit

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/fault"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/route"
)

func TestANewSessionTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 5, "ann", "phone")
		c.windows[route.Location{Node: g(1), Session: 5}] = undelivered("1", "2")
		n.reclaimed = []*dispatch.Message{{Bytes: []byte("3"), Key: key("3")}}
		n.keeps("4", "5")
		n.keepsAt(true, "0")
		res := n.opens(2, 6, "ann", "phone")
		same(t, "backlog", texts(res.Backlog), "0", "1", "2", "3", "4", "5")
		if res.Epoch != 2 || res.RouterId != "r1" || res.RouterIncarnation != 1 || string(res.RecentKeys) != "0123456789abcdef" {
			t.Errorf("%v", res)
		}
		for i, u := range res.Backlog {
			if u.Id != uint64(i+1) || string(u.Key[:1]) != text(u.Message) {
				t.Errorf("entry %d is %v", i, u)
			}
		}
		if len(n.held) != 6 || len(n.gated) != 0 {
			t.Errorf("%d copies are held, gated %v", len(n.held), n.gated)
		}
		if len(n.before) != 1 || n.before[0].Session != 5 {
			t.Errorf("gated when the new route was there already: %+v", n.before)
		}
		if h := c.asked[0]; len(c.asked) != 1 || h.SessionId != 5 || h.GatewayIncarnation != 7 || h.CloseCode != 4201 || h.CloseReason != "replaced" {
			t.Errorf("handovers %v", c.asked)
		}
		if c.conns(1) != 0 || c.conns(2) != 1 {
			t.Errorf("%d and %d connections are counted", c.conns(1), c.conns(2))
		}
		if r := c.record(phone); r.State != route.Live || r.Node != g(2) || r.Session != 6 || r.Version != 2 {
			t.Errorf("route %+v", r)
		}
		// The old one's end, said late, changes nothing.
		n.closes(1, closed(5, 1, routerv1.ClosedSession_STAGE_FINAL))
		if r := c.record(phone); r.State != route.Live || c.conns(2) != 1 {
			t.Errorf("route %+v, %d connections", r, c.conns(2))
		}
	})
}

// TestASessionThatNeverHadItsBacklog: its device hung up while it was opened. Its backlog is
// taken back from the copies, and what was sent to it meanwhile is newer.
func TestASessionThatNeverHadItsBacklog(t *testing.T) {
	for name, tc := range map[string]struct {
		edit   func(*cluster)
		window []string
		lost   bool
		want   []string
	}{
		"it was opened":               {func(*cluster) {}, []string{"5", "6"}, false, []string{"0", "5", "6", "1", "2"}},
		"its answer is on the way":    {func(c *cluster) { c.partial = true }, []string{"5", "6"}, true, []string{"0", "1", "2", "5", "6"}},
		"its gateway has given it up": {func(*cluster) {}, nil, true, []string{"0", "1", "2"}},
		"its gateway does not answer": {func(c *cluster) { c.slow["g1"] = time.Hour }, []string{"5", "6"}, false, []string{"0", "1", "2"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1)
				defer c.close()
				n := c.nodes[0]
				n.opens(1, 5, "ann", "phone")
				at := route.Location{Node: g(1), Session: 5}
				if tc.window != nil {
					c.windows[at] = undelivered(tc.window...)
				}
				tc.edit(c)
				n.reclaimed = []*dispatch.Message{{Bytes: []byte("1"), Key: key("1")}}
				n.keeps("2")
				n.keepsAt(true, "0")
				res := n.opens(2, 6, "ann", "phone")
				same(t, "backlog", texts(res.Backlog), tc.want...)
				if n.lost(at) != tc.lost || n.lost(route.Location{Node: g(1), Session: 4}) {
					t.Errorf("its copies are taken back: %v", n.lost(at))
				}
			})
		})
	}
}

// What was given back comes among what was kept as it was taken by the cluster, and
// each list in its order.
func TestABacklogIsInTurn(t *testing.T) {
	list := func(texts ...string) (out []*dispatch.Message) {
		for _, s := range texts {
			at, _ := strconv.ParseInt(s, 10, 64) // 0 if it is none
			out = append(out, &dispatch.Message{Bytes: []byte(s), At: at})
		}
		return out
	}
	for _, tc := range []struct{ a, b, want []*dispatch.Message }{
		{nil, list("1", "2"), list("1", "2")},
		{list("2", "5"), list("1", "3", "4"), list("1", "2", "3", "4", "5")},
		{list("unknown", "3"), list("1"), list("unknown", "1", "3")},
		{list("4", "2"), list("3"), list("3", "4", "2")},
	} {
		got := inTurn(tc.a, tc.b)
		same := func(a, b *dispatch.Message) bool { return string(a.Bytes) == string(b.Bytes) }
		if !slices.EqualFunc(got, tc.want, same) {
			t.Errorf("%v and %v: %v", tc.a, tc.b, got)
		}
	}
}

func TestADeadOrHangingGatewayDoesNotHoldATakeoverUp(t *testing.T) {
	for name, tc := range map[string]struct {
		edit  func(*cluster)
		takes time.Duration
		asked int
	}{
		"dead":    {func(c *cluster) { c.dead[g(1)] = true }, 0, 0},
		"hanging": {func(c *cluster) { c.slow["g1"] = time.Hour }, time.Second, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1)
				defer c.close()
				n := c.nodes[0]
				n.opens(1, 5, "ann", "phone")
				tc.edit(c)
				n.keeps("1")
				start := time.Now()
				res := n.opens(2, 6, "ann", "phone")
				same(t, "backlog", texts(res.Backlog), "1")
				if took := time.Since(start); took != tc.takes || len(c.asked) != tc.asked {
					t.Errorf("took %v, asked %d times", took, len(c.asked))
				}
			})
		})
	}
}

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

func TestAnAdmissionThatFailsIsTakenBack(t *testing.T) {
	for name, edit := range map[string]func(*node){
		"nothing counted": func(n *node) { n.store.fail = failing("acquire") },
		"nothing bound":   func(n *node) { n.store.fail = failing("bind") },
		"nothing held":    func(n *node) { n.full = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1)
				defer c.close()
				n := c.nodes[0]
				n.opens(1, 5, "ann", "phone")
				c.windows[route.Location{Node: g(1), Session: 5}] = undelivered("1", "2")
				n.keeps("3")
				edit(n)
				n.refused(2, 6, "ann", "phone", 4001, "auth unavailable")
				if c.conns(2) != 0 {
					t.Errorf("%d connections are counted", c.conns(2))
				}
				if name == "nothing held" {
					if r := c.record(phone); r.State != route.Ghost {
						t.Errorf("route %+v", r)
					}
					same(t, "kept", n.kept(), "1", "2", "3")
					return
				}
				same(t, "kept", n.kept(), "3")
				if r := c.record(phone); r.State != route.Live || r.Session != 5 || c.conns(1) != 1 {
					t.Errorf("route %+v, %d connections: the old session is as it was", r, c.conns(1))
				}
			})
		})
	}
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

// TestASessionThatCouldTellNobodyItsEnd: its home has died, and another router took its route
// for wrong. What its device has got is asked of the gateway.
func TestASessionThatCouldTellNobodyItsEnd(t *testing.T) {
	for _, changed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 1)
			defer c.close()
			n := c.nodes[0]
			n.changed.Store(changed)
			at := route.Location{Node: g(1), Session: 5}
			epoch := n.opens(1, 5, "ann", "phone").Epoch
			if _, err := c.store.Change(t.Context(), []route.Change{{Key: phone, Node: at.Node, Session: 5, Epoch: epoch, To: route.Ghost, GhostTTL: time.Hour}}); err != nil {
				t.Fatal(err)
			}
			c.windows[at] = undelivered("1")
			n.keeps("2")
			res := n.opens(2, 6, "ann", "phone")
			want, keys := []string{"2"}, 0
			if changed {
				want, keys = []string{"1", "2"}, 16
			}
			same(t, "backlog", texts(res.Backlog), want...)
			if len(res.RecentKeys) != keys {
				t.Errorf("changed %v: %d bytes of keys", changed, len(res.RecentKeys))
			}
			n.opens(1, 7, "ann", "phone")
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
