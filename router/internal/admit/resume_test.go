package admit

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/fault"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/token"
)

// resumes opens a session that goes on with the token's.
func (n *node) resumes(i int, session uint64, resume string, lastSeq uint64, edit ...func(*routerv1.OpenSessionRequest)) *routerv1.OpenSessionResponse {
	n.c.t.Helper()
	req := &routerv1.OpenSessionRequest{
		Gateway: wireRef(g(i)), SessionId: session, TenantId: "a", Token: "ann", DeviceId: "phone", Version: 2,
		ResumeToken: resume, LastSeq: lastSeq,
	}
	for _, f := range edit {
		f(req)
	}
	res, err := n.OpenSession(context.Background(), req)
	if err != nil {
		n.c.t.Fatal(err)
	}
	return res
}

func wantRefused(t *testing.T, what string, res *routerv1.OpenSessionResponse, reason string) {
	t.Helper()
	token := slices.Contains([]string{textInvalid, textForeign, textStale, textExpired, textAhead}, reason)
	if r := res.Refusal; r.GetCloseCode() != 4001 || r.GetReason() != reason || r.GetResume() != token {
		t.Errorf("%s: got %v, want 4001 %s", what, res, reason)
	}
}

// holds makes the session of a gateway one that has sent so many deliveries, of
// which the last are not confirmed.
func (c *cluster) holds(i int, session, last uint64, window ...string) {
	loc := route.Location{Node: g(i), Session: session}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last[loc] = last
	c.windows[loc] = undelivered(window...)
}

// migrate is the token for the session of gateway i.
func (n *node) migrate(i int, session, epoch uint64, deadline time.Duration) string {
	n.c.t.Helper()
	res, err := n.PrepareMigration(&routerv1.PrepareMigrationRequest{
		Gateway: wireRef(g(i)), DeadlineMs: uint64(deadline.Milliseconds()),
		Sessions: []*routerv1.MigratingSession{{SessionId: session, TenantId: "a", UserId: "ann", DeviceId: "phone", Epoch: epoch}},
	})
	if err != nil {
		n.c.t.Fatal(err)
	}
	return res.Tokens[0]
}

// noAuth makes the hook refuse everybody from now on.
func (c *cluster) noAuth() {
	c.auth = func(string, string) (*hookv1.AuthResponse, error) { return &hookv1.AuthResponse{Reason: "no"}, nil }
}

func TestASessionGoesOn(t *testing.T) {
	for _, routers := range []int{1, 2} {
		t.Run(fmt.Sprint(routers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, routers)
				defer c.close()
				n, home := c.nodes[0], c.nodes[routers-1]
				first := n.opens(1, 5, "ann", "phone")
				if first.ResumeToken == "" || first.Resumed || first.NextSeq != 0 {
					t.Errorf("%v", first)
				}
				c.holds(1, 5, 9, "7", "8", "9")
				home.reclaimed = []*dispatch.Message{{Bytes: []byte("r"), Key: key("r")}}
				home.keeps("b")
				home.keepsAt(true, "f")
				res := n.resumes(2, 6, first.ResumeToken, 7)
				same(t, "backlog", texts(res.Backlog), "8", "9", "f", "r", "b")
				if !res.Resumed || res.NextSeq != 10 || res.AcknowledgedSeq != 6 || res.Epoch != 2 || res.ResumeToken == "" || res.ResumeToken == first.ResumeToken {
					t.Errorf("%v", res)
				}
				if res.Origin.GetNodeId() != g(1).ID || res.Origin.GetIncarnation() != g(1).Incarnation || res.Migrating || res.FrozenMs != 0 {
					t.Errorf("origin %v, migrating %v, frozen for %v ms", res.Origin, res.Migrating, res.FrozenMs)
				}
				for i, seq := range []uint64{8, 9, 0, 0, 0} {
					if u := res.Backlog[i]; u.Seq != seq || u.Id != uint64(i+1) {
						t.Errorf("entry %d is %v", i, u)
					}
				}
				if h := c.asked; len(h) != 2 || !h[0].Check || !h[0].Resume || h[0].LastSeq != 7 || h[1].Check || !h[1].Resume || h[1].LastSeq != 7 || h[1].CloseCode != 4201 {
					t.Errorf("handovers %v", h)
				}
				// Again, back to the first gateway, and nothing has been seen.
				c.holds(2, 6, 12, "8", "9", "f", "r", "b")
				home.reclaimed = nil
				res = n.resumes(1, 7, res.ResumeToken, 0)
				same(t, "backlog", texts(res.Backlog), "8", "9", "f", "r", "b")
				if !res.Resumed || len(c.asked) != 3 {
					t.Errorf("%v after %d handovers", res, len(c.asked))
				}
			})
		})
	}
}

