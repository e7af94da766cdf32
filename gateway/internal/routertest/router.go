// Package routertest is a router for tests: it speaks the real RPC and does what
// the test tells it to.
package routertest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/frame"
	"github.com/mics-im/mics/internal/rpc"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"google.golang.org/protobuf/proto"
)

// LeaseMS is the lease that fake routers give.
const LeaseMS = 3000

// Cluster is a set of routers that know each other.
type Cluster struct {
	mu      sync.Mutex
	members []*routerv1.RouterInfo
}

// Set says who is alive, to every router's next answer.
func (c *Cluster) Set(routers ...*Router) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = nil
	for _, r := range routers {
		c.members = append(c.members, r.Info)
	}
}

func (c *Cluster) get() []*routerv1.RouterInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members
}

// Router is one fake router. The exported fields may be set before Start; later
// through Do.
type Router struct {
	routerv1connect.UnimplementedRouterServiceHandler
	Info *routerv1.RouterInfo

	// Open answers OpenSession; nil: user "u-"+token, device as claimed.
	Open func(*routerv1.OpenSessionRequest) (*routerv1.OpenSessionResponse, error)
	// Answer answers a message; nil result: it is held until Answer is told so.
	// A nil function acks with SENT.
	Answer func(*routerv1.Inbound) []byte
	// Tokens makes the tokens of PrepareMigration; nil: nobody does.
	Tokens func(*routerv1.MigratingSession) string
	// CloseErr fails CloseSessions.
	CloseErr error
	// RegisterErr ends Register at the next request; Mute does not answer it.
	RegisterErr error
	Mute        bool

	cluster *Cluster
	srv     *rpc.Server

	mu        sync.Mutex
	received  []*routerv1.Inbound
	held      []held
	closed    []*routerv1.ClosedSession
	gateways  []*gatewayv1.GatewayInfo
	opened    []*routerv1.OpenSessionRequest
	publishes map[*publish]bool
	registers int
	epoch     uint64

	migrations []*routerv1.PrepareMigrationRequest
}

type held struct {
	to *publish
	in *routerv1.Inbound
}

type publish struct {
	cancel context.CancelCauseFunc
	out    *rpc.Queue[*routerv1.Outcome]
}

// New returns a router that serves at endpoint on ln once started.
func New(c *Cluster, id string, ln net.Listener, endpoint string) *Router {
	r := &Router{
		Info:    &routerv1.RouterInfo{NodeId: id, Incarnation: 1, Endpoint: endpoint},
		cluster: c, publishes: map[*publish]bool{},
	}
	mux := http.NewServeMux()
	mux.Handle(routerv1connect.NewRouterServiceHandler(r, rpc.HandlerOptions()...))
	r.srv = rpc.NewServer(ln, mux, nil, slog.New(slog.DiscardHandler))
	return r
}

// Start serves; the router dies with the test.
func (r *Router) Start(t testing.TB) *Router {
	r.srv.Start()
	t.Cleanup(r.Kill)
	return r
}

// Kill ends the router without a word.
func (r *Router) Kill() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = r.srv.Stop(ctx) // a forced stop is an error, and what is wanted
}

