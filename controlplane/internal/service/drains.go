package service

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/mics-im/mics/controlplane/internal/drain"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
)

const (
	defaultDrains, maxDrains = 20, 1000
	// watchEvery is how often a watch looks into the store.
	watchEvery = time.Second
)

// maxMS keeps a count of milliseconds from overflowing a duration.
const maxMS = uint64(1) << 40

func duration(ms uint64) time.Duration { return time.Duration(min(ms, maxMS)) * time.Millisecond }

// Drain has the leader take down a drain.
func (s *Service) Drain(ctx context.Context, req *connect.Request[controlv1.DrainRequest]) (*connect.Response[controlv1.DrainResponse], error) {
	m := req.Msg
	if err := checkIDs(true, field{"node_id", m.GetNodeId()}); err != nil {
		return nil, err
	}
	return lead(ctx, s, m, func(ctx context.Context) (*controlv1.DrainResponse, error) {
		op, err := s.cfg.Drains.Drain(ctx, drain.Request{
			Node: m.GetNodeId(), Timeout: duration(m.GetTimeoutMs()), Rate: m.GetSessionsPerSecond(), Force: m.GetForce(), By: Operator(ctx),
		})
		if err != nil {
			return nil, err
		}
		return &controlv1.DrainResponse{Drain: op.Proto(), Warnings: op.Warnings}, nil
	}, func(ctx context.Context, base string, r *connect.Request[controlv1.DrainRequest]) (*connect.Response[controlv1.DrainResponse], error) {
		return s.control(base).Drain(ctx, r)
	})
}

// Undrain has the leader end a drain.
func (s *Service) Undrain(ctx context.Context, req *connect.Request[controlv1.UndrainRequest]) (*connect.Response[controlv1.UndrainResponse], error) {
	if err := checkIDs(true, field{"node_id", req.Msg.GetNodeId()}); err != nil {
		return nil, err
	}
	return lead(ctx, s, req.Msg, func(ctx context.Context) (*controlv1.UndrainResponse, error) {
		op, found, err := s.cfg.Drains.Undrain(ctx, req.Msg.GetNodeId())
		if err != nil || !found {
			return &controlv1.UndrainResponse{}, err
		}
		return &controlv1.UndrainResponse{Drain: op.Proto()}, nil
	}, func(ctx context.Context, base string, r *connect.Request[controlv1.UndrainRequest]) (*connect.Response[controlv1.UndrainResponse], error) {
		return s.control(base).Undrain(ctx, r)
	})
}

var drainChanges = map[controlv1.DrainChange]string{
	controlv1.DrainChange_DRAIN_CHANGE_PAUSE:  drain.Pause,
	controlv1.DrainChange_DRAIN_CHANGE_RESUME: drain.Resume,
	controlv1.DrainChange_DRAIN_CHANGE_CANCEL: drain.Cancel,
}

// ChangeDrain has the leader pause, resume or cancel a drain.
func (s *Service) ChangeDrain(ctx context.Context, req *connect.Request[controlv1.ChangeDrainRequest]) (*connect.Response[controlv1.ChangeDrainResponse], error) {
	if err := checkIDs(true, field{"operation_id", req.Msg.GetOperationId()}); err != nil {
		return nil, err
	}
	what, known := drainChanges[req.Msg.GetChange()]
	if !known {
		return nil, fault.New(fault.Invalid, "change: want pause, resume or cancel")
	}
	return lead(ctx, s, req.Msg, func(ctx context.Context) (*controlv1.ChangeDrainResponse, error) {
		op, err := s.cfg.Drains.Change(ctx, req.Msg.GetOperationId(), what)
		if err != nil {
			return nil, err
		}
		return &controlv1.ChangeDrainResponse{Drain: op.Proto()}, nil
	}, func(ctx context.Context, base string, r *connect.Request[controlv1.ChangeDrainRequest]) (*connect.Response[controlv1.ChangeDrainResponse], error) {
		return s.control(base).ChangeDrain(ctx, r)
	})
}