func TestV1IsNotResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		res := n.resumes(1, 5, "garbage", 7, func(r *routerv1.OpenSessionRequest) { r.Version = 1 })
		if res.Refusal != nil || res.ResumeToken != "" || res.Resumed {
			t.Errorf("%v", res)
		}
	})
}

func TestARefusedResumeHarmsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		defer c.close()
		n, home := c.nodes[0], c.nodes[1]
		old := n.opens(1, 4, "ann", "phone").ResumeToken
		oldMigrate := home.migrate(1, 4, 1, time.Minute)
		now := n.opens(1, 5, "ann", "phone").ResumeToken
		c.holds(1, 5, 9, "8", "9")
		late := home.migrate(1, 5, 2, time.Second)
		good := home.migrate(1, 5, 2, time.Hour)
		bens := n.opens(1, 6, "ben", "phone").ResumeToken
		tablets := n.opens(1, 7, "ann", "tablet").ResumeToken
		asked := len(c.asked)
		time.Sleep(time.Second) // fake time
		foreign := func(r *routerv1.OpenSessionRequest) {
			r.ResumeToken = c.tokens.Seal(token.Claims{
				Kind: token.Migrate, Deadline: time.Now().Add(time.Hour),
				Key: route.DeviceKey{UserKey: route.UserKey{Tenant: "b", User: "ann"}, Device: "phone"},
			})
		}
		wantRefused(t, "garbage", n.resumes(2, 20, "garbage", 0), textInvalid)
		wantRefused(t, "altered", n.resumes(2, 20, now[:len(now)-2]+"AA", 0), textInvalid)
		wantRefused(t, "another user's", n.resumes(2, 20, bens, 0), textForeign)
		wantRefused(t, "another device's", n.resumes(2, 20, tablets, 0), textForeign)
		wantRefused(t, "another tenant's", n.resumes(2, 20, "", 0, foreign), textForeign)
		wantRefused(t, "an older session's", n.resumes(2, 20, old, 0), textStale)
		wantRefused(t, "an older session's, migrating", n.resumes(2, 20, oldMigrate, 0), textStale)
		wantRefused(t, "late", n.resumes(2, 20, late, 9), textExpired)
		wantRefused(t, "from the future", n.resumes(2, 20, now, 10), textAhead)
		wantRefused(t, "from the future, migrating", n.resumes(2, 20, good, 10), textAhead)
		c.noAuth()
		wantRefused(t, "not authenticated", n.resumes(2, 20, now, 9), "no")
		wantRefused(t, "a migration by another device", n.resumes(2, 20, good, 9, func(r *routerv1.OpenSessionRequest) { r.DeviceId = "tablet" }), "no")

		if r := c.record(phone); r.Epoch != 2 || r.Session != 5 || r.State != route.Live || c.conns(2) != 0 {
			t.Errorf("route %+v, %d connections", r, c.conns(2))
		}
		for _, h := range c.asked[asked:] {
			if !h.Check {
				t.Errorf("a handover: %v", h)
			}
		}
		// And the session still moves.
		res := n.resumes(2, 21, good, 8)
		same(t, "backlog", texts(res.Backlog), "9")
		if !res.Resumed || res.UserId != "ann" || res.DeviceId != "phone" || c.conns(1) != 2 || c.conns(2) != 1 {
			t.Errorf("%v, %d and %d connections", res, c.conns(1), c.conns(2))
		}
		wantRefused(t, "a second time", n.resumes(1, 22, good, 8), textStale)
	})
}

