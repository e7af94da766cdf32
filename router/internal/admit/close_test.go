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
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/route"
	"google.golang.org/protobuf/proto"
)

const final = routerv1.ClosedSession_STAGE_FINAL

func TestWhatASessionDidNotDeliverComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		defer c.close()
		away, home := c.nodes[0], c.nodes[1]
		home.opens(1, 5, "ann", "phone")
		home.keeps("3")
		// A gateway whose lease has run out is heard too, and any router.
		c.dead[g(1)] = true
		away.closes(1, closed(5, 1, final, undelivered("1", "2")...))
		same(t, "kept", home.kept(), "1", "2", "3")
		if home.stats.HandedBack.Value()+away.stats.HandedBack.Value() != 2 {
			t.Error("not counted")
		}
	})
}

func TestADeviceThatIsBackGetsItLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 5, "ann", "phone")
		n.opens(2, 6, "ann", "phone")
		n.closes(1, closed(5, 1, final, undelivered("1", "2")...))
		same(t, "kept", n.kept())
		same(t, "sent", n.sent, "1", "2")
	})
}

func TestAWindowThatWasHandedOverIsNotKeptAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 5, "ann", "phone")
		time.Sleep(remembered - time.Second) // fake time
		c.windows[route.Location{Node: g(1), Session: 5}] = undelivered("1", "2")
		same(t, "backlog", texts(n.opens(2, 6, "ann", "phone").Backlog), "1", "2")
		time.Sleep(3 * time.Second) // fake time: the old socket is being closed
		n.opens(2, 7, "bob", "phone")
		n.closes(1, closed(5, 1, final, undelivered("1", "2")...))
		same(t, "kept", n.kept())
		same(t, "sent", n.sent)
	})
}

// TestAWindowThatWasHandedOverToAHomeThatDied: the next home knows nothing of it.
func TestAWindowThatWasHandedOverToAHomeThatDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		defer c.close()
		next, first := c.nodes[0], c.nodes[1]
		first.opens(1, 5, "ann", "phone")
		c.windows[route.Location{Node: g(1), Session: 5}] = undelivered("1", "2")
		first.opens(2, 6, "ann", "phone")
		next.closes(1, closed(5, 1, final, undelivered("1", "2")...))
		same(t, "sent", next.sent, "1", "2")
	})
}

func TestABacklogThatMissedTheHandoverIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 5, "ann", "phone")
		c.partial = true
		c.windows[route.Location{Node: g(1), Session: 5}] = nil // still being opened there
		n.opens(2, 6, "ann", "phone")
		n.closes(1, closed(5, 1, final, undelivered("1", "2")...))
		same(t, "sent", n.sent, "1", "2")
	})
}

func TestTheNextSessionKnowsWhatTheLastOneTook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		defer c.close()
		away, home := c.nodes[0], c.nodes[1]
		home.opens(1, 5, "ann", "phone")
		ended := closed(5, 1, final)
		ended.RecentKeys, ended.RecentAges = []byte("0123456789abcdef"), []byte{7}
		home.closes(1, ended)
		time.Sleep(3 * time.Second) // fake time
		if res := home.opens(2, 6, "ann", "tablet"); len(res.RecentKeys) > 0 {
			t.Errorf("another device knows %q", res.RecentKeys)
		}
		if res := away.opens(2, 7, "ann", "phone"); string(res.RecentKeys) != "0123456789abcdef" || string(res.RecentAges) != "\x0a" {
			t.Errorf("the next one knows %q, of ages %v", res.RecentKeys, res.RecentAges)
		}
	})
}

// stuck is a buffer that never answers.
type stuck struct{}

func (stuck) Put(dispatch.BufferEntry) {}

func TestNothingIsAnsweredBeforeItIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 5, "ann", "phone")
		n.opts.Buffer = stuck{}
		start := time.Now()
		err := n.CloseSessions(t.Context(), &routerv1.CloseSessionsRequest{
			Gateway: wireRef(g(1)), Sessions: []*routerv1.ClosedSession{closed(5, 1, final, undelivered("1")...)},
		})
		if fault.KindOf(err) != fault.Unavailable || time.Since(start) != closeTimeout {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// notKept is a buffer whose home is out of reach.
type notKept struct{}

func (notKept) Put(e dispatch.BufferEntry) { e.Done(dispatch.NotKept) }

func TestWhatIsNotKeptIsSaidAgainToAnotherHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		defer c.close()
		for i, want := range map[int]fault.Kind{0: fault.Unavailable, 1: fault.Internal} {
			n := c.nodes[i]
			n.opts.Buffer = notKept{}
			err := n.CloseSessions(t.Context(), &routerv1.CloseSessionsRequest{
				Gateway: wireRef(g(1)), Sessions: []*routerv1.ClosedSession{closed(5, 1, final, undelivered("1")...)},
			})
			if self := i == 1; self && err != nil || !self && fault.KindOf(err) != want {
				t.Errorf("%s: %v", n.self.ID, err)
			}
			if lost := n.stats.Lost.Value(); lost != int64(i) {
				t.Errorf("%s lost %d", n.self.ID, lost)
			}
		}
	})
}

