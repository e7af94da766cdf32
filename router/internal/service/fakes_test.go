package service

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/signals"
	"github.com/mics-im/mics/router/internal/stats"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// fakes is what is behind the service.
type fakes struct {
	t *testing.T

	mu       sync.Mutex
	gateways map[route.NodeRef]route.Node // guarded by mu
	fail     error                        // guarded by mu: of Renew
	removed  []route.NodeRef              // guarded by mu
	took     []*routerv1.Inbound          // guarded by mu
	answer   func(uint64, []byte)         // guarded by mu: of the last stream
	unread   bool                         // guarded by mu: the store was never reached
}

func (f *fakes) Renew(_ context.Context, n route.Node) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == nil {
		f.gateways[n.NodeRef] = n
	}
	return f.fail
}

func (f *fakes) Remove(_ context.Context, n route.NodeRef) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.gateways, n)
	f.removed = append(f.removed, n)
	return nil
}

func (f *fakes) Gateway(r route.NodeRef) (route.Node, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.gateways[r]
	return n, ok
}

func (f *fakes) Alive(r route.NodeRef) bool { _, ok := f.Gateway(r); return ok }

func (f *fakes) Gateways() (out []route.Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.gateways {
		out = append(out, n)
	}
	return out
}

func (f *fakes) Routers() []route.Router {
	return []route.Router{{NodeRef: route.NodeRef{ID: "r1", Incarnation: 3}, Endpoint: "http://r1", Version: "v"}}
}

func (f *fakes) Read() (at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.unread {
		at = time.Now()
	}
	return at
}

func (f *fakes) Left(r route.NodeRef) { _ = f.Remove(context.Background(), r) }

func (f *fakes) OpenSession(context.Context, *routerv1.OpenSessionRequest) (*routerv1.OpenSessionResponse, error) {
	return nil, fault.Wrap(fault.Unavailable, "home away", errors.New("secret"))
}

func (f *fakes) Admit(context.Context, *routerv1.AdmitRequest) (*routerv1.AdmitResponse, error) {
	return &routerv1.AdmitResponse{Epoch: 4}, nil
}

func (f *fakes) CloseSessions(_ context.Context, req *routerv1.CloseSessionsRequest) error {
	if len(req.Sessions) != 1 {
		return fault.New(fault.Internal, "one session was expected")
	}
	return nil
}

func (f *fakes) PrepareMigration(req *routerv1.PrepareMigrationRequest) (*routerv1.PrepareMigrationResponse, error) {
	return &routerv1.PrepareMigrationResponse{Tokens: make([]string, len(req.Sessions))}, nil
}

func (f *fakes) KeepAll(_ context.Context, req *routerv1.BufferRequest) *routerv1.BufferResponse {
	return &routerv1.BufferResponse{Results: make([]routerv1.BufferResponse_Result, len(req.Entries))}
}

func (f *fakes) Publish(b []*routerv1.Inbound) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.took = append(f.took, b...)
}

func (f *fakes) taken() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.took)
}

// serve runs the service over a real connection.
func serve(t *testing.T) (*fakes, *Service, routerv1connect.RouterServiceClient, routerv1connect.PeerServiceClient) {
	t.Helper()
	f := &fakes{t: t, gateways: map[route.NodeRef]route.Node{}}
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{
		Directory: f, Admitter: f, Buffer: f, Stats: stats.New(tel), Log: tel.Log, Signals: signals.New(f.Alive, tel),
		Intake: func(_ route.NodeRef, answer func(uint64, []byte)) Intake {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.answer = answer
			return f
		},
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(routerv1connect.NewRouterServiceHandler(s, rpc.HandlerOptions()...))
	mux.Handle(routerv1connect.NewPeerServiceHandler(s, rpc.HandlerOptions()...))
	srv := rpc.NewServer(ln, mux, nil, tel.Log)
	srv.Start()
	client := rpc.NewClient()
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		client.CloseIdleConnections()
		if err := srv.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		_ = tel.Shutdown(context.Background())
	})
	url := "http://" + srv.Addr()
	return f, s, routerv1connect.NewRouterServiceClient(client, url, rpc.ClientOptions()...), routerv1connect.NewPeerServiceClient(client, url, rpc.ClientOptions()...)
}

func info(incarnation uint64) *gatewayv1.GatewayInfo {
	return &gatewayv1.GatewayInfo{NodeId: "g", Incarnation: incarnation, Endpoint: "http://g:1", Track: "canary", Version: "v2", Phase: gatewayv1.Phase_PHASE_SERVING, ClientUrl: "ws://g/ws"}
}

var gw = &gatewayv1.GatewayRef{NodeId: "g", Incarnation: 1}

// ask sends one registration and returns the answer.
func ask(s *connect.BidiStreamForClient[routerv1.RegisterRequest, routerv1.RegisterResponse], g *gatewayv1.GatewayInfo) (*routerv1.RegisterResponse, error) {
	if err := s.Send(&routerv1.RegisterRequest{Gateway: g}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return s.Receive()
}

func end[Req, Res any](s *connect.BidiStreamForClient[Req, Res]) {
	_ = s.CloseRequest()
	_ = s.CloseResponse()
}
