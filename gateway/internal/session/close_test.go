package session

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/wstest"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

func TestCloseFlushesAndReadsUntilTheEcho(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connectPaused(2)
		c.Echo(false)
		w.open(s)
		a := w.router("a")
		s.Deliver(a.delivery("1"))
		s.Close(CodeDraining, "server draining")
		s.Close(CodeKicked, "kicked") // only the first counts
		want(t, "after the close", s.Deliver(a.delivery("2")), moved)
		c.Allow(wstest.Plenty)
		synctest.Wait()
		wantIDs(t, "flushed", c.Delivered(), "1")
		c.Message(&messagev1.MessageRequest{MsgId: "late", ToUserId: "bob"})
		synctest.Wait()
		want(t, "late messages published", len(w.up.list()), 1)
		c.Write(8, append([]byte{CodeDraining >> 8, CodeDraining & 0xff}, "server draining"...))
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
		c.Echo(false)
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
		c.Echo(false)
		w.open(s)
		s.Deliver(w.router("a").delivery("1"))
		s.Close(CodeDraining, "server draining")
		synctest.Wait()
		c.Write(8, []byte{1001 >> 8, 1001 & 0xff}) // going away by itself
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
		c.Echo(false)
		c.Write(8, append([]byte{1000 >> 8, 1000 & 0xff}, "bye"...))
		synctest.Wait()
		code, reason := c.Closed()
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
		_ = c.Conn.Close()
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
		s.ack(1) // read before the end, handled after it: the window is on its way
		want(t, "confirmed by an ack that is late", a.confirmed(s), 0)
		s.handBack() // a Handover that was given up and the end come together
		w.up.final(t)
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
				home := w.router("home")
				s.Refuse(4001, "auth unavailable", neverOpened)
				s.Reconfirm(home.Router) // a stream that begins asks
				want(t, "of the backlog confirmed", home.confirmedBacklog(s), 0)
				synctest.Wait()
				code, reason := c.Closed()
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
		wantIDs(t, "shown", c.Delivered())
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
					wantIDs(t, "delivered, and covered by the echo", c.Delivered(), "old", "held")
					wantIDs(t, "handed back", idsOf(t, f.Undelivered))
				}
				want(t, "confirmed", home.confirmed(s), 1)
				want(t, "backlog confirmed", home.confirmedBacklog(s), backlogIDs+1)
			})
		})
	}
}
