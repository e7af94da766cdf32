package session

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/gateway/internal/wstest"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

const resumeWindow = time.Minute

func waits(c *Config) { c.ResumeWindow = resumeWindow }

// dropped is a V2 session that has delivered "1" and "2", of which the first is
// acknowledged, and then lost its socket.
func dropped(t *testing.T, w *world, r *router) *Session {
	t.Helper()
	s, c := w.connect(2)
	w.open(s)
	s.Deliver(r.delivery("1"))
	s.Deliver(r.delivery("2"))
	synctest.Wait()
	c.Ack(1)
	synctest.Wait()
	_ = c.Conn.Close()
	synctest.Wait()
	want(t, "stage", s.Stage(), Suspended)
	want(t, "suspended", w.host.Suspended(), 1)
	want(t, "connections", w.host.metrics.open.Load(), 0)
	return s
}

func resume(lastSeq uint64) Takeover {
	return Takeover{Code: CodeReplaced, Reason: "replaced", Resume: true, LastSeq: lastSeq}
}

func seqsOf(list []*gatewayv1.Undelivered) (seqs []uint64) {
	for _, u := range list {
		seqs = append(seqs, u.Seq)
	}
	return seqs
}

// reopen opens a session with what another one has handed over.
func (w *world) reopen(s *Session, home *router, h Handed, more ...string) {
	a := Admission{
		Identity: Identity{"t", "ann", "phone"}, Epoch: 8, Home: home.Ref, RecentKeys: h.Keys, RecentAges: h.Ages, ResumeToken: "next",
		Resumed: h.NextSeq > 0, NextSeq: h.NextSeq, Backlog: h.Undelivered,
	}
	for _, id := range more {
		a.Backlog = append(a.Backlog, &gatewayv1.Undelivered{Message: message(id), Key: keyOf(id)})
	}
	for i, u := range a.Backlog {
		u.Id = backlogIDs + 1 + uint64(i)
	}
	s.Open(a)
}

func shownSeqs(c *wstest.Client) (seqs []uint64) {
	for _, f := range c.Frames() {
		if d := f.GetDelivery(); d != nil {
			seqs = append(seqs, d.GetSeq())
		}
	}
	return seqs
}

func wantSeqs(t *testing.T, what string, got []uint64, first, n uint64) {
	t.Helper()
	ok := uint64(len(got)) == n
	for i, seq := range got {
		ok = ok && seq == first+uint64(i)
	}
	if !ok {
		t.Errorf("%s: got %v, want %d from %d", what, got, n, first)
	}
}

func TestASuspendedSessionGoesOnElsewhere(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits)
		a, home := w.router("a"), w.router("home")
		old := dropped(t, w, a)
		info, routed := old.Info()
		want(t, "holds its route", routed && info.Suspended, true)
		want(t, "delivery", old.Deliver(a.delivery("3")), accepted)
		want(t, "a repeat", old.Deliver(home.delivery("2")), accepted)
		w.pass(resumeWindow - 2*time.Second)
		old.Tick()
		want(t, "confirmed", a.confirmed(old), 1)

		start := time.Now()
		got := <-freezeFor(t.Context(), old, resume(2))
		want(t, "waited", time.Since(start), 0)
		want(t, "next", got.NextSeq, 4)
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "3")
		wantSeqs(t, "with", seqsOf(got.Undelivered), 3, 1)
		want(t, "confirmed", a.confirmed(old), 3)
		want(t, "confirmed to the other", home.confirmed(old), 1)
		want(t, "then", old.Deliver(a.delivery("x")), moved)
		w.owner.sweep()
		want(t, "gone", w.owner.isGone(old), true)
		wantIDs(t, "handed back as well", idsOf(t, w.up.final(t).Undelivered), "3")
		want(t, "suspended", w.host.Suspended(), 0)
		want(t, "ended once", w.host.Totals().Disconnects, 1)

		s, c := w.connect(2)
		s.Deliver(a.delivery("5"))
		s.Deliver(a.delivery("2")) // seen, and not acknowledged in time: from an earlier copy
		w.reopen(s, home, got.Handed, "4")
		s.Deliver(a.delivery("6"))
		synctest.Wait()
		ack := c.Frames()[0].GetConnectAck()
		want(t, "resumed", ack.GetResumed(), true)
		want(t, "token", ack.GetResumeToken(), "next")
		want(t, "version", ack.GetVersion(), 2)
		wantIDs(t, "shown", c.Delivered(), "3", "4", "5", "6")
		wantSeqs(t, "with", shownSeqs(c), 3, 4)
		want(t, "resumed in all", w.host.metrics.resumed.Value(), 1)
		c.Ack(5)
		synctest.Wait()
		want(t, "backlog confirmed", home.confirmedBacklog(s), backlogIDs+2)
		want(t, "errors", len(c.Errors()), 0)
	})
}

func TestTheWindowPasses(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits)
		a := w.router("a")
		s := dropped(t, w, a)
		s.Deliver(a.delivery("3"))
		w.pass(resumeWindow - time.Second)
		s.Tick()
		want(t, "in time", s.Stage(), Suspended)
		w.pass(time.Second)
		s.Tick()
		want(t, "too late", s.Deliver(a.delivery("4")), moved)
		w.owner.sweep()
		wantIDs(t, "handed back", idsOf(t, w.up.final(t).Undelivered), "2", "3")
		want(t, "code", w.up.final(t).CloseCode, ws.CodeAbnormal)
		want(t, "gone", w.owner.isGone(s), true)
		want(t, "suspended", w.host.Suspended(), 0)
		want(t, "expired", w.host.metrics.expired.Value(), 1)
	})
}

