package away

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/ring"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/directory"
	"github.com/mics-im/mics/router/internal/memstore"
	"github.com/mics-im/mics/router/internal/route"
)

// rueidis' last goroutines end some time after its Close.
func TestMain(m *testing.M) { testkit.MainWithin(m, 30*time.Second) }

const ghostTTL = time.Hour

// world is routers, gateways and a backend, in memory.
type world struct {
	t        testing.TB
	redis    atomic.Pointer[memstore.Store]
	down     atomic.Bool
	slow     atomic.Int64 // what a call to the backend takes
	mu       sync.Mutex
	routers  []*member // set under mu by the test, which may read it as it is
	gateways []*gateway
	open     func(*member) route.Store
	stop     chan struct{}
	renewals sync.WaitGroup
}

// member is one router.
type member struct {
	*Store
	w     *world
	dir   *directory.Directory
	cut   atomic.Bool  // from the backend
	hole  atomic.Bool  // what it asks the backend gets no answer
	alone atomic.Bool  // cut off from all routers
	hangs atomic.Int32 // so many questions of routers get no answer
	logs  bytes.Buffer
}

// newWorld is a world on a memstore, within synctest.
func newWorld(t *testing.T, routers, gateways int) *world {
	w := makeWorld(t, routers, gateways, func(m *member) route.Store { return &link{Upkeep: &unreachable{m}, m: m} })
	time.Sleep(5 * time.Second) // fake time: beyond what follows a start
	return w
}

func makeWorld(t testing.TB, routers, gateways int, open func(*member) route.Store) *world {
	w := &world{t: t, open: open, stop: make(chan struct{})}
	w.flush()
	for i := range gateways {
		g := &gateway{
			node: route.Node{NodeRef: route.NodeRef{ID: fmt.Sprint("g", i+1), Incarnation: 1}, Endpoint: fmt.Sprint("http://g", i+1), Phase: 1},
			held: map[uint64]*gatewayv1.SessionInfo{},
		}
		w.gateways = append(w.gateways, g)
	}
	for i := range routers {
		m := w.router(fmt.Sprint("r", i+1), 1)
		w.mu.Lock()
		w.routers = append(w.routers, m)
		w.mu.Unlock()
	}
	w.renewals.Go(w.renew)
	return w
}

// router starts one.
func (w *world) router(id string, incarnation uint64) *member {
	m := &member{w: w}
	tel, err := telemetry.New(w.t.Context(), telemetry.Config{LogWriter: &m.logs})
	if err != nil {
		w.t.Fatal(err)
	}
	self := route.Router{NodeRef: route.NodeRef{ID: id, Incarnation: incarnation}, Endpoint: "http://" + id}
	m.Store = New(Options{
		Store: w.open(m), Self: self, Lease: directory.Lease,
		Telemetry: tel,
	})
	m.dir = directory.New(m.Store, self, tel.Log, func() {}, func(bool) { m.Lapsed() })
	m.Start(Cluster{
		Directory: m.dir,
		Peer:      func(to route.Router) routerv1connect.PeerServiceClient { return wire{from: m, to: w.named(to.ID)} },
		Gateway: func(to route.Node) gatewayv1connect.GatewayServiceClient {
			i := slices.IndexFunc(w.gateways, func(g *gateway) bool { return g.node.ID == to.ID })
			return gatewayv1connect.NewGatewayServiceClient(&http.Client{Transport: w.gateways[i]}, to.Endpoint, rpc.ClientOptions()...)
		},
	})
	m.dir.Start()
	return m
}

// stop ends a router.
func (m *member) stop() {
	_ = m.dir.Stop(context.Background())
	m.Stop()
	_ = m.Close()
	_ = m.opts.Telemetry.Shutdown(context.Background())
}

// kill ends a router without a word to anybody.
func (m *member) kill() {
	m.cut.Store(true)
	m.alone.Store(true)
	m.stop()
}

// restart is a router's next start after kill.
func (w *world) restart(m *member) *member {
	next := w.router(m.opts.Self.ID, m.opts.Self.Incarnation+1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.routers[slices.Index(w.routers, m)] = next
	return next
}

// end stops everything; each router must be up, and say so.
func (w *world) end() {
	for _, m := range w.routers {
		if m.phase() != up || m.mirror.unsavedLen() != 0 || len(m.Degraded()) != 0 {
			w.t.Errorf("%s: phase %v, %d unsaved, %v\n%s", m.opts.Self.ID, m.phase(), m.mirror.unsavedLen(), m.Degraded(), m.logs.String())
		}
	}
	close(w.stop)
	w.renewals.Wait()
	for _, m := range w.routers {
		m.stop()
	}
}

// renew has all gateways that live renew their leases at all routers.
func (w *world) renew() {
	tick := time.NewTicker(directory.Lease / 3)
	defer tick.Stop()
	for {
		var all sync.WaitGroup
		for _, g := range w.gateways {
			for _, m := range w.members() {
				if !g.dead.Load() {
					all.Go(func() { _ = m.dir.Renew(context.Background(), g.node) })
				}
			}
		}
		all.Wait()
		select {
		case <-tick.C:
		case <-w.stop:
			return
		}
	}
}

func (w *world) flush() { w.redis.Store(memstore.New()) }

func (w *world) named(id string) *member {
	all := w.members()
	return all[slices.IndexFunc(all, func(m *member) bool { return m.opts.Self.ID == id })]
}

func (w *world) members() []*member {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.routers)
}

