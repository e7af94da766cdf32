package service

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
)

// Leadership is who leads.
type Leadership interface {
	// Await waits until somebody is known to lead; mine: it is this process.
	Await(ctx context.Context) (l store.Leader, mine bool, err error)
}

const (
	// leaderWait is how long a request waits for a leader: longer than one that
	// died without a word stays one.
	leaderWait = 8 * time.Second
	// forwardedHeader marks a request that another control plane passes on, and
	// operatorHeader says for whom. They count on INTERNAL_LISTEN only.
	forwardedHeader = "Mics-Forwarded-By"
	operatorHeader  = "Mics-Operator"
)

type operatorKey struct{}

// WithOperator returns ctx with the name of who asks; what authenticates an
// operator sets it.
func WithOperator(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, operatorKey{}, name)
}

// Operator is who asks; empty: nobody was authenticated.
func Operator(ctx context.Context) string {
	name, _ := ctx.Value(operatorKey{}).(string)
	return name
}

type forwardedKey struct{}

func forwarded(ctx context.Context) bool {
	_, is := ctx.Value(forwardedKey{}).(struct{})
	return is
}

// trusted takes over what another control plane says of who asks.
type trusted struct{}

func (trusted) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if req.Header().Get(forwardedHeader) != "" {
			ctx = context.WithValue(ctx, forwardedKey{}, struct{}{})
			ctx = WithOperator(ctx, req.Header().Get(operatorHeader))
		}
		return next(ctx, req)
	}
}

func (trusted) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (trusted) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// leaderOnly are the procedures that a control plane passes on to its leader.
var leaderOnly = []string{
	controlv1connect.ControlServiceDrainProcedure,
	controlv1connect.ControlServiceUndrainProcedure,
	controlv1connect.ControlServiceChangeDrainProcedure,
	controlv1connect.ControlServiceStartCanaryProcedure,
	controlv1connect.ControlServiceChangeCanaryProcedure,
	controlv1connect.ControlServiceRebalanceProcedure,
}

// HandleInternal adds to mux what the cluster's own processes ask: NodeService, and
// what other control planes pass on.
func (s *Service) HandleInternal(mux *http.ServeMux, opts ...connect.HandlerOption) {
	opts = append(opts, connect.WithInterceptors(trusted{}))
	mux.Handle(controlv1connect.NewNodeServiceHandler(nodeService{s}, opts...))
	_, h := controlv1connect.NewControlServiceHandler(s, opts...)
	for _, procedure := range leaderOnly {
		mux.Handle(procedure, h)
	}
}

// lead runs here if this process leads, and else has the leader's address run
// there. A request that was passed on once is not passed on again.
func lead[Req, Res any](ctx context.Context, s *Service, req *Req, here func(context.Context) (*Res, error), there func(context.Context, string, *connect.Request[Req]) (*connect.Response[Res], error)) (*connect.Response[Res], error) {
	wait, cancel := context.WithTimeout(ctx, leaderWait)
	l, mine, err := s.cfg.Leadership.Await(wait)
	cancel()
	switch {
	case err != nil:
		return nil, fault.New(fault.Unavailable, "no control plane leads: is the Redis of REDIS__CONNECTION reachable from them?")
	case mine:
		res, err := here(ctx)
		if err != nil {
			return nil, err
		}
		return connect.NewResponse(res), nil
	case forwarded(ctx):
		return nil, fault.New(fault.Unavailable, "the leader is changing: try again")
	}
	out := connect.NewRequest(req)
	out.Header().Set(forwardedHeader, s.cfg.NodeID)
	out.Header().Set(operatorHeader, Operator(ctx))
	res, err := there(ctx, l.Address, out)
	if err != nil && fault.KindOf(err) == fault.Unavailable {
		return nil, fault.Wrap(fault.Unavailable, "the leader, control plane "+l.Name+" at "+l.Address+", does not answer: try again", err)
	}
	return res, err
}

func (s *Service) control(base string) controlv1connect.ControlServiceClient {
	return controlv1connect.NewControlServiceClient(s.cfg.HTTP, base, rpc.ClientOptions()...)
}
