package downlink

import (
	"testing"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

func TestAHandoverThatResumes(t *testing.T) {
	g := start(t)
	ann, c := g.connect("ann", "phone", 2)
	s := g.deliver(hello())
	if err := s.Send(&gatewayv1.DeliverRequest{Deliveries: []*gatewayv1.Delivery{delivery(1, ann.ID()), delivery(2, ann.ID())}}); err != nil {
		t.Fatal(err)
	}
	s.answers(func(m *gatewayv1.DeliverResponse) bool { return m.AnsweredThrough == 2 })
	testkit.Eventually(t, "shown", func() bool { return len(c.Delivered()) == 2 })
	c.Echo(false)
	ask := func(check bool, lastSeq uint64) *gatewayv1.HandoverResponse {
		t.Helper()
		res, err := g.client.Handover(t.Context(), connect.NewRequest(&gatewayv1.HandoverRequest{
			GatewayIncarnation: incarnation, SessionId: ann.ID(), Resume: true, LastSeq: lastSeq, Check: check,
		}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg
	}
	if m := ask(true, 3); m.Found || !m.Ahead {
		t.Errorf("from the future: %v", m)
	}
	if m := ask(true, 2); !m.Found || m.Ahead || len(m.Undelivered) != 0 || ann.Stage() != session.Open {
		t.Errorf("check: %v, then %v", m, ann.Stage())
	}
	m := ask(false, 1)
	if !m.Found || m.NextSeq != 3 || len(m.Undelivered) != 1 || m.Undelivered[0].Seq != 2 || len(m.RecentKeys) != 16 {
		t.Errorf("handover: %v", m)
	}
	s.answers(confirmed(ann.ID(), 2))
	if m := ask(true, 1); m.Found || m.Ahead {
		t.Errorf("check of what has moved: %v", m)
	}
}
