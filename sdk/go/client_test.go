package mics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/google/uuid"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

func TestConnectSendReceiveClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		closed := make(chan websocket.StatusCode, 1)
		g := newGateway(t, connected(30, func(p *peer) {
			m := p.message()
			if id, err := uuid.Parse(m.GetMsgId()); err != nil || id.Version() != 7 {
				t.Errorf("id %q is no UUIDv7", m.GetMsgId())
			}
			if m.GetToUserId() != "bob" || string(m.GetMsgBody()) != "hi" || m.GetMsgType() != messagev1.MessageType_SINGLE_CHAT {
				t.Errorf("got %v", m)
			}
			_ = p.ack(&messagev1.MessageAck{MsgId: m.GetMsgId(), TimestampMs: 2000, OfflineBufferedUsers: 1})
			_ = p.deliver(1)
			_, _, err := p.ws.Read(context.Background())
			closed <- websocket.CloseStatus(err)
		}))
		var states []Phase
		o := g.options()
		o.OnState = func(s State) { states = append(states, s.Phase) }
		got := make(chan *Delivery, 1)
		o.OnDelivery = func(d *Delivery) { got <- d }
		c := connect(t, o)
		if s := c.State(); s.Phase != Connected || s.Node != "gw-test" || s.User != "ann" || s.URL != "ws://gw-a/ws" {
			t.Errorf("state %+v", s)
		}
		ack, err := c.Send(t.Context(), Message{To: "bob", Body: []byte("hi")})
		if err != nil || ack.OfflineBuffered != 1 || !ack.Time.Equal(time.UnixMilli(2000)) || ack.Duplicate {
			t.Errorf("ack %+v, %v", ack, err)
		}
		if d := <-got; d.ID != "1" || d.From != "bob" || d.FromDevice != "d9" || string(d.Body) != "body 1" {
			t.Errorf("delivery %+v", d)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if code := <-closed; code != 1000 {
			t.Errorf("the gateway saw close code %d, want 1000", code)
		}
		if want := []Phase{Connecting, Connected, Closed}; !slices.Equal(states, want) {
			t.Errorf("states %v, want %v", states, want)
		}
		if _, err := c.Send(t.Context(), Message{To: "bob"}); !errors.Is(err, ErrClosed) {
			t.Errorf("Send after Close: %v", err)
		}
		d := g.seen()[0].query
		if d["tenantId"] != "demo" || d["deviceId"] != "d1" || d["token"] != "s3cret-token" {
			t.Errorf("handshake %v", d)
		}
	})
}

