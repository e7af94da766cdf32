package downlink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/gateway/internal/wstest"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/ring"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { testkit.Main(m) }

type uplink struct{}

func (uplink) Publish(*session.Session, string, []byte, string, func([]byte)) {}
func (uplink) Release(context.Context, []*session.Session) error              { return nil }
func (uplink) Final(_ *routerv1.ClosedSession, done func())                   { done() }

// gateway is a downlink behind a real listener.
type gateway struct {
	t      *testing.T
	reg    *registry.Registry
	svc    *Service
	client gatewayv1connect.GatewayServiceClient
}

const incarnation = 7

func start(t *testing.T) *gateway {
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{t: t, reg: registry.New(registry.Options{Session: session.Config{NodeID: "gw", Uplink: uplink{}, Telemetry: tel}})}
	g.reg.Start()
	g.svc = New(Options{
		Registry: g.reg, Telemetry: tel, RoutersLinked: func() int { return 3 }, RefusedHandshakes: func() uint64 { return 4 },
		Info: func() *gatewayv1.GatewayInfo { return &gatewayv1.GatewayInfo{NodeId: "gw", Incarnation: incarnation} },
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(gatewayv1connect.NewGatewayServiceHandler(g.svc, rpc.HandlerOptions()...))
	srv := rpc.NewServer(ln, mux, nil, tel.Log)
	srv.Start()
	h := rpc.NewClient()
	g.client = gatewayv1connect.NewGatewayServiceClient(h, "http://"+srv.Addr(), rpc.ClientOptions()...)
	t.Cleanup(func() {
		g.svc.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		h.CloseIdleConnections()
		if err := srv.Stop(ctx); err != nil {
			t.Errorf("stop the server: %v", err)
		}
		if err := g.reg.Stop(ctx); err != nil {
			t.Errorf("stop the registry: %v", err)
		}
		_ = tel.Shutdown(ctx)
	})
	return g
}

func (g *gateway) connect(user, device string, version uint32) (*session.Session, *wstest.Client) {
	server, peer := net.Pipe()
	c := wstest.New(g.t, peer)
	c.Allow(wstest.Plenty)
	g.t.Cleanup(c.End)
	s := g.reg.Add(ws.NewConn(server, nil), session.Params{Tenant: "t", Device: device, Version: version, RemoteAddr: "10.0.0.1"})
	s.Open(session.Admission{Identity: session.Identity{Tenant: "t", User: user, Device: device}, Epoch: 5})
	return s, c
}

// patience is how long an answer may take on a busy machine. It is not a measurement.
const patience = 30 * time.Second

// link is a router's end of a Deliver stream.
type link struct {
	*connect.BidiStreamForClient[gatewayv1.DeliverRequest, gatewayv1.DeliverResponse]
	t      *testing.T
	cancel context.CancelFunc
	before uint64 // answered on earlier streams
}

func (g *gateway) deliver(hello *gatewayv1.DeliverRequest) *link {
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	s := &link{BidiStreamForClient: g.client.Deliver(ctx), t: g.t, cancel: cancel}
	g.t.Cleanup(s.end)
	if err := s.Send(hello); err != nil && !errors.Is(err, io.EOF) { // which says that the answer is faster
		g.t.Fatal(err)
	}
	return s
}

func (s *link) end() {
	s.cancel()
	_ = s.CloseRequest()
	_ = s.CloseResponse()
}

func hello(confirm ...uint64) *gatewayv1.DeliverRequest {
	return &gatewayv1.DeliverRequest{RouterId: "r", RouterIncarnation: 1, GatewayIncarnation: incarnation, ConfirmSessions: confirm}
}

func delivery(id uint64, sessions ...uint64) *gatewayv1.Delivery {
	m, _ := proto.Marshal(&messagev1.MessageRequest{MsgId: fmt.Sprint(id)})
	return &gatewayv1.Delivery{Id: id, Message: m, Key: fmt.Appendf(nil, "%016d", id), SessionIds: sessions}
}

// answers reads until enough says so, and returns all that came.
func (s *link) answers(enough func(*gatewayv1.DeliverResponse) bool) *gatewayv1.DeliverResponse {
	s.t.Helper()
	all := &gatewayv1.DeliverResponse{}
	for !enough(all) {
		m, err := s.Receive()
		if err != nil {
			s.t.Fatalf("after %v: %v", all, err)
		}
		all.AnsweredThrough = max(all.AnsweredThrough, m.AnsweredThrough)
		for _, c := range m.Confirms {
			if c.ThroughId > max(s.before, all.AnsweredThrough) && c.ThroughId < 1<<62 {
				s.t.Errorf("confirm %v before its answer", c)
			}
		}
		all.Refusals = append(all.Refusals, m.Refusals...)
		all.Confirms = append(all.Confirms, m.Confirms...)
	}
	return all
}

func confirmed(session, through uint64) func(*gatewayv1.DeliverResponse) bool {
	return func(m *gatewayv1.DeliverResponse) bool {
		return slices.ContainsFunc(m.Confirms, func(c *gatewayv1.Confirm) bool { return c.SessionId == session && c.ThroughId == through })
	}
}

// gone is what is said of a session that is not here: two confirms, which may come
// in one answer or in two.
func gone(id uint64) func(*gatewayv1.DeliverResponse) bool {
	return func(m *gatewayv1.DeliverResponse) bool {
		return confirmed(id, session.LastLive)(m) && confirmed(id, session.LastBacklog)(m)
	}
}

func TestDeliver(t *testing.T) {
	g := start(t)
	ann, c := g.connect("ann", "d", 1)
	bob, _ := g.connect("bob", "d", 2)
	s := g.deliver(hello())
	if err := s.Send(&gatewayv1.DeliverRequest{Deliveries: []*gatewayv1.Delivery{
		delivery(7, ann.ID(), bob.ID()), delivery(8, 99, ann.ID()), delivery(9, ann.ID()),
	}}); err != nil {
		t.Fatal(err)
	}
	all := s.answers(confirmed(ann.ID(), 9))
	if all.AnsweredThrough != 9 || len(all.Refusals) != 1 || all.Refusals[0].Id != 8 || all.Refusals[0].SessionId != 99 ||
		all.Refusals[0].Reason != gatewayv1.Refusal_REASON_UNKNOWN {
		t.Errorf("answers %v", all)
	}
	testkit.Eventually(t, "shown", func() bool { return slices.Equal(c.Delivered(), []string{"7", "8", "9"}) })

	// A new stream sends what was not answered again, and asks for confirms.
	s.end()
	s = g.deliver(hello(ann.ID(), bob.ID(), 99))
	s.before = 9
	if err := s.Send(&gatewayv1.DeliverRequest{Deliveries: []*gatewayv1.Delivery{delivery(9, ann.ID()), delivery(10, ann.ID())}}); err != nil {
		t.Fatal(err)
	}
	all = s.answers(func(m *gatewayv1.DeliverResponse) bool {
		return confirmed(ann.ID(), 10)(m) && confirmed(bob.ID(), 6)(m) && gone(99)(m)
	})
	if all.AnsweredThrough != 10 || len(all.Refusals) != 0 {
		t.Errorf("answers %v", all)
	}
	testkit.Eventually(t, "shown once", func() bool { return slices.Equal(c.Delivered(), []string{"7", "8", "9", "10"}) })

	// A router may ask later, too.
	s.before = 10
	if err := s.Send(&gatewayv1.DeliverRequest{ConfirmSessions: []uint64{98, ann.ID()}}); err != nil {
		t.Fatal(err)
	}
	s.answers(func(m *gatewayv1.DeliverResponse) bool {
		return confirmed(98, session.LastBacklog)(m) && confirmed(ann.ID(), 10)(m)
	})
}

func TestASecondStreamReplacesTheFirst(t *testing.T) {
	g := start(t)
	ann, _ := g.connect("ann", "d", 1)
	// One is attached, and has had all it was told so far, before the next is.
	attached := func(id uint64) *link {
		l := g.deliver(hello(id))
		l.answers(gone(id))
		return l
	}
	first := attached(98)
	second := attached(99)
	for i, s := range []*link{first, second, first} {
		if err := s.Send(&gatewayv1.DeliverRequest{Deliveries: []*gatewayv1.Delivery{delivery(uint64(i+1), ann.ID())}}); err != nil {
			t.Fatal(err)
		}
	}
	// Both answer what they were given; confirms go to the second.
	first.answers(func(m *gatewayv1.DeliverResponse) bool {
		if len(m.Confirms) > 0 {
			t.Errorf("confirms on a stream that was replaced: %v", m)
		}
		return m.AnsweredThrough == 3
	})
	for got := uint64(0); got != 3; {
		m, err := second.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range m.Confirms {
			got = c.ThroughId
		}
	}
}

func TestManyRefusalsComeWithTheirAnswers(t *testing.T) {
	g := start(t)
	s := g.deliver(hello())
	const deliveries, sessions = 40, 5000
	ids := make([]uint64, sessions)
	for i := range ids {
		ids[i] = uint64(1000 + i)
	}
	var batch []*gatewayv1.Delivery
	for id := range uint64(deliveries) {
		batch = append(batch, delivery(id+1, ids...))
	}
	if err := s.Send(&gatewayv1.DeliverRequest{Deliveries: batch}); err != nil {
		t.Fatal(err)
	}
	var answered uint64
	for answered < deliveries {
		m, err := s.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if want := int(m.AnsweredThrough-answered) * sessions; len(m.Refusals) != want {
			t.Fatalf("answered %d to %d with %d refusals, want %d", answered, m.AnsweredThrough, len(m.Refusals), want)
		}
		answered = m.AnsweredThrough
	}
}

func TestHellosThatAreRefused(t *testing.T) {
	g := start(t)
	for name, c := range map[string]struct {
		hello *gatewayv1.DeliverRequest
		code  connect.Code
	}{
		"another incarnation": {&gatewayv1.DeliverRequest{RouterId: "r", GatewayIncarnation: incarnation - 1}, connect.CodeFailedPrecondition},
		"no name":             {&gatewayv1.DeliverRequest{GatewayIncarnation: incarnation}, connect.CodeInvalidArgument},
	} {
		if _, err := g.deliver(c.hello).Receive(); connect.CodeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCloseEndsStreams(t *testing.T) {
	g := start(t)
	s := g.deliver(hello(99))
	s.answers(gone(99))
	var closed atomic.Bool
	go func() { g.svc.Close(); closed.Store(true) }()
	if _, err := s.Receive(); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("the stream ends with %v", err)
	}
	testkit.Eventually(t, "Close returns", closed.Load)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	late := g.client.Deliver(ctx)
	_ = late.Send(hello()) // fails if the answer is faster
	if _, err := late.Receive(); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("a stream after Close: %v", err)
	}
}

func TestHandoverAndKickAndStatus(t *testing.T) {
	g := start(t)
	ctx := t.Context()
	ann, c := g.connect("ann", "phone", 2)
	g.connect("ann", "tablet", 1)
	s := g.deliver(hello())
	if err := s.Send(&gatewayv1.DeliverRequest{Deliveries: []*gatewayv1.Delivery{delivery(1, ann.ID())}}); err != nil {
		t.Fatal(err)
	}
	s.answers(func(m *gatewayv1.DeliverResponse) bool { return m.AnsweredThrough == 1 })
	testkit.Eventually(t, "shown", func() bool { return len(c.Delivered()) == 1 })
	handover := func(incarnation uint64) *gatewayv1.HandoverResponse {
		res, err := g.client.Handover(ctx, connect.NewRequest(&gatewayv1.HandoverRequest{GatewayIncarnation: incarnation, SessionId: ann.ID()}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg
	}
	if m := handover(incarnation + 1); m.Found {
		t.Error("handover of another incarnation")
	}
	c.Echo(false) // so the delivery stays unconfirmed
	if m := handover(incarnation); !m.Found || len(m.Undelivered) != 1 || string(m.Undelivered[0].Key) != string(delivery(1).Key) {
		t.Errorf("handover %v", m)
	}
	if m := handover(incarnation); !m.Found || len(m.Undelivered) != 1 {
		t.Errorf("a second handover %v", m)
	}
	s.answers(confirmed(ann.ID(), 1))
	if code, reason := c.Closed(); code != session.CodeReplaced || reason != "replaced" {
		t.Errorf("closed with %d %q", code, reason)
	}

	kick := func(m *gatewayv1.KickRequest) (uint32, error) {
		res, err := g.client.Kick(ctx, connect.NewRequest(m))
		if err != nil {
			return 0, err
		}
		return res.Msg.Kicked, nil
	}
	if _, err := kick(&gatewayv1.KickRequest{TenantId: "t"}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("kick of everybody: %v", err)
	}
	_, c = g.connect("ann", "phone", 1)
	if n, err := kick(&gatewayv1.KickRequest{TenantId: "t", UserId: "ann", DeviceId: "phone"}); n != 1 || err != nil {
		t.Errorf("kicked %d, %v", n, err)
	}
	testkit.Eventually(t, "kicked", func() bool { code, reason := c.Closed(); return code == session.CodeKicked && reason == "kicked" })
	if n, err := kick(&gatewayv1.KickRequest{TenantId: "t", UserId: "ann"}); n != 1 || err != nil {
		t.Errorf("kicked %d, %v", n, err)
	}

	res, err := g.client.Status(ctx, connect.NewRequest(&gatewayv1.StatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if m := res.Msg; m.Gateway.GetNodeId() != "gw" || m.ConnectsTotal != 3 || m.DeliveriesTotal != 1 || m.RoutersLinked != 3 || m.RefusedHandshakesTotal != 4 {
		t.Errorf("status %v", m)
	}
}

func TestSessions(t *testing.T) {
	g := start(t)
	const n = listBatch + 10
	for i := range n {
		g.connect(fmt.Sprint("user", i), "d", 2)
	}
	ann, _ := g.connect("ann", "d", 1)
	leaving, _ := g.connect("ann", "other", 1)
	leaving.Released()
	list := func(m *gatewayv1.SessionsRequest) (all []*gatewayv1.SessionInfo) {
		stream, err := g.client.Sessions(t.Context(), connect.NewRequest(m))
		if err != nil {
			t.Fatal(err)
		}
		for stream.Receive() {
			all = append(all, stream.Msg().Sessions...)
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		return all
	}
	if got := len(list(&gatewayv1.SessionsRequest{})); got != n+1 {
		t.Errorf("all: %d", got)
	}
	if got := len(list(&gatewayv1.SessionsRequest{Limit: 3})); got != 3 {
		t.Errorf("limit: %d", got)
	}
	if got := len(list(&gatewayv1.SessionsRequest{TenantId: "other"})); got != 0 {
		t.Errorf("another tenant: %d", got)
	}
	got := list(&gatewayv1.SessionsRequest{TenantId: "t", UserId: "ann"})
	if len(got) != 1 || got[0].SessionId != ann.ID() || got[0].DeviceId != "d" || got[0].Epoch != 5 || got[0].Version != 1 ||
		got[0].RemoteAddr != "10.0.0.1" || got[0].ConnectedAtMs == 0 {
		t.Errorf("ann: %v", got)
	}
	got = list(&gatewayv1.SessionsRequest{TenantId: "t", UserId: "ann", Ending: true})
	slices.SortFunc(got, func(a, b *gatewayv1.SessionInfo) int { return cmp.Compare(a.SessionId, b.SessionId) })
	if len(got) != 2 || got[0].Ending || got[1].SessionId != leaving.ID() || !got[1].Ending || got[1].Epoch != 5 {
		t.Errorf("ann, with what is ending: %v", got)
	}
	both := &gatewayv1.SessionsRequest{Users: []*gatewayv1.UserRef{
		{TenantId: "t", UserId: "ann"}, {TenantId: "t", UserId: "user7"}, {TenantId: "t", UserId: "ann"}, {TenantId: "other", UserId: "user8"},
	}, GatewayIncarnation: incarnation}
	if got := list(both); len(got) != 2 || got[0].SessionId != ann.ID() || got[1].UserId != "user7" {
		t.Errorf("several users: %v", got)
	}
	routers, users := []string{"r1", "r2", "r3"}, map[string]string{}
	for _, r := range routers {
		for _, i := range list(&gatewayv1.SessionsRequest{Routers: routers, HomeRouter: r}) {
			users[i.UserId+"/"+i.DeviceId] = r
			if routers[ring.Pick(routers, "t", i.UserId)] != r {
				t.Errorf("%s is not the home of %s", r, i.UserId)
			}
		}
	}
	if len(users) != n+1 {
		t.Errorf("the shares of all homes are %d sessions", len(users))
	}
	stream, err := g.client.Sessions(t.Context(), connect.NewRequest(&gatewayv1.SessionsRequest{GatewayIncarnation: incarnation + 1}))
	if err == nil {
		for stream.Receive() {
			t.Errorf("another incarnation lists %v", stream.Msg())
		}
		err = stream.Err()
	}
	if fault.KindOf(err) != fault.FailedPrecondition {
		t.Errorf("another incarnation: %v", err)
	}
}
