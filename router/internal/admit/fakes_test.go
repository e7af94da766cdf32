package admit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/event"
	"github.com/mics-im/mics/router/internal/memstore"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/peer"
	"github.com/mics-im/mics/router/internal/recall"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/stats"
	"github.com/mics-im/mics/router/internal/tenant"
	"github.com/mics-im/mics/router/internal/token"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var errDown = errors.New("down")

// cluster is what the admitters of its routers share: the store and gateways.
type cluster struct {
	t     *testing.T
	store *memstore.Store
	nodes []*node

	mu      sync.Mutex
	dead    map[route.NodeRef]bool                      // guarded by mu
	windows map[route.Location][]*gatewayv1.Undelivered // guarded by mu: open sessions
	stalled atomic.Bool                                 // of all routers
	partial bool                                        // set before use: a Handover may not be whole
	last    map[route.Location]uint64                   // guarded by mu: the seq of what was sent last
	asked   []*gatewayv1.HandoverRequest                // guarded by mu
	events  []event.Event                               // guarded by mu
	slow    map[string]time.Duration                    // guarded by mu: gateway → its handovers
	// news is a gateway that the routers have not heard of until they ask Alive.
	news route.NodeRef // guarded by mu
	// refusing is how often a gateway is out of reach.
	refusing map[string]int                                                             // guarded by mu
	auth     func(token, device string) (*hookv1.AuthResponse, error)                   // set before use
	tokens   *token.Keys                                                                // of all routers but those in ownKeys
	ownKeys  map[string]*token.Keys                                                     // set before use: by router
	page     func(*hookv1.GetOfflineMessagesRequest) *hookv1.GetOfflineMessagesResponse // set before use
}

// node is one router of the cluster, with everything but its network.
type node struct {
	*Admitter
	c       *cluster
	self    route.Router
	store   *faulty
	offline *offline.Buffer
	buffer  *peer.Buffer
	tenants *tenant.Registry
	stats   *stats.Stats
	close   func()

	mu        sync.Mutex
	held      []*dispatch.Message       // guarded by mu
	full      bool                      // guarded by mu: Hold refuses
	reclaimed []*dispatch.Message       // guarded by mu: what Reclaim returns
	waits     bool                      // guarded by mu: Reclaim does until its time is over
	gated     map[route.DeviceKey]bool  // guarded by mu
	before    []route.Record            // guarded by mu: the user's, at the last Gate
	abandoned []route.Location          // guarded by mu
	owes      bool                      // set before use: to every session
	sent      []string                  // guarded by mu: by SendTo
	lastID    uint64                    // guarded by mu
	lost      func(route.Location) bool // guarded by mu: as Reclaim was told last
	elsewhere route.Location            // guarded by mu: what others were asked to give for a lost session
	leaving   atomic.Bool
	changed   atomic.Bool
}

// faulty is the store as one router sees it.
type faulty struct {
	route.Store
	fail func(call string) error
}

func (f *faulty) Bind(ctx context.Context, key route.DeviceKey, loc route.Location, version uint8) (uint64, *route.Record, error) {
	if err := f.fail("bind"); err != nil {
		return 0, nil, err
	}
	return f.Store.Bind(ctx, key, loc, version)
}

func (f *faulty) Change(ctx context.Context, changes []route.Change) ([]bool, error) {
	if err := errors.Join(f.fail("change"), ctx.Err()); err != nil {
		return nil, err
	}
	return f.Store.Change(ctx, changes)
}

func (f *faulty) AcquireConn(ctx context.Context, tenant string, n route.NodeRef, limit int, live []route.NodeRef) (bool, int, error) {
	if err := f.fail("acquire"); err != nil {
		return false, 0, err
	}
	return f.Store.AcquireConn(ctx, tenant, n, limit, live)
}

func newCluster(t *testing.T, routers int, edit ...func(*cluster)) *cluster {
	t.Helper()
	c := &cluster{
		t: t, store: memstore.New(), dead: map[route.NodeRef]bool{}, windows: map[route.Location][]*gatewayv1.Undelivered{}, slow: map[string]time.Duration{}, refusing: map[string]int{},
		last: map[route.Location]uint64{}, tokens: token.Random(), ownKeys: map[string]*token.Keys{},
		auth: func(token, _ string) (*hookv1.AuthResponse, error) {
			return &hookv1.AuthResponse{Ok: true, UserId: token}, nil
		},
	}
	for _, f := range edit {
		f(c)
	}
	for i := range routers {
		c.nodes = append(c.nodes, c.router(fmt.Sprint("r", i+1)))
	}
	return c
}

