package service

import (
	"context"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// Copies are what this router keeps for other routers, and gives to them.
type Copies interface {
	ServeSync(req *routerv1.SyncRequest) (*routerv1.SyncResponse, error)
	ServeTake(req *routerv1.TakeRequest) *routerv1.TakeResponse
}

var errNoCopies = fault.New(fault.FailedPrecondition, "this router keeps no copies")

// Sync implements PeerService.
func (s *Service) Sync(_ context.Context, req *connect.Request[routerv1.SyncRequest]) (*connect.Response[routerv1.SyncResponse], error) {
	if s.opts.Copies == nil {
		return nil, errNoCopies
	}
	return respond(s.opts.Copies.ServeSync(req.Msg))
}

// Take implements PeerService.
func (s *Service) Take(_ context.Context, req *connect.Request[routerv1.TakeRequest]) (*connect.Response[routerv1.TakeResponse], error) {
	if s.opts.Copies == nil {
		return nil, errNoCopies
	}
	return respond(s.opts.Copies.ServeTake(req.Msg), nil)
}