func TestAStoreThatIsAwayIsToldToTheGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 5, "ann", "phone")
		n.store.fail = failing("change")
		for name, s := range map[string]*routerv1.ClosedSession{
			"release": closed(5, 1, routerv1.ClosedSession_STAGE_RELEASE), "final": closed(5, 1, final), "with messages": closed(5, 1, final, undelivered("1")...),
		} {
			err := n.CloseSessions(t.Context(), &routerv1.CloseSessionsRequest{Gateway: wireRef(g(1)), Sessions: []*routerv1.ClosedSession{s}})
			if fault.KindOf(err) != fault.Unavailable {
				t.Errorf("%s: %v", name, err)
			}
		}
		same(t, "kept", n.kept())
		n.store.fail = failing("")
		n.closes(1, closed(5, 1, final, undelivered("1")...))
		n.closes(1, closed(5, 1, final, undelivered("1")...))
		same(t, "kept", n.kept(), "1")
		if c.conns(1) != 0 {
			t.Errorf("%d connections", c.conns(1))
		}
	})
}

func TestPull(t *testing.T) {
	page := func(from, to int) (out []*messagev1.MessageRequest) {
		for i := from; i < to; i++ {
			out = append(out, &messagev1.MessageRequest{TenantId: "a", UserId: "ben", MsgId: fmt.Sprint(i)})
		}
		return out
	}
	yes := true
	for name, tc := range map[string]struct {
		page  func(*hookv1.GetOfflineMessagesRequest) *hookv1.GetOfflineMessagesResponse
		calls int
		got   int
	}{
		"two pages": {func(r *hookv1.GetOfflineMessagesRequest) *hookv1.GetOfflineMessagesResponse {
			if r.Cursor == "" {
				return &hookv1.GetOfflineMessagesResponse{Ok: true, Messages: page(0, 100), HasMore: true, NextCursor: "x"}
			}
			return &hookv1.GetOfflineMessagesResponse{Ok: true, Messages: page(100, 150)}
		}, 2, 150},
		"a page too long": {func(*hookv1.GetOfflineMessagesRequest) *hookv1.GetOfflineMessagesResponse {
			return &hookv1.GetOfflineMessagesResponse{Ok: true, Messages: page(0, 101)}
		}, 1, 100},
		"without end": {func(r *hookv1.GetOfflineMessagesRequest) *hookv1.GetOfflineMessagesResponse {
			return &hookv1.GetOfflineMessagesResponse{Ok: true, Messages: page(0, 1), HasMore: true, NextCursor: r.Cursor + "x"}
		}, 10, 10},
		"round in a circle": {func(*hookv1.GetOfflineMessagesRequest) *hookv1.GetOfflineMessagesResponse {
			return &hookv1.GetOfflineMessagesResponse{Ok: true, Messages: page(0, 1), HasMore: true, NextCursor: "x"}
		}, 2, 2},
		"not ok": {func(*hookv1.GetOfflineMessagesRequest) *hookv1.GetOfflineMessagesResponse {
			return &hookv1.GetOfflineMessagesResponse{Messages: page(0, 1)}
		}, 1, 0},
		"unfit messages": {func(*hookv1.GetOfflineMessagesRequest) *hookv1.GetOfflineMessagesResponse {
			return &hookv1.GetOfflineMessagesResponse{Ok: true, Messages: []*messagev1.MessageRequest{
				{MsgBody: make([]byte, 101)}, {MsgId: "\xff"}, {MsgId: "fine"},
			}}
		}, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1)
				defer c.close()
				n := c.nodes[0]
				calls := 0
				c.page = func(r *hookv1.GetOfflineMessagesRequest) *hookv1.GetOfflineMessagesResponse {
					time.Sleep(100 * time.Millisecond) // fake time
					calls++
					if r.UserId != "ann" || r.DeviceId != "phone" || r.MaxMessages != 100 {
						t.Errorf("asked %v", r)
					}
					return tc.page(r)
				}
				c.auth = func(token, _ string) (*hookv1.AuthResponse, error) {
					return &hookv1.AuthResponse{Ok: true, UserId: token, Config: &hookv1.TenantRuntimeConfig{OfflineUseHookPull: &yes}}, nil
				}
				start := time.Now()
				n.opens(1, 1, "ann", "phone")
				if took := time.Since(start); took != 0 {
					t.Errorf("the connect was delayed by %v", took)
				}
				time.Sleep(time.Minute) // fake time
				synctest.Wait()
				if calls != tc.calls || len(n.sent) != tc.got || n.stats.DrainedFromHook.Value() != int64(tc.got) {
					t.Errorf("%d calls, %d sent, %d counted", calls, len(n.sent), n.stats.DrainedFromHook.Value())
				}
				if name == "two pages" {
					var want []string
					for _, m := range page(0, 150) {
						raw, _ := proto.Marshal(m)
						want = append(want, string(raw))
					}
					if !slices.Equal(n.sent, want) {
						t.Error("not in order")
					}
				}
			})
		})
	}
}

func TestLocksAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		unlock, err := n.locks.lock(t.Context(), phone.UserKey)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range maxWaiting - 1 {
			go func() {
				if _, err := n.locks.lock(ctx, phone.UserKey); err == nil {
					t.Error("two hold it")
				}
			}()
		}
		synctest.Wait()
		n.refused(1, 1, "ann", "phone", 4001, "auth unavailable")
		cancel()
		synctest.Wait()
		unlock()
		n.opens(1, 1, "ann", "phone")
	})
}
