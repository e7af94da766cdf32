// Package service is what a router answers to gateways, to the control plane
// and to other routers. It checks, orchestrates and maps errors; it does no I/O
// of its own.
package service

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/signals"
	"github.com/mics-im/mics/router/internal/stats"
)

// Directory is the picture of who is alive.
type Directory interface {
	Renew(ctx context.Context, n route.Node) error
	Remove(ctx context.Context, n route.NodeRef) error
	Alive(route.NodeRef) bool
	Gateway(route.NodeRef) (route.Node, bool)
	Gateways() []route.Node
	Routers() []route.Router
	Left(route.NodeRef)
	// Read is when the picture was read from the store; zero: never.
	Read() time.Time
}

// Admitter opens and closes sessions.
type Admitter interface {
	OpenSession(ctx context.Context, req *routerv1.OpenSessionRequest) (*routerv1.OpenSessionResponse, error)
	Admit(ctx context.Context, req *routerv1.AdmitRequest) (*routerv1.AdmitResponse, error)
	CloseSessions(ctx context.Context, req *routerv1.CloseSessionsRequest) error
	PrepareMigration(req *routerv1.PrepareMigrationRequest) (*routerv1.PrepareMigrationResponse, error)
}

// Intake takes one stream's messages into the pipeline.
type Intake interface {
	Publish(batch []*routerv1.Inbound)
}

// Buffer keeps messages at their user's home.
type Buffer interface {
	KeepAll(ctx context.Context, req *routerv1.BufferRequest) *routerv1.BufferResponse
}

// Options configure a Service; all are required.
type Options struct {
	Directory Directory
	Admitter  Admitter
	// Intake returns the way in for a gateway's stream; answer is called once for
	// each message, from any goroutine.
	Intake func(gateway route.NodeRef, answer func(ref uint64, ack []byte)) Intake
	Buffer Buffer
	// Keeper holds copies, and Self is who does.
	Keeper Keeper
	Self   route.Router
	// Copies nil: this router keeps no copies of others' buffers.
	Copies Copies
	// Records nil: this router remembers no routes beside its store.
	Records Records
	// DeadLetters are what operators list and redrive.
	DeadLetters DeadLetters
	// Signals are what operators compare gateways by.
	Signals *signals.Table
	Stats   *stats.Stats
	Log     *slog.Logger
}

// Service implements RouterService and PeerService.
type Service struct {
	routerv1connect.UnimplementedRouterServiceHandler

	opts Options

	stopping chan struct{} // closed by Close

	mu      sync.Mutex
	closed  bool           // guarded by mu
	streams sync.WaitGroup // added to under mu, while not closed
}

var (
	_ routerv1connect.RouterServiceHandler = (*Service)(nil)
	_ routerv1connect.PeerServiceHandler   = (*Service)(nil)
)

// New returns the service.
func New(opts Options) *Service {
	return &Service{opts: opts, stopping: make(chan struct{})}
}

// Close lets Publish streams finish what is under way, until ctx ends, and ends
// all streams. New ones are refused.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stopping)
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() { // ends with the last stream, which its server cuts off if need be
		defer close(ended)
		s.streams.Wait()
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return errors.New("streams with messages under way were left to be cut off")
	}
}

// enter counts a stream; every stream that entered must leave.
func (s *Service) enter() (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fault.New(fault.Unavailable, "this router is stopping")
	}
	s.streams.Add(1)
	return s.streams.Done, nil
}

// OpenSession implements RouterService.
func (s *Service) OpenSession(ctx context.Context, req *connect.Request[routerv1.OpenSessionRequest]) (*connect.Response[routerv1.OpenSessionResponse], error) {
	if err := named(req.Msg.Gateway); err != nil {
		return nil, err
	}
	return respond(s.opts.Admitter.OpenSession(ctx, req.Msg))
}

// Admit implements PeerService.
func (s *Service) Admit(ctx context.Context, req *connect.Request[routerv1.AdmitRequest]) (*connect.Response[routerv1.AdmitResponse], error) {
	if err := named(req.Msg.Gateway); err != nil {
		return nil, err
	}
	return respond(s.opts.Admitter.Admit(ctx, req.Msg))
}

// CloseSessions implements RouterService.
func (s *Service) CloseSessions(ctx context.Context, req *connect.Request[routerv1.CloseSessionsRequest]) (*connect.Response[routerv1.CloseSessionsResponse], error) {
	if err := named(req.Msg.Gateway); err != nil {
		return nil, err
	}
	return respond(&routerv1.CloseSessionsResponse{}, s.opts.Admitter.CloseSessions(ctx, req.Msg))
}

// Buffer implements PeerService.
func (s *Service) Buffer(ctx context.Context, req *connect.Request[routerv1.BufferRequest]) (*connect.Response[routerv1.BufferResponse], error) {
	return respond(s.opts.Buffer.KeepAll(ctx, req.Msg), nil)
}

// Directory implements RouterService.
func (s *Service) Directory(context.Context, *connect.Request[routerv1.DirectoryRequest]) (*connect.Response[routerv1.DirectoryResponse], error) {
	res := &routerv1.DirectoryResponse{Routers: s.routers()}
	for _, g := range s.opts.Directory.Gateways() {
		res.Gateways = append(res.Gateways, &gatewayv1.GatewayInfo{
			NodeId: g.ID, Incarnation: g.Incarnation, Endpoint: g.Endpoint, Track: g.Track, Version: g.Version, Phase: gatewayv1.Phase(g.Phase), ClientUrl: g.ClientURL,
		})
	}
	return connect.NewResponse(res), nil
}

// Signals implements RouterService.
func (s *Service) Signals(context.Context, *connect.Request[routerv1.SignalsRequest]) (*connect.Response[routerv1.SignalsResponse], error) {
	self := s.opts.Self
	return connect.NewResponse(&routerv1.SignalsResponse{
		Router:   &routerv1.RouterInfo{NodeId: self.ID, Incarnation: self.Incarnation, Endpoint: self.Endpoint, Version: self.Version},
		Gateways: s.opts.Signals.Read(),
	}), nil
}

func (s *Service) routers() []*routerv1.RouterInfo {
	var out []*routerv1.RouterInfo
	for _, r := range s.opts.Directory.Routers() {
		out = append(out, &routerv1.RouterInfo{NodeId: r.ID, Incarnation: r.Incarnation, Endpoint: r.Endpoint, Version: r.Version})
	}
	return out
}

// respond wraps an answer.
func respond[T any](res *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

// named refuses a request that does not say whose it is.
func named(g *gatewayv1.GatewayRef) error {
	if g.GetNodeId() == "" || g.GetIncarnation() == 0 {
		return fault.New(fault.Invalid, "gateway with node_id and incarnation is required")
	}
	return nil
}

// receive reads a stream in a goroutine of its own, so that its handler can end
// while the peer is silent. The goroutine ends at the latest when the handler
// has returned, which ends the stream. The channel is closed at the stream's
// end; end then tells why, nil when the peer has ended it in order.
func receive[Req, Res any](ctx context.Context, stream *connect.BidiStream[Req, Res]) (requests <-chan *Req, end func() error) {
	ch := make(chan *Req)
	var why error // written before ch is closed
	go func() {
		defer close(ch)
		for {
			req, err := stream.Receive()
			if err != nil {
				if !errors.Is(err, errEOF) {
					why = err
				}
				return
			}
			select {
			case ch <- req:
			case <-ctx.Done():
				why = ctx.Err()
				return
			}
		}
	}()
	return ch, func() error { return why }
}
