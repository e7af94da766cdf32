package downlink

import (
	"context"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// meant refuses what is for another incarnation; 0 means any.
func (s *Service) meant(incarnation uint64) error {
	if incarnation != 0 && incarnation != s.o.Info().GetIncarnation() {
		return fault.New(fault.FailedPrecondition, "this is another incarnation of the gateway")
	}
	return nil
}

// Drain implements GatewayService.
func (s *Service) Drain(_ context.Context, req *connect.Request[gatewayv1.DrainRequest]) (*connect.Response[gatewayv1.DrainResponse], error) {
	if err := s.meant(req.Msg.GetGatewayIncarnation()); err != nil {
		return nil, err
	}
	p, err := s.o.Drainer.Drain(req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&gatewayv1.DrainResponse{Progress: p}), nil
}

// Undrain implements GatewayService.
func (s *Service) Undrain(_ context.Context, req *connect.Request[gatewayv1.UndrainRequest]) (*connect.Response[gatewayv1.UndrainResponse], error) {
	if err := s.meant(req.Msg.GetGatewayIncarnation()); err != nil {
		return nil, err
	}
	p, err := s.o.Drainer.Undrain(req.Msg.GetOperationId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&gatewayv1.UndrainResponse{Progress: p}), nil
}

// Shed implements GatewayService.
func (s *Service) Shed(_ context.Context, req *connect.Request[gatewayv1.ShedRequest]) (*connect.Response[gatewayv1.ShedResponse], error) {
	if err := s.meant(req.Msg.GetGatewayIncarnation()); err != nil {
		return nil, err
	}
	res, err := s.o.Drainer.Shed(req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

// Steer implements GatewayService.
func (s *Service) Steer(_ context.Context, req *connect.Request[gatewayv1.SteerRequest]) (*connect.Response[gatewayv1.SteerResponse], error) {
	if err := s.meant(req.Msg.GetGatewayIncarnation()); err != nil {
		return nil, err
	}
	res, err := s.o.Steerer.Steer(req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}
