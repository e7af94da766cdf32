// Package operate tests the operator's side as an operator sees it: micsctl
// against a real control plane over real sockets; the router and the gateway
// that it asks are small doubles behind the real RPC handlers.
package operate

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/controlplane"
	"github.com/mics-im/mics/ctl"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// gateway is a double that holds one session.
type gateway struct {
	gatewayv1connect.UnimplementedGatewayServiceHandler
	info   *gatewayv1.GatewayInfo
	kicked atomic.Pointer[gatewayv1.KickRequest]
}

func (g *gateway) Status(context.Context, *connect.Request[gatewayv1.StatusRequest]) (*connect.Response[gatewayv1.StatusResponse], error) {
	return connect.NewResponse(&gatewayv1.StatusResponse{Gateway: g.info, Sessions: 1, RoutersLinked: 1}), nil
}

func (g *gateway) Sessions(_ context.Context, _ *connect.Request[gatewayv1.SessionsRequest], s *connect.ServerStream[gatewayv1.SessionsResponse]) error {
	return s.Send(&gatewayv1.SessionsResponse{Sessions: []*gatewayv1.SessionInfo{{SessionId: 7, TenantId: "demo", UserId: "ann", DeviceId: "phone", Version: 1}}})
}

func (g *gateway) Kick(_ context.Context, r *connect.Request[gatewayv1.KickRequest]) (*connect.Response[gatewayv1.KickResponse], error) {
	g.kicked.Store(r.Msg)
	return connect.NewResponse(&gatewayv1.KickResponse{Kicked: 1}), nil
}

// router is a double whose directory names one gateway.
type router struct {
	routerv1connect.UnimplementedRouterServiceHandler
	gateway *gatewayv1.GatewayInfo
}

func (r *router) Directory(context.Context, *connect.Request[routerv1.DirectoryRequest]) (*connect.Response[routerv1.DirectoryResponse], error) {
	return connect.NewResponse(&routerv1.DirectoryResponse{
		Gateways: []*gatewayv1.GatewayInfo{r.gateway},
		Routers:  []*routerv1.RouterInfo{{NodeId: "r1", Incarnation: 1, Endpoint: "http://127.0.0.1:1", Version: "v1"}},
	}), nil
}

// serve serves one RPC service on loopback and returns its base URL.
func serve(t *testing.T, path string, h http.Handler) (base string, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(path, h)
	s := rpc.NewServer(ln, mux, nil, slog.New(slog.DiscardHandler))
	s.Start()
	stop = func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // at once
		_ = s.Stop(ctx)
	}
	t.Cleanup(stop)
	return "http://" + s.Addr(), stop
}

// micsctl runs one command and returns what it printed.
func micsctl(t *testing.T, endpoint string, args ...string) (out string, code int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = ctl.Run(t.Context(), ctl.IO{
		In: strings.NewReader(""), Out: &stdout, Err: &stderr,
		Getenv: func(string) string { return "" }, Now: time.Now,
	}, append(args, "--endpoint", endpoint))
	return stdout.String() + stderr.String(), code
}

func TestAnOperatorSeesAndKicks(t *testing.T) {
	g := &gateway{info: &gatewayv1.GatewayInfo{NodeId: "g1", Incarnation: 5, Track: "stable", Version: "v1", Phase: gatewayv1.Phase_PHASE_SERVING}}
	path, h := gatewayv1connect.NewGatewayServiceHandler(g, rpc.HandlerOptions()...)
	base, stopGateway := serve(t, path, h)
	g.info.Endpoint = base
	path, h = routerv1connect.NewRouterServiceHandler(&router{gateway: g.info}, rpc.HandlerOptions()...)
	routerURL, _ := serve(t, path, h)

	cp, err := controlplane.New(t.Context(), controlplane.Config{
		NodeID: "cp", Listen: "127.0.0.1:0", InternalListen: "127.0.0.1:0", RouterEndpoints: []string{routerURL},
		Telemetry: telemetry.Config{LogWriter: io.Discard},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cp.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cp.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	at := "http://" + cp.Addr()

	testkit.Eventually(t, "the gateway is in the inventory", func() bool {
		out, _ := micsctl(t, at, "nodes")
		return strings.Contains(out, "g1") && strings.Contains(out, "serving") && strings.Contains(out, "r1")
	})
	out, code := micsctl(t, at, "nodes", "-o", "json")
	var doc struct {
		Nodes []struct {
			NodeID string `json:"nodeId"`
		}
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || code != 0 || len(doc.Nodes) != 2 {
		t.Fatalf("nodes -o json: %v, exit %d\n%s", err, code, out)
	}
	if out, code = micsctl(t, at, "sessions", "--user", "ann", "--tenant", "demo"); code != 0 || !strings.Contains(out, "phone") {
		t.Fatalf("sessions: exit %d\n%s", code, out)
	}
	if out, code = micsctl(t, at, "kick", "--tenant", "demo", "--user", "ann", "--yes"); code != 0 || g.kicked.Load() == nil || g.kicked.Load().UserId != "ann" {
		t.Fatalf("kick: exit %d\n%s", code, out)
	}
	if out, code = micsctl(t, at, "kick", "--tenant", "demo", "--user", "ann", "--yes", "--reason", strings.Repeat("x", 124)); code == 0 || !strings.Contains(out, "123") {
		t.Fatalf("a reason that no close frame holds: exit %d\n%s", code, out)
	}
	if out, code = micsctl(t, at, "check"); code != 0 {
		t.Fatalf("check of a healthy cluster: exit %d\n%s", code, out)
	}

	stopGateway()
	testkit.Eventually(t, "check fails when the gateway is gone", func() bool {
		out, code = micsctl(t, at, "check")
		return code == 1 && strings.Contains(out, "g1")
	})
}

func TestAMissingControlPlaneIsExplained(t *testing.T) {
	out, code := micsctl(t, "http://127.0.0.1:1", "nodes")
	if code != 1 || !strings.Contains(out, "--endpoint") {
		t.Fatalf("exit %d\n%s", code, out)
	}
}
