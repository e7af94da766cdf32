package service

import (
	"context"
	"errors"
	"io"
	"net/url"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/directory"
	"github.com/mics-im/mics/router/internal/route"
)

var errEOF = io.EOF

// removeTimeout bounds the removal of a gateway that has drained.
const removeTimeout = 2 * time.Second

// Register implements RouterService.
func (s *Service) Register(ctx context.Context, stream *connect.BidiStream[routerv1.RegisterRequest, routerv1.RegisterResponse]) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	if s.opts.Directory.Read().IsZero() {
		// It does not know the other routers, and would be everybody's home.
		return fault.New(fault.Unavailable, "this router has not reached its route store yet")
	}
	requests, end := receive(ctx, stream)
	var last route.Node
	for {
		select {
		case <-s.stopping:
			return fault.New(fault.Unavailable, "this router is stopping")
		case req, ok := <-requests:
			if !ok {
				if gatewayv1.Phase(last.Phase) == gatewayv1.Phase_PHASE_DRAINED {
					s.remove(ctx, last.NodeRef)
				}
				return end()
			}
			node, err := gatewayOf(req.Gateway)
			if err != nil {
				return err
			}
			if last.ID != "" && node.NodeRef != last.NodeRef {
				return fault.New(fault.Invalid, "one stream is for one gateway incarnation")
			}
			last = node
			if err := s.renew(ctx, node); err != nil {
				return err
			}
			res := &routerv1.RegisterResponse{Routers: s.routers(), LeaseMs: uint32(directory.Lease / time.Millisecond)}
			if err := stream.Send(res); err != nil {
				return err
			}
		}
	}
}

// renew takes a gateway's word that it lives; that of one which has drained is
// that it goes.
func (s *Service) renew(ctx context.Context, n route.Node) error {
	if gatewayv1.Phase(n.Phase) == gatewayv1.Phase_PHASE_DRAINED {
		s.remove(ctx, n.NodeRef)
		return nil
	}
	err := s.opts.Directory.Renew(ctx, n)
	switch {
	case errors.Is(err, route.ErrSuperseded):
		return fault.Wrap(fault.FailedPrecondition, "a newer incarnation of this node is known", err)
	case err == nil:
		return nil
	}
	// Without the store the last picture stands (package directory), and so does
	// the lease of a gateway in it: or all of them would fence themselves.
	if _, known := s.opts.Directory.Gateway(n.NodeRef); known {
		return nil
	}
	return fault.Wrap(fault.Unavailable, "the route store is away", err)
}

func (s *Service) remove(ctx context.Context, n route.NodeRef) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := s.opts.Directory.Remove(ctx, n); err != nil {
		// Its lease runs out by itself.
		s.opts.Log.WarnContext(ctx, "gateway_not_removed", "gateway", n.ID, "err", err)
	}
}

// gatewayOf checks how a gateway introduces itself.
func gatewayOf(g *gatewayv1.GatewayInfo) (route.Node, error) {
	if g.GetNodeId() == "" || g.GetIncarnation() == 0 {
		return route.Node{}, fault.New(fault.Invalid, "gateway with node_id and incarnation is required")
	}
	if u, err := url.Parse(g.Endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return route.Node{}, fault.New(fault.Invalid, "endpoint must be an http or https base URL")
	}
	return route.Node{
		NodeRef:  route.NodeRef{ID: g.NodeId, Incarnation: g.Incarnation},
		Endpoint: g.Endpoint, Track: g.Track, Version: g.Version, Phase: int32(g.Phase), ClientURL: g.ClientUrl,
	}, nil
}
