package admit

import (
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

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
		"it was opened":            {func(*cluster) {}, []string{"5", "6"}, false, []string{"0", "5", "6", "1", "2"}},
		"its answer is on the way": {func(c *cluster) { c.partial = true }, []string{"5", "6"}, true, []string{"0", "1", "2", "5", "6"}},
		"its gateway knows when it took them": {func(c *cluster) {
			c.partial = true
			w := c.windows[route.Location{Node: g(1), Session: 5}]
			w[0].TakenAt, w[1].TakenAt = 1, time.Now().Add(time.Hour).UnixNano()
		}, []string{"5", "6"}, true, []string{"0", "1", "5", "2", "6"}},
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
				if (n.elsewhere == at) != tc.lost || !tc.lost && n.elsewhere != (route.Location{}) {
					t.Errorf("other routers are asked for the copies of %v", n.elsewhere)
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

// TestHowLongATakeoverWaits: if its device is owed something older than what others send,
// until it is known whether the old session has confirmed that; but not for ever.
func TestHowLongATakeoverWaits(t *testing.T) {
	at := route.Location{Node: g(1), Session: 5}
	hangs := func(c *cluster) { c.slow["g1"] = time.Hour }
	refuses := func(c *cluster) { c.refusing["g1"] = 1000 }
	dies := func(does func(*cluster)) func(*cluster) {
		return func(c *cluster) {
			does(c)
			time.AfterFunc(1990*time.Millisecond, func() { c.dies(g(1)) })
		}
	}
	for name, tc := range map[string]struct {
		edit  func(*cluster)
		owes  bool
		takes time.Duration
		asked int
		lost  bool
		want  []string
	}{
		"dead":                     {func(c *cluster) { c.dies(g(1)) }, true, 0, 0, true, []string{"1"}},
		"has not been heard of":    {func(c *cluster) { c.news = g(1) }, false, 0, 1, false, []string{"0", "1"}},
		"hangs":                    {hangs, false, handoverTimeout, 1, false, []string{"1"}},
		"hangs, owed":              {hangs, true, owedTimeout, 1, false, []string{"1"}},
		"hangs and dies, owed":     {dies(hangs), true, 2 * time.Second, 1, true, []string{"1"}},
		"is late, owed":            {func(c *cluster) { c.slow["g1"] = 2500 * time.Millisecond }, true, 2500 * time.Millisecond, 1, false, []string{"0", "1"}},
		"refuses":                  {refuses, false, 0, 1, false, []string{"1"}},
		"refuses, owed":            {refuses, true, owedTimeout, 80, false, []string{"1"}},
		"refuses and dies, owed":   {dies(refuses), true, 2 * time.Second, 40, true, []string{"1"}},
		"refuses for a time, owed": {func(c *cluster) { c.refusing["g1"] = 3 }, true, 3 * handoverLook, 4, false, []string{"0", "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1)
				defer c.close()
				n := c.nodes[0]
				n.opens(1, 5, "ann", "phone")
				n.owes = tc.owes
				c.windows[at] = undelivered("0")
				tc.edit(c)
				n.keeps("1")
				start := time.Now()
				res := n.opens(2, 6, "ann", "phone")
				same(t, "backlog", texts(res.Backlog), tc.want...)
				if took := time.Since(start); took != tc.takes || len(c.asked) < tc.asked-1 || len(c.asked) > tc.asked+1 {
					t.Errorf("took %v, asked %d times", took, len(c.asked))
				}
				if n.lost(at) != tc.lost {
					t.Errorf("its copies are taken back: %v", n.lost(at))
				}
			})
		})
	}
}

func TestAnAdmissionThatFailsIsTakenBack(t *testing.T) {
	for name, edit := range map[string]func(*node){
		"nothing counted": func(n *node) { n.store.fail = failing("acquire") },
		"nothing bound":   func(n *node) { n.store.fail = failing("bind") },
		"nothing held":    func(n *node) { n.full = true },
		"no time left":    func(n *node) { n.waits = true },
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
				if name == "nothing held" || name == "no time left" {
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

// TestASessionThatTwoHomesLetIn: the gateway had no answer from the first one, which holds
// the backlog for it.
func TestASessionThatTwoHomesLetIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		defer c.close()
		next, first := c.nodes[0], c.nodes[1]
		at := route.Location{Node: g(1), Session: 5}
		first.opens(1, 5, "ann", "phone")
		first.leaving.Store(true)
		c.nodes = []*node{first, next}
		next.opens(1, 5, "ann", "phone")
		if next.elsewhere != at || !next.lost(at) || len(c.asked) != 0 {
			t.Errorf("other routers are asked for the copies of %v, %v; %d handovers", next.elsewhere, next.lost(at), len(c.asked))
		}
		if r := c.record(phone); r.State != route.Live || r.Location() != at || c.conns(1) != 1 {
			t.Errorf("route %+v, %d connections", r, c.conns(1))
		}
	})
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
			// It may never have had its backlog: then other routers have copies.
			clear(c.windows)
			if _, err := c.store.Change(t.Context(), []route.Change{{Key: phone, Node: g(2), Session: 6, Epoch: res.Epoch, To: route.Ghost, GhostTTL: time.Hour}}); err != nil {
				t.Fatal(err)
			}
			n.opens(1, 7, "ann", "phone")
			if want := (route.Location{Node: g(2), Session: 6}); (n.elsewhere == want) != changed || n.lost(want) {
				t.Errorf("changed %v: other routers are asked for the copies of %v", changed, n.elsewhere)
			}
		})
	}
}