// TestTheSameQuestionGetsTheSameAnswer: a gateway that got no answer asks again, and
// the token of the first admission does not count against it.
func TestAResumeThatIsAskedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 5, "ann", "phone")
		c.holds(1, 5, 9, "9")
		good := c.nodes[1].migrate(1, 5, 1, time.Minute)
		c.noAuth()
		one := n.resumes(2, 6, good, 8)
		time.Sleep(20 * time.Millisecond) // fake time
		two := c.nodes[1].resumes(2, 6, good, 8)
		if !one.Resumed || !two.Resumed || one.ResumeToken != two.ResumeToken || two.Epoch != 2 || !two.Migrating || one.FrozenMs != 0 || two.FrozenMs != 20 {
			t.Errorf("got %v and %v", one, two)
		}
	})
}

func TestASessionThatHasEndedBeginsAnew(t *testing.T) {
	for name, tc := range map[string]struct {
		edit    func(*cluster)
		migrate string // the answer to a migrate token; empty: admitted
	}{
		"ended": {func(c *cluster) {
			c.nodes[0].closes(1, closed(5, 1, routerv1.ClosedSession_STAGE_FINAL, undelivered("9")...))
		}, textStale}, // a kick is one
		"gateway dead": {func(c *cluster) {
			c.dead[g(1)] = true
			c.nodes[0].reclaimed = []*dispatch.Message{{Bytes: []byte("9"), Key: key("9")}}
		}, ""},
		"gateway hanging": {func(c *cluster) {
			c.slow["g1"] = time.Hour
			c.nodes[0].keeps("9")
		}, ""},
		"unknown there": {func(c *cluster) {
			c.last = map[route.Location]uint64{}
			c.nodes[0].keeps("9")
		}, ""},
	} {
		for _, migrating := range []bool{false, true} {
			t.Run(fmt.Sprint(name, migrating), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newCluster(t, 1)
					defer c.close()
					n := c.nodes[0]
					resume := n.opens(1, 5, "ann", "phone").ResumeToken
					if migrating {
						resume = n.migrate(1, 5, 1, time.Minute)
					}
					c.holds(1, 5, 9)
					tc.edit(c)
					res := n.resumes(2, 6, resume, 8)
					if migrating && tc.migrate != "" {
						wantRefused(t, "answer", res, tc.migrate)
						return
					}
					if res.Refusal != nil || res.Resumed || res.NextSeq != 0 || res.ResumeToken == "" {
						t.Errorf("%v", res)
					}
					same(t, "backlog", texts(res.Backlog), "9")
					if len(res.Backlog) > 0 && res.Backlog[0].Seq != 0 {
						t.Errorf("%v", res.Backlog)
					}
				})
			})
		}
	}
}

func TestATokenWhoseRecordIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		seal := func(k token.Kind) string {
			return c.tokens.Seal(token.Claims{Kind: k, Key: phone, Loc: route.Location{Node: g(1), Session: 5}, Epoch: 1, Deadline: time.Now().Add(time.Minute)})
		}
		wantRefused(t, "migrate", c.nodes[0].resumes(2, 6, seal(token.Migrate), 1), textStale)
		if res := c.nodes[0].resumes(2, 6, seal(token.Resume), 1); res.Refusal != nil || res.Resumed {
			t.Errorf("%v", res)
		}
	})
}

// TestKeysOfOneRouter: without SESSION_TOKEN_KEYS each router has its own.
func TestKeysOfOneRouter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2, func(c *cluster) {
			c.ownKeys["r1"], c.ownKeys["r2"] = token.Random(), token.Random()
		})
		defer c.close()
		n, home := c.nodes[0], c.nodes[1]
		resume := n.opens(1, 5, "ann", "phone").ResumeToken
		c.holds(1, 5, 9, "9")
		res := n.resumes(2, 6, resume, 8) // the home has sealed it
		if !res.Resumed {
			t.Errorf("%v", res)
		}
		wantRefused(t, "stale all the same", n.resumes(2, 7, resume, 8), textStale)
		wantRefused(t, "another device's", n.resumes(2, 7, res.ResumeToken, 8, func(r *routerv1.OpenSessionRequest) { r.DeviceId = "tablet" }), textForeign)
		// Nobody can read it: it is as good as none.
		nobodys := token.Random().Seal(token.Claims{Kind: token.Migrate, Key: phone, Deadline: time.Now().Add(time.Minute)})
		if res := n.resumes(2, 8, nobodys, 8); res.Refusal != nil || res.Resumed {
			t.Errorf("%v", res)
		}
		// A migration whose token only the home can read is authenticated.
		c.holds(2, 8, 9, "9")
		good := home.migrate(2, 8, 3, time.Minute)
		if res := n.resumes(1, 9, good, 8); !res.Resumed {
			t.Errorf("%v", res)
		}
		c.noAuth()
		wantRefused(t, "not authenticated", n.resumes(1, 10, home.migrate(1, 9, 4, time.Minute), 8), "no")
	})
}

