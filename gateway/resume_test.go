package gateway

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/gateway/internal/routertest"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// home makes the router admit V2 sessions as a home does: the token names a session
// of old, which is handed over.
func (r *rig) home(router *routertest.Router, old *Gateway) {
	hc := rpc.NewClient()
	r.t.Cleanup(hc.CloseIdleConnections)
	gw := gatewayv1connect.NewGatewayServiceClient(hc, "http://"+old.InternalAddr(), rpc.ClientOptions()...)
	router.Do(func(f *routertest.Router) {
		f.Tokens = func(s *routerv1.MigratingSession) string { return fmt.Sprint("move-", s.GetSessionId()) }
		f.Open = func(req *routerv1.OpenSessionRequest) (*routerv1.OpenSessionResponse, error) {
			res := &routerv1.OpenSessionResponse{
				UserId: "u-" + req.GetToken(), DeviceId: req.GetDeviceId(), Epoch: 1, HeartbeatTimeoutSeconds: 30,
				RouterId: router.Info.GetNodeId(), RouterIncarnation: router.Info.GetIncarnation(),
				ResumeToken: fmt.Sprint("resume-", req.GetSessionId()),
			}
			_, text, ok := strings.Cut(req.GetResumeToken(), "-")
			if !ok {
				return res, nil
			}
			var id uint64
			if _, err := fmt.Sscan(text, &id); err != nil {
				return nil, fault.Wrap(fault.Invalid, "token", err)
			}
			h, err := gw.Handover(context.Background(), connect.NewRequest(&gatewayv1.HandoverRequest{
				GatewayIncarnation: old.ref.GetIncarnation(), SessionId: id, Resume: true, LastSeq: req.GetLastSeq(),
			}))
			if err != nil {
				return nil, err
			}
			res.Backlog, res.RecentKeys = h.Msg.GetUndelivered(), h.Msg.GetRecentKeys()
			res.Resumed, res.NextSeq, res.AcknowledgedSeq = h.Msg.GetNextSeq() > 0, h.Msg.GetNextSeq(), h.Msg.GetAcknowledgedSeq()
			res.Origin, res.Migrating, res.FrozenMs = old.ref, strings.HasPrefix(req.GetResumeToken(), "move"), 3
			for i, u := range res.Backlog {
				u.Id = 1<<63 + uint64(i) + 1
			}
			return res, nil
		}
	})
}

// delivery reads one.
func (p *peer) delivery(seq uint64, msgID string) {
	p.t.Helper()
	if d := p.next().GetDelivery(); d.GetSeq() != seq || d.GetMessage().GetMsgId() != msgID {
		p.t.Fatalf("delivery %v, want %d %s", d, seq, msgID)
	}
}

func (p *peer) ack(seq uint64) {
	p.t.Helper()
	p.send(&messagev1.ClientFrame{Payload: &messagev1.ClientFrame_DeliveryAck{DeliveryAck: &messagev1.DeliveryAck{Seq: seq}}})
}

// resumes connects to go on.
func (r *rig) resumes(token string, lastSeq uint64) (*peer, *messagev1.ConnectAck) {
	r.t.Helper()
	p := r.dial(params("t", "ann", "d")+fmt.Sprintf("&v=2&resume=%s&lastSeq=%d", token, lastSeq), nil)
	return p, p.next().GetConnectAck()
}

func total(h *gatewayv1.Histogram) (n uint64) {
	for _, c := range h.GetCounts() {
		n += c
	}
	return n
}