// TestCloseCodes checks for each way to be closed what the client does next.
func TestCloseCodes(t *testing.T) {
	const longAgo = 10 * time.Second // longer than stableAfter
	tests := []struct {
		code   int
		reason string
		final  error         // the client ends with this
		within time.Duration // else: it is back within this time
		exact  bool          // ... and not a moment later than at once
		other  bool          // ... at another URL
	}{
		{code: 1001, reason: "bye", within: DefaultMinBackoff, other: true},
		{code: 1003, within: DefaultMinBackoff, other: true},
		{code: 1011, within: DefaultMinBackoff, other: true},
		{code: 4001, reason: "auth unavailable", within: DefaultMinBackoff},
		{code: 4001, reason: "expired", exact: true},
		{code: 4002, reason: "invalid tenant", final: ErrInvalidTenant},
		{code: 4100, reason: "heartbeat timeout", exact: true},
		{code: 4200, reason: "server draining", exact: true, other: true},
		{code: 4201, reason: "replaced", final: ErrReplaced},
		{code: 4408, reason: "slow consumer", within: 4 * DefaultMinBackoff},
		{code: 4409, reason: "kicked", final: ErrKicked},
		{code: 4429, reason: "user limit", within: 4 * DefaultMinBackoff},
		{code: 4999, reason: "of the future", within: DefaultMinBackoff, other: true},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.code, " ", tt.reason), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var closedAt time.Time
				g := newGateway(t, connected(30, func(p *peer) {
					time.Sleep(longAgo) // fake time: a connection that held for a while
					closedAt = time.Now()
					p.close(tt.code, tt.reason)
				}), connected(30, (*peer).ackAll))
				o := g.options()
				o.URLs = []string{"ws://gw-a", "ws://gw-b"}
				tokens := 0
				o.Token = func(context.Context) (string, error) { tokens++; return fmt.Sprint("token", tokens), nil }
				c := connect(t, o)
				time.Sleep(longAgo + time.Minute)
				seen := g.seen()
				if tt.final != nil {
					if err := c.Err(); !errors.Is(err, tt.final) {
						t.Errorf("ended with %v, want %v", err, tt.final)
					}
					if ce, ok := errors.AsType[*CloseError](c.Err()); !ok || ce.Reason != tt.reason {
						t.Errorf("%v does not carry the gateway's reason", c.Err())
					}
					if err := c.Connect(t.Context()); !errors.Is(err, tt.final) {
						t.Errorf("Connect afterwards: %v", err)
					}
					if len(seen) != 1 {
						t.Errorf("dialed %d times, want once", len(seen))
					}
					return
				}
				if len(seen) != 2 {
					t.Fatalf("dialed %d times, want 2", len(seen))
				}
				if gap := seen[1].at.Sub(closedAt); tt.exact && gap != 0 || gap > tt.within {
					t.Errorf("back after %v, want at most %v", gap, tt.within)
				}
				if moved := seen[0].host != seen[1].host; moved != tt.other {
					t.Errorf("went from %s to %s", seen[0].host, seen[1].host)
				}
				if seen[1].query["token"] != "token2" {
					t.Errorf("second connect with %s", seen[1].query["token"])
				}
				if s := c.Stats(); s.Connects != 2 {
					t.Errorf("stats %+v", s)
				}
			})
		})
	}
}

func TestRefusedToken(t *testing.T) {
	t.Run("the same one again ends it", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			g := newGateway(t, refusedWith("bad token"))
			c := start(t, g.options())
			err := c.Connect(t.Context())
			if !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "bad token") {
				t.Errorf("Connect: %v", err)
			}
			if n := len(g.seen()); n != 1 {
				t.Errorf("dialed %d times", n)
			}
		})
	})
	t.Run("fresh ones are tried, not forever", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			g := newGateway(t, refusedWith("bad token"))
			o := g.options()
			n := 0
			o.Token = func(context.Context) (string, error) { n++; return fmt.Sprint("t", n), nil }
			if err := start(t, o).Connect(t.Context()); !errors.Is(err, ErrUnauthorized) {
				t.Errorf("Connect: %v", err)
			}
			if n := len(g.seen()); n != maxRefusals {
				t.Errorf("dialed %d times, want %d", n, maxRefusals)
			}
		})
	})
	t.Run("a fresh one works", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			g := newGateway(t, refusedWith("expired"), connected(30, (*peer).ackAll))
			o := g.options()
			n := 0
			o.Token = func(context.Context) (string, error) { n++; return fmt.Sprint("t", n), nil }
			connect(t, o)
		})
	})
	t.Run("the token source fails for a while", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			g := newGateway(t, connected(30, (*peer).ackAll))
			o := g.options()
			n := 0
			o.Token = func(context.Context) (string, error) {
				if n++; n < 4 {
					return "", errors.New("login server is away")
				}
				return "t", nil
			}
			connect(t, o)
		})
	})
}

func TestHandshakeRefusals(t *testing.T) {
	t.Run("Retry-After is honoured", func(t *testing.T) {
		for _, code := range []int{503, 429} {
			bubble(t, func(t *testing.T) {
				g := newGateway(t, status(code, "Retry-After", "7"), connected(30, (*peer).ackAll))
				connect(t, g.options())
				seen := g.seen()
				if gap := seen[1].at.Sub(seen[0].at); gap < 7*time.Second || gap > 7*time.Second+DefaultMinBackoff {
					t.Errorf("HTTP %d: back after %v", code, gap)
				}
			})
		}
	})
	t.Run("a wrong address is final at first", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			g := newGateway(t, status(403))
			err := start(t, g.options()).Connect(t.Context())
			if he, ok := errors.AsType[*HandshakeError](err); !ok || he.Status != 403 {
				t.Errorf("Connect: %v", err)
			}
		})
	})
	t.Run("but not once it has worked", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			g := newGateway(t, connected(30, func(p *peer) { p.close(4200, "server draining") }),
				status(403), connected(30, (*peer).ackAll))
			c := connect(t, g.options())
			time.Sleep(time.Minute)
			if s := c.State(); s.Phase != Connected || len(g.seen()) != 3 {
				t.Errorf("state %+v after %d dials", s, len(g.seen()))
			}
		})
	})
	t.Run("a redirect does not carry the token away", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			g := newGateway(t, status(http.StatusFound, "Location", "http://elsewhere/"), connected(30, (*peer).ackAll))
			connect(t, g.options())
			for _, d := range g.seen() {
				if d.host != "gw-a" {
					t.Errorf("dialed %s", d.host)
				}
			}
		})
	})
}

