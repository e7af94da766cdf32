package mics

import (
	"slices"
	"testing"
	"time"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// TestCloseDuringAMove: the session may have moved already, and with it what Close
// acknowledges, or not.
func TestCloseDuringAMove(t *testing.T) {
	for name, moved := range map[string]bool{"it has moved": true, "it has not": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				acked := make(chan uint64, 2)
				g := newGateway(t, connectedV2("r1", false, func(p *peer) {
					_ = p.migrate(&messagev1.Migrate{DeadlineMs: 10000, ResumeToken: "m1"})
					time.Sleep(time.Second) // the second connection waits for its answer
					_ = p.deliverSeq(1, 1)
					_ = p.deliverSeq(2, 2)
					acked <- p.nextAck()
					p.ackAll()
				}), upgraded(func(p *peer) {
					time.Sleep(2 * time.Second)
					_ = p.connAck(&messagev1.ConnectAck{Version: 2, ResumeToken: "r2", Resumed: moved, HeartbeatTimeoutSeconds: 30})
					if moved {
						_ = p.deliverSeq(1, 1)
						time.Sleep(100 * time.Millisecond)
						_ = p.deliverSeq(2, 2)
					}
					_ = p.deliverSeq(3, 3) // for the next session
					acked <- p.nextAck()
				}))
				c := connect(t, g.options())
				time.Sleep(1500 * time.Millisecond)
				if err := c.Close(t.Context()); err != nil {
					t.Error(err)
				}
				want := uint64(0)
				if moved {
					want = 2
				}
				if first, second := <-acked, <-acked; first != 2 || second != want {
					t.Errorf("acknowledged %d, then %d", first, second)
				}
				if got := ids(c); !slices.Equal(got, []string{"1", "2"}) {
					t.Errorf("delivered %v", got)
				}
			})
		})
	}
}

// TestCloseDoesNotWaitLongForAMove: nor for what a connection does not bring again.
func TestCloseDoesNotWaitLongForAMove(t *testing.T) {
	for name, second := range map[string]step{
		"no answer":  upgraded(func(p *peer) { p.read() }),
		"no repeats": connectedV2("r2", true, (*peer).ackAll),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newGateway(t, connectedV2("r1", false, func(p *peer) {
					_ = p.migrate(&messagev1.Migrate{DeadlineMs: 10000, ResumeToken: "m1"})
					_ = p.deliverSeq(1, 1)
					p.ackAll()
				}), second)
				c := connect(t, g.options())
				time.Sleep(time.Second)
				began := time.Now()
				if err := c.Close(t.Context()); err != nil || time.Since(began) > closeMoveTime+repeatsTime {
					t.Errorf("%v after %v", err, time.Since(began))
				}
			})
		})
	}
}
