package drainer

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/gateway/internal/wstest"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// migrate waits for the request to move.
func migrate(c *wstest.Client) *messagev1.Migrate {
	for {
		for _, f := range c.Frames() {
			if m := f.GetMigrate(); m != nil {
				return m
			}
		}
		if code, _ := c.Closed(); code != 0 {
			return nil
		}
		time.Sleep(5 * time.Millisecond) // fake time
	}
}

func TestV2ClientsMove(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.up.moves = true
		const n, timeout = 200, 10 * time.Second
		moved := make([]time.Duration, n)
		clients := make([]*wstest.Client, n)
		var wg sync.WaitGroup
		start := time.Now()
		for i := range n {
			var s *session.Session
			s, clients[i] = w.connect(2)
			wg.Go(func() {
				m := migrate(clients[i])
				asked := time.Since(start)
				delay := time.Duration(m.GetDelayMs()) * time.Millisecond
				end := asked + time.Duration(m.GetDeadlineMs())*time.Millisecond
				if m.GetReason() != "draining" || m.GetUrl() != "" || m.GetResumeToken() != fmt.Sprint("token", s.ID()) ||
					delay > 50*time.Millisecond || (end-7500*time.Millisecond).Abs() > 10*time.Millisecond {
					t.Errorf("%v after %v", m, asked)
				}
				time.Sleep(delay) // fake time
				moved[i] = time.Since(start)
				// The home, when the client's other connection is admitted.
				s.Freeze(t.Context(), session.Takeover{Code: session.CodeReplaced, Reason: "replaced", Resume: true})
			})
		}
		sum := w.drain(timeout)
		took := time.Since(start)
		wg.Wait()
		if want := (Summary{Sessions: n, Moved: n}); sum != want {
			t.Errorf("%+v, want %+v", sum, want)
		}
		// 200 sessions, 20 ms apart; the last socket is kept for a second.
		if took < 4500*time.Millisecond || took > 5500*time.Millisecond || w.up.calls != 0 {
			t.Errorf("took %v, %d calls of Release", took, w.up.calls)
		}
		early, asked := 0, 0
		for i := range n {
			if code, _ := clients[i].Closed(); code != 4201 {
				t.Errorf("closed with %d", code)
			}
			if moved[i] < took/2 {
				early++
			}
		}
		for _, k := range w.up.asked {
			asked += k
		}
		if early < n/3 || early > 2*n/3 || asked != n || len(w.up.asked) > 81 {
			t.Errorf("%d of %d moved in the first half; routers were asked for %d tokens in %d calls", early, n, asked, len(w.up.asked))
		}
	})
}

func TestClientsThatDoNotMoveAreTold(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.up.moves = true
		s, c := w.connect(2)
		_, dropped := w.connect(2)
		var told time.Time
		go closedAt(c, &told)
		go func() {
			time.Sleep(2 * time.Second) // fake time
			_ = dropped.Conn.Close()    // it may come back, elsewhere, until the deadline
			time.Sleep(time.Second)     // fake time
			if w.reg.Len() != 2 {
				t.Errorf("%d sessions are left", w.reg.Len())
			}
		}()
		start := time.Now()
		sum := w.drain(10 * time.Second)
		synctest.Wait()
		if want := (Summary{Sessions: 2, Told: 1, Echoed: 1}); sum != want {
			t.Errorf("%+v, want %+v", sum, want)
		}
		if r := w.up.released[s.ID()]; told.Sub(start) < 7500*time.Millisecond || told.Sub(start) > 7700*time.Millisecond || r.IsZero() || told.Before(r) {
			t.Errorf("told after %v, released after %v", told.Sub(start), r.Sub(start))
		}
		if code, _ := c.Closed(); code != 4200 {
			t.Errorf("closed with %d", code)
		}
	})
}

func TestWithoutTokensNobodyIsAsked(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		const n = 20
		var clients []*wstest.Client
		for range n {
			_, c := w.connect(2)
			clients = append(clients, c)
		}
		start := time.Now()
		sum := w.drain(10 * time.Second)
		if want := (Summary{Sessions: n, Told: n, Echoed: n}); sum != want || time.Since(start) > 3*time.Second {
			t.Errorf("%+v, want %+v, after %v", sum, want, time.Since(start))
		}
		for _, c := range clients {
			if code, _ := c.Closed(); code != 4200 || len(c.Frames()) != 1 {
				t.Errorf("closed with %d, frames %v", code, c.Frames())
			}
		}
	})
}

// Routers that are being replaced make no tokens for a moment.
func TestClientsAreAskedAgain(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.up.moves, w.up.fails = true, maxAsks-1
		s, c := w.connect(2)
		var wg sync.WaitGroup
		wg.Go(func() {
			if migrate(c) != nil {
				s.Freeze(t.Context(), session.Takeover{Code: session.CodeReplaced, Reason: "replaced", Resume: true})
			}
		})
		sum := w.drain(10 * time.Second)
		wg.Wait()
		if want := (Summary{Sessions: 1, Moved: 1}); sum != want {
			t.Errorf("%+v, want %+v", sum, want)
		}
	})
}

func TestSuspendedSessionsAreHandedBackAtOnce(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.up.moves = true
		s, c := w.connect(2)
		w.connect(2)
		_ = c.Conn.Close()
		synctest.Wait()
		r := w.reg.Router(session.RouterRef{ID: "r", Incarnation: 1})
		w.reg.Deliver(s.ID(), session.NewDelivery(r, &gatewayv1.Delivery{Id: 1}))
		go func() {
			time.Sleep(100 * time.Millisecond) // fake time
			w.up.mu.Lock()
			defer w.up.mu.Unlock()
			if w.up.back != 1 || w.reg.Len() != 1 {
				t.Errorf("%d messages are back, %d sessions left", w.up.back, w.reg.Len())
			}
		}()
		if sum, want := w.drain(10*time.Second), (Summary{Sessions: 2, Told: 1, Echoed: 1, HandedBack: 1}); sum != want {
			t.Errorf("%+v, want %+v", sum, want)
		}
	})
}

func TestAV2SessionThatOpensMeanwhileIsAsked(t *testing.T) {
	inTime(t, func(t *testing.T, w *world) {
		w.up.moves = true
		s, c, open := w.opening(2)
		go func() {
			time.Sleep(2 * time.Second) // fake time
			open()
			if migrate(c) == nil {
				t.Error("it was not asked")
			}
			s.Freeze(t.Context(), session.Takeover{Code: session.CodeReplaced, Reason: "replaced", Resume: true})
		}()
		if sum, want := w.drain(10*time.Second), (Summary{Sessions: 1, Moved: 1}); sum != want {
			t.Errorf("%+v, want %+v", sum, want)
		}
	})
}