// TestConnectGivesUpWaiting: the caller's patience ends, the client's does not.
func TestConnectGivesUpWaiting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGateway(t, status(503, "Retry-After", "20"), connected(30, (*peer).ackAll))
		c := start(t, g.options())
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := c.Connect(ctx)
		he, ok := errors.AsType[*HandshakeError](err)
		if !errors.Is(err, context.DeadlineExceeded) || !ok || he.Status != 503 {
			t.Errorf("Connect: %v, want the deadline and the last failure", err)
		}
		if err := c.Connect(t.Context()); err != nil {
			t.Errorf("Connect again: %v", err)
		}
	})
}

// TestAcceptAndCloseIsNotATightLoop: 4200 over and over is backed off.
func TestAcceptAndCloseIsNotATightLoop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGateway(t, connected(30, func(p *peer) { p.close(4200, "server draining") }))
		c := start(t, g.options())
		if err := c.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := len(g.seen()); n > 40 {
			t.Errorf("dialed %d times in a minute", n)
		}
	})
}

func TestHeartbeat(t *testing.T) {
	bubble(t, func(t *testing.T) {
		pings := make(chan time.Time, 3)
		g := newGateway(t, connected(9, func(p *peer) {
			answered := 0
			for f := p.read(); f != nil; f = p.read() {
				if f.GetHeartbeatPing() != nil && answered < 3 {
					answered++
					pings <- time.Now()
					_ = p.send(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_HeartbeatPong{
						HeartbeatPong: &messagev1.HeartbeatPong{}}})
				} // and then silence: a gateway that hangs
			}
		}), connected(9, (*peer).ackAll))
		began := time.Now()
		c := connect(t, g.options())
		time.Sleep(17 * time.Second) // three answered pings, then less than the timeout
		if n := c.Stats().Connects; n != 1 {
			t.Errorf("%d connects while the gateway was not overdue", n)
		}
		for i := 1; i <= 3; i++ {
			if at := (<-pings).Sub(began); at != time.Duration(i)*3*time.Second {
				t.Errorf("ping %d after %v", i, at)
			}
		}
		time.Sleep(2 * time.Second)
		if n := c.Stats().Connects; n != 2 {
			t.Errorf("%d connects, want 2: silence has to be noticed", n)
		}
	})
}

func TestGarbageFrames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var log bytes.Buffer
		g := newGateway(t, connected(30, func(p *peer) {
			ctx := context.Background()
			_ = p.ws.Write(ctx, websocket.MessageBinary, []byte{0xff, 0xff, 0xff})
			_ = p.ws.Write(ctx, websocket.MessageText, []byte("hello"))
			_ = p.ws.Write(ctx, websocket.MessageBinary, nil)                              // empty: no payload
			_ = p.ws.Write(ctx, websocket.MessageBinary, []byte{0xfa, 0x01, 2, 1, 2})      // a field of the future
			_ = p.send(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Delivery{}}) // delivery of nothing
			_ = p.ack(&messagev1.MessageAck{MsgId: "never sent"})                          // nobody's ack
			_ = p.send(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Error{
				Error: &messagev1.ServerError{Code: 4429, Message: "slow down"}}})
			_ = p.deliver(1)
			p.ackAll()
		}))
		o := g.options()
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		c := connect(t, o)
		for d, err := range c.Deliveries(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if d.ID == "1" {
				break
			}
		}
		if _, err := c.Send(t.Context(), Message{To: "bob"}); err != nil {
			t.Errorf("the connection did not survive: %v", err)
		}
		if s := c.Stats(); s.BadFrames != 2 || s.Connects != 1 {
			t.Errorf("stats %+v", s)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if n := strings.Count(log.String(), "frames ignored"); n != 1 {
			t.Errorf("%d log lines about bad frames, want 1", n)
		}
	})
}