// TestADeviceThatTheHookRenames is authenticated although its token would do: the
// router cannot know that the two names are one device.
func TestADeviceThatTheHookRenames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		asked := 0
		c.auth = func(user, _ string) (*hookv1.AuthResponse, error) {
			asked++
			return &hookv1.AuthResponse{Ok: true, UserId: user, DeviceId: "phone"}, nil
		}
		n.opens(1, 5, "ann", "my phone")
		c.holds(1, 5, 9, "9")
		res := n.resumes(2, 6, n.migrate(1, 5, 1, time.Minute), 8, func(r *routerv1.OpenSessionRequest) { r.DeviceId = "my phone" })
		if !res.Resumed || res.DeviceId != "phone" || asked != 2 {
			t.Errorf("%v, the hook was asked %d times", res, asked)
		}
	})
}

func TestAResumeThatCannotBeHeldIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		resume := n.opens(1, 5, "ann", "phone").ResumeToken
		c.holds(1, 5, 9, "8", "9")
		n.full = true
		wantRefused(t, "answer", n.resumes(2, 6, resume, 8), textUnavailable)
		same(t, "kept", n.kept(), "9")
	})
}

func TestPrepareMigration(t *testing.T) {
	c := newCluster(t, 1)
	defer c.close()
	n := c.nodes[0]
	res, err := n.PrepareMigration(&routerv1.PrepareMigrationRequest{
		Gateway: wireRef(g(1)), DeadlineMs: 1000,
		Sessions: []*routerv1.MigratingSession{{SessionId: 1, TenantId: "a", UserId: "ann", DeviceId: "phone", Epoch: 7}, {SessionId: 2}},
	})
	if err != nil || len(res.Tokens) != 2 || res.Tokens[1] != "" {
		t.Fatalf("%v, %v", res, err)
	}
	got, err := c.tokens.Open(res.Tokens[0])
	if err != nil || got.Kind != token.Migrate || got.Key != phone || got.Loc != (route.Location{Node: g(1), Session: 1}) || got.Epoch != 7 || got.Deadline.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	c.dead[g(2)] = true
	for name, req := range map[string]*routerv1.PrepareMigrationRequest{
		"no lease":    {Gateway: wireRef(g(2)), DeadlineMs: 1000},
		"no deadline": {Gateway: wireRef(g(1))},
		"for ever":    {Gateway: wireRef(g(1)), DeadlineMs: 1 << 62},
		"too many":    {Gateway: wireRef(g(1)), DeadlineMs: 1, Sessions: make([]*routerv1.MigratingSession, maxMigrating+1)},
	} {
		if _, err := n.PrepareMigration(req); fault.KindOf(err) == fault.Internal || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAResumedSessionPullsNothing: it has not been away, and a drain must not storm
// the tenants' hooks.
func TestAResumedSessionPullsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		pulls, yes := 0, true
		c.page = func(*hookv1.GetOfflineMessagesRequest) *hookv1.GetOfflineMessagesResponse {
			pulls++
			return &hookv1.GetOfflineMessagesResponse{Ok: true}
		}
		c.auth = func(user, _ string) (*hookv1.AuthResponse, error) {
			return &hookv1.AuthResponse{Ok: true, UserId: user, Config: &hookv1.TenantRuntimeConfig{OfflineUseHookPull: &yes}}, nil
		}
		resume := n.opens(1, 5, "ann", "phone").ResumeToken
		c.holds(1, 5, 9, "9")
		again := n.resumes(2, 6, resume, 9)
		synctest.Wait()
		if !again.Resumed || pulls != 1 {
			t.Errorf("%v, %d pulls", again, pulls)
		}
		n.resumes(2, 7, again.ResumeToken, 9) // it cannot go on
		synctest.Wait()
		if pulls != 2 {
			t.Errorf("%d pulls", pulls)
		}
	})
}