func (c *cluster) close() {
	for _, n := range c.nodes {
		n.close()
	}
}

func (c *cluster) router(id string) *node {
	n := &node{c: c, gated: map[route.DeviceKey]bool{}, self: route.Router{NodeRef: route.NodeRef{ID: id, Incarnation: 1}}}
	n.store = &faulty{Store: c.store, fail: func(string) error { return nil }}
	auth, _ := json.Marshal(map[string]string{"a": "http://127.0.0.1:1"})
	var err error
	if n.tenants, err = tenant.New(tenant.Source{AuthMap: string(auth), Settings: tenant.DefaultSettings}); err != nil {
		c.t.Fatal(err)
	}
	tel, err := telemetry.New(context.Background(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		c.t.Fatal(err)
	}
	n.stats = stats.New(tel)
	n.offline = offline.New(offline.Limits{MaxMessagesPerUser: 10, MaxBytesPerUser: 1 << 20, MaxBytes: 1 << 20}, func(string, offline.Drop, int) {})
	remembered := recall.New(func(int) {})
	n.buffer = peer.NewBuffer(peer.Options{
		Directory: n, Local: n.offline, Recall: remembered, Lookup: c.store.LookupFresh,
		Client: func(to route.Router) routerv1connect.PeerServiceClient { return wire{to: c.named(to.ID)} },
		TTL:    func(string) time.Duration { return time.Hour },
	})
	keys := c.ownKeys[id]
	if keys == nil {
		keys = c.tokens
	}
	counted := NewCounted(n.store, n.stats, tel.Log)
	counted.Ended = Ended(c)
	n.Admitter = New(Options{
		Self: n.self, Directory: n, Homes: n, Routes: counted, Tenant: n.tenants.Get, Hooks: c, Dispatcher: n,
		Kept: n, Stalled: func() bool { return c.stalled.Load() }, Recall: remembered, Buffer: n.buffer,
		Peer:    func(to route.Router) routerv1connect.PeerServiceClient { return wire{to: c.named(to.ID)} },
		Gateway: func(to route.Node) gatewayv1connect.GatewayServiceClient { return gatewayWire{c: c, node: to.NodeRef} },
		Tokens:  keys, MaxMessageBytes: 100, Events: c, Stats: n.stats, Log: tel.Log, Tracer: tel.Tracer,
	})
	n.close = func() {
		n.Close()
		n.buffer.Close()
	}
	return n
}

func (c *cluster) named(id string) *node {
	for _, n := range c.nodes {
		if n.self.ID == id {
			return n
		}
	}
	return nil
}

// The directory: everybody's home is the last router, or the first when that leaves.

func (n *node) Alive(r route.NodeRef) bool {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if n.c.news == r {
		n.c.news = route.NodeRef{} // it asks the store
	}
	return !n.c.dead[r]
}

func (n *node) Gateway(r route.NodeRef) (route.Node, bool) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return route.Node{NodeRef: r}, n.c.news != r && !n.c.dead[r]
}
func (n *node) Refs() []route.NodeRef { return []route.NodeRef{g(1), g(2)} }
func (n *node) Home(route.UserKey) (route.Router, bool) {
	home := n.c.nodes[len(n.c.nodes)-1]
	if n == home && n.leaving.Load() {
		home = n.c.nodes[0]
	}
	return home.self, home == n
}
func (n *node) Leaving() bool { return n.leaving.Load() }
func (n *node) Changed() bool { return n.changed.Load() }

// The dispatcher.

func (n *node) Hold(key route.DeviceKey, _ route.Location, msgs []*dispatch.Message) ([]uint64, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.full && len(msgs) > 0 {
		return nil, false
	}
	if !n.gated[key] {
		n.c.t.Error("a backlog is held while live messages may overtake it")
	}
	ids := make([]uint64, len(msgs))
	for i := range msgs {
		n.lastID++
		ids[i] = n.lastID
	}
	n.held = append(n.held, msgs...)
	return ids, true
}

func (n *node) Owes(route.DeviceKey, route.Location) bool { return n.owes }

func (n *node) Abandon(loc route.Location) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.abandoned = append(n.abandoned, loc)
}

func (n *node) SendTo(_ route.DeviceKey, m *dispatch.Message, done func(dispatch.Result)) {
	n.mu.Lock()
	n.sent = append(n.sent, text(m.Bytes))
	n.mu.Unlock()
	done(dispatch.Result{Delivered: 1})
}

func (n *node) SendOlder(_ route.DeviceKey, msgs []*dispatch.Message) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range msgs {
		n.sent = append(n.sent, text(m.Bytes))
	}
}

