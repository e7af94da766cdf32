package session

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/mics-im/mics/gateway/internal/wstest"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// The property once more, with everything at the same time: three routers
// deliver, the client acknowledges, the sweeper sweeps, and something ends the
// session.
func TestNothingIsLostOrShownTwiceConcurrently(t *testing.T) {
	w := newWorld(t, waits)
	for round := range 300 {
		w.up.mu.Lock()
		w.up.finals = nil
		w.up.mu.Unlock()
		server, peer := net.Pipe()
		s, c, end := w.pair(server, peer, 2)
		c.Echo(round%2 == 0)
		var running sync.WaitGroup
		var mu sync.Mutex
		var taken []string // guarded by mu
		start := make(chan struct{})
		for i := range 3 {
			r := w.router(fmt.Sprint(round, "-", i))
			running.Go(func() {
				<-start
				for n := range 40 {
					id := fmt.Sprint(round, "/", i, "/", n)
					if s.Deliver(r.delivery(id)) != accepted {
						return
					}
					mu.Lock()
					taken = append(taken, id)
					mu.Unlock()
				}
			})
		}
		running.Go(func() {
			<-start
			w.open(s)
			for range 10 {
				c.Allow(rand.IntN(12))
				if n := len(c.Delivered()); n > 0 {
					c.Ack(uint64(n))
				}
				w.owner.sweep()
			}
			c.Allow(200)
		})
		var over []*gatewayv1.Undelivered
		running.Go(func() {
			<-start
			for range rand.IntN(2000) {
				_ = s.Version()
			}
			switch round % 5 {
			case 0:
				s.Close(CodeDraining, "server draining")
			case 1:
				s.Abort()
			case 2:
				over = frozen(context.Background(), s)
			case 3:
				_ = peer.Close()
			case 4:
				ctx, cancel := context.WithCancel(context.Background())
				running.Go(cancel)
				over = frozen(ctx, s)
			}
		})
		close(start)
		running.Wait()
		if round%5 == 3 {
			testkit.Eventually(t, "the session is suspended", func() bool { return s.Stage() == Suspended || s.Stage() == Ending })
			if h, ok := s.Freeze(context.Background(), resume(uint64(len(c.Delivered())))); ok {
				over = h.Undelivered
			}
		}
		if round%2 == 1 {
			s.Abort() // it would wait for an echo
		}
		testkit.Eventually(t, "the session is gone", func() bool { w.owner.sweep(); return w.owner.isGone(s) })
		end()
		checkSum(t, w, c, taken, over)
	}
}

func checkSum(t *testing.T, w *world, c *wstest.Client, taken []string, over []*gatewayv1.Undelivered) {
	t.Helper()
	handed := idsOf(t, over)
	for _, f := range w.up.ended() {
		if back := idsOf(t, f.Undelivered); over == nil || !slices.Equal(back, handed) { // as well
			handed = append(handed, back...)
		}
	}
	shown := c.Delivered()
	kept := len(taken) - len(handed)
	if kept < 0 || kept > len(shown) {
		t.Fatalf("taken %d, handed back %d, shown %d", len(taken), len(handed), len(shown))
	}
	if again := shown[kept:]; !slices.Equal(again, handed[:len(again)]) {
		t.Fatalf("shown and handed back %v, handed back %v", again, handed)
	}
	all := slices.Concat(shown[:kept], handed)
	slices.Sort(all)
	slices.Sort(taken)
	if !slices.Equal(all, taken) {
		t.Fatalf("taken %v\nkept and handed back %v", taken, all)
	}
}

func frozen(ctx context.Context, s *Session) []*gatewayv1.Undelivered {
	h, _ := s.Freeze(ctx, replaced)
	return h.Undelivered
}
