package router

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"google.golang.org/protobuf/proto"
)

// acme is a tenant's hook server: the token is the user, the group "all" has the
// members it is given, and a body that begins with "bad" is denied.
type acme struct {
	members []string
	config  *hookv1.TenantRuntimeConfig
	pending []*messagev1.MessageRequest // what get-offline-messages returns
}

func (a *acme) serve(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		var res proto.Message
		switch {
		case strings.HasSuffix(r.URL.Path, "/auth"):
			req := &hookv1.AuthRequest{}
			err = proto.Unmarshal(body, req)
			res = &hookv1.AuthResponse{Ok: req.Token != "wrong", UserId: req.Token, Config: a.config, Reason: "who are you"}
		case strings.HasSuffix(r.URL.Path, "/check-message"):
			req := &hookv1.CheckMessageRequest{}
			err = proto.Unmarshal(body, req)
			res = &hookv1.CheckMessageResponse{Allow: !strings.HasPrefix(string(req.GetMessage().GetMsgBody()), "bad"), Reason: "no bad words"}
		case strings.HasSuffix(r.URL.Path, "/get-group-members"):
			res = &hookv1.GetGroupMembersResponse{UserIds: a.members}
		case strings.HasSuffix(r.URL.Path, "/get-offline-messages"):
			res = &hookv1.GetOfflineMessagesResponse{Ok: true, Messages: a.pending}
		}
		if err != nil || res == nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		raw, _ := proto.Marshal(res)
		_, _ = w.Write(raw)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// startRouter starts a router that ends with the test.
func startRouter(t *testing.T, id, redis, hooks string, more map[string]string) *Router {
	t.Helper()
	auth, _ := json.Marshal(map[string]string{"acme": hooks})
	env := map[string]string{"NODE_ID": id, "INTERNAL_LISTEN": "127.0.0.1:0", "REDIS__CONNECTION": redis, "TENANT_AUTH_MAP": string(auth)}
	for k, v := range more {
		env[k] = v
	}
	cfg, err := LoadConfig(nil, func(k string) (string, bool) { v, ok := env[k]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	cfg.Telemetry = telemetry.Config{LogWriter: testWriter{t}, LogLevel: "warn"}
	r, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Stop(context.Background()); err != nil {
			t.Errorf("stop %s: %v", id, err)
		}
	})
	return r
}

// testWriter shows a router's log with a test that fails.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// fakeGateway is a gateway without clients.
type fakeGateway struct {
	gatewayv1connect.UnimplementedGatewayServiceHandler
	t    *testing.T
	info *gatewayv1.GatewayInfo
	http *http.Client

	mu       sync.Mutex
	got      map[uint64][]string                 // guarded by mu: open session → bodies taken
	handover map[uint64][]*gatewayv1.Undelivered // guarded by mu: what Handover returns
}

func startGateway(t *testing.T, id string, incarnation uint64) *fakeGateway {
	t.Helper()
	g := &fakeGateway{t: t, http: rpc.NewClient(), got: map[uint64][]string{}, handover: map[uint64][]*gatewayv1.Undelivered{}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(gatewayv1connect.NewGatewayServiceHandler(g, rpc.HandlerOptions()...))
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	srv := rpc.NewServer(ln, mux, nil, tel.Log)
	srv.Start()
	g.info = &gatewayv1.GatewayInfo{NodeId: id, Incarnation: incarnation, Endpoint: "http://" + ln.Addr().String(), Track: "stable", Phase: gatewayv1.Phase_PHASE_SERVING}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		_ = srv.Stop(ctx) // cuts the routers' streams off, as a dying gateway does
		g.http.CloseIdleConnections()
		_ = tel.Shutdown(context.Background())
	})
	return g
}

func (g *fakeGateway) ref() *gatewayv1.GatewayRef {
	return &gatewayv1.GatewayRef{NodeId: g.info.NodeId, Incarnation: g.info.Incarnation}
}

// Deliver takes everything for open sessions and confirms it at once.
func (g *fakeGateway) Deliver(_ context.Context, s *connect.BidiStream[gatewayv1.DeliverRequest, gatewayv1.DeliverResponse]) error {
	for {
		req, err := s.Receive()
		if err != nil {
			return nil // the router is gone
		}
		res := &gatewayv1.DeliverResponse{}
		g.mu.Lock()
		for _, d := range req.Deliveries {
			res.AnsweredThrough = d.Id
			for _, id := range d.SessionIds {
				if _, open := g.got[id]; !open {
					res.Refusals = append(res.Refusals, &gatewayv1.Refusal{Id: d.Id, SessionId: id, Reason: gatewayv1.Refusal_REASON_UNKNOWN})
					continue
				}
				g.got[id] = append(g.got[id], body(d.Message))
				res.Confirms = append(res.Confirms, &gatewayv1.Confirm{SessionId: id, ThroughId: d.Id})
			}
		}
		g.mu.Unlock()
		if err := s.Send(res); err != nil {
			return nil // the router is gone
		}
	}
}

