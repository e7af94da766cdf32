package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// serveHTTP puts h on a loopback port, with h2c, and returns its base URL.
func serveHTTP(t *testing.T, h http.Handler) string {
	t.Helper()
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: h, Protocols: p}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return "http://" + ln.Addr().String()
}

// gateway is a gateway that holds what it is told to. Its fields are set before
// it serves, but for those guarded by mu.
type gateway struct {
	gatewayv1connect.UnimplementedGatewayServiceHandler
	id       string
	sessions []*gatewayv1.SessionInfo
	err      error
	hang     bool

	mu     sync.Mutex
	limits []uint32                 // guarded by mu
	kicks  []*gatewayv1.KickRequest // guarded by mu
}

func (g *gateway) Sessions(ctx context.Context, req *connect.Request[gatewayv1.SessionsRequest], out *connect.ServerStream[gatewayv1.SessionsResponse]) error {
	g.mu.Lock()
	g.limits = append(g.limits, req.Msg.GetLimit())
	g.mu.Unlock()
	if g.err != nil {
		return g.err
	}
	if g.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	for batch := range slices.Chunk(g.sessions, 2) {
		if err := out.Send(&gatewayv1.SessionsResponse{Sessions: batch}); err != nil {
			return err
		}
	}
	return nil
}

func (g *gateway) Kick(_ context.Context, req *connect.Request[gatewayv1.KickRequest]) (*connect.Response[gatewayv1.KickResponse], error) {
	if g.err != nil {
		return nil, g.err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.kicks = append(g.kicks, req.Msg)
	return connect.NewResponse(&gatewayv1.KickResponse{Kicked: uint32(len(g.sessions))}), nil
}

func holding(id string, users ...string) *gateway {
	g := &gateway{id: id}
	for i, u := range users {
		g.sessions = append(g.sessions, &gatewayv1.SessionInfo{SessionId: uint64(i + 1), TenantId: "t", UserId: u, DeviceId: "d"})
	}
	return g
}

// inventory is one that a test renews by hand. Safe for concurrent use.
type inventory struct {
	mu      sync.Mutex
	current *fleet.Snapshot
	renewed chan struct{}
}

func newInventory(s *fleet.Snapshot) *inventory {
	return &inventory{current: s, renewed: make(chan struct{})}
}

func (i *inventory) renew(s *fleet.Snapshot) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.current = s
	close(i.renewed)
	i.renewed = make(chan struct{})
}

func (i *inventory) Next(ctx context.Context, after uint64) (*fleet.Snapshot, error) {
	for {
		i.mu.Lock()
		s, renewed := i.current, i.renewed
		i.mu.Unlock()
		if s != nil && s.Seq > after {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-renewed:
		}
	}
}

// start serves a Service over real HTTP and returns a client of it.
func start(t *testing.T, inv Inventory) (controlv1connect.ControlServiceClient, *Service) {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Service: "test", LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	client := rpc.NewClient()
	s := New(Config{Placed: func(g string) string { return "node-of-" + g }, NodeID: "cp-1", Version: "v1", Inventory: inv, HTTP: client, Telemetry: tel})
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewControlServiceHandler(s, rpc.HandlerOptions()...))
	url := serveHTTP(t, mux)
	t.Cleanup(func() {
		s.Close()
		client.CloseIdleConnections()
		_ = tel.Shutdown(context.Background())
	})
	return controlv1connect.NewControlServiceClient(client, url), s
}

// over starts a Service whose inventory are the gateways, and a router.
func over(t *testing.T, gateways ...*gateway) controlv1connect.ControlServiceClient {
	t.Helper()
	snap := &fleet.Snapshot{Seq: 1, At: time.UnixMilli(1234), Directory: true}
	for _, g := range gateways {
		mux := http.NewServeMux()
		mux.Handle(gatewayv1connect.NewGatewayServiceHandler(g))
		snap.Nodes = append(snap.Nodes, fleet.Node{Kind: fleet.Gateway, ID: g.id, Endpoint: serveHTTP(t, mux)})
	}
	snap.Nodes = append(snap.Nodes, fleet.Node{Kind: fleet.Router, ID: "r", Endpoint: "http://127.0.0.1:1"})
	c, _ := start(t, newInventory(snap))
	return c
}

