package service

import (
	"context"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// Records is what this router knows of routes without its store.
type Records interface {
	ServeRecords(ctx context.Context, req *routerv1.RecordsRequest) (*routerv1.RecordsResponse, error)
}

// Records implements PeerService.
func (s *Service) Records(ctx context.Context, req *connect.Request[routerv1.RecordsRequest]) (*connect.Response[routerv1.RecordsResponse], error) {
	if s.opts.Records == nil {
		return nil, fault.New(fault.FailedPrecondition, "this router remembers no routes")
	}
	return respond(s.opts.Records.ServeRecords(ctx, req.Msg))
}