// TestMakeBeforeBreak is a planned stop under a V2 client that moves.
func TestMakeBeforeBreak(t *testing.T) {
	r, routers := newRig(t, 1, nil)
	r.start()
	next, _ := newRig(t, 0, func(c *Config) {
		c.NodeID, c.RouterEndpoints = "g2", []string{routers[0].Info.GetEndpoint()}
		c.ClientURL, c.MaxConnections = "ws://g2/ws", 77
	})
	next.start()
	r.home(routers[0], r.g)

	first := r.dial(params("t", "ann", "d")+"&v=2", nil)
	if ack := first.next().GetConnectAck(); ack.GetVersion() != 2 || ack.GetResumeToken() != "resume-1" || ack.GetResumed() {
		t.Fatalf("ConnectAck %v", ack)
	}
	d := r.deliver(routers[0])
	for i := range uint64(3) {
		d.message(i+1, 1, fmt.Sprint("m", i+1))
		first.delivery(i+1, fmt.Sprint("m", i+1))
	}
	first.ack(1)
	stopped := make(chan error, 1)
	began := time.Now()
	go func() { stopped <- r.g.Stop(context.Background()) }()
	m := first.next().GetMigrate()
	if m.GetReason() != "draining" || m.GetResumeToken() != "move-1" || m.GetDeadlineMs() <= 0 || m.GetDeadlineMs() > 3000 || m.GetDelayMs() < 0 || m.GetDelayMs() > m.GetDeadlineMs() {
		t.Fatalf("Migrate %v", m)
	}
	d.message(4, 1, "m4") // the first connection goes on
	d.message(5, 1, "m5")
	first.delivery(4, "m4")
	first.delivery(5, "m5")
	first.ack(4)
	first.message("from the client")
	if a := first.next().GetAck(); a.GetMsgId() != "from the client" {
		t.Fatalf("ack %v", a)
	}
	if n := total(r.status().GetAckMs()); n != 1 {
		t.Errorf("%d answers are counted", n)
	}
	second, ack := next.resumes(m.GetResumeToken(), 3) // as it was when it began to dial
	if !ack.GetResumed() || ack.GetNodeId() != "g2" || ack.GetResumeToken() != "resume-1" {
		t.Fatalf("ConnectAck %v", ack)
	}
	next.deliver(routers[0]).message(6, 1, "m6")
	second.delivery(5, "m5") // 4 was acknowledged after it had asked, and is not lost
	second.delivery(6, "m6")
	second.ack(6)
	first.closed(4201, "replaced")
	if err := <-stopped; err != nil {
		t.Errorf("Stop: %v", err)
	}
	if done := r.log.event("shutdown_drain_done"); done["moved"] != 1.0 || done["told"] != 0.0 || done["handed_back"] != 1.0 {
		t.Errorf("shutdown_drain_done %v after %v", done, time.Since(began))
	}
	testkit.Eventually(t, "the arrival is counted", func() bool { return len(next.status().GetArrivals()) == 1 })
	s := next.status()
	a := s.GetArrivals()[0]
	if a.GetFromNodeId() != "g1" || a.GetFromIncarnation() != r.g.ref.GetIncarnation() || a.GetMigrated() != 1 || a.GetResumed() != 0 ||
		a.GetLost() != 0 || a.GetRepeatedDeliveries() != 0 || a.GetGapMaxMs() < 3 {
		t.Errorf("arrivals %v", a)
	}
	if total(s.GetAcceptMs()) != 1 || s.GetResumesTotal() != 1 || s.GetResidentBytes() == 0 || s.GetSessionsMax() != 77 || s.GetGateway().GetClientUrl() != "ws://g2/ws" {
		t.Errorf("status %v", s)
	}
	// The home that had it might have died.
	if closed := routers[0].Closed(); len(closed) != 1 || closed[0].GetSessionId() != 1 || len(closed[0].GetUndelivered()) != 1 || closed[0].GetUndelivered()[0].GetSeq() != 5 {
		t.Errorf("the router was told of ends: %v", closed)
	}
	if o := routers[0].Opened(); len(o) != 2 || o[1].GetResumeToken() != "move-1" || o[1].GetLastSeq() != 3 || o[1].GetVersion() != 2 {
		t.Errorf("opened %v", o)
	}
	if strings.Contains(r.log.String()+next.log.String(), "move-1") || strings.Contains(next.log.String(), "resume-1") {
		t.Error("a token was logged")
	}
}

// TestALostConnectionIsResumed at the same gateway.
func TestALostConnectionIsResumed(t *testing.T) {
	r, routers := newRig(t, 1, nil)
	r.start()
	r.home(routers[0], r.g)
	first := r.dial(params("t", "ann", "d")+"&v=2", nil)
	token := first.next().GetConnectAck().GetResumeToken()
	d := r.deliver(routers[0])
	d.message(1, 1, "m1")
	first.delivery(1, "m1")
	if err := first.conn.CloseNow(); err != nil {
		t.Fatal(err)
	}
	gauge := func(value string) func() bool {
		return func() bool {
			_, text := r.get("http://" + r.g.InternalAddr() + "/metrics")
			for line := range strings.Lines(text) {
				if strings.HasPrefix(line, "mics_ws_suspended") {
					return strings.HasSuffix(line, " "+value+"\n")
				}
			}
			return false
		}
	}
	testkit.Eventually(t, "the session is suspended", gauge("1"))
	if n := r.status().GetAbnormalClosesTotal(); n != 1 {
		t.Errorf("%d sockets have ended without a close frame", n)
	}
	d.message(2, 1, "m2")
	second, ack := r.resumes(token, 1)
	if !ack.GetResumed() || ack.GetResumeToken() == token {
		t.Fatalf("ConnectAck %v", ack)
	}
	d.message(3, 2, "m3")
	second.delivery(2, "m2")
	second.delivery(3, "m3")
	testkit.Eventually(t, "no session is suspended", gauge("0"))
}
