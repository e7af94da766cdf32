package service

import (
	"context"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/route"
)

// Keeper holds copies of what sessions have accepted.
type Keeper interface {
	Hold(key route.DeviceKey, loc route.Location, msgs []*dispatch.Message) (ids []uint64, ok bool)
}

// Hold implements RouterService.
func (s *Service) Hold(_ context.Context, req *connect.Request[routerv1.HoldRequest]) (*connect.Response[routerv1.HoldResponse], error) {
	if err := named(req.Msg.GetGateway()); err != nil {
		return nil, err
	}
	node := route.NodeRef{ID: req.Msg.GetGateway().GetNodeId(), Incarnation: req.Msg.GetGateway().GetIncarnation()}
	if !s.opts.Directory.Alive(node) {
		return nil, fault.New(fault.FailedPrecondition, "this gateway incarnation holds no lease")
	}
	res := &routerv1.HoldResponse{RouterId: s.opts.Self.ID, RouterIncarnation: s.opts.Self.Incarnation}
	for _, h := range req.Msg.GetSessions() {
		key := route.DeviceKey{UserKey: route.UserKey{Tenant: h.GetTenantId(), User: h.GetUserId()}, Device: h.GetDeviceId()}
		if key.Check() != nil {
			return nil, fault.New(fault.Invalid, "tenant_id, user_id and device_id are required")
		}
		ids, _ := s.opts.Keeper.Hold(key, route.Location{Node: node, Session: h.GetSessionId()}, dispatch.Messages(h.GetMessages()))
		res.Sessions = append(res.Sessions, &routerv1.HeldIDs{Ids: ids})
	}
	return connect.NewResponse(res), nil
}
