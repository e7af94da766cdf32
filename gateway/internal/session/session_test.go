package session

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/wstest"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

const (
	moved = gatewayv1.Refusal_REASON_MOVED
	full  = gatewayv1.Refusal_REASON_FULL
)

func want[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func wantIDs(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestConnectAckThenBacklogThenWhatWasHeld(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(1)
		home, other := w.router("home"), w.router("other")
		// A delivery of the home may come before the backlog that it was sent after.
		want(t, "held", s.Deliver(home.delivery("live-1")), accepted)
		want(t, "held", s.Deliver(other.delivery("live-2")), accepted)
		want(t, "repeat of the backlog", s.Deliver(other.delivery("old-2")), accepted)
		synctest.Wait()
		if n := len(c.Frames()); n != 0 {
			t.Fatalf("%d frames before Open", n)
		}
		s.Open(Admission{
			Identity: Identity{"t", "ann", "phone-2"}, Epoch: 7, Heartbeat: 12 * time.Second, TraceID: "trace", Home: home.Ref,
			Backlog: []*gatewayv1.Undelivered{
				{Id: backlogIDs + 1, Message: message("old-1"), Key: keyOf("old-1")},
				{Id: backlogIDs + 2, Message: message("old-2"), Key: keyOf("old-2"), Unmoderated: true},
			},
		})
		synctest.Wait()
		frames := c.Frames()
		if len(frames) != 5 {
			t.Fatalf("%d frames: %v", len(frames), frames)
		}
		ack := frames[0].GetConnectAck()
		if ack.GetCode() != 1000 || ack.GetUserId() != "ann" || ack.GetDeviceId() != "phone-2" || ack.GetNodeId() != "gw-1" ||
			ack.GetHeartbeatTimeoutSeconds() != 12 || ack.GetTraceId() != "trace" || ack.GetVersion() != 1 {
			t.Errorf("connect ack %v", ack)
		}
		wantIDs(t, "order", c.Delivered(), "old-1", "old-2", "live-1", "live-2")
		want(t, "unmoderated", frames[2].GetDelivery().GetUnmoderated(), true)
		// On a pipe, where nobody acknowledges, what is written is confirmed.
		want(t, "confirmed to the home", home.confirmed(s), 1)
		want(t, "backlog confirmed to the home", home.confirmedBacklog(s), backlogIDs+2)
		want(t, "confirmed to the other", other.confirmed(s), 2)
	})
}

func TestADeliveryOlderThanTheBacklogIsNotTakenForAResend(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(1)
		home := w.router("home")
		d := home.delivery("on the way")
		s.Open(Admission{Identity: Identity{"t", "ann", "phone"}, Home: home.Ref, Backlog: []*gatewayv1.Undelivered{
			{Id: backlogIDs + 9, Message: message("old"), Key: keyOf("old")},
		}})
		want(t, "late", s.Deliver(d), accepted)
		synctest.Wait()
		wantIDs(t, "delivered", c.Delivered(), "old", "on the way")
	})
}

func TestV2SeqAndAck(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(2)
		w.open(s)
		a, b := w.router("a"), w.router("b")
		for _, r := range []*router{a, b, a, a} {
			want(t, "deliver", s.Deliver(r.delivery(r.Ref.ID+string(rune('0'+r.next)))), accepted)
		}
		synctest.Wait()
		for i, f := range c.Frames()[1:] {
			want(t, "seq", f.GetDelivery().GetSeq(), uint64(i+1))
		}
		want(t, "a before an ack", a.confirmed(s), 0)
		c.Ack(2)
		synctest.Wait()
		want(t, "a through", a.confirmed(s), 1)
		want(t, "b through", b.confirmed(s), 1)
		c.Ack(5)
		synctest.Wait()
		if e := c.Errors(); len(e) != 1 || e[0] != 4400 {
			t.Errorf("ack from the future: errors %v", e)
		}
		want(t, "a after an ack from the future", a.confirmed(s), 1)
		c.Ack(4)
		c.Ack(1) // an old one changes nothing
		synctest.Wait()
		want(t, "a through", a.confirmed(s), 3)
	})
}