func TestASuspendedWindowThatIsFull(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits, func(c *Config) { c.QueueFrames = 3 })
		a := w.router("a")
		s := dropped(t, w, a)
		want(t, "fits", s.Deliver(a.delivery("3")), accepted)
		want(t, "fits", s.Deliver(a.delivery("4")), accepted)
		want(t, "one too many", s.Deliver(a.delivery("5")), full)
		want(t, "never again", s.Deliver(a.delivery("6")), moved)
		w.owner.sweep()
		wantIDs(t, "handed back", idsOf(t, w.up.final(t).Undelivered), "2", "3", "4")
		want(t, "gone", w.owner.isGone(s), true)
	})
}

func TestWhatEndsASuspendedSession(t *testing.T) {
	for name, end := range map[string]func(*Session){
		"drain":     func(s *Session) { s.Close(CodeDraining, "server draining") },
		"late tell": func(s *Session) { s.CloseAnswered(CodeDraining, "server draining", time.Second) },
		"kick":      func(s *Session) { s.Kick("kicked") },
		"stop":      func(s *Session) { s.Abort() },
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(t *testing.T) {
				w := newWorld(t, waits)
				s := dropped(t, w, w.router("a"))
				end(s)
				w.owner.sweep()
				wantIDs(t, "handed back", idsOf(t, w.up.final(t).Undelivered), "2")
				want(t, "gone", w.owner.isGone(s), true)
				want(t, "suspended", w.host.Suspended(), 0)
				ok, _ := s.Resumable(1)
				want(t, "resumable", ok, false)
			})
		})
	}
}

func TestWhatDoesNotSuspend(t *testing.T) {
	for name, c := range map[string]struct {
		version uint32
		set     func(*Config)
		end     func(*Session, *wstest.Client)
	}{
		"V1":            {1, waits, func(_ *Session, c *wstest.Client) { _ = c.Conn.Close() }},
		"no window":     {2, func(*Config) {}, func(_ *Session, c *wstest.Client) { _ = c.Conn.Close() }},
		"a close frame": {2, waits, func(_ *Session, c *wstest.Client) { c.Close(1001, "") }},
		"closed by us": {2, waits, func(s *Session, c *wstest.Client) {
			c.Echo(false)
			s.Close(CodeDraining, "server draining")
			synctest.Wait()
			_ = c.Conn.Close()
		}},
		"released": {2, waits, func(s *Session, c *wstest.Client) { s.Released(); _ = c.Conn.Close() }},
	} {
		t.Run(name, func(t *testing.T) {
			inTime(t, func(t *testing.T) {
				w := newWorld(t, c.set)
				s, client := w.connect(c.version)
				w.open(s)
				synctest.Wait()
				c.end(s, client)
				synctest.Wait()
				want(t, "gone", w.owner.isGone(s), true)
				want(t, "finals", len(w.up.ended()), 1)
			})
		})
	}
}

func TestSilenceSuspends(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits)
		s, c := w.connect(2)
		w.open(s)
		a := w.router("a")
		c.Echo(false)
		time.Sleep(defaultHeartbeat + time.Second)
		s.Tick()
		want(t, "taken meanwhile", s.Deliver(a.delivery("1")), accepted)
		synctest.Wait()
		code, _ := c.Closed()
		want(t, "code", code, CodeHeartbeat)
		want(t, "stage", s.Stage(), Suspended)
		wantIDs(t, "behind the close frame", c.Delivered())
		c.Message(&messagev1.MessageRequest{MsgId: "late"})
		w.pass(closeTimeout + 100*time.Millisecond) // the socket is cut
		want(t, "messages of a suspended session", len(w.up.list()), 0)
		got := <-freezeFor(t.Context(), s, resume(0))
		want(t, "next", got.NextSeq, 2)
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "1")
		w.owner.sweep()
		want(t, "gone", w.owner.isGone(s), true)
		want(t, "heartbeats", w.host.metrics.heartbeats.Value(), 1)
		wantIDs(t, "handed back as well", idsOf(t, w.up.final(t).Undelivered), "1")
	})
}

func TestAPeerThatTakesNothingIsSuspended(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits)
		s, _ := w.connectPaused(2)
		w.open(s)
		a := w.router("a")
		s.Deliver(a.delivery("1"))
		time.Sleep(writeTimeout + time.Second)
		s.Tick()
		synctest.Wait()
		want(t, "stage", s.Stage(), Suspended)
		s.Deliver(a.delivery("2"))
		got := <-freezeFor(t.Context(), s, resume(0))
		wantIDs(t, "handed over", idsOf(t, got.Undelivered), "1", "2")
		wantSeqs(t, "with", seqsOf(got.Undelivered), 1, 2)
	})
}

func TestTheClientLeavesInsteadOfAnsweringTheHeartbeatTimeout(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, waits)
		s, c := w.connect(2)
		w.open(s)
		c.Echo(false)
		time.Sleep(defaultHeartbeat + time.Second)
		s.Tick()
		synctest.Wait()
		c.Close(1001, "")
		synctest.Wait()
		w.owner.sweep()
		want(t, "gone", w.owner.isGone(s), true)
		want(t, "finals", len(w.up.ended()), 1)
	})
}
