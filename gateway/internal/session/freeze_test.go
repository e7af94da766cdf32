package session

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/wstest"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

type handover struct {
	Handed
	ok bool
}

var replaced = Takeover{Code: CodeReplaced, Reason: "replaced"}

// freeze runs a Handover in the background.
func freeze(ctx context.Context, s *Session) <-chan handover { return freezeFor(ctx, s, replaced) }

func freezeFor(ctx context.Context, s *Session, t Takeover) <-chan handover {
	out := make(chan handover, 1)
	go func() {
		var h handover
		h.Handed, h.ok = s.Freeze(ctx, t)
		out <- h
	}()
	return out
}

func TestHandover(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connectPaused(2)
		w.open(s)
		a := w.router("a")
		c.Allow(2) // the connect ack and the first delivery
		s.Deliver(a.delivery("1"))
		synctest.Wait()
		c.Ack(1)
		s.Deliver(a.delivery("2"))
		synctest.Wait() // it is being written
		s.Deliver(a.delivery("3"))
		s.Deliver(a.delivery("4"))
		h := freeze(t.Context(), s)
		synctest.Wait()
		want(t, "deliveries while it waits", s.Deliver(a.delivery("5")), moved)
		c.Allow(wstest.Plenty)
		synctest.Wait()
		got := <-h
		want(t, "found", got.ok, true)
		wantIDs(t, "shown by the old socket", c.Delivered(), "1", "2")
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "3", "4")
		want(t, "keys of what was shown", string(got.Keys), string(keyOf("1"))+string(keyOf("2")))
		code, _ := c.Closed()
		want(t, "code", code, CodeReplaced)
		want(t, "confirmed", a.confirmed(s), 4)
		wantIDs(t, "handed back as well", idsOf(t, w.up.final(t).Undelivered), "3", "4")
		want(t, "keys", string(w.up.final(t).RecentKeys), string(got.Keys))
		want(t, "messages given back", s.Outcome().HandedBack, 2)
		want(t, "gone", w.owner.isGone(s), true)
		_, again := s.Freeze(t.Context(), replaced)
		want(t, "a second one", again, false)
	})
}

// silent has a session write 1 to a client that answers nothing.
func silent(w *world) (*Session, *wstest.Client, *router) {
	s, c := w.connect(2)
	c.Echo(false)
	w.open(s)
	a := w.router("a")
	s.Deliver(a.delivery("1"))
	synctest.Wait()
	return s, c, a
}

func TestHandoverOfADeadSocketIsBounded(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, _ := w.connectPaused(2)
		w.open(s)
		synctest.Wait() // the connect ack is being written
		s.Deliver(w.router("a").delivery("1"))
		start := time.Now()
		got := <-freeze(t.Context(), s)
		want(t, "took", time.Since(start), 0) // nothing to wait for
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "1")
		want(t, "keys", len(got.Keys), 0)
		w.pass(flushTimeout + 100*time.Millisecond)
		want(t, "gone", w.owner.isGone(s), true)
		wantIDs(t, "handed back as well", idsOf(t, w.up.final(t).Undelivered), "1")
	})
}

func TestHandoverWaitsOnlyALittleForAnAcknowledgement(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, _, _ := silent(w)
		start := time.Now()
		got := <-freeze(t.Context(), s)
		want(t, "took", time.Since(start), freezeTimeout)
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "1")
		w.pass(closeTimeout + 100*time.Millisecond)
		want(t, "gone", w.owner.isGone(s), true)
	})
}

func TestAHandoverThatNobodyWaitsForGoesBackByFinal(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, _, a := silent(w)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		got := <-freeze(ctx, s)
		want(t, "found", got.ok, false)
		want(t, "confirmed", a.confirmed(s), 0)
		w.pass(closeTimeout + 100*time.Millisecond)
		wantIDs(t, "handed back", idsOf(t, w.up.final(t).Undelivered), "1")
		want(t, "confirmed", a.confirmed(s), 1)
		want(t, "gone", w.owner.isGone(s), true)
	})
}

