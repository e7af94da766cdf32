package service

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/mics-im/mics/controlplane/internal/canary"
	"github.com/mics-im/mics/controlplane/internal/canary/plan"
	"github.com/mics-im/mics/internal/fault"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// maxWhy and maxAnalysis bound what an operator writes, in bytes.
const (
	maxWhy      = 500
	maxAnalysis = 64 << 10
)

// StartCanary has the leader begin a canary.
func (s *Service) StartCanary(ctx context.Context, req *connect.Request[controlv1.StartCanaryRequest]) (*connect.Response[controlv1.StartCanaryResponse], error) {
	spec := req.Msg.GetSpec()
	if n := len(spec.GetAnalysis()); n > maxAnalysis {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("analysis: %d bytes: at most %d", n, maxAnalysis))
	}
	return lead(ctx, s, req.Msg, func(ctx context.Context) (*controlv1.StartCanaryResponse, error) {
		v, err := s.cfg.Canaries.Start(ctx, canary.SpecOf(spec), Operator(ctx))
		if err != nil {
			return nil, err
		}
		return &controlv1.StartCanaryResponse{Canary: v.Proto()}, nil
	}, func(ctx context.Context, base string, r *connect.Request[controlv1.StartCanaryRequest]) (*connect.Response[controlv1.StartCanaryResponse], error) {
		return s.control(base).StartCanary(ctx, r)
	})
}

var canaryChanges = map[controlv1.ChangeCanaryRequest_Change]plan.Change{
	controlv1.ChangeCanaryRequest_CHANGE_PAUSE:      plan.Pause,
	controlv1.ChangeCanaryRequest_CHANGE_RESUME:     plan.Resume,
	controlv1.ChangeCanaryRequest_CHANGE_PROMOTE:    plan.Promote,
	controlv1.ChangeCanaryRequest_CHANGE_ABORT:      plan.Abort,
	controlv1.ChangeCanaryRequest_CHANGE_SET_WEIGHT: plan.SetWeight,
}

// ChangeCanary has the leader tell the canary what to do.
func (s *Service) ChangeCanary(ctx context.Context, req *connect.Request[controlv1.ChangeCanaryRequest]) (*connect.Response[controlv1.ChangeCanaryResponse], error) {
	m := req.Msg
	change, known := canaryChanges[m.GetChange()]
	if !known {
		return nil, fault.New(fault.Invalid, "change: want pause, resume, promote, abort or set-weight")
	}
	if n := len(m.GetReason()); n > maxWhy {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("reason: %d bytes: at most %d", n, maxWhy))
	}
	return lead(ctx, s, m, func(ctx context.Context) (*controlv1.ChangeCanaryResponse, error) {
		v, err := s.cfg.Canaries.Change(ctx, m.GetId(), plan.Command{Change: change, Weight: m.GetWeight(), Reason: m.GetReason(), Actor: Operator(ctx)})
		if err != nil {
			return nil, err
		}
		return &controlv1.ChangeCanaryResponse{Canary: v.Proto()}, nil
	}, func(ctx context.Context, base string, r *connect.Request[controlv1.ChangeCanaryRequest]) (*connect.Response[controlv1.ChangeCanaryResponse], error) {
		return s.control(base).ChangeCanary(ctx, r)
	})
}

// GetCanary reads the store: any control plane knows the canary.
func (s *Service) GetCanary(ctx context.Context, _ *connect.Request[controlv1.GetCanaryRequest]) (*connect.Response[controlv1.GetCanaryResponse], error) {
	v, err := s.cfg.Canaries.Get(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&controlv1.GetCanaryResponse{Canary: v.Proto()}), nil
}

// WatchCanary looks once a second.
func (s *Service) WatchCanary(ctx context.Context, _ *connect.Request[controlv1.WatchCanaryRequest], out *connect.ServerStream[controlv1.WatchCanaryResponse]) error {
	defer s.watchers.Add(-1)
	if s.watchers.Add(1) > maxWatchers {
		return fault.New(fault.Exhausted, fmt.Sprintf("watchers: at most %d at a time", maxWatchers))
	}
	ctx, cancel := s.untilClosed(ctx)
	defer cancel(nil)
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	var sent *controlv1.Canary
	for {
		v, err := s.cfg.Canaries.Get(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return ended(ctx, ctx.Err())
			}
			return err
		}
		now := v.Proto()
		at := now.ObservedAtMs
		now.ObservedAtMs = 0 // alone it is no change
		if !proto.Equal(sent, now) {
			sent = proto.CloneOf(now)
			now.ObservedAtMs = at
			if err := out.Send(&controlv1.WatchCanaryResponse{Canary: now}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ended(ctx, ctx.Err())
		case <-ticker.C:
		}
	}
}

// Rebalance has the leader even out sessions, or say what it would do.
func (s *Service) Rebalance(ctx context.Context, req *connect.Request[controlv1.RebalanceRequest]) (*connect.Response[controlv1.RebalanceResponse], error) {
	return lead(ctx, s, req.Msg, func(ctx context.Context) (*controlv1.RebalanceResponse, error) {
		return s.cfg.Rebalances.Rebalance(ctx, req.Msg, Operator(ctx))
	}, func(ctx context.Context, base string, r *connect.Request[controlv1.RebalanceRequest]) (*connect.Response[controlv1.RebalanceResponse], error) {
		return s.control(base).Rebalance(ctx, r)
	})
}
