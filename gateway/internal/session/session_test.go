package session

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
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
		if n := len(c.got()); n != 0 {
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
		frames := c.got()
		if len(frames) != 5 {
			t.Fatalf("%d frames: %v", len(frames), frames)
		}
		ack := frames[0].GetConnectAck()
		if ack.GetCode() != 1000 || ack.GetUserId() != "ann" || ack.GetDeviceId() != "phone-2" || ack.GetNodeId() != "gw-1" ||
			ack.GetHeartbeatTimeoutSeconds() != 12 || ack.GetTraceId() != "trace" || ack.GetVersion() != 1 {
			t.Errorf("connect ack %v", ack)
		}
		wantIDs(t, "order", c.delivered(), "old-1", "old-2", "live-1", "live-2")
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
		wantIDs(t, "delivered", c.delivered(), "old", "on the way")
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
		for i, f := range c.got()[1:] {
			want(t, "seq", f.GetDelivery().GetSeq(), uint64(i+1))
		}
		want(t, "a before an ack", a.confirmed(s), 0)
		c.ack(2)
		synctest.Wait()
		want(t, "a through", a.confirmed(s), 1)
		want(t, "b through", b.confirmed(s), 1)
		c.ack(5)
		synctest.Wait()
		if e := c.errors(); len(e) != 1 || e[0] != 4400 {
			t.Errorf("ack from the future: errors %v", e)
		}
		want(t, "a after an ack from the future", a.confirmed(s), 1)
		c.ack(4)
		c.ack(1) // an old one changes nothing
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
		wantIDs(t, "delivered", c.delivered(), "one")
		want(t, "b while a's is unconfirmed", b.confirmed(s), 0)
		c.ack(1)
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
		wantIDs(t, "delivered", c.delivered(), "one", "one")
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
		wantIDs(t, "delivered", c.delivered(), "x", "x")
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
		c.allow(plenty)
		synctest.Wait()
		code, reason := c.closedWith()
		want(t, "code", code, CodeSlowConsumer)
		want(t, "reason", reason, "slow consumer")
		wantIDs(t, "delivered", c.delivered())
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

func TestCloseFlushesAndReadsUntilTheEcho(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connectPaused(2)
		c.setEcho(false)
		w.open(s)
		a := w.router("a")
		s.Deliver(a.delivery("1"))
		s.Close(CodeDraining, "server draining")
		s.Close(CodeKicked, "kicked") // only the first counts
		want(t, "after the close", s.Deliver(a.delivery("2")), moved)
		c.allow(plenty)
		synctest.Wait()
		wantIDs(t, "flushed", c.delivered(), "1")
		c.message(&messagev1.MessageRequest{MsgId: "late", ToUserId: "bob"})
		synctest.Wait()
		want(t, "late messages published", len(w.up.list()), 1)
		c.write(8, append([]byte{CodeDraining >> 8, CodeDraining & 0xff}, "server draining"...))
		synctest.Wait()
		f := w.up.final(t)
		wantIDs(t, "the echo covers all", idsOf(t, f.Undelivered))
		want(t, "code", f.CloseCode, CodeDraining)
		want(t, "confirmed", a.confirmed(s), 1)
		o := s.Outcome()
		want(t, "outcome", o, Outcome{Told: true, Echoed: true, Ended: true, Gone: true})
	})
}

func TestAPeerThatDoesNotEchoHoldsNothing(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(2)
		c.setEcho(false)
		w.open(s)
		a := w.router("a")
		s.Deliver(a.delivery("1"))
		s.Close(CodeDraining, "server draining")
		w.pass(closeTimeout - 100*time.Millisecond)
		want(t, "waits", s.Outcome().Ended, false)
		w.pass(200 * time.Millisecond)
		want(t, "ended", s.Outcome().Ended, true)
		wantIDs(t, "handed back", idsOf(t, w.up.final(t).Undelivered), "1")
		want(t, "confirmed", a.confirmed(s), 1)
	})
}

func TestACloseThatIsNoEchoConfirmsNothing(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(2)
		c.setEcho(false)
		w.open(s)
		s.Deliver(w.router("a").delivery("1"))
		s.Close(CodeDraining, "server draining")
		synctest.Wait()
		c.write(8, []byte{1001 >> 8, 1001 & 0xff}) // going away by itself
		synctest.Wait()
		wantIDs(t, "handed back", idsOf(t, w.up.final(t).Undelivered), "1")
	})
}