func TestTheNextHandoverGetsWhatNobodyWaitedFor(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c, a := silent(w)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		want(t, "found", (<-freeze(ctx, s)).ok, false)
		got := <-freeze(t.Context(), s)
		want(t, "found then", got.ok && got.Whole, true)
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "1")
		want(t, "confirmed", a.confirmed(s), 1)
		w.pass(closeTimeout + 100*time.Millisecond)
		wantIDs(t, "handed back as well", idsOf(t, w.up.final(t).Undelivered), "1")
		code, _ := c.Closed()
		want(t, "code", code, CodeReplaced)
		want(t, "gone", w.owner.isGone(s), true)
	})
}

func TestASocketThatEndsDuringAHandover(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c, _ := silent(w)
		h := freeze(t.Context(), s)
		synctest.Wait()
		_ = c.Conn.Close()
		got := <-h
		synctest.Wait()
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "1")
		wantIDs(t, "handed back as well", idsOf(t, w.up.final(t).Undelivered), "1")
		want(t, "gone", w.owner.isGone(s), true)
	})
}

// What is handed back would come to the device behind what is newer; so a Handover
// gets it too, until a router has taken it.
func TestHandoverAfterTheEnd(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		w.up.hold = true
		s, c := w.connect(2)
		w.open(s)
		s.Deliver(w.router("a").delivery("1"))
		synctest.Wait()
		_ = c.Conn.Close()
		synctest.Wait()
		got := <-freeze(t.Context(), s)
		want(t, "found", got.ok, true)
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "1")
		wantIDs(t, "handed back", idsOf(t, w.up.final(t).Undelivered), "1")
		w.up.taken[0]()
		want(t, "found once it is taken", (<-freeze(t.Context(), s)).ok, false)
	})
}

// The answer of a Handover may be lost, and so may be the router that has it.
func TestWhatWasHandedOverIsHandedOverAgain(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		w.up.hold = true
		s, _, a := silent(w)
		got := <-freeze(t.Context(), s)
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "1")
		want(t, "confirmed", a.confirmed(s), 1)
		again := <-freeze(t.Context(), s)
		want(t, "found", again.ok && again.Whole, true)
		wantIDs(t, "handed over again", idsOf(t, again.Undelivered), "1")
		w.pass(closeTimeout + 100*time.Millisecond)
		wantIDs(t, "handed back", idsOf(t, w.up.final(t).Undelivered), "1")
		again = <-freeze(t.Context(), s)
		wantIDs(t, "handed over when it has ended", idsOf(t, again.Undelivered), "1")
		want(t, "messages given back", s.Outcome().HandedBack, 1)
		w.up.taken[0]()
		want(t, "found once it is taken", (<-freeze(t.Context(), s)).ok, false)
		want(t, "gone", w.owner.isGone(s), true)
	})
}

func TestHandoverWhileOpeningWaitsForTheBacklog(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connectPaused(2)
		home := w.router("home")
		s.Deliver(home.delivery("held"))
		h := freeze(t.Context(), s)
		synctest.Wait()
		s.Open(Admission{Identity: Identity{"t", "ann", "phone"}, Home: home.Ref, Backlog: []*gatewayv1.Undelivered{
			{Id: backlogIDs + 1, Message: message("old"), Key: keyOf("old")},
		}})
		got := <-h
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "old", "held")
		want(t, "backlog confirmed", home.confirmedBacklog(s), backlogIDs+1)
		_ = c.Conn.Close()
		synctest.Wait()
		want(t, "gone", w.owner.isGone(s), true)
		wantIDs(t, "handed back as well", idsOf(t, w.up.final(t).Undelivered), "old", "held")
	})
}

