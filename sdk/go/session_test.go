package mics

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// connectedV2 is connected for a session of version 2.
func connectedV2(token string, resumed bool, f func(p *peer)) step {
	return upgraded(func(p *peer) {
		_ = p.connAck(&messagev1.ConnectAck{Version: 2, ResumeToken: token, Resumed: resumed, HeartbeatTimeoutSeconds: 30})
		f(p)
	})
}

// nextAck returns the seq of the client's next ack, 0 when the connection is over.
func (p *peer) nextAck() uint64 {
	for f := p.read(); f != nil; f = p.read() {
		if f.GetDeliveryAck() != nil {
			return f.GetDeliveryAck().GetSeq()
		}
	}
	return 0
}

func ids(c *Client) []string {
	var got []string
	for {
		select {
		case d, ok := <-c.in.queue:
			if !ok {
				return got
			}
			got = append(got, d.ID)
		default:
			return got
		}
	}
}

func TestResume(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGateway(t,
			connectedV2("r1", false, func(p *peer) { // breaks without a close
				for i := range 3 {
					_ = p.deliverSeq(i, uint64(i)+1)
				}
			}),
			connectedV2("r2", true, func(p *peer) {
				_ = p.deliverSeq(2, 3) // an ack that was lost
				_ = p.deliverSeq(3, 4)
			}),
			connectedV2("r3", false, func(p *peer) { // anew, with a backlog
				_ = p.deliverSeq(3, 1)
				_ = p.deliverSeq(4, 2)
				_ = p.deliverSeq(4, 3) // another message, or the gateway had not let it pass
				p.ackAll()
			}))
		c := connect(t, g.options())
		time.Sleep(time.Minute)
		if got := ids(c); !slices.Equal(got, []string{"0", "1", "2", "3", "4", "4"}) {
			t.Errorf("delivered %v", got)
		}
		var dials []string
		for _, d := range g.seen() {
			dials = append(dials, d.query["v"]+" "+d.query["resume"]+" "+d.query["lastSeq"])
		}
		if !slices.Equal(dials, []string{"2  ", "2 r1 3", "2 r2 4"}) {
			t.Errorf("dialed with %q", dials)
		}
		if s := c.Stats(); s.Connects != 3 || s.Resumes != 1 || s.Repeats != 2 || s.Deliveries != 8 || s.Migrations != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

// TestResumeRefused: the client begins anew, at once, and does not take it for a
// refusal of its token.
func TestResumeRefused(t *testing.T) {
	for _, reason := range []string{
		"stale resume token", "invalid resume token", "resume token of another session",
		"invalid resume: lastSeq from the future", "invalid lastSeq", "expired migrate token",
	} {
		t.Run(reason, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newGateway(t,
					connectedV2("r1", false, func(p *peer) { time.Sleep(time.Minute); p.close(4200, "server draining") }),
					refusedWith(reason), connectedV2("r2", false, (*peer).ackAll))
				o := g.options()
				o.OnState = func(s State) {
					if errors.Is(s.Err, ErrUnauthorized) {
						t.Errorf("state %+v", s)
					}
				}
				c := connect(t, o)
				time.Sleep(time.Minute + time.Second)
				if s := c.State(); s.Phase != Connected {
					t.Fatalf("state %+v", s)
				}
				if seen := g.seen(); len(seen) != 3 || seen[1].query["resume"] != "r1" || seen[2].query["resume"] != "" {
					t.Errorf("dialed %v", seen)
				}
			})
		})
	}
}

func TestVersion1(t *testing.T) {
	t.Run("of the gateway", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			g := newGateway(t, upgraded(func(p *peer) {
				_ = p.connAck(&messagev1.ConnectAck{Version: 1, ResumeToken: "r1", HeartbeatTimeoutSeconds: 30})
				_ = p.deliverSeq(1, 1)
				_ = p.deliverSeq(2, 1)
				_ = p.migrate(&messagev1.Migrate{ResumeToken: "m1"})
				time.AfterFunc(time.Minute, func() { _ = p.ws.CloseNow() })
				if seq := p.nextAck(); seq != 0 {
					t.Errorf("ack of %d", seq)
				}
			}), connected(30, (*peer).ackAll))
			c := connect(t, g.options())
			time.Sleep(2 * time.Minute)
			if got := ids(c); len(got) != 2 || c.Stats().Migrations != 0 {
				t.Errorf("delivered %v, stats %+v", got, c.Stats())
			}
			if seen := g.seen(); len(seen) != 2 || seen[1].query["resume"] != "" {
				t.Errorf("dialed %v", seen)
			}
		})
	})
	t.Run("of the client", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			g := newGateway(t, connectedV2("r1", false, func(p *peer) { _ = p.deliver(1) }),
				connectedV2("r1", false, func(p *peer) { _ = p.deliver(1); p.ackAll() }))
			o := g.options()
			o.DisableV2 = true
			c := connect(t, o)
			time.Sleep(time.Minute)
			if d := g.seen()[1]; d.query["v"] != "" || d.query["resume"] != "" {
				t.Errorf("dialed %v", d)
			}
			if got := ids(c); len(got) != 2 {
				t.Errorf("delivered %v", got)
			}
		})
	})
}

func TestTokenInHeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGateway(t, func(g *gateway, w http.ResponseWriter, r *http.Request) {
			ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"mics.v2"}})
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = ws.CloseNow() }()
			p := &peer{t: t, ws: ws}
			_ = p.connAck(&messagev1.ConnectAck{Version: 2})
			p.ackAll()
		})
		o := g.options()
		o.TokenInHeader = true
		connect(t, o)
		d := g.seen()[0]
		if want := "mics.v2,mics.token." + base64.RawURLEncoding.EncodeToString([]byte("s3cret-token")); d.offer != want || d.query["token"] != "" {
			t.Errorf("offered %q, in the URL %q", d.offer, d.query["token"])
		}
		o.DisableV2 = true
		if _, err := New(o); err == nil {
			t.Error("a client of version 1 has no header for its token")
		}
	})
}

func TestAcks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		type ack struct {
			seq   uint64
			after time.Duration
		}
		var acks []ack
		g := newGateway(t, connectedV2("r1", false, func(p *peer) {
			seq := uint64(2) // as after a resumption, when an ack overtook it
			deliver := func(n int) {
				for range n {
					seq++
					_ = p.deliverSeq(int(seq), seq)
				}
			}
			expect := func(n int, more func()) {
				deliver(n)
				more()
				began := time.Now()
				acks = append(acks, ack{p.nextAck(), time.Since(began)})
			}
			nothing := func() {}
			expect(1, nothing)
			expect(ackEvery, nothing)
			expect(5, nothing)
			expect(2, func() { _ = p.migrate(&messagev1.Migrate{ResumeToken: "m1", DeadlineMs: 60000, DelayMs: 50000}) })
			expect(3, func() { time.Sleep(ackDelay / 2); deliver(1) })
			deliver(1) // and then Close
			acks = append(acks, ack{p.nextAck(), 0})
			_ = p.deliverSeq(99, seq+1)
			_, _, err := p.ws.Read(context.Background())
			if websocket.CloseStatus(err) != 1000 {
				t.Errorf("after the last ack: %v", err)
			}
		}))
		c := connect(t, g.options())
		time.Sleep(3*ackDelay + ackDelay/2)
		want := []ack{{3, ackDelay}, {35, 0}, {40, ackDelay}, {42, 0}, {46, ackDelay / 2}, {47, 0}}
		n := c.Stats().Deliveries
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if !slices.Equal(acks, want) {
			t.Errorf("acks %v, want %v", acks, want)
		}
		if got := c.Stats().Deliveries; got != n {
			t.Errorf("%d deliveries after Close began, which nobody acknowledged", got-n)
		}
	})
}

// TestOnlyWhatIsQueuedIsAcknowledged: what waits for room in the application's
// queue when Close begins stays with the cluster.
func TestOnlyWhatIsQueuedIsAcknowledged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		acked := make(chan uint64, 2)
		g := newGateway(t, connectedV2("r1", false, func(p *peer) {
			for i := range uint64(4) {
				_ = p.deliverSeq(int(i)+1, i+1)
			}
			for seq := p.nextAck(); seq != 0; seq = p.nextAck() {
				acked <- seq
			}
		}))
		o := g.options()
		o.QueueSize = 3
		c := connect(t, o)
		synctest.Wait()
		if err := c.Close(t.Context()); err != nil { // nobody takes: and yet it is not kept
			t.Error(err)
		}
		if seq := <-acked; seq != 3 {
			t.Errorf("acknowledged %d, want 3", seq)
		}
		if got := ids(c); len(got) < 3 || got[2] != "3" || slices.Contains(got, "4") {
			t.Errorf("delivered %v", got)
		}
	})
}

func TestRecent(t *testing.T) {
	r := newRecent()
	a, b := &session{}, &session{}
	m := func(i int) *messagev1.MessageRequest {
		return &messagev1.MessageRequest{MsgId: fmt.Sprint(i), TimestampMs: 1}
	}
	repeated := func(s *session, m *messagev1.MessageRequest) bool {
		defer r.add(s, r.key(m))
		return r.repeated(s, r.key(m))
	}
	for i := range recentKeys + 10 {
		if repeated(a, m(i)) || repeated(a, m(i)) { //nolint:staticcheck // twice on purpose: the first adds
			t.Fatal("within one session nothing is a repeat")
		}
	}
	for i := range recentKeys {
		if !repeated(b, m(i+10)) {
			t.Fatalf("message %d was forgotten", i+10)
		}
	}
	if repeated(b, m(9)) || len(r.known) != recentKeys {
		t.Errorf("%d keys are known", len(r.known))
	}
	for i, other := range []*messagev1.MessageRequest{
		{MsgId: "500", TimestampMs: 2}, {MsgId: "500", TimestampMs: 1, MsgBody: []byte("x")}, {MsgId: "500", TimestampMs: 1, ToUserId: "x"},
		{MsgId: "500", TimestampMs: 1, GroupId: "x"}, {UserId: "5", MsgId: "00", TimestampMs: 1},
	} {
		if repeated(&session{}, other) {
			t.Errorf("other message %d was taken for a repeat", i)
		}
	}
}
