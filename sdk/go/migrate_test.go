package mics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// TestMigrate: make before break, as the application sees it.
func TestMigrate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const delay = 2 * time.Second
		var asked time.Time
		var second []string
		leave := make(chan struct{})
		left := make(chan struct{})
		g := newGateway(t, connectedV2("r1", false, func(p *peer) {
			_ = p.deliverSeq(1, 1)
			for range 2 {
				p.message() // never answered
			}
			asked = time.Now()
			_ = p.migrate(&messagev1.Migrate{DelayMs: delay.Milliseconds(), DeadlineMs: 10000, ResumeToken: "m1"})
			<-leave
			_ = p.deliverSeq(2, 2) // the second one has it as well
			p.close(4201, "replaced")
			close(left)
		}), connectedV2("r2", true, func(p *peer) {
			close(leave)
			<-left
			_ = p.deliverSeq(2, 2)
			_ = p.deliverSeq(3, 3)
			for m := p.message(); m != nil; m = p.message() {
				second = append(second, string(m.GetMsgBody()))
				_ = p.ack(&messagev1.MessageAck{MsgId: m.GetMsgId()})
			}
		}))
		o := g.options()
		o.URLs = []string{"ws://gw-a", "ws://gw-b"}
		var phases []Phase
		o.OnState = func(s State) { phases = append(phases, s.Phase) }
		tokens := 0
		o.Token = func(context.Context) (string, error) { tokens++; return "t", nil }
		c := connect(t, o)
		before := c.State().URL
		for _, body := range []string{"a", "b"} {
			if _, err := c.Submit(t.Context(), Message{To: "bob", Body: []byte(body)}); err != nil {
				t.Fatal(err)
			}
		}
		<-left
		if _, err := c.Send(t.Context(), Message{To: "bob", Body: []byte("c")}); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if !slices.Equal(phases, []Phase{Connecting, Connected}) || tokens != 1 {
			t.Errorf("phases %v, %d tokens", phases, tokens)
		}
		if fmt.Sprint(second) != "[a b c]" {
			t.Errorf("on the second connection: %v", second)
		}
		if got := ids(c); !slices.Equal(got, []string{"1", "2", "3"}) {
			t.Errorf("delivered %v", got)
		}
		d := g.seen()[1]
		if gap := d.at.Sub(asked); gap < delay || gap > delay+DefaultMinBackoff {
			t.Errorf("moved after %v", gap)
		}
		if d.query["resume"] != "m1" || d.query["lastSeq"] != "1" || d.query["token"] != "t" || d.host == g.seen()[0].host {
			t.Errorf("moved with %v", d)
		}
		if s := c.State(); s.URL == before || s.Phase != Connected {
			t.Errorf("state %+v", s)
		}
		// c, too, if it was written to the old connection in the last moment.
		if s := c.Stats(); s.Connects != 1 || s.Migrations != 1 || s.Resends < 2 || s.Resends > 3 || s.Repeats != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

// TestAckNamesWhatItsConnectionCarried: the new session may not have sent yet
// what came over the old connection.
func TestAckNamesWhatItsConnectionCarried(t *testing.T) {
	bubble(t, func(t *testing.T) {
		leave, left := make(chan struct{}), make(chan struct{})
		acked := make(chan uint64, 1)
		g := newGateway(t, connectedV2("r1", false, func(p *peer) {
			_ = p.migrate(&messagev1.Migrate{DeadlineMs: 10000, ResumeToken: "m1"})
			<-leave
			for seq := range uint64(5) {
				_ = p.deliverSeq(int(seq), seq+1)
			}
			p.close(4201, "replaced")
			close(left)
		}), connectedV2("r2", true, func(p *peer) {
			close(leave)
			<-left
			_ = p.deliverSeq(0, 1)
			acked <- p.nextAck()
			p.ackAll()
		}))
		c := connect(t, g.options())
		if seq := <-acked; seq != 1 {
			t.Errorf("acknowledged %d, want 1", seq)
		}
		if got := ids(c); len(got) != 5 {
			t.Errorf("delivered %v", got)
		}
	})
}