func TestHandoverOfAnOpeningThatNeverEnds(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(2)
		c.Echo(false)
		home := w.router("home")
		s.Deliver(home.delivery("held"))
		got := <-freeze(t.Context(), s)
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "held")
		want(t, "confirmed", home.confirmed(s), 1)
		s.Open(Admission{Identity: Identity{"t", "ann", "phone"}, Home: home.Ref, Backlog: []*gatewayv1.Undelivered{
			{Id: backlogIDs + 1, Message: message("old"), Key: keyOf("old")},
		}})
		w.pass(closeTimeout + 100*time.Millisecond)
		// The home did not hand this over: it comes back.
		wantIDs(t, "handed back", idsOf(t, w.up.final(t).Undelivered), "old")
		want(t, "gone", w.owner.isGone(s), true)
	})
}

// What came for a session that never opened may be with nobody else: its sender may have
// died, and its backlog is older.
func TestHandoverOfARefusedOpening(t *testing.T) {
	for name, before := range map[string]bool{"refused before": true, "refused meanwhile": false} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(t *testing.T) {
				w := newWorld(t)
				s, _ := w.connect(2)
				s.Deliver(w.router("a").delivery("1"))
				refuse := func() { s.Refuse(4001, "auth unavailable", true) }
				if before {
					refuse()
				}
				resumes := replaced
				resumes.Resume = true
				h := freezeFor(t.Context(), s, resumes)
				synctest.Wait()
				if !before {
					refuse()
				}
				got := <-h
				want(t, "found", got.ok, true)
				want(t, "whole", got.Whole, false)
				want(t, "next seq", got.NextSeq, 0)
				wantIDs(t, "handed over", idsOf(t, got.Undelivered), "1")
				want(t, "taken", got.Undelivered[0].TakenAt, takenAt(1))
				w.pass(flushTimeout + closeTimeout)
				f := w.up.final(t)
				want(t, "never opened", f.NeverOpened, true)
				wantIDs(t, "handed back as well", idsOf(t, f.Undelivered), "1")
				want(t, "taken", f.Undelivered[0].TakenAt, takenAt(1))
				_, again := s.Freeze(t.Context(), replaced)
				want(t, "after that", again, false)
			})
		})
	}
}

func TestTheNextSessionKnowsWhatTheDeviceHasHad(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.router("a"), w.router("b")
		old, c := w.connect(2)
		w.open(old)
		old.Deliver(a.delivery("1"))
		synctest.Wait()
		got := <-freeze(t.Context(), old)
		wantIDs(t, "handed over", idsOf(t, got.Undelivered)) // the echo covered it
		wantIDs(t, "shown before", c.Delivered(), "1")

		s, c := w.connect(2)
		s.Deliver(b.delivery("1")) // a router that was not told in time
		s.Open(Admission{Identity: Identity{"t", "ann", "phone"}, Home: a.Ref, RecentKeys: got.Keys, RecentAges: got.Ages})
		want(t, "repeat", s.Deliver(b.delivery("1")), accepted)
		s.Deliver(b.delivery("2"))
		synctest.Wait()
		wantIDs(t, "shown", c.Delivered(), "2")
		want(t, "repeats are confirmed", b.confirmed(s), 2)
	})
}

func TestAHandoverBeforeTheBacklogIsNotWhole(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		home := w.router("home")
		s, _ := w.connect(1)
		s.Deliver(home.delivery("3"))
		got := <-freeze(t.Context(), s)
		want(t, "found", got.ok, true)
		want(t, "whole", got.Whole, false)
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "3")
		s.Open(Admission{Identity: Identity{"t", "ann", "phone"}, Epoch: 1, Home: home.Ref, Backlog: []*gatewayv1.Undelivered{{Message: message("1"), Id: 1}}})
		synctest.Wait()
		w.pass(flushTimeout)
		wantIDs(t, "comes by its end", idsOf(t, w.up.final(t).Undelivered), "1")
	})
}
