package service

import (
	"context"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/route"
)

// Copies are what this router keeps for other routers, and gives to them.
type Copies interface {
	ServeSync(req *routerv1.SyncRequest) (*routerv1.SyncResponse, error)
	ServeTake(ctx context.Context, req *routerv1.TakeRequest) *routerv1.TakeResponse
}

var errNoCopies = fault.New(fault.FailedPrecondition, "this router keeps no copies")

// Leave implements PeerService.
func (s *Service) Leave(_ context.Context, req *connect.Request[routerv1.LeaveRequest]) (*connect.Response[routerv1.LeaveResponse], error) {
	ref := route.NodeRef{ID: req.Msg.GetRouter().GetNodeId(), Incarnation: req.Msg.GetRouter().GetIncarnation()}
	if ref.ID == "" || ref.Incarnation == 0 {
		return nil, fault.New(fault.Invalid, "router: node_id and incarnation are required")
	}
	s.opts.Directory.Left(ref)
	return connect.NewResponse(&routerv1.LeaveResponse{}), nil
}

// Sync implements PeerService.
func (s *Service) Sync(_ context.Context, req *connect.Request[routerv1.SyncRequest]) (*connect.Response[routerv1.SyncResponse], error) {
	if s.opts.Copies == nil {
		return nil, errNoCopies
	}
	return respond(s.opts.Copies.ServeSync(req.Msg))
}

// Take implements PeerService.
func (s *Service) Take(ctx context.Context, req *connect.Request[routerv1.TakeRequest]) (*connect.Response[routerv1.TakeResponse], error) {
	if s.opts.Copies == nil {
		return nil, errNoCopies
	}
	return respond(s.opts.Copies.ServeTake(ctx, req.Msg), nil)
}