// TestMigrateToANewSession: what the old connection still says then comes over
// the new one, in its order.
func TestMigrateToANewSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		leave := make(chan struct{})
		g := newGateway(t, connectedV2("r1", false, func(p *peer) {
			_ = p.deliverSeq(1, 1)
			_ = p.migrate(&messagev1.Migrate{DeadlineMs: 10000, ResumeToken: "m1"})
			<-leave
			_ = p.deliverSeq(3, 3)
			p.close(4201, "replaced")
		}), connectedV2("r2", false, func(p *peer) {
			time.AfterFunc(time.Second, func() { close(leave) })
			time.Sleep(2 * time.Second)
			_ = p.deliverSeq(1, 1)
			_ = p.deliverSeq(2, 2)
			_ = p.deliverSeq(3, 3)
			p.ackAll()
		}))
		c := connect(t, g.options())
		time.Sleep(time.Minute)
		if got := ids(c); !slices.Equal(got, []string{"1", "2", "3"}) || c.Stats().Migrations != 1 || c.Stats().Repeats != 1 {
			t.Errorf("delivered %v, stats %+v", got, c.Stats())
		}
	})
}

// TestLanes: the writer of a connection that has been left gets no message more,
// although it may have been told that there is one.
func TestLanes(t *testing.T) {
	o := newOutbox(3)
	first := o.link()
	a, b := &Pending{id: "a", done: make(chan struct{})}, &Pending{id: "b", done: make(chan struct{})}
	for _, p := range []*Pending{a, b} {
		if err := o.add(t.Context(), p, nil); err != nil {
			t.Fatal(err)
		}
	}
	if p := o.next(first); p != a {
		t.Errorf("first %v", p)
	}
	second := o.link()
	if p := o.next(first); p != nil {
		t.Errorf("%s went out on the old connection", p.id)
	}
	<-second.wake
	if p, q, r := o.next(second), o.next(second), o.next(second); p != a || q != b || r != nil || o.resent() != 1 {
		t.Errorf("then %v, %v, %v; %d resent", p, q, r, o.resent())
	}
	o.end(ErrClosed)
}

// asksToMove is a first connection that is told to move within the deadline and
// then ends with what code says; 0 is without a close.
func asksToMove(deadline, end time.Duration, code int) step {
	return connectedV2("r1", false, func(p *peer) {
		_ = p.migrate(&messagev1.Migrate{DeadlineMs: deadline.Milliseconds(), ResumeToken: "m1"})
		time.Sleep(end)
		if code != 0 {
			p.close(code, "the end")
		}
	})
}

// TestMigrateFails: as long as there is time it tries again, and then the first
// connection goes on until it ends.
func TestMigrateFails(t *testing.T) {
	lost := upgraded(func(*peer) {})
	still := connectedV2("r2", true, (*peer).ackAll)
	for _, tt := range []struct {
		name   string
		steps  []step
		resume string // of the dials after the first
		err    error  // the client's end
		moves  uint64
		states int
	}{
		{name: "it works the third time", moves: 1, resume: "m1 m1 m1", states: 2,
			steps: []step{asksToMove(time.Minute, time.Minute, 4201), status(503), lost, still}},
		{name: "the deadline passes", resume: "m1 r1", states: 4,
			steps: []step{asksToMove(5*time.Second, 8*time.Second, 4200), status(503, "Retry-After", "6"), still}},
		{name: "the token is refused", resume: "m1 r1", states: 4,
			steps: []step{asksToMove(time.Minute, 8*time.Second, 4200), refusedWith("expired migrate token"), still}},
		{name: "the first one breaks while the second opens", resume: "m1", moves: 1, states: 2,
			steps: []step{asksToMove(time.Minute, time.Second, 0), func(g *gateway, w http.ResponseWriter, r *http.Request) {
				time.Sleep(3 * time.Second)
				still(g, w, r)
			}}},
		{name: "the first one is replaced while the second opens", resume: "m1", moves: 1, states: 2,
			steps: []step{asksToMove(time.Minute, time.Second, 4201), func(g *gateway, w http.ResponseWriter, r *http.Request) {
				time.Sleep(3 * time.Second)
				still(g, w, r)
			}}},
		{name: "moved, but the second was lost before it was told", resume: "m1 ", states: 4,
			steps: []step{asksToMove(time.Minute, 600*time.Millisecond, 4201), upgraded(func(*peer) { time.Sleep(time.Second) }), still}},
		{name: "replaced by somebody else", resume: "m1", err: ErrReplaced, states: 3,
			steps: []step{asksToMove(time.Minute, 8*time.Second, 4201), refusedWith("stale resume token"), still}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newGateway(t, tt.steps...)
				o := g.options()
				states := 0
				o.OnState = func(State) { states++ }
				c := connect(t, o)
				time.Sleep(5 * time.Minute)
				synctest.Wait()
				var resume []string
				for _, d := range g.seen()[1:] {
					resume = append(resume, d.query["resume"])
				}
				if got := strings.Join(resume, " "); got != tt.resume {
					t.Errorf("went on with %q, want %q", got, tt.resume)
				}
				if !errors.Is(c.Err(), tt.err) || states != tt.states || c.Stats().Migrations != tt.moves {
					t.Errorf("ended with %v after %d states, stats %+v", c.Err(), states, c.Stats())
				}
			})
		})
	}
}