func (n *node) Gate(key route.DeviceKey) {
	records, _ := n.c.store.LookupFresh(context.Background(), key.UserKey)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.gated[key] {
		n.c.t.Error("two at a time make a device's backlog")
	}
	n.gated[key] = true
	n.before = records
}

func (n *node) Ungate(key route.DeviceKey) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.gated, key)
}

func (n *node) Reclaim(ctx context.Context, key route.DeviceKey, lost func(route.Location) bool) (func() []*dispatch.Message, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.waits {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if !n.gated[key] {
		n.c.t.Error("a backlog is made while messages may go to the device")
	}
	n.lost = lost
	reclaimed := n.reclaimed
	return func() []*dispatch.Message { return reclaimed }, nil
}

// TakeFor is its buffer's.
func (n *node) TakeFor(ctx context.Context, key route.DeviceKey, lost route.Location) (front, rest []offline.Entry, recent recall.Keys, err error) {
	n.mu.Lock()
	n.elsewhere = lost
	n.mu.Unlock()
	return n.buffer.TakeFor(ctx, key, lost)
}

// The hooks.

func (*cluster) Enabled() bool { return true }

func (c *cluster) Publish(_ string, e event.Event) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, e)
	return true
}

// happened is the events so far, as "type device of user on gateway, number".
func (c *cluster) happened() (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		ack := &messagev1.ConnectAck{}
		if err := proto.Unmarshal(e.Data, ack); err != nil || ack.Code != 1000 || ack.UserId != e.User || ack.DeviceId != e.Device || e.Key != e.User {
			c.t.Errorf("%+v with %v, %v", e, ack, err)
		}
		out = append(out, fmt.Sprintf("%v %s of %s on %s, %s", e.Type, e.Device, e.User, ack.NodeId, e.MsgID))
	}
	return out
}

func (c *cluster) Authenticate(_ context.Context, _ *tenant.Tenant, token, device string) (*hookv1.AuthResponse, error) {
	return c.auth(token, device)
}

func (c *cluster) OfflinePage(_ context.Context, _ *tenant.Tenant, req *hookv1.GetOfflineMessagesRequest) (*hookv1.GetOfflineMessagesResponse, error) {
	return c.page(req), nil
}

// The network.

type wire struct {
	routerv1connect.PeerServiceClient
	to *node
}

func (w wire) Admit(ctx context.Context, req *connect.Request[routerv1.AdmitRequest]) (*connect.Response[routerv1.AdmitResponse], error) {
	res, err := w.to.Admit(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

func (w wire) Buffer(ctx context.Context, req *connect.Request[routerv1.BufferRequest]) (*connect.Response[routerv1.BufferResponse], error) {
	return connect.NewResponse(w.to.buffer.KeepAll(ctx, req.Msg)), nil
}

// dies is for a gateway that was alive.
func (c *cluster) dies(n route.NodeRef) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead[n] = true
}

type gatewayWire struct {
	gatewayv1connect.GatewayServiceClient
	c    *cluster
	node route.NodeRef
}

func (w gatewayWire) Handover(ctx context.Context, req *connect.Request[gatewayv1.HandoverRequest]) (*connect.Response[gatewayv1.HandoverResponse], error) {
	w.c.mu.Lock()
	w.c.asked = append(w.c.asked, req.Msg)
	wait := w.c.slow[w.node.ID]
	w.c.refusing[w.node.ID]--
	refused := w.c.refusing[w.node.ID] >= 0
	w.c.mu.Unlock()
	if refused {
		return nil, fault.New(fault.Unavailable, "connection refused")
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	loc := route.Location{Node: w.node, Session: req.Msg.SessionId}
	window, found := w.c.windows[loc]
	last, v2 := w.c.last[loc]
	if req.Msg.Check {
		ahead := req.Msg.LastSeq > last
		return connect.NewResponse(&gatewayv1.HandoverResponse{Found: v2 && !ahead, Ahead: v2 && ahead}), nil
	}
	delete(w.c.windows, loc)
	delete(w.c.last, loc)
	res := &gatewayv1.HandoverResponse{Found: found, Whole: found && !w.c.partial, Undelivered: window, RecentKeys: []byte("0123456789abcdef")}
	if req.Msg.Resume && v2 {
		res.Undelivered, res.NextSeq, res.AcknowledgedSeq = nil, last+1, last-uint64(len(window))
		for i, u := range window {
			if u.Seq = last - uint64(len(window)-1-i); u.Seq > req.Msg.LastSeq {
				res.Undelivered = append(res.Undelivered, u)
			}
		}
	}
	return connect.NewResponse(res), nil
}
