package session

import (
	"fmt"
	"testing"

	"github.com/mics-im/mics/gateway/internal/ws"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// BenchmarkFanOut is one delivery to n sessions whose sockets take everything,
// with the confirms: what a group message costs this process besides sockets.
func BenchmarkFanOut(b *testing.B) {
	for _, version := range []uint32{1, 2} {
		for _, n := range []int{1, 100, 10_000} {
			b.Run(fmt.Sprintf("v%d/%d", version, n), func(b *testing.B) {
				w := newWorld(b)
				r := w.router("a")
				sessions := make([]*Session, n)
				for i := range sessions {
					sessions[i] = w.host.NewSession(uint64(i+1), ws.NewConn(sinkConn{}, nil), Params{Tenant: "t", Version: version})
					sessions[i].phase = live
					sessions[i].writing = true // written below, as the goroutine would
				}
				wr := &writer{}
				m := &gatewayv1.Delivery{Message: message("x")}
				b.ReportAllocs()
				for b.Loop() {
					m.Id++
					m.Key = fmt.Appendf(m.Key[:0], "%016d", m.Id)
					d := NewDelivery(r.Router, m)
					for _, s := range sessions {
						if s.Deliver(d) != accepted {
							b.Fatal("refused")
						}
						s.mu.Lock()
						s.begin(wr)
						s.mu.Unlock()
						if err := wr.write(s); err != nil {
							b.Fatal(err)
						}
						s.mu.Lock()
						s.wrote()
						s.confirm(s.sent)
						s.mu.Unlock()
					}
					r.Take(r.wake, 1<<20)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/delivery")
			})
		}
	}
}