// home is the user's home as the router sees it.
func (m *member) home(key route.UserKey) *member {
	r, _ := m.dir.Home(key)
	return m.w.named(r.ID)
}

// wire is a call to another router.
type wire struct {
	routerv1connect.PeerServiceClient
	from, to *member
}

func (c wire) Records(ctx context.Context, req *connect.Request[routerv1.RecordsRequest]) (*connect.Response[routerv1.RecordsResponse], error) {
	if c.from.alone.Load() || c.to.alone.Load() {
		return nil, io.ErrUnexpectedEOF
	}
	if c.to.hangs.Add(-1) >= 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	res, err := c.to.ServeRecords(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

// gateway holds sessions; it is its own transport.
type gateway struct {
	gatewayv1connect.UnimplementedGatewayServiceHandler
	node route.Node
	dead atomic.Bool
	mute atomic.Bool // does not answer
	// asked, unless it is nil, is called once, when the gateway is first asked for its
	// sessions; it is set before that.
	asked func()
	once  sync.Once

	mu   sync.Mutex
	held map[uint64]*gatewayv1.SessionInfo // guarded by mu
	last uint64                            // guarded by mu
}

func (g *gateway) RoundTrip(req *http.Request) (*http.Response, error) {
	if g.dead.Load() {
		return nil, io.ErrUnexpectedEOF
	}
	if g.mute.Load() {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	_, h := gatewayv1connect.NewGatewayServiceHandler(g, rpc.HandlerOptions()...)
	w := httptest.NewRecorder()
	if req.Body == nil {
		req.Body = http.NoBody
	}
	h.ServeHTTP(w, req)
	return w.Result(), nil
}

func (g *gateway) Sessions(_ context.Context, req *connect.Request[gatewayv1.SessionsRequest], out *connect.ServerStream[gatewayv1.SessionsResponse]) error {
	m := req.Msg
	if g.asked != nil {
		g.once.Do(g.asked)
	}
	g.mu.Lock()
	var list []*gatewayv1.SessionInfo
	for _, id := range slices.Sorted(maps.Keys(g.held)) {
		i := g.held[id]
		if i.Ending && !m.Ending {
			continue
		}
		named := len(m.Users) == 0 || slices.ContainsFunc(m.Users, func(u *gatewayv1.UserRef) bool { return u.TenantId == i.TenantId && u.UserId == i.UserId })
		home := len(m.Routers) == 0 || m.Routers[ring.Pick(m.Routers, i.TenantId, i.UserId)] == m.HomeRouter
		if named && home {
			list = append(list, i)
		}
	}
	g.mu.Unlock()
	for part := range slices.Chunk(list, 512) {
		if err := out.Send(&gatewayv1.SessionsResponse{Sessions: part}); err != nil {
			return err
		}
	}
	return nil
}

// next is a place for a session.
func (g *gateway) next() route.Location {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last++
	return route.Location{Node: g.node.NodeRef, Session: g.last}
}

func (g *gateway) hold(key route.DeviceKey, loc route.Location, epoch uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held[loc.Session] = &gatewayv1.SessionInfo{
		SessionId: loc.Session, TenantId: key.Tenant, UserId: key.User, DeviceId: key.Device, Epoch: epoch, Version: 2,
	}
}

// end says that the session is ending: its gateway has begun to tell a router so.
func (g *gateway) end(session uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held[session].Ending = true
}

func (g *gateway) drop(session uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.held, session)
}

func (w *world) at(n route.NodeRef) *gateway {
	return w.gateways[slices.IndexFunc(w.gateways, func(g *gateway) bool { return g.node.NodeRef == n })]
}

var errCut = errors.New("connection refused")

// link is a router's way to the backend.
type link struct {
	route.Upkeep
	m *member
}

// try is one call to it; nil: it gets there.
func (l *link) try(ctx context.Context) (*memstore.Store, error) {
	slow := time.Duration(l.m.w.slow.Load())
	if l.m.hole.Load() {
		slow = time.Second
	}
	if slow > 0 {
		t := time.NewTimer(min(slow, time.Second))
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", route.ErrUnavailable, ctx.Err())
		}
		if slow >= time.Second {
			return nil, fmt.Errorf("%w: timeout", route.ErrUnavailable)
		}
	}
	if l.m.w.down.Load() || l.m.cut.Load() {
		return nil, fmt.Errorf("%w: %w", route.ErrUnavailable, errCut)
	}
	return l.m.w.redis.Load(), nil
}

func call[T any](ctx context.Context, l *link, f func(*memstore.Store) (T, error)) (T, error) {
	s, err := l.try(ctx)
	if err != nil {
		var none T
		return none, err
	}
	return f(s)
}

func (l *link) Bind(ctx context.Context, key route.DeviceKey, loc route.Location, version uint8) (uint64, *route.Record, error) {
	s, err := l.try(ctx)
	if err != nil {
		return 0, nil, err
	}
	return s.Bind(ctx, key, loc, version)
}

func (l *link) Change(ctx context.Context, c []route.Change) ([]bool, error) {
	return call(ctx, l, func(s *memstore.Store) ([]bool, error) { return s.Change(ctx, c) })
}

func (l *link) Lookup(ctx context.Context, keys []route.UserKey) ([][]route.Record, error) {
	return call(ctx, l, func(s *memstore.Store) ([][]route.Record, error) { return s.Lookup(ctx, keys) })
}

func (l *link) LookupFresh(ctx context.Context, key route.UserKey) ([]route.Record, error) {
	return call(ctx, l, func(s *memstore.Store) ([]route.Record, error) { return s.LookupFresh(ctx, key) })
}

func (l *link) RenewNode(ctx context.Context, n route.Node, d time.Duration) error {
	_, err := call(ctx, l, func(s *memstore.Store) (int, error) { return 0, s.RenewNode(ctx, n, d) })
	return err
}

func (l *link) RemoveNode(ctx context.Context, n route.NodeRef) error {
	_, err := call(ctx, l, func(s *memstore.Store) (int, error) { return 0, s.RemoveNode(ctx, n) })
	return err
}

func (l *link) Nodes(ctx context.Context) ([]route.Node, error) {
	return call(ctx, l, func(s *memstore.Store) ([]route.Node, error) { return s.Nodes(ctx) })
}

func (l *link) RenewRouter(ctx context.Context, r route.Router, d time.Duration) error {
	_, err := call(ctx, l, func(s *memstore.Store) (int, error) { return 0, s.RenewRouter(ctx, r, d) })
	return err
}

func (l *link) RemoveRouter(ctx context.Context, r route.NodeRef) error {
	_, err := call(ctx, l, func(s *memstore.Store) (int, error) { return 0, s.RemoveRouter(ctx, r) })
	return err
}

func (l *link) Routers(ctx context.Context) ([]route.Router, error) {
	return call(ctx, l, func(s *memstore.Store) ([]route.Router, error) { return s.Routers(ctx) })
}

func (l *link) AcquireConn(ctx context.Context, tenant string, node route.NodeRef, limit int, live []route.NodeRef) (bool, int, error) {
	s, err := l.try(ctx)
	if err != nil {
		return false, 0, err
	}
	return s.AcquireConn(ctx, tenant, node, limit, live)
}

func (l *link) ReleaseConns(ctx context.Context, tenant string, node route.NodeRef, n int) error {
	_, err := call(ctx, l, func(s *memstore.Store) (int, error) { return 0, s.ReleaseConns(ctx, tenant, node, n) })
	return err
}

func (l *link) LeaseTokens(ctx context.Context, tenant string, rate, want int) (int, error) {
	return call(ctx, l, func(s *memstore.Store) (int, error) { return s.LeaseTokens(ctx, tenant, rate, want) })
}

func (l *link) Ping(ctx context.Context) error {
	_, err := l.try(ctx)
	return err
}

func (l *link) Close() error { return nil }

func (l *link) Restore(ctx context.Context, r []route.Restored) (int, error) {
	return call(ctx, l, func(s *memstore.Store) (int, error) { return s.Restore(ctx, r) })
}

func (l *link) SetConns(ctx context.Context, tenant string, node route.NodeRef, n int) error {
	_, err := call(ctx, l, func(s *memstore.Store) (int, error) { return 0, s.SetConns(ctx, tenant, node, n) })
	return err
}

func (l *link) Marker(ctx context.Context) (route.Marker, error) {
	return call(ctx, l, func(s *memstore.Store) (route.Marker, error) { return s.Marker(ctx) })
}

func (l *link) SetWhole(ctx context.Context, id string, whole bool) error {
	_, err := call(ctx, l, func(s *memstore.Store) (int, error) { return 0, s.SetWhole(ctx, id, whole) })
	return err
}

func (l *link) DeadNodes(ctx context.Context) ([]route.DeadNode, error) {
	return call(ctx, l, func(s *memstore.Store) ([]route.DeadNode, error) { return s.DeadNodes(ctx) })
}

// unreachable is the part of the backend that no test here uses.
type unreachable struct{ *member }
