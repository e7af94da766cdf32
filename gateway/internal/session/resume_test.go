package session

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/wstest"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/proto"
)

func TestALiveSessionMoves(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits)
		a, home := w.router("a"), w.router("home")
		old, oc := w.connectPaused(2)
		w.open(old)
		synctest.Wait()
		want(t, "asked", old.Migrate(&messagev1.Migrate{Reason: "draining", ResumeToken: "go"}), true)
		oc.Allow(4) // the connect ack, the request, two deliveries
		for _, id := range []string{"1", "2", "3", "4"} {
			old.Deliver(a.delivery(id))
		}
		synctest.Wait()
		want(t, "token", oc.Frames()[1].GetMigrate().GetResumeToken(), "go")
		ok, ahead := old.Resumable(5)
		want(t, "from the future", ahead && !ok, true)
		ok, ahead = old.Resumable(1)
		want(t, "resumable", ok && !ahead, true)

		got := <-freezeFor(t.Context(), old, resume(1)) // it has seen 2 meanwhile
		want(t, "next", got.NextSeq, 5)
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "2", "3", "4")
		s, c := w.connectPaused(2)
		w.reopen(s, home, got.Handed)
		// What the old socket has shown is acknowledged on the new one before it
		// sends it again.
		c.Ack(4)
		synctest.Wait()
		want(t, "confirmed", home.confirmedBacklog(s), backlogIDs+3)
		c.Ack(5)
		c.Allow(wstest.Plenty)
		oc.Allow(wstest.Plenty)
		synctest.Wait()
		want(t, "an ack from the future", len(c.Errors()), 1)
		wantSeqs(t, "shown", shownSeqs(c), 2, 3)
		code, _ := oc.Closed()
		want(t, "the first is kept", code, 0)
		w.pass(holdTimeout)
		code, _ = oc.Closed()
		want(t, "the first is closed with", code, CodeReplaced)
		w.pass(closeTimeout)
		want(t, "moved", old.Outcome().Moved, true)

		// And again, before anything is acknowledged.
		s.Deliver(a.delivery("5"))
		synctest.Wait()
		again := <-freezeFor(t.Context(), s, resume(4))
		want(t, "next", again.NextSeq, 6)
		wantIDs(t, "handed over", idsOf(t, again.Undelivered), "5")
		want(t, "asked when it has moved", s.Migrate(&messagev1.Migrate{}), false)
	})
}

// It goes on reading the old socket when it has asked for the next one.
func TestWhatIsAcknowledgedAfterTheClientHasAsked(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits)
		a := w.router("a")
		s, c := w.connect(2)
		w.open(s)
		for _, id := range []string{"1", "2", "3"} {
			s.Deliver(a.delivery(id))
		}
		synctest.Wait()
		c.Ack(2)
		synctest.Wait()
		got := <-freezeFor(t.Context(), s, resume(1))
		wantSeqs(t, "handed over", seqsOf(got.Undelivered), 3, 1)
		want(t, "acknowledged", got.AckedSeq, 2)
		want(t, "next", got.NextSeq, 4)
	})
}

// The client has its ConnectAck on the next socket before this one is closed.
func TestTheOldSocketIsKeptForAMoment(t *testing.T) {
	for name, ends := range map[string]struct {
		with func(*Session, *wstest.Client)
		code int // 0: at once
	}{
		"its time passes":    {func(*Session, *wstest.Client) {}, CodeReplaced},
		"it is lost":         {func(_ *Session, c *wstest.Client) { _ = c.Conn.Close() }, 0},
		"the client closes":  {func(_ *Session, c *wstest.Client) { c.Close(1000, "") }, 0},
		"a drain is late":    {func(s *Session, _ *wstest.Client) { s.CloseAnswered(CodeDraining, "server draining", time.Second) }, CodeReplaced},
		"an operator's kick": {func(s *Session, _ *wstest.Client) { s.Kick("kicked") }, CodeReplaced},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(t *testing.T) {
				w := newWorld(t, waits)
				w.up.silent = true
				a := w.router("a")
				s, c := w.connect(2)
				w.open(s)
				s.Deliver(a.delivery("1"))
				synctest.Wait()
				got := <-freezeFor(t.Context(), s, resume(0))
				wantIDs(t, "handed over", idsOf(t, got.Undelivered), "1")
				want(t, "a delivery", s.Deliver(a.delivery("2")), gatewayv1.Refusal_REASON_MOVED)
				want(t, "stage", s.Stage(), Ending)
				_, holds := s.Info()
				want(t, "holds its route", holds, false)

				// What the client sends meanwhile is taken, and answered.
				c.Message(&messagev1.MessageRequest{MsgId: "m", ToUserId: "bob"})
				synctest.Wait()
				w.up.list()[0].done(ackOf("m"))
				synctest.Wait()
				want(t, "acks", len(c.Acks()), 1)
				code, _ := c.Closed()
				want(t, "closed with", code, 0)

				ends.with(s, c)
				w.pass(holdTimeout + 100*time.Millisecond)
				if code, _ = c.Closed(); ends.code != 0 {
					want(t, "closed with", code, ends.code)
				}
				w.pass(closeTimeout)
				wantIDs(t, "handed back as well", idsOf(t, w.up.final(t).Undelivered), "1")
				want(t, "moved", s.Outcome().Moved, true)
				want(t, "gone", w.owner.isGone(s), true)
			})
		})
	}
}