func TestFirstFrameMustBeConnectAck(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGateway(t, upgraded(func(p *peer) { _ = p.deliver(1); p.read() }), connected(30, (*peer).ackAll))
		c := connect(t, g.options())
		if n := c.Stats().Deliveries; n != 0 || len(g.seen()) != 2 {
			t.Errorf("%d deliveries, %d dials", n, len(g.seen()))
		}
	})
}

// TestTokenStaysSecret drives every kind of failure and looks for the token in
// all that the client says.
func TestTokenStaysSecret(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var log bytes.Buffer
		var said []string
		var mu sync.Mutex
		g := newGateway(t, status(503), status(302, "Location", "/x"), refusedWith("auth unavailable"),
			func(_ *gateway, w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) },
			connected(3, func(p *peer) { p.read(); time.Sleep(time.Minute) }),
			refusedWith("bad"))
		o := g.options()
		o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		o.OnState = func(s State) {
			mu.Lock()
			defer mu.Unlock()
			said = append(said, fmt.Sprintf("%+v", s))
		}
		c := start(t, o)
		_ = c.Connect(t.Context())
		<-c.Done()
		_ = g.ln.Close() // and a network error
		o.Token = func(context.Context) (string, error) { return "s3cret-token", nil }
		c2 := start(t, o)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := c2.Connect(ctx)
		if err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("Connect: %v", err)
		}
		if err := c2.Close(t.Context()); err != nil {
			t.Error(err)
		}
		all := log.String() + strings.Join(said, "\n") + err.Error() + c.Err().Error()
		if len(said) < 8 || strings.Contains(all, "s3cret") {
			t.Errorf("token leaked, or too little was said:\n%s", all)
		}
	})
}

func TestNewChecksOptions(t *testing.T) {
	_, err := New(Options{URLs: []string{"ftp://x", "ws://", "::"}, Overflow: 9})
	for _, want := range []string{"Tenant", "Device", "Token", "ftp://x", "no host", "Overflow"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
	for in, want := range map[string]string{
		"ws://h:1": "ws://h:1/ws", "wss://h/": "wss://h/ws", "wss://h/im/ws?region=eu": "wss://h/im/ws?region=eu",
	} {
		if u, err := gatewayURL(in); err != nil || u.String() != want {
			t.Errorf("%s -> %v, %v", in, u, err)
		}
	}
}

func TestCloseWithoutConnect(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGateway(t, status(500))
		c := start(t, g.options())
		p, err := c.Submit(t.Context(), Message{To: "bob"})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := p.Wait(); !errors.Is(err, ErrClosed) {
			t.Errorf("pending: %v", err)
		}
		if err := c.Connect(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Connect after Close: %v", err)
		}
		for range c.Deliveries(t.Context()) {
			t.Error("a delivery from nowhere")
		}
	})
}

// TestCloseWhileDialing: Close does not wait for a gateway that never answers.
func TestCloseWhileDialing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGateway(t, upgraded(func(p *peer) { p.read() })) // never a ConnectAck
		c := start(t, g.options())
		var wg sync.WaitGroup
		wg.Go(func() { _ = c.Connect(t.Context()) })
		synctest.Wait()
		began := time.Now()
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d != 0 { // fake clock
			t.Errorf("Close took %v", d)
		}
		wg.Wait()
	})
}

// TestCloseIsBounded: a gateway that ignores the close handshake.
func TestCloseIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		stop := make(chan struct{})
		defer close(stop)
		deaf := newGateway(t, connected(60, func(*peer) { <-stop }))
		c, err := New(deaf.options())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(context.Background()); err == nil {
			t.Error("Close did not say that it was cut short")
		}
	})
}