// RehearseDrain reckons what a drain would do, from this process's inventory.
func (s *Service) RehearseDrain(ctx context.Context, req *connect.Request[controlv1.RehearseDrainRequest]) (*connect.Response[controlv1.RehearseDrainResponse], error) {
	m := req.Msg
	if err := checkIDs(true, field{"node_id", m.GetNodeId()}); err != nil {
		return nil, err
	}
	h, err := s.cfg.Drains.Rehearse(ctx, drain.Request{Node: m.GetNodeId(), Timeout: duration(m.GetTimeoutMs()), Rate: m.GetSessionsPerSecond()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(h.Proto()), nil
}

// ListDrains reads the store: any control plane knows all drains.
func (s *Service) ListDrains(ctx context.Context, req *connect.Request[controlv1.ListDrainsRequest]) (*connect.Response[controlv1.ListDrainsResponse], error) {
	m := req.Msg
	if m.GetLimit() > maxDrains {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("limit: %d: at most %d", m.GetLimit(), maxDrains))
	}
	if err := checkIDs(false, field{"node_id", m.GetNodeId()}, field{"operation_id", m.GetOperationId()}); err != nil {
		return nil, err
	}
	match := func(op *drain.Operation) bool {
		return (m.GetNodeId() == "" || m.GetNodeId() == op.Node) && (m.GetOperationId() == "" || m.GetOperationId() == op.ID)
	}
	active, err := s.cfg.Drains.Active(ctx)
	if err != nil {
		return nil, err
	}
	past, err := s.cfg.Drains.Ended(ctx, int(cmp.Or(m.GetLimit(), defaultDrains)), match)
	if err != nil {
		return nil, err
	}
	res := &controlv1.ListDrainsResponse{}
	for _, op := range append(active, past...) {
		if match(&op) {
			res.Drains = append(res.Drains, op.Proto())
		}
	}
	return connect.NewResponse(res), nil
}

// WatchDrains looks once a second. What ended between two looks is sent as it is in
// the log.
func (s *Service) WatchDrains(ctx context.Context, req *connect.Request[controlv1.WatchDrainsRequest], out *connect.ServerStream[controlv1.WatchDrainsResponse]) error {
	id := req.Msg.GetOperationId()
	if err := checkIDs(false, field{"operation_id", id}); err != nil {
		return err
	}
	defer s.watchers.Add(-1)
	if s.watchers.Add(1) > maxWatchers {
		return fault.New(fault.Exhausted, fmt.Sprintf("watchers: at most %d at a time", maxWatchers))
	}
	ctx, cancel := s.untilClosed(ctx)
	defer cancel(nil)
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	sent := map[string]*controlv1.DrainOperation{}
	for first := true; ; first = false {
		now, over, err := s.look(ctx, id, sent)
		if err != nil {
			return err
		}
		changed := first
		for _, op := range now {
			changed = changed || !proto.Equal(sent[op.GetOperationId()], op)
		}
		if changed {
			if err := out.Send(&controlv1.WatchDrainsResponse{Drains: now}); err != nil {
				return err
			}
		}
		if over {
			return nil
		}
		clear(sent)
		for _, op := range now {
			if !final(op) {
				sent[op.GetOperationId()] = op
			}
		}
		select {
		case <-ctx.Done():
			return ended(ctx, ctx.Err())
		case <-ticker.C:
		}
	}
}

// look returns what is under way and what of before has ended since; over: the one
// that is watched has ended.
func (s *Service) look(ctx context.Context, id string, before map[string]*controlv1.DrainOperation) (now []*controlv1.DrainOperation, over bool, err error) {
	active, err := s.cfg.Drains.Active(ctx)
	if err != nil {
		return nil, false, err
	}
	gone := make(map[string]bool, len(before))
	for k := range before {
		gone[k] = true
	}
	if id != "" {
		gone[id] = true
	}
	for _, op := range active {
		delete(gone, op.ID)
		if id == "" || id == op.ID {
			now = append(now, op.Proto())
		}
	}
	if len(gone) == 0 {
		return now, false, nil
	}
	past, err := s.cfg.Drains.Ended(ctx, len(gone), func(op *drain.Operation) bool { return gone[op.ID] })
	if err != nil {
		return nil, false, err
	}
	for _, op := range past {
		now = append(now, op.Proto())
	}
	if id != "" && len(past) == 0 {
		return nil, false, fault.New(fault.NotFound, fmt.Sprintf("operation_id: no drain %q is known", id))
	}
	return now, id != "", nil
}

func final(op *controlv1.DrainOperation) bool {
	switch op.GetState() {
	case controlv1.DrainState_DRAIN_STATE_DONE, controlv1.DrainState_DRAIN_STATE_CANCELLED, controlv1.DrainState_DRAIN_STATE_FAILED:
		return true
	}
	return false
}

// nodeService answers gateways.
type nodeService struct{ s *Service }

var _ controlv1connect.NodeServiceHandler = nodeService{}

// Terminate has the leader tell whether a gateway that ends may drain now.
func (n nodeService) Terminate(ctx context.Context, req *connect.Request[controlv1.TerminateRequest]) (*connect.Response[controlv1.TerminateResponse], error) {
	m := req.Msg
	if err := checkIDs(true, field{"node_id", m.GetNodeId()}); err != nil {
		return nil, err
	}
	return lead(ctx, n.s, m, func(ctx context.Context) (*controlv1.TerminateResponse, error) {
		if p := m.GetDrained(); p != nil {
			return &controlv1.TerminateResponse{}, n.s.cfg.Drains.Drained(ctx, m.GetNodeId(), m.GetIncarnation(), p)
		}
		turn, err := n.s.cfg.Drains.Terminate(ctx, m.GetNodeId(), m.GetIncarnation(), m.GetSessions(), duration(m.GetTimeoutMs()))
		if err != nil {
			return nil, err
		}
		res := &controlv1.TerminateResponse{Granted: turn.Granted, OperationId: turn.Op.ID, Reason: turn.Reason}
		if turn.Granted {
			op := turn.Op.Proto()
			res.SessionsPerSecond, res.Targets = op.GetPace(), op.GetTargets()
		}
		return res, nil
	}, func(ctx context.Context, base string, r *connect.Request[controlv1.TerminateRequest]) (*connect.Response[controlv1.TerminateResponse], error) {
		return controlv1connect.NewNodeServiceClient(n.s.cfg.HTTP, base, rpc.ClientOptions()...).Terminate(ctx, r)
	})
}
