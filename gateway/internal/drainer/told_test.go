package drainer

import (
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/gateway/internal/wstest"
)

// TestEveryResponsiveClientIsTold is the planned drain of DESIGN section 8: 15,000
// V1 sessions, 100 ms round trip, 5 % that never echo.
func TestEveryResponsiveClientIsTold(t *testing.T) {
	if testing.Short() {
		t.Skip("15,000 sessions take a while")
	}
	inTime(t, func(t *testing.T, w *world) {
		const n, timeout = 15_000, 10 * time.Second
		w.up.slow = 100 * time.Millisecond
		told := make([]time.Time, n)
		for i := range n {
			server, peer := net.Pipe()
			w.t.Cleanup(func() { _ = peer.Close() })
			s := w.reg.Add(ws.NewConn(server, nil), session.Params{Tenant: "t", Device: "d", Version: 1})
			s.Open(session.Admission{Identity: session.Identity{Tenant: "t", User: fmt.Sprint(i), Device: "d"}, Heartbeat: time.Hour})
			go peerOf(peer, 100*time.Millisecond, i%20 != 0, &told[i])
		}
		synctest.Wait()
		start := time.Now()
		sum := w.drain(timeout)
		took := time.Since(start)
		synctest.Wait()
		if sum.Sessions != n || sum.Told != n || sum.Echoed != n-n/20 || sum.Forced > n/20 || sum.Left != 0 || took > timeout {
			t.Errorf("%+v after %v", sum, took)
		}
		for i, at := range told {
			if at.IsZero() || at.Sub(start) > timeout {
				t.Fatalf("client %d was told after %v", i, at.Sub(start))
			}
		}
	})
}

// peerOf reads until the close frame, and answers it after a round trip, or never.
func peerOf(conn net.Conn, trip time.Duration, echoes bool, told *time.Time) {
	for {
		op, payload, err := wstest.ReadFrame(conn)
		if err != nil {
			return
		}
		if op != ws.Close {
			continue
		}
		*told = time.Now().Add(trip / 2)
		time.Sleep(trip)
		if echoes {
			wstest.WriteFrame(conn, ws.Close, payload)
		}
		for {
			if _, _, err := wstest.ReadFrame(conn); err != nil {
				return
			}
		}
	}
}