// TestMigrateBehindASlowApplication: while it takes nothing, the new connection
// is kept alive and the old one does not stay.
func TestMigrateBehindASlowApplication(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var gone time.Duration
		pings := 0
		g := newGateway(t, connectedV2("r1", false, func(p *peer) {
			_ = p.deliverSeq(1, 1)
			_ = p.deliverSeq(2, 2)
			_ = p.migrate(&messagev1.Migrate{DeadlineMs: 60000, ResumeToken: "m1"})
			_ = p.deliverSeq(3, 3)
			began := time.Now()
			for p.read() != nil {
			}
			gone = time.Since(began)
		}), connectedV2("r2", true, func(p *peer) {
			go func() {
				_ = p.deliverSeq(3, 3)
				_ = p.deliverSeq(4, 4)
			}()
			for f := p.read(); f != nil; f = p.read() {
				if f.GetHeartbeatPing() != nil {
					pings++
				}
			}
		}))
		o := g.options()
		o.QueueSize = 2
		c := connect(t, o)
		time.Sleep(20 * time.Second)
		var got []string
		for d := range c.Deliveries(t.Context()) {
			if got = append(got, d.ID); len(got) == 4 {
				break
			}
		}
		if !slices.Equal(got, []string{"1", "2", "3", "4"}) || c.Stats().Migrations != 1 {
			t.Errorf("delivered %v, stats %+v", got, c.Stats())
		}
		synctest.Wait()
		if pings == 0 || gone == 0 || gone > lingering+DefaultMinBackoff {
			t.Errorf("%d heartbeats on the new connection; the old one stayed for %v", pings, gone)
		}
	})
}

// TestABrokenConnectionDoesNotWaitForTheApplication: what it could not queue
// comes again, and is no repeat then, resumed or not.
func TestABrokenConnectionDoesNotWaitForTheApplication(t *testing.T) {
	for _, resumed := range []bool{true, false} {
		bubble(t, func(t *testing.T) {
			g := newGateway(t, connectedV2("r1", false, func(p *peer) {
				for i := range uint64(3) {
					_ = p.deliverSeq(int(i)+1, i+1)
				}
				time.Sleep(time.Second)
			}), connectedV2("r2", resumed, func(p *peer) {
				if !resumed {
					_ = p.deliverSeq(1, 1)
					_ = p.deliverSeq(2, 2)
				}
				_ = p.deliverSeq(3, 3)
				p.ackAll()
			}))
			o := g.options()
			o.QueueSize = 2
			c := connect(t, o)
			time.Sleep(25 * time.Second) // a heartbeat finds out
			if n := c.Stats().Connects; n != 2 {
				t.Errorf("%d connects", n)
			}
			var got []string
			for d := range c.Deliveries(t.Context()) {
				if got = append(got, d.ID); len(got) == 3 {
					break
				}
			}
			if synctest.Wait(); !slices.Equal(got, []string{"1", "2", "3"}) || len(c.in.queue) != 0 {
				t.Errorf("delivered %v and %d more", got, len(c.in.queue))
			}
		})
	}
}