// Do changes the exported fields while the router runs.
func (r *Router) Do(f func(*Router)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

// Register implements the service.
func (r *Router) Register(ctx context.Context, s *connect.BidiStream[routerv1.RegisterRequest, routerv1.RegisterResponse]) error {
	r.Do(func(r *Router) { r.registers++ })
	defer r.Do(func(r *Router) { r.registers-- })
	for {
		req, err := s.Receive()
		if err != nil {
			return nil // the gateway's end
		}
		r.mu.Lock()
		r.gateways = append(r.gateways, req.GetGateway())
		err, mute := r.RegisterErr, r.Mute
		r.mu.Unlock()
		if mute {
			<-ctx.Done()
			return ctx.Err()
		}
		if err == nil {
			err = s.Send(&routerv1.RegisterResponse{Routers: r.cluster.get(), LeaseMs: LeaseMS})
		}
		if err != nil {
			return err
		}
	}
}

// OpenSession implements the service.
func (r *Router) OpenSession(_ context.Context, req *connect.Request[routerv1.OpenSessionRequest]) (*connect.Response[routerv1.OpenSessionResponse], error) {
	r.mu.Lock()
	r.opened = append(r.opened, req.Msg)
	r.epoch++
	open, epoch := r.Open, r.epoch
	r.mu.Unlock()
	if open == nil {
		return connect.NewResponse(&routerv1.OpenSessionResponse{
			UserId: "u-" + req.Msg.GetToken(), DeviceId: req.Msg.GetDeviceId(), Epoch: epoch, HeartbeatTimeoutSeconds: 30,
			RouterId: r.Info.GetNodeId(), RouterIncarnation: r.Info.GetIncarnation(),
		}), nil
	}
	res, err := open(req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

// PrepareMigration implements the service.
func (r *Router) PrepareMigration(_ context.Context, req *connect.Request[routerv1.PrepareMigrationRequest]) (*connect.Response[routerv1.PrepareMigrationResponse], error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Tokens == nil {
		return nil, fault.New(fault.Unavailable, "no tokens")
	}
	res := &routerv1.PrepareMigrationResponse{}
	for _, s := range req.Msg.GetSessions() {
		res.Tokens = append(res.Tokens, r.Tokens(s))
	}
	r.migrations = append(r.migrations, req.Msg)
	return connect.NewResponse(res), nil
}

// CloseSessions implements the service.
func (r *Router) CloseSessions(_ context.Context, req *connect.Request[routerv1.CloseSessionsRequest]) (*connect.Response[routerv1.CloseSessionsResponse], error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.CloseErr != nil {
		return nil, r.CloseErr
	}
	r.closed = append(r.closed, req.Msg.GetSessions()...)
	return connect.NewResponse(&routerv1.CloseSessionsResponse{}), nil
}

// Publish implements the service.
func (r *Router) Publish(ctx context.Context, s *connect.BidiStream[routerv1.PublishRequest, routerv1.PublishResponse]) error {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &publish{cancel: cancel, out: rpc.NewQueue[*routerv1.Outcome](1 << 20)}
	r.Do(func(r *Router) { r.publishes[p] = true })
	defer cancel(nil)
	defer r.Do(func(r *Router) { delete(r.publishes, p) })
	first, err := s.Receive()
	if err != nil || first.GetGateway().GetNodeId() == "" {
		return fault.New(fault.Invalid, "the first message must name the gateway")
	}
	go func() { // Receive fails at the latest when this handler has returned
		for {
			req, err := s.Receive()
			if err != nil {
				p.out.Close() // what is queued still goes out
				return
			}
			for _, in := range req.GetMessages() {
				r.take(p, in)
			}
		}
	}()
	for {
		batch, ok := p.out.Take(ctx, nil)
		if !ok {
			return context.Cause(ctx) // nil: the gateway's end
		}
		if err := s.Send(&routerv1.PublishResponse{Outcomes: batch}); err != nil {
			return err
		}
	}
}

func (r *Router) take(p *publish, in *routerv1.Inbound) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.received = append(r.received, in)
	ack := Ack(in, messagev1.AckStatus_SENT, "")
	if r.Answer != nil {
		ack = r.Answer(in)
	}
	if ack == nil {
		r.held = append(r.held, held{p, in})
		return
	}
	p.out.Push(&routerv1.Outcome{Ref: in.GetRef(), Ack: ack})
}

// Ack is a serialized MessageAck for a message.
func Ack(in *routerv1.Inbound, status messagev1.AckStatus, reason string) []byte {
	h, err := frame.ParseMessage(in.GetMessage())
	if err != nil {
		panic(err) // the gateway has stamped it
	}
	b, err := proto.Marshal(&messagev1.MessageAck{MsgId: h.MsgID, Status: status, Reason: reason, TimestampMs: 1})
	if err != nil {
		panic(err)
	}
	return b
}

// Release answers what is held with SENT, on the streams that are still there.
func (r *Router) Release() {
	r.Do(func(r *Router) {
		for _, h := range r.held {
			h.to.out.Push(&routerv1.Outcome{Ref: h.in.GetRef(), Ack: Ack(h.in, messagev1.AckStatus_SENT, "")})
		}
		r.held = nil
	})
}

// ErrBroken is how BreakPublish ends streams.
var ErrBroken = fault.Wrap(fault.Unavailable, "broken by the test", errors.New("broken"))

// BreakPublish ends the Publish streams.
func (r *Router) BreakPublish() {
	r.Do(func(r *Router) {
		for p := range r.publishes {
			p.cancel(ErrBroken)
		}
	})
}

// Received returns the messages so far.
func (r *Router) Received() []*routerv1.Inbound { return snapshot(r, &r.received) }

// Closed returns the closed sessions so far.
func (r *Router) Closed() []*routerv1.ClosedSession { return snapshot(r, &r.closed) }

// Gateways returns every introduction so far.
func (r *Router) Gateways() []*gatewayv1.GatewayInfo { return snapshot(r, &r.gateways) }

// Opened returns every OpenSession so far.
func (r *Router) Opened() []*routerv1.OpenSessionRequest { return snapshot(r, &r.opened) }

// Migrations returns every PrepareMigration so far.
func (r *Router) Migrations() []*routerv1.PrepareMigrationRequest { return snapshot(r, &r.migrations) }

// Streams returns how many Register and Publish streams there are.
func (r *Router) Streams() (register, publish int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.registers, len(r.publishes)
}

func snapshot[T any](r *Router, s *[]T) []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(*s)
}