func TestResendsAndRepeats(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(2)
		w.open(s)
		a, b := w.router("a"), w.router("b")
		one := a.delivery("one")
		s.Deliver(one)
		want(t, "resend", s.Deliver(one), accepted)
		want(t, "repeat", s.Deliver(b.delivery("one")), accepted)
		synctest.Wait()
		wantIDs(t, "delivered", c.Delivered(), "one")
		want(t, "b while a's is unconfirmed", b.confirmed(s), 0)
		c.Ack(1)
		synctest.Wait()
		want(t, "a", a.confirmed(s), 1)
		want(t, "b", b.confirmed(s), 1)

		// A confirm that was lost with a stream comes again with the resend.
		clear(a.through)
		want(t, "resend", s.Deliver(one), accepted)
		want(t, "a again", a.confirmed(s), 1)
		want(t, "repeat of a confirmed one", s.Deliver(b.delivery("one")), accepted)
		want(t, "b", b.confirmed(s), 2)

		// Long after, the same key may be another message.
		time.Sleep(keyLife)
		s.Deliver(b.delivery("one"))
		synctest.Wait()
		wantIDs(t, "delivered", c.Delivered(), "one", "one")
	})
}

func TestRepeatsWithoutAKeyAreDelivered(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(1)
		w.open(s)
		a := w.router("a")
		for id := range uint64(2) {
			s.Deliver(NewDelivery(a.Router, &gatewayv1.Delivery{Id: id + 1, Message: message("x")}))
		}
		synctest.Wait()
		wantIDs(t, "delivered", c.Delivered(), "x", "x")
	})
}

func TestSlowConsumer(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.QueueFrames = 4 })
		s, c := w.connectPaused(1)
		w.open(s)
		synctest.Wait() // the connect ack is being written
		a := w.router("a")
		for _, id := range []string{"1", "2", "3", "4"} {
			want(t, id, s.Deliver(a.delivery(id)), accepted)
		}
		want(t, "one too many", s.Deliver(a.delivery("5")), full)
		want(t, "never again", s.Deliver(a.delivery("6")), moved)
		c.Allow(wstest.Plenty)
		synctest.Wait()
		code, reason := c.Closed()
		want(t, "code", code, CodeSlowConsumer)
		want(t, "reason", reason, "slow consumer")
		wantIDs(t, "delivered", c.Delivered())
		wantIDs(t, "handed back", idsOf(t, w.up.final(t).Undelivered), "1", "2", "3", "4")
		want(t, "confirmed", a.confirmed(s), 4)
		want(t, "gone", w.owner.isGone(s), true)
	})
}

func TestAPeerThatTakesNothingIsCut(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, _ := w.connectPaused(1)
		w.open(s)
		s.Deliver(w.router("a").delivery("1"))
		time.Sleep(writeTimeout)
		s.Tick()
		synctest.Wait()
		want(t, "in time", w.owner.isGone(s), false)
		time.Sleep(time.Second)
		s.Tick()
		synctest.Wait()
		want(t, "gone", w.owner.isGone(s), true)
		want(t, "code", w.up.final(t).CloseCode, 1006)
		wantIDs(t, "handed back", idsOf(t, w.up.final(t).Undelivered), "1")
	})
}

func TestWhatIsDroppedFromTheQueueIsNotConfirmedByTheCloseFrame(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connectPaused(1)
		w.open(s)
		synctest.Wait() // the connect ack is being written
		a := w.router("a")
		// Shorter than the close frame, so that its end is behind theirs.
		s.Deliver(NewDelivery(a.Router, &gatewayv1.Delivery{Id: 1}))
		s.Deliver(NewDelivery(a.Router, &gatewayv1.Delivery{Id: 2}))
		go c.Write(8, append([]byte{1000 >> 8, 1000 & 0xff}, "a long enough reason"...))
		c.Echo(false)
		synctest.Wait()
		c.Allow(wstest.Plenty)
		synctest.Wait()
		wantIDs(t, "shown", c.Delivered())
		want(t, "handed back", len(w.up.final(t).Undelivered), 2)
	})
}

func TestAnAckOfWhatIsStillQueuedIsRefused(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connectPaused(2)
		w.open(s)
		synctest.Wait() // the connect ack is being written
		a := w.router("a")
		s.Deliver(a.delivery("1"))
		c.Ack(1)
		synctest.Wait()
		want(t, "confirmed", a.confirmed(s), 0)
		c.Allow(wstest.Plenty)
		synctest.Wait()
		want(t, "errors", len(c.Errors()), 1)
	})
}

func TestAnOpeningSessionThatRefusedNeverAcceptsAgain(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.QueueFrames = 1 })
		s, c := w.connect(1)
		a := w.router("a")
		want(t, "fits", s.Deliver(a.delivery("1")), accepted)
		want(t, "one too many", s.Deliver(a.delivery("2")), full)
		want(t, "never again", s.Deliver(a.delivery("3")), moved)
		w.open(s)
		synctest.Wait()
		code, _ := c.Closed()
		want(t, "code", code, CodeSlowConsumer)
		wantIDs(t, "shown", c.Delivered(), "1")
	})
}