func TestVersion(t *testing.T) {
	c, _ := start(t, newInventory(nil))
	res, err := c.Version(t.Context(), connect.NewRequest(&controlv1.VersionRequest{}))
	if err != nil || res.Msg.GetNodeId() != "cp-1" || res.Msg.GetVersion() != "v1" {
		t.Fatalf("%v, %v", res, err)
	}
}

func TestListNodes(t *testing.T) {
	c, _ := start(t, newInventory(&fleet.Snapshot{
		Seq: 1, At: time.UnixMilli(1234), Warnings: []string{"w"},
		Nodes: []fleet.Node{
			{
				Kind: fleet.Gateway, ID: "g", Incarnation: 7, Endpoint: "http://g", Version: "v1", Unreachable: true, Reason: "gone",
				Track: "canary", Phase: gatewayv1.Phase_PHASE_DRAINING, StartedAtMS: 5, Sessions: 10, SessionsV2: 4, RoutersLinked: 2,
				Rates: fleet.Rates{Connects: 1, MessagesIn: 2, Deliveries: 3},
			},
			{Kind: fleet.Router, ID: "r"},
		},
	}))
	res, err := c.ListNodes(t.Context(), connect.NewRequest(&controlv1.ListNodesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	m := res.Msg
	if len(m.GetNodes()) != 2 || m.GetObservedAtMs() != 1234 || !slices.Equal(m.GetWarnings(), []string{"w"}) {
		t.Fatalf("%v", m)
	}
	// Every field of Node is set in the first: none is forgotten on the way.
	g := m.GetNodes()[0].ProtoReflect()
	for i := range g.Descriptor().Fields().Len() {
		if f := g.Descriptor().Fields().Get(i); !g.Has(f) {
			t.Errorf("%s is missing", f.Name())
		}
	}
	if k := m.GetNodes()[1].GetKind(); k != controlv1.NodeKind_NODE_KIND_ROUTER {
		t.Errorf("kind %v", k)
	}
}

func TestListNodesWaitsForTheFirstInventory(t *testing.T) {
	inv := newInventory(nil)
	c, _ := start(t, inv)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.ListNodes(ctx, connect.NewRequest(&controlv1.ListNodesRequest{})); connect.CodeOf(err) != connect.CodeDeadlineExceeded && connect.CodeOf(err) != connect.CodeUnavailable {
		t.Fatalf("got %v", err)
	}
	go inv.renew(&fleet.Snapshot{Seq: 1})
	if _, err := c.ListNodes(t.Context(), connect.NewRequest(&controlv1.ListNodesRequest{})); err != nil {
		t.Fatal(err)
	}
}

func TestWatchNodes(t *testing.T) {
	inv := newInventory(&fleet.Snapshot{Seq: 1, At: time.UnixMilli(1)})
	c, s := start(t, inv)
	st, err := c.WatchNodes(t.Context(), connect.NewRequest(&controlv1.WatchNodesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close() //nolint:errcheck // ended by the service
	receive := func(want int64) {
		t.Helper()
		if !st.Receive() || st.Msg().GetObservedAtMs() != want {
			t.Fatalf("got %v, %v; want %d", st.Msg(), st.Err(), want)
		}
	}
	receive(1) // at once
	inv.renew(&fleet.Snapshot{Seq: 2, At: time.UnixMilli(2)})
	receive(2)
	inv.renew(&fleet.Snapshot{Seq: 7, At: time.UnixMilli(7)}) // it was slow
	receive(7)
	if n := s.watchSkipped.Value(); n != 4 {
		t.Errorf("skipped %d, want 4", n)
	}
	if n := s.watchers.Load(); n != 1 {
		t.Errorf("%d watchers", n)
	}
	s.Close()
	s.Close()
	if st.Receive() || connect.CodeOf(st.Err()) != connect.CodeUnavailable || !strings.Contains(st.Err().Error(), "stopping") {
		t.Errorf("got %v", st.Err())
	}
	testkit.Eventually(t, "the watcher is gone", func() bool { return s.watchers.Load() == 0 })
}

func TestWatchersAreBounded(t *testing.T) {
	c, s := start(t, newInventory(&fleet.Snapshot{Seq: 1}))
	s.watchers.Store(maxWatchers)
	st, err := c.WatchNodes(t.Context(), connect.NewRequest(&controlv1.WatchNodesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close() //nolint:errcheck // refused
	if st.Receive() || connect.CodeOf(st.Err()) != connect.CodeResourceExhausted || !strings.Contains(st.Err().Error(), fmt.Sprint(maxWatchers)) {
		t.Errorf("got %v", st.Err())
	}
	if n := s.watchers.Load(); n != maxWatchers {
		t.Errorf("%d watchers after a refusal", n)
	}
}

func users(m *controlv1.ListSessionsResponse) (out []string) {
	for _, s := range m.GetSessions() {
		out = append(out, s.GetNodeId()+"/"+s.GetInfo().GetUserId())
	}
	return out
}

func TestListSessions(t *testing.T) {
	list := func(c controlv1connect.ControlServiceClient, req *controlv1.ListSessionsRequest) *controlv1.ListSessionsResponse {
		t.Helper()
		res, err := c.ListSessions(t.Context(), connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg
	}
	t.Run("of all gateways, sorted", func(t *testing.T) {
		g1, g2 := holding("g1", "d", "a", "c"), holding("g2", "b", "a")
		m := list(over(t, g1, g2), &controlv1.ListSessionsRequest{})
		if got, want := users(m), []string{"g1/a", "g2/a", "g2/b", "g1/c", "g1/d"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if m.GetTruncated() || len(m.GetWarnings()) != 0 {
			t.Errorf("%v", m)
		}
		if !slices.Equal(g1.limits, []uint32{defaultSessions + 1}) {
			t.Errorf("asked for %v", g1.limits)
		}
	})
	t.Run("of one gateway", func(t *testing.T) {
		g1, g2 := holding("g1", "a"), holding("g2", "b")
		m := list(over(t, g1, g2), &controlv1.ListSessionsRequest{NodeId: "g2"})
		if got := users(m); !slices.Equal(got, []string{"g2/b"}) || len(g1.limits) != 0 {
			t.Errorf("got %v; g1 was asked %v", got, g1.limits)
		}
	})
	t.Run("exactly the limit", func(t *testing.T) {
		m := list(over(t, holding("g1", "a", "b", "c")), &controlv1.ListSessionsRequest{Limit: 3})
		if len(m.GetSessions()) != 3 || m.GetTruncated() {
			t.Errorf("%v", m)
		}
	})
	t.Run("more than the limit", func(t *testing.T) {
		// The one that hangs is not waited for, and not blamed.
		hangs := holding("g2", "x")
		hangs.hang = true
		m := list(over(t, holding("g1", "a", "b", "c", "d", "e"), hangs), &controlv1.ListSessionsRequest{Limit: 3})
		if len(m.GetSessions()) != 3 || !m.GetTruncated() || len(m.GetWarnings()) != 0 {
			t.Errorf("%v", m)
		}
	})
	t.Run("a gateway that fails is named", func(t *testing.T) {
		broken := &gateway{id: "g2", err: connect.NewError(connect.CodeInternal, errors.New("on fire"))}
		m := list(over(t, holding("g1", "a"), broken), &controlv1.ListSessionsRequest{})
		if !slices.Equal(users(m), []string{"g1/a"}) || !slices.Equal(m.GetWarnings(), []string{"gateway g2 did not answer: on fire"}) {
			t.Errorf("%v", m)
		}
	})
	t.Run("without a directory it says so", func(t *testing.T) {
		c, _ := start(t, newInventory(&fleet.Snapshot{Seq: 1}))
		if m := list(c, &controlv1.ListSessionsRequest{}); len(m.GetWarnings()) != 1 {
			t.Errorf("%v", m)
		}
	})
}

func TestKick(t *testing.T) {
	g1, g2 := holding("g1", "a", "a"), holding("g2", "a")
	broken := &gateway{id: "g3", err: connect.NewError(connect.CodeUnavailable, errors.New("gone"))}
	c := over(t, g1, g2, broken)
	res, err := c.Kick(t.Context(), connect.NewRequest(&controlv1.KickRequest{TenantId: "t", UserId: "a", DeviceId: "d"}))
	if err != nil {
		t.Fatal(err)
	}
	if res.Msg.GetKicked() != 3 || !slices.Equal(res.Msg.GetWarnings(), []string{"gateway g3 did not answer: gone"}) {
		t.Errorf("%v", res.Msg)
	}
	for _, g := range []*gateway{g1, g2} {
		if len(g.kicks) != 1 || g.kicks[0].GetTenantId() != "t" || g.kicks[0].GetUserId() != "a" || g.kicks[0].GetDeviceId() != "d" || g.kicks[0].GetReason() != "kicked" {
			t.Errorf("%s: %v", g.id, g.kicks)
		}
	}
}

func TestArguments(t *testing.T) {
	g := holding("g1", "a")
	c := over(t, g)
	long, reason := strings.Repeat("x", 129), strings.Repeat("x", 124)
	sessions := func(m *controlv1.ListSessionsRequest) error {
		_, err := c.ListSessions(t.Context(), connect.NewRequest(m))
		return err
	}
	kick := func(m *controlv1.KickRequest) error {
		_, err := c.Kick(t.Context(), connect.NewRequest(m))
		return err
	}
	const invalid, notFound = connect.CodeInvalidArgument, connect.CodeNotFound
	for want, tc := range map[string]struct {
		err  error
		code connect.Code
	}{
		"limit: 10001: at most 10000":         {sessions(&controlv1.ListSessionsRequest{Limit: 10_001}), invalid},
		"tenant_id: 129 bytes: at most 128":   {sessions(&controlv1.ListSessionsRequest{TenantId: long}), invalid},
		"user_id: 129 bytes: at most 128":     {sessions(&controlv1.ListSessionsRequest{UserId: long}), invalid},
		"node_id: 129 bytes: at most 128":     {sessions(&controlv1.ListSessionsRequest{NodeId: long}), invalid},
		`node_id: no gateway "r" is known`:    {sessions(&controlv1.ListSessionsRequest{NodeId: "r"}), notFound},
		"tenant_id: required":                 {kick(&controlv1.KickRequest{UserId: "u"}), invalid},
		"user_id: required":                   {kick(&controlv1.KickRequest{TenantId: "t"}), invalid},
		"device_id: 129 bytes: at most 128":   {kick(&controlv1.KickRequest{TenantId: "t", UserId: "u", DeviceId: long}), invalid},
		"reason: 124 bytes: at most 123":      {kick(&controlv1.KickRequest{TenantId: "t", UserId: "u", Reason: reason}), invalid},
		"tenant_id: 129 bytes: at most 128\n": {kick(&controlv1.KickRequest{TenantId: long, UserId: "u"}), invalid},
	} {
		if connect.CodeOf(tc.err) != tc.code || !strings.Contains(tc.err.Error(), strings.TrimSpace(want)) {
			t.Errorf("got %v, want %v: %s", tc.err, tc.code, want)
		}
	}
	if len(g.limits) != 0 || len(g.kicks) != 0 {
		t.Error("the gateway was asked all the same")
	}
}
