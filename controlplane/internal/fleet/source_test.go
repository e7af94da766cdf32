package fleet

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/rpc"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
)

// router answers with its own name, and with the routers it was told about.
type router struct {
	routerv1connect.UnimplementedRouterServiceHandler
	id    string
	knows []string
	asked atomic.Int64
	down  atomic.Bool
	hangs atomic.Bool
}

func (r *router) Directory(ctx context.Context, _ *connect.Request[routerv1.DirectoryRequest]) (*connect.Response[routerv1.DirectoryResponse], error) {
	r.asked.Add(1)
	if r.hangs.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if r.down.Load() {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("going down"))
	}
	out := &routerv1.DirectoryResponse{Routers: []*routerv1.RouterInfo{{NodeId: r.id}}}
	for _, e := range r.knows {
		out.Routers = append(out.Routers, &routerv1.RouterInfo{NodeId: e, Endpoint: e})
	}
	return connect.NewResponse(out), nil
}

func (r *router) serve(t *testing.T) string {
	t.Helper()
	return serveHandler(t, func(mux *http.ServeMux) { mux.Handle(routerv1connect.NewRouterServiceHandler(r)) })
}

func serveHandler(t *testing.T, register func(*http.ServeMux)) string {
	t.Helper()
	mux := http.NewServeMux()
	register(mux)
	srv := httptest.NewUnstartedServer(mux)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.URL
}

func nowhere(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() //nolint:errcheck // only its number was wanted
	return "http://" + ln.Addr().String()
}

func newSource(t *testing.T, seeds ...string) *RPC {
	t.Helper()
	list, err := rpc.ParseEndpoints(seeds)
	if err != nil {
		t.Fatal(err)
	}
	client := rpc.NewClient()
	t.Cleanup(client.CloseIdleConnections)
	return NewRPC(client, list, "http")
}

func mustAnswer(t *testing.T, s *RPC, want string) {
	t.Helper()
	dir, err := s.Directory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := dir.GetRouters()[0].GetNodeId(); got != want {
		t.Fatalf("%s answered, want %s", got, want)
	}
}

func TestDirectoryAsksOthersOnFailure(t *testing.T) {
	r1, r2 := &router{id: "r1"}, &router{id: "r2"}
	r2.down.Store(true)
	s := newSource(t, nowhere(t), r1.serve(t), r2.serve(t))
	mustAnswer(t, s, "r1")
	asked := r2.asked.Load()
	for range 5 {
		mustAnswer(t, s, "r1")
	}
	// The question of the first round may arrive late.
	if again := r2.asked.Load() - asked; again > 1 {
		t.Errorf("one that answers is enough, and another was asked %d times", again)
	}
	r1.down.Store(true)
	r2.down.Store(false)
	mustAnswer(t, s, "r2")
	r2.down.Store(true)
	_, err := s.Directory(t.Context())
	if err == nil || !strings.Contains(err.Error(), "refused") || strings.Count(err.Error(), "going down") != 2 {
		t.Fatalf("want what each router said, got %v", err)
	}
	r1.down.Store(false)
	mustAnswer(t, s, "r1")
}

func TestDirectoryDoesNotWaitForARouterThatHangs(t *testing.T) {
	hangs, r := &router{id: "hangs"}, &router{id: "r"}
	hangs.hangs.Store(true)
	s := newSource(t, hangs.serve(t), r.serve(t))
	mustAnswer(t, s, "r")
}

func TestDirectoryRemembersRoutersThatAreNoSeeds(t *testing.T) {
	other := &router{id: "other"}
	seed := &router{id: "seed", knows: []string{other.serve(t)}}
	s := newSource(t, seed.serve(t))
	mustAnswer(t, s, "seed")
	seed.down.Store(true)
	mustAnswer(t, s, "other")
}

func TestDirectoryResolvesNames(t *testing.T) {
	r := &router{id: "r"}
	host, port, err := net.SplitHostPort(strings.TrimPrefix(r.serve(t), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	s := newSource(t, "dns://routers:"+port)
	known := false
	s.lookup = func(context.Context, string) ([]string, error) {
		if known {
			return []string{host}, nil
		}
		return nil, errors.New("no such host")
	}
	if _, err := s.Directory(t.Context()); err == nil || !strings.Contains(err.Error(), "resolve routers: no such host") {
		t.Fatalf("got %v", err)
	}
	known = true
	mustAnswer(t, s, "r")
}

func TestCandidatesAreBoundedAndTakeTurns(t *testing.T) {
	s := newSource(t, "dns://routers:1")
	s.lookup = func(context.Context, string) (out []string, _ error) {
		for i := range 40 {
			out = append(out, net.IPv4(10, 0, 0, byte(i)).String())
		}
		return out, nil
	}
	seen := map[string]bool{}
	for range 3 {
		list, err := s.candidates(t.Context(), "http://10.0.0.7:1")
		if err != nil || len(list) != maxAsked {
			t.Fatalf("%d candidates, %v", len(list), err)
		}
		for _, c := range list {
			seen[c] = true
		}
	}
	if len(seen) != 39 || seen["http://10.0.0.7:1"] {
		t.Errorf("in three rounds %d of 39 had their turn", len(seen))
	}
}

type oneGateway struct {
	gatewayv1connect.UnimplementedGatewayServiceHandler
}

func (oneGateway) Status(context.Context, *connect.Request[gatewayv1.StatusRequest]) (*connect.Response[gatewayv1.StatusResponse], error) {
	return connect.NewResponse(&gatewayv1.StatusResponse{Sessions: 7}), nil
}

func TestStatus(t *testing.T) {
	s := newSource(t)
	url := serveHandler(t, func(mux *http.ServeMux) { mux.Handle(gatewayv1connect.NewGatewayServiceHandler(oneGateway{})) })
	if got, err := s.Status(t.Context(), url); err != nil || got.GetSessions() != 7 {
		t.Errorf("got %v, %v", got, err)
	}
	for _, endpoint := range []string{nowhere(t), "", "not a url"} {
		if got, err := s.Status(t.Context(), endpoint); err == nil {
			t.Errorf("%q: got %v", endpoint, got)
		}
	}
	if _, err := s.Directory(t.Context()); !errors.Is(err, errNobody) {
		t.Errorf("without any router: %v", err)
	}
}