func TestSeqsOfWhatWasCutFromTheQueueStay(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits)
		a := w.router("a")
		s, c := w.connectPaused(2)
		w.open(s)
		synctest.Wait() // the connect ack is being written
		for _, id := range []string{"1", "2"} {
			s.Deliver(a.delivery(id))
		}
		go c.Close(4000, "") // what is queued is cut
		synctest.Wait()
		got := <-freezeFor(t.Context(), s, resume(0))
		wantSeqs(t, "handed over", seqsOf(got.Undelivered), 1, 2)
	})
}

func TestResumeWhileTheWindowIsOnItsWayBack(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits)
		w.up.hold = true
		a, home := w.router("a"), w.router("home")
		s := dropped(t, w, a)
		s.Deliver(a.delivery("3"))
		s.Close(CodeDraining, "server draining")
		w.pass(keyLife)
		got := <-freezeFor(t.Context(), s, resume(2))
		want(t, "next", got.NextSeq, 4)
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "3")
		next, c := w.connect(2)
		w.reopen(next, home, got.Handed)
		for _, u := range w.up.final(t).Undelivered { // the home has taken it back
			next.Deliver(home.delivery(idOf(t, u.Message)))
		}
		synctest.Wait()
		wantIDs(t, "shown", c.Delivered(), "3")
	})
}

func TestNoResume(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits)
		a := w.router("a")
		opening, _ := w.connect(2)
		ok, ahead := opening.Resumable(0)
		want(t, "opening", ok || ahead, false)
		opening.Deliver(a.delivery("1"))
		got := <-freezeFor(t.Context(), opening, resume(0))
		want(t, "opening", got.NextSeq, 0)
		w.open(opening)

		v1, _ := w.connect(1)
		w.open(v1)
		got = <-freezeFor(t.Context(), v1, resume(0))
		want(t, "V1", got.ok && got.NextSeq == 0, true)

		s := dropped(t, w, a)
		got = <-freezeFor(t.Context(), s, resume(9)) // Resumable has said no
		want(t, "from the future", got.ok && got.NextSeq == 0, true)
		wantIDs(t, "handed over all the same", idsOf(t, got.Undelivered), "2")
		wantSeqs(t, "without", seqsOf(got.Undelivered), 0, 1)

		// The seqs of an answer that makes no sense are not taken over.
		next, c := w.connect(2)
		next.Open(Admission{Identity: Identity{"t", "ann", "phone"}, Home: a.Ref, Resumed: true, NextSeq: 9, Backlog: []*gatewayv1.Undelivered{
			{Id: backlogIDs + 1, Message: message("2"), Key: keyOf("2"), Seq: 7},
		}})
		synctest.Wait()
		want(t, "resumed", c.Frames()[0].GetConnectAck().GetResumed(), false)
		wantSeqs(t, "begins anew", shownSeqs(c), 1, 1)
		w.pass(closeTimeout + time.Second)
	})
}

func TestAHandoverOfASuspendedSessionThatNobodyWaitsFor(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits)
		s := dropped(t, w, w.router("a"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		got := <-freezeFor(ctx, s, resume(1))
		want(t, "found", got.ok, false)
		w.owner.sweep()
		wantIDs(t, "handed back", idsOf(t, w.up.final(t).Undelivered), "2")
		want(t, "gone", w.owner.isGone(s), true)
	})
}

// What the session before may have sent can be acknowledged before this one has
// begun to send it again.
func TestAnAckOfWhatTheOldSocketHasShown(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits)
		home := w.router("home")
		s, c := w.connectPaused(2)
		large, err := proto.Marshal(&messagev1.MessageRequest{MsgId: "large", MsgBody: make([]byte, 2*joinSize)})
		if err != nil {
			t.Fatal(err)
		}
		w.reopen(s, home, Handed{NextSeq: 7, Undelivered: []*gatewayv1.Undelivered{{Message: large, Seq: 5}, {Message: large, Seq: 6}}}, "new")
		synctest.Wait() // the connect ack is being written
		ok, _ := s.Resumable(6)
		want(t, "resumable", ok, true)
		_, ahead := s.Resumable(7)
		want(t, "from the future", ahead, true)
		c.Ack(6)
		synctest.Wait()
		want(t, "confirmed", home.confirmedBacklog(s), backlogIDs+2)
		c.Allow(wstest.Plenty)
		synctest.Wait()
		wantSeqs(t, "shown", shownSeqs(c), 5, 3)
		want(t, "errors", len(c.Errors()), 0)
	})
}

func TestAResumedSessionKeepsSeqsWhateverTheKeys(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits)
		a, home := w.router("a"), w.router("home")
		s := dropped(t, w, a)
		s.Deliver(a.delivery("again"))
		time.Sleep(keyLife)            // fake time
		s.Deliver(a.delivery("again")) // another message by now
		got := <-freezeFor(t.Context(), s, resume(2))
		next, c := w.connect(2)
		w.reopen(next, home, got.Handed)
		synctest.Wait()
		wantSeqs(t, "shown", shownSeqs(c), 3, 2)
		w.owner.sweep()
	})
}
