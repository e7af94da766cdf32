package service

import (
	"context"

	"connectrpc.com/connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// PrepareMigration implements RouterService.
func (s *Service) PrepareMigration(_ context.Context, req *connect.Request[routerv1.PrepareMigrationRequest]) (*connect.Response[routerv1.PrepareMigrationResponse], error) {
	if err := named(req.Msg.Gateway); err != nil {
		return nil, err
	}
	return respond(s.opts.Admitter.PrepareMigration(req.Msg))
}
