package session

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/gateway/internal/wstest"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

func TestMessagesAreStampedAndAnswered(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(1)
		w.open(s)
		c.Message(&messagev1.MessageRequest{TenantId: "evil", UserId: "eve", DeviceId: "x", MsgId: "1", ToUserId: "bob", TimestampMs: 5})
		c.Message(&messagev1.MessageRequest{ToUserId: "bob", MsgType: messagev1.MessageType_GROUP_CHAT})
		synctest.Wait()
		p := w.up.list()
		if len(p) != 2 {
			t.Fatalf("%d published", len(p))
		}
		if m := p[0].message; m.TenantId != "t" || m.UserId != "ann" || m.DeviceId != "phone" || m.MsgId != "1" || m.TimestampMs != 5 {
			t.Errorf("stamped %v", m)
		}
		if m := p[1].message; len(m.MsgId) != 36 || m.MsgId[14] != '7' || m.TimestampMs != time.Now().UnixMilli() {
			t.Errorf("filled in %v", m)
		}
		acks := c.Acks()
		if len(acks) != 2 || acks[0].MsgId != "1" {
			t.Errorf("acks %v", acks)
		}
		want(t, "single", w.host.metrics.single.Value(), 1)
		want(t, "group", w.host.metrics.group.Value(), 1)
	})
}

func TestPings(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(1)
		w.open(s)
		c.Send(&messagev1.ClientFrame{Payload: &messagev1.ClientFrame_HeartbeatPing{HeartbeatPing: &messagev1.HeartbeatPing{TimestampMs: 42}}})
		c.Write(ws.Ping, []byte("x"))
		synctest.Wait()
		want(t, "pong", c.Frames()[1].GetHeartbeatPong().GetTimestampMs(), 42)
		_, pongs := c.Control()
		want(t, "WebSocket pongs", pongs, 1)
	})
}

func TestBadFramesCostAnErrorAndTheConnectionStays(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.MaxMessageBytes = 100 })
		s, c := w.connect(1)
		w.open(s)
		c.Write(ws.Binary, []byte{0xff})
		c.Write(ws.Binary, nil)
		c.Ack(0) // not for V1
		c.Write(ws.Binary, bytes.Repeat([]byte{0}, 100+frameSlack+1))
		c.Message(&messagev1.MessageRequest{MsgId: "big", ToUserId: "bob", MsgBody: make([]byte, 101)})
		c.Message(&messagev1.MessageRequest{MsgId: "fits", ToUserId: "bob", MsgBody: make([]byte, 100)})
		synctest.Wait()
		if e := c.Errors(); len(e) != 4 || e[0] != 4400 || e[1] != 4400 || e[2] != 4400 || e[3] != 4413 {
			t.Errorf("errors %v", e)
		}
		acks := c.Acks()
		if len(acks) != 2 || acks[0].MsgId != "big" || acks[0].Status != messagev1.AckStatus_FAILED || acks[0].Reason != "msg_body_too_large" || acks[1].MsgId != "fits" {
			t.Errorf("acks %v", acks)
		}
		for _, reason := range []rejection{malformed, noPayload, strangeAck, tooLarge} {
			want(t, string(reason), w.host.metrics.rejected.With(string(reason)).Value(), 1)
		}
	})
}

func TestTextClosesWith1003(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(1)
		c.Echo(false)
		w.open(s)
		c.Write(ws.Text, []byte("hi"))
		synctest.Wait()
		code, _ := c.Closed()
		want(t, "code", code, 1003)
		want(t, "gone", w.owner.isGone(s), true)
		want(t, "code of the final", w.up.final(t).CloseCode, 1003)
	})
}

func TestReadingStopsWhileTooMuchIsUnanswered(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		w.up.silent = true
		s, c := w.connect(1)
		w.open(s)
		go func() {
			for range maxUnanswered + 2 {
				c.Message(&messagev1.MessageRequest{ToUserId: "bob"})
			}
		}()
		synctest.Wait()
		want(t, "published", len(w.up.list()), maxUnanswered)
		time.Sleep(time.Minute)
		s.Tick()
		synctest.Wait()
		code, _ := c.Closed()
		want(t, "not closed for a silence that is ours", code, 0)
		w.up.list()[0].done(ackOf("a"))
		synctest.Wait()
		want(t, "published", len(w.up.list()), maxUnanswered+1)
		w.up.list()[1].done(ackOf("b"))
		synctest.Wait()
		want(t, "published", len(w.up.list()), maxUnanswered+2)
		want(t, "acks", len(c.Acks()), 2)

		s.CloseAnswered(CodeDraining, "server draining", time.Second)
		w.pass(500 * time.Millisecond)
		for _, p := range w.up.list()[2:] {
			p.done(ackOf("c"))
		}
		synctest.Wait()
		want(t, "acks before the close", len(c.Acks()), maxUnanswered+2)
		code, _ = c.Closed()
		want(t, "code", code, CodeDraining)
	})
}

