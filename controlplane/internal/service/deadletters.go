package service

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
)

// ListDLQ passes on what a router says of a tenant's dead letters.
func (s *Service) ListDLQ(ctx context.Context, req *connect.Request[controlv1.ListDLQRequest], out *connect.ServerStream[controlv1.ListDLQResponse]) error {
	ask := req.Msg.GetRequest()
	if err := checkIDs(true, field{"tenant_id", ask.GetTenantId()}); err != nil {
		return err
	}
	return passOn(ctx, s, func(ctx context.Context, c routerv1connect.RouterServiceClient) (*connect.ServerStreamForClient[routerv1.ListDLQResponse], error) {
		return c.ListDLQ(ctx, connect.NewRequest(ask))
	}, func(m *routerv1.ListDLQResponse) error {
		return out.Send(&controlv1.ListDLQResponse{Response: m})
	})
}

// RedriveDLQ has a router redrive a tenant's dead letters and passes its progress
// on. When the caller goes away, or this process stops, the redrive ends too.
func (s *Service) RedriveDLQ(ctx context.Context, req *connect.Request[controlv1.RedriveDLQRequest], out *connect.ServerStream[controlv1.RedriveDLQResponse]) error {
	ask := req.Msg.GetRequest()
	if err := checkIDs(true, field{"tenant_id", ask.GetTenantId()}); err != nil {
		return err
	}
	var last *routerv1.RedriveProgress
	err := passOn(ctx, s, func(ctx context.Context, c routerv1connect.RouterServiceClient) (*connect.ServerStreamForClient[routerv1.RedriveDLQResponse], error) {
		return c.RedriveDLQ(ctx, connect.NewRequest(ask))
	}, func(m *routerv1.RedriveDLQResponse) error {
		last = m.GetProgress()
		return out.Send(&controlv1.RedriveDLQResponse{Progress: last})
	})
	if !ask.GetDryRun() {
		s.cfg.Telemetry.Log.InfoContext(ctx, "dead_letters_redriven", telemetry.TenantID, ask.GetTenantId(),
			"total", last.GetTotal(), "sent", last.GetSent(), "dead", last.GetDead(), "failed", last.GetFailed(), "done", last.GetDone(), "err", err)
	}
	return err
}

// passOn asks the routers one after another until one of them answers, and hands
// on all that it says.
func passOn[T any](ctx context.Context, s *Service, ask func(context.Context, routerv1connect.RouterServiceClient) (*connect.ServerStreamForClient[T], error), send func(*T) error) error {
	snap, err := s.snapshot(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := s.untilClosed(ctx)
	defer cancel(nil)
	err = fault.New(fault.Unavailable, "no router is known")
	for _, n := range routers(snap) {
		var answered bool
		answered, err = oneRouter(ctx, routerv1connect.NewRouterServiceClient(s.cfg.HTTP, n.Endpoint, rpc.ClientOptions()...), ask, send)
		if err == nil || answered || fault.KindOf(err) != fault.Unavailable || ctx.Err() != nil {
			break
		}
	}
	if errors.Is(context.Cause(ctx), errStopping) {
		return errStopping
	}
	return err
}

// oneRouter hands on what one router says; answered tells whether anything was.
func oneRouter[T any](ctx context.Context, c routerv1connect.RouterServiceClient, ask func(context.Context, routerv1connect.RouterServiceClient) (*connect.ServerStreamForClient[T], error), send func(*T) error) (answered bool, err error) {
	st, err := ask(ctx, c)
	if err != nil {
		return false, fault.FromConnect(err)
	}
	defer func() { _ = st.Close() }() // what went wrong is in st.Err
	for st.Receive() {
		answered = true
		if err := send(st.Msg()); err != nil {
			return answered, err
		}
	}
	return answered, fault.FromConnect(st.Err())
}

// routers returns the snapshot's routers, those last that do not answer.
func routers(snap *fleet.Snapshot) (out []fleet.Node) {
	for _, unreachable := range []bool{false, true} {
		for _, n := range snap.Nodes {
			if n.Kind == fleet.Router && n.Unreachable == unreachable {
				out = append(out, n)
			}
		}
	}
	return out
}
