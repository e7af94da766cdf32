// Package service answers operators: the handlers of ControlService. They check
// arguments, ask the inventory or the gateways, and map errors.
package service

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/canary"
	"github.com/mics-im/mics/controlplane/internal/drain"
	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/controlplane/internal/rebalance"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/telemetry"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
)

// Limits of the operator API.
const (
	// maxID bounds tenant, user, device and node names, in bytes.
	maxID = 128
	// maxReason is what fits into a close frame beside the code (RFC 6455,
	// section 5.5).
	maxReason       = 123
	defaultReason   = "kicked"
	defaultSessions = 100
	maxSessions     = 10_000
	// maxWatchers bounds the streams of WatchNodes: people and consoles, not
	// machines by the thousand.
	maxWatchers = 256
)

// Inventory is where the nodes are known.
type Inventory interface {
	// Next waits for a snapshot newer than after and returns the newest.
	Next(ctx context.Context, after uint64) (*fleet.Snapshot, error)
}

// Config is what a Service needs.
type Config struct {
	// NodeID and Version are what Version answers.
	NodeID, Version string
	Inventory       Inventory
	// Leadership and Drains are for what only a leader does.
	Leadership Leadership
	Drains     *drain.Runner
	Canaries   *canary.Runner
	Rebalances *rebalance.Runner
	Audit      Audit
	// Placed returns the Kubernetes node of a gateway, empty: not known; nil: none is.
	Placed func(gateway string) string
	// HTTP reaches gateways, routers and other control planes.
	HTTP      *http.Client
	Telemetry *telemetry.Telemetry
}

// Service implements ControlService. It is safe for concurrent use.
type Service struct {
	controlv1connect.UnimplementedControlServiceHandler

	cfg      Config
	watchers atomic.Int64
	// closed ends the watches; without it a server that stops would wait for
	// them.
	closed    chan struct{}
	closeOnce sync.Once

	watchSkipped, kicked, fanoutFailed *telemetry.Counter
}

// New returns a Service.
func New(cfg Config) *Service {
	t := cfg.Telemetry
	s := &Service{
		cfg:          cfg,
		closed:       make(chan struct{}),
		watchSkipped: t.Counter("mics_controlplane_watch_skipped_total", "Snapshots that a slow watcher did not get, because a newer one was there."),
		kicked:       t.Counter("mics_controlplane_sessions_kicked_total", "Sessions ended by operators."),
		fanoutFailed: t.Counter("mics_controlplane_fanout_failed_total", "Gateways that did not answer a request made to all of them."),
	}
	t.Gauge("mics_controlplane_watchers", "Open WatchNodes streams.", s.watchers.Load)
	return s
}

// Close ends every watch, now and from now on, with UNAVAILABLE. It does not
// wait for them: the server that carries them does.
func (s *Service) Close() { s.closeOnce.Do(func() { close(s.closed) }) }

// Version tells who answers.
func (s *Service) Version(context.Context, *connect.Request[controlv1.VersionRequest]) (*connect.Response[controlv1.VersionResponse], error) {
	return connect.NewResponse(&controlv1.VersionResponse{NodeId: s.cfg.NodeID, Version: s.cfg.Version}), nil
}

// ListNodes returns the newest inventory; right after the start it waits for
// the first.
func (s *Service) ListNodes(ctx context.Context, _ *connect.Request[controlv1.ListNodesRequest]) (*connect.Response[controlv1.ListNodesResponse], error) {
	snap, err := s.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&controlv1.ListNodesResponse{
		Nodes: s.toProto(snap.Nodes), ObservedAtMs: snap.At.UnixMilli(), Warnings: snap.Warnings,
	}), nil
}

// WatchNodes sends the newest inventory whenever there is a newer one than it
// sent last. A client that reads slowly misses those in between, counted.
func (s *Service) WatchNodes(ctx context.Context, _ *connect.Request[controlv1.WatchNodesRequest], out *connect.ServerStream[controlv1.WatchNodesResponse]) error {
	defer s.watchers.Add(-1)
	if s.watchers.Add(1) > maxWatchers {
		return fault.New(fault.Exhausted, fmt.Sprintf("watchers: at most %d at a time", maxWatchers))
	}
	ctx, cancel := s.untilClosed(ctx)
	defer cancel(nil)
	var last uint64
	for {
		snap, err := s.cfg.Inventory.Next(ctx, last)
		if err != nil {
			return ended(ctx, err)
		}
		if last > 0 {
			s.watchSkipped.Add(int64(snap.Seq - last - 1))
		}
		last = snap.Seq
		err = out.Send(&controlv1.WatchNodesResponse{
			Nodes: s.toProto(snap.Nodes), ObservedAtMs: snap.At.UnixMilli(), Warnings: snap.Warnings,
		})
		if err != nil {
			return err
		}
	}
}

// errStopping is what callers that wait are told when this process stops.
var errStopping = fault.New(fault.Unavailable, "the control plane is stopping")

// untilClosed returns ctx that also ends, with cause errStopping, on Close.
func (s *Service) untilClosed(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-s.closed:
			cancel(errStopping)
		case <-ctx.Done():
		}
	}()
	return ctx, func(cause error) {
		cancel(cause)
		<-done
	}
}

// snapshot returns the newest inventory, waiting for the first.
func (s *Service) snapshot(ctx context.Context) (*fleet.Snapshot, error) {
	ctx, cancel := s.untilClosed(ctx)
	defer cancel(nil)
	snap, err := s.cfg.Inventory.Next(ctx, 0)
	if err != nil {
		return nil, ended(ctx, err)
	}
	return snap, nil
}

// ended tells why a wait ended: our stopping, or the caller's own context.
func ended(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errStopping) {
		return errStopping
	}
	return fault.Wrap(fault.Unavailable, "no inventory yet", err)
}

func (s *Service) toProto(nodes []fleet.Node) []*controlv1.Node {
	out := make([]*controlv1.Node, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		kind := controlv1.NodeKind_NODE_KIND_ROUTER
		if n.Kind == fleet.Gateway {
			kind = controlv1.NodeKind_NODE_KIND_GATEWAY
		}
		out[i] = &controlv1.Node{
			Kind: kind, NodeId: n.ID, Incarnation: n.Incarnation, Endpoint: n.Endpoint, Version: n.Version,
			Track: n.Track, Phase: n.Phase, Sessions: n.Sessions, SessionsV2: n.SessionsV2,
			ConnectsPerSecond: n.Rates.Connects, MessagesInPerSecond: n.Rates.MessagesIn, DeliveriesPerSecond: n.Rates.Deliveries,
			StartedAtMs: n.StartedAtMS, Unreachable: n.Unreachable, UnreachableReason: n.Reason, RoutersLinked: n.RoutersLinked,
		}
		if n.Kind == fleet.Gateway && s.cfg.Placed != nil {
			out[i].KubernetesNode = s.cfg.Placed(n.ID)
		}
	}
	return out
}