func TestOutcomesThatDoNotComeDelayACloseOnlyALittle(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		w.up.silent = true
		s, c := w.connect(1)
		w.open(s)
		c.Message(&messagev1.MessageRequest{ToUserId: "bob"})
		synctest.Wait()
		s.CloseAnswered(CodeDraining, "server draining", time.Second)
		w.pass(900 * time.Millisecond)
		code, _ := c.Closed()
		want(t, "too early", code, 0)
		w.pass(200 * time.Millisecond)
		code, _ = c.Closed()
		want(t, "code", code, CodeDraining)
		w.up.list()[0].done(ackOf("late")) // after the end: nothing happens
	})
}

func TestASessionThatEndsFreesItsReader(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		w.up.silent = true
		s, c := w.connect(1)
		w.open(s)
		go func() {
			for range maxUnanswered + 2 {
				c.Message(&messagev1.MessageRequest{ToUserId: "bob"})
			}
		}()
		synctest.Wait()
		s.Abort()
		synctest.Wait()
		want(t, "gone", w.owner.isGone(s), true)
	})
}

func TestHeartbeat(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(1)
		w.open(s)
		time.Sleep(20 * time.Second)
		c.Write(ws.Pong, nil) // any frame counts
		synctest.Wait()
		time.Sleep(30 * time.Second)
		s.Tick()
		synctest.Wait()
		code, _ := c.Closed()
		want(t, "too early", code, 0)
		time.Sleep(time.Millisecond)
		s.Tick()
		synctest.Wait()
		code, reason := c.Closed()
		want(t, "code", code, CodeHeartbeat)
		want(t, "reason", reason, "heartbeat timeout")
		want(t, "counted", w.host.metrics.heartbeats.Value(), 1)
	})
}

func TestKeepalive(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Keepalive = 10 * time.Second })
		s, c := w.connect(1)
		w.open(s)
		for range 25 {
			time.Sleep(time.Second)
			s.Tick()
		}
		synctest.Wait()
		pings, _ := c.Control()
		want(t, "pings", pings, 2)
	})
}

func TestAFloodIsSlowedDownAndThenClosed(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.FloodPerSecond = 10 })
		s, c := w.connect(1)
		w.open(s)
		start := time.Now()
		sent := make(chan int, 1)
		go func() {
			n := 0
			for alive(c) {
				c.Message(&messagev1.MessageRequest{ToUserId: "bob"})
				n++
			}
			sent <- n
		}()
		time.Sleep(100*time.Millisecond - 1)
		synctest.Wait()
		want(t, "at once", len(w.up.list()), 20)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		want(t, "after 5 s", len(w.up.list()), 70)
		want(t, "warnings", len(c.Errors()), 6)
		<-sent
		code, reason := c.Closed()
		want(t, "code", code, CodeFlood)
		want(t, "reason", reason, "message flood")
		if d := time.Since(start); d < floodPatience || d > floodPatience+time.Second {
			t.Errorf("closed after %v", d)
		}
		synctest.Wait()
		want(t, "acks", len(c.Acks()), len(w.up.list()))
	})
}

// alive says that no close frame has come.
func alive(c *wstest.Client) bool {
	code, _ := c.Closed()
	return code == 0
}

func TestAcksAreNoFlood(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.FloodPerSecond = 10 })
		s, c := w.connect(2)
		w.open(s)
		for range 100 {
			c.Ack(0)
		}
		synctest.Wait()
		want(t, "errors", len(c.Errors()), 0)
	})
}

func TestReasonsAreCutToFit(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(1)
		w.open(s)
		want(t, "kicked", s.Kick(strings.Repeat("x", 200)), true)
		want(t, "kicked twice", s.Kick("again"), false)
		synctest.Wait()
		_, reason := c.Closed()
		want(t, "length", len(reason), ws.MaxReason)
	})
}