func TestMoveURL(t *testing.T) {
	g := newGateway(t, status(500))
	c, err := New(g.options())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ url, present, want string }{
		{"", "ws://a/ws", ""}, {"ws://b", "ws://a/ws", "ws://b/ws"}, {"wss://b/x", "ws://a/ws", "wss://b/x"},
		{"ws://b", "wss://a/ws", ""}, {"http://b", "https://a/ws", ""}, {"https://b", "wss://a/ws", ""}, {"wss://b", "https://a/ws", "wss://b/ws"},
		{"ftp://b", "ws://a/ws", ""}, {"::", "ws://a/ws", ""}, {"ws://u:p@b/ws", "ws://a/ws", ""}, {"ws:///ws", "ws://a/ws", ""},
		// References.
		{"?track=canary", "wss://a/ws", "wss://a/ws?track=canary"}, {"/other?x=1#f", "ws://a/ws", "ws://a/other?x=1"},
		{"//b:8443/ws", "wss://a/ws", "wss://b:8443/ws"}, {"gw2", "https://a/im/ws", "https://a/im/gw2"}, {"../ws", "ws://a/im/b/ws", "ws://a/im/ws"},
	} {
		got := ""
		if u := c.moveURL(tt.url, tt.present); u != nil {
			got = u.String()
		}
		if got != tt.want {
			t.Errorf("from %s to %q: %q, want %q", tt.present, tt.url, got, tt.want)
		}
	}
}

// TestMigrateToATarget: where the cluster says, and by the usual way if that cannot
// be reached in time.
func TestMigrateToATarget(t *testing.T) {
	for name, c := range map[string]struct {
		url, hosts string
		within     time.Duration
	}{
		"a gateway":      {"ws://gw-b/ws", "[gw-a gw-b]", time.Second},
		"a reference":    {"?track=canary", "[gw-a gw-a]", time.Second},
		"silence":        {"ws://silent/ws", "[gw-a gw-a]", 5 * time.Second},
		"it refuses":     {"ws://busy/ws", "[gw-a busy gw-a]", 3 * time.Second},
		"nobody's there": {"ws://nobody/ws", "[gw-a gw-a]", 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var asked, moved time.Time
				first := connectedV2("r1", false, func(p *peer) {
					asked = time.Now()
					_ = p.migrate(&messagev1.Migrate{DeadlineMs: 9000, ResumeToken: "m1", Url: c.url})
					time.Sleep(8 * time.Second)
					p.close(4201, "replaced")
				})
				second := connectedV2("r2", true, func(p *peer) {
					moved = time.Now()
					p.ackAll()
				})
				steps := []step{first, second}
				if name == "it refuses" {
					steps = []step{first, status(http.StatusServiceUnavailable), second}
				}
				g := newGateway(t, steps...)
				o := g.options()
				o.HTTPClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
					switch addr {
					case "silent:80":
						<-ctx.Done()
						return nil, ctx.Err()
					case "nobody:80":
						return nil, errors.New("connection refused")
					}
					return g.ln.dial(ctx, network, addr)
				}}}
				cl := connect(t, o)
				time.Sleep(20 * time.Second)
				synctest.Wait()
				var hosts []string
				for _, d := range g.seen() {
					hosts = append(hosts, d.host)
				}
				if took := moved.Sub(asked); fmt.Sprint(hosts) != c.hosts || took > c.within || cl.Stats().Migrations != 1 || cl.Stats().Connects != 1 {
					t.Errorf("dialed %v, moved after %v, %+v", hosts, took, cl.Stats())
				}
			})
		})
	}
}

func TestMoveWait(t *testing.T) {
	for range 100 {
		for _, tt := range []struct {
			delay    int64
			low, top time.Duration
		}{{0, 0, 500}, {3000, 3000, 3500}, {3800, 3800, 3900}, {9000, 2000, 2500}, {-1, 0, 500}, {1 << 62, 2000, 2500}} {
			d := moveWait(tt.delay, 4*time.Second, 500*time.Millisecond)
			if d < tt.low*time.Millisecond || d > tt.top*time.Millisecond {
				t.Errorf("delay %d: %v", tt.delay, d)
			}
		}
	}
}