func (g *fakeGateway) Handover(_ context.Context, req *connect.Request[gatewayv1.HandoverRequest]) (*connect.Response[gatewayv1.HandoverResponse], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	id := req.Msg.SessionId
	_, found := g.got[id]
	delete(g.got, id)
	return connect.NewResponse(&gatewayv1.HandoverResponse{Found: found, Undelivered: g.handover[id], RecentKeys: make([]byte, 16)}), nil
}

// forget ends a session, as a gateway does whose router has taken it back.
func (g *fakeGateway) forget(session uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.got, session)
}

func body(message []byte) string {
	m := &messagev1.MessageRequest{}
	if err := proto.Unmarshal(message, m); err != nil {
		return err.Error()
	}
	return string(m.MsgBody)
}

// register keeps the gateway's lease at a router until the test ends.
func (g *fakeGateway) register(r *Router) {
	g.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := g.client(r).Register(ctx)
	renew := func() error {
		if err := s.Send(&routerv1.RegisterRequest{Gateway: g.info}); err != nil {
			return err
		}
		_, err := s.Receive()
		return err
	}
	if err := renew(); err != nil {
		g.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if renew() != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	g.t.Cleanup(func() {
		cancel()
		<-done
		_ = s.CloseRequest()
		_ = s.CloseResponse()
	})
}

func (g *fakeGateway) client(r *Router) routerv1connect.RouterServiceClient {
	return routerv1connect.NewRouterServiceClient(g.http, "http://"+r.InternalAddr(), rpc.ClientOptions()...)
}

// open opens a session, which takes deliveries from then on; the backlog counts
// as taken.
func (g *fakeGateway) open(r *Router, session uint64, user string) *routerv1.OpenSessionResponse {
	g.t.Helper()
	g.mu.Lock()
	g.got[session] = nil
	g.mu.Unlock()
	res, err := g.client(r).OpenSession(g.t.Context(), connect.NewRequest(&routerv1.OpenSessionRequest{
		Gateway: g.ref(), SessionId: session, TenantId: "acme", Token: user, DeviceId: "phone", Version: 2,
	}))
	if err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, u := range res.Msg.Backlog {
		g.got[session] = append(g.got[session], body(u.Message))
	}
	return res.Msg
}

func (g *fakeGateway) bodies(session uint64) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.got[session]...)
}

// wants waits until the session has got exactly these.
func (g *fakeGateway) wants(session uint64, want ...string) {
	g.t.Helper()
	testkit.Eventually(g.t, strings.Join(want, ","), func() bool { return len(g.bodies(session)) >= len(want) })
	if got := g.bodies(session); strings.Join(got, "|") != strings.Join(want, "|") {
		g.t.Fatalf("session %d got %q, want %q", session, got, want)
	}
}

// publisher is one Publish stream.
type publisher struct {
	g *fakeGateway
	s *connect.BidiStreamForClient[routerv1.PublishRequest, routerv1.PublishResponse]
	n uint64
}

func (g *fakeGateway) publisher(r *Router) *publisher {
	ctx, cancel := context.WithCancel(context.Background())
	p := &publisher{g: g, s: g.client(r).Publish(ctx)}
	if err := p.s.Send(&routerv1.PublishRequest{Gateway: g.ref()}); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		cancel()
		_ = p.s.CloseRequest()
		_ = p.s.CloseResponse()
	})
	return p
}

// send publishes one message of session 1 and returns its ack.
func (p *publisher) send(m *messagev1.MessageRequest) *messagev1.MessageAck {
	p.g.t.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		p.g.t.Fatal(err)
	}
	p.n++
	if err := p.s.Send(&routerv1.PublishRequest{Messages: []*routerv1.Inbound{{Ref: p.n, SessionId: 1, Message: raw, Version: 2}}}); err != nil {
		p.g.t.Fatal(err)
	}
	res, err := p.s.Receive()
	if err != nil {
		p.g.t.Fatal(err)
	}
	ack := &messagev1.MessageAck{}
	if err := proto.Unmarshal(res.Outcomes[0].Ack, ack); err != nil || len(res.Outcomes) != 1 || res.Outcomes[0].Ref != p.n {
		p.g.t.Fatalf("outcomes %v, %v", res.Outcomes, err)
	}
	return ack
}

func text(from, to, id, body string) *messagev1.MessageRequest {
	return &messagev1.MessageRequest{TenantId: "acme", UserId: from, DeviceId: "phone", MsgId: id, ToUserId: to, MsgBody: []byte(body)}
}