func TestThePeersCloseIsAnswered(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(2)
		w.open(s)
		s.Deliver(w.router("a").delivery("1"))
		synctest.Wait()
		c.setEcho(false)
		c.write(8, append([]byte{1000 >> 8, 1000 & 0xff}, "bye"...))
		synctest.Wait()
		code, reason := c.closedWith()
		want(t, "code", code, 1000)
		want(t, "reason", reason, "bye")
		f := w.up.final(t)
		want(t, "code of the final", f.CloseCode, 1000)
		wantIDs(t, "handed back", idsOf(t, f.Undelivered), "1")
		want(t, "gone", w.owner.isGone(s), true)
	})
}

func TestFinalIsTriedUntilTaken(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		w.up.hold = true
		s, c := w.connect(2)
		w.open(s)
		a := w.router("a")
		one := a.delivery("1")
		s.Deliver(one)
		synctest.Wait()
		_ = c.conn.Close()
		synctest.Wait()
		f := w.up.final(t)
		if f.TenantId != "t" || f.UserId != "ann" || f.DeviceId != "phone" || f.Epoch != 7 || f.SessionId != s.ID() || f.CloseCode != 1006 || f.NeverOpened {
			t.Errorf("final %v", f)
		}
		want(t, "gone before a router took it", w.owner.isGone(s), false)
		want(t, "confirmed before", a.confirmed(s), 0)
		want(t, "pending", w.host.metrics.handback.Load(), 1)
		want(t, "a new delivery", s.Deliver(a.delivery("2")), moved)
		want(t, "a resend is being handed back already", s.Deliver(one), accepted)
		w.up.taken[0]()
		want(t, "gone", w.owner.isGone(s), true)
		want(t, "confirmed", a.confirmed(s), 1)
		want(t, "pending", w.host.metrics.handback.Load(), 0)
		want(t, "a resend after that", s.Deliver(one), accepted)
	})
}

func TestRefuse(t *testing.T) {
	for name, neverOpened := range map[string]bool{"by the hook": false, "without an answer": true} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(t *testing.T) {
				w := newWorld(t)
				s, c := w.connect(1)
				s.Refuse(4001, "auth unavailable", neverOpened)
				synctest.Wait()
				code, reason := c.closedWith()
				want(t, "code", code, 4001)
				want(t, "reason", reason, "auth unavailable")
				want(t, "gone", w.owner.isGone(s), true)
				if !neverOpened {
					want(t, "finals", len(w.up.ended()), 0)
					return
				}
				if f := w.up.final(t); !f.NeverOpened || f.TenantId != "t" || f.SessionId != s.ID() {
					t.Errorf("final %v", f)
				}
			})
		})
	}
}

func TestWhatARefusedSessionTookIsHandedBack(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(1)
		s.Deliver(w.router("a").delivery("1"))
		s.Refuse(4001, "auth unavailable", false)
		synctest.Wait()
		f := w.up.final(t)
		want(t, "never opened", f.NeverOpened, true)
		wantIDs(t, "handed back", idsOf(t, f.Undelivered), "1")
		wantIDs(t, "shown", c.delivered())
	})
}

func TestClosedOrCutWhileOpening(t *testing.T) {
	for name, end := range map[string]func(*Session){
		"close": func(s *Session) { s.Close(CodeDraining, "server draining") },
		"abort": func(s *Session) { s.Abort() },
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(t *testing.T) {
				w := newWorld(t)
				s, c := w.connect(2)
				home := w.router("home")
				s.Deliver(home.delivery("held"))
				end(s)
				synctest.Wait()
				want(t, "gone while opening", w.owner.isGone(s), false)
				s.Open(Admission{Identity: Identity{"t", "ann", "phone"}, Epoch: 3, Home: home.Ref, Backlog: []*gatewayv1.Undelivered{
					{Id: backlogIDs + 1, Message: message("old"), Key: keyOf("old")},
				}})
				synctest.Wait()
				f := w.up.final(t)
				want(t, "epoch", f.Epoch, 3)
				if name == "abort" {
					wantIDs(t, "handed back", idsOf(t, f.Undelivered), "old", "held")
				} else {
					wantIDs(t, "delivered, and covered by the echo", c.delivered(), "old", "held")
					wantIDs(t, "handed back", idsOf(t, f.Undelivered))
				}
				want(t, "confirmed", home.confirmed(s), 1)
				want(t, "backlog confirmed", home.confirmedBacklog(s), backlogIDs+1)
			})
		})
	}
}
