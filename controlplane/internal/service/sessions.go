package service

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
)

const (
	// fanoutTimeout bounds the wait for the slowest gateway. What the others
	// answered by then is the answer.
	fanoutTimeout = 3 * time.Second
	// fanoutWidth bounds how many gateways are asked at the same time.
	fanoutWidth = 32
)

// ListSessions collects sessions from the gateways that hold them, up to the
// limit. Which ones, when there are more, is not defined; those returned are
// sorted by tenant, user, device, node and session.
func (s *Service) ListSessions(ctx context.Context, req *connect.Request[controlv1.ListSessionsRequest]) (*connect.Response[controlv1.ListSessionsResponse], error) {
	m := req.Msg
	if m.GetLimit() > maxSessions {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("limit: %d: at most %d", m.GetLimit(), maxSessions))
	}
	if err := checkIDs(false, field{"tenant_id", m.GetTenantId()}, field{"user_id", m.GetUserId()}, field{"node_id", m.GetNodeId()}); err != nil {
		return nil, err
	}
	snap, err := s.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	targets := gateways(snap, m.GetNodeId())
	if m.GetNodeId() != "" && len(targets) == 0 {
		return nil, fault.New(fault.NotFound, fmt.Sprintf("node_id: no gateway %q is known", m.GetNodeId()))
	}
	found := &collector{limit: int(cmp.Or(m.GetLimit(), defaultSessions))}
	ask := &gatewayv1.SessionsRequest{
		TenantId: m.GetTenantId(), UserId: m.GetUserId(),
		Limit: uint32(found.limit) + 1, // one more tells that there are more
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failures := s.fanOut(ctx, targets, func(ctx context.Context, node fleet.Node, c gatewayv1connect.GatewayServiceClient) error {
		err := collect(ctx, c, ask, func(batch []*gatewayv1.SessionInfo) (more bool) {
			if more = found.add(node.ID, batch); !more {
				cancel() // enough for everybody
			}
			return more
		})
		if found.full() {
			return nil // we ended it ourselves, or could do without
		}
		return err
	})
	return connect.NewResponse(&controlv1.ListSessionsResponse{
		Sessions: found.sorted(), Truncated: found.full(), Warnings: append(unknowns(snap), failures...),
	}), nil
}

// collect reads one gateway's sessions until add wants no more.
func collect(ctx context.Context, c gatewayv1connect.GatewayServiceClient, ask *gatewayv1.SessionsRequest, add func([]*gatewayv1.SessionInfo) bool) error {
	st, err := c.Sessions(ctx, connect.NewRequest(ask))
	if err != nil {
		return err
	}
	for st.Receive() {
		if !add(st.Msg().GetSessions()) {
			break
		}
	}
	if err := st.Err(); err != nil {
		_ = st.Close() // the stream is broken already
		return err
	}
	return st.Close()
}

// collector gathers at most limit sessions. It is safe for concurrent use.
type collector struct {
	limit int

	mu       sync.Mutex
	sessions []*controlv1.Session // guarded by mu
	over     bool                 // there are more than limit; guarded by mu
}

// add takes a batch and tells whether more is wanted.
func (c *collector) add(node string, batch []*gatewayv1.SessionInfo) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, info := range batch {
		if len(c.sessions) == c.limit {
			c.over = true
			return false
		}
		c.sessions = append(c.sessions, &controlv1.Session{NodeId: node, Info: info})
	}
	return !c.over
}

func (c *collector) full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.over
}

func (c *collector) sorted() []*controlv1.Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortFunc(c.sessions, func(a, b *controlv1.Session) int {
		x, y := a.GetInfo(), b.GetInfo()
		return cmp.Or(
			cmp.Compare(x.GetTenantId(), y.GetTenantId()), cmp.Compare(x.GetUserId(), y.GetUserId()),
			cmp.Compare(x.GetDeviceId(), y.GetDeviceId()), cmp.Compare(a.GetNodeId(), b.GetNodeId()),
			cmp.Compare(x.GetSessionId(), y.GetSessionId()))
	})
	return c.sessions
}

// Kick asks every gateway to end a user's sessions. Those that do not answer
// are named in the warnings: whoever is connected there still is.
func (s *Service) Kick(ctx context.Context, req *connect.Request[controlv1.KickRequest]) (*connect.Response[controlv1.KickResponse], error) {
	m := req.Msg
	if err := checkIDs(true, field{"tenant_id", m.GetTenantId()}, field{"user_id", m.GetUserId()}); err != nil {
		return nil, err
	}
	if err := checkIDs(false, field{"device_id", m.GetDeviceId()}); err != nil {
		return nil, err
	}
	if n := len(m.GetReason()); n > maxReason {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("reason: %d bytes: at most %d", n, maxReason))
	}
	snap, err := s.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	ask := &gatewayv1.KickRequest{
		TenantId: m.GetTenantId(), UserId: m.GetUserId(), DeviceId: m.GetDeviceId(), Reason: cmp.Or(m.GetReason(), defaultReason),
	}
	var mu sync.Mutex
	var kicked uint32 // guarded by mu
	failures := s.fanOut(ctx, gateways(snap, ""), func(ctx context.Context, _ fleet.Node, c gatewayv1connect.GatewayServiceClient) error {
		res, err := c.Kick(ctx, connect.NewRequest(ask))
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		kicked += res.Msg.GetKicked()
		return nil
	})
	s.kicked.Add(int64(kicked))
	s.cfg.Telemetry.Log.InfoContext(ctx, "sessions_kicked", telemetry.TenantID, m.GetTenantId(), "kicked", kicked, "gateways_failed", len(failures))
	return connect.NewResponse(&controlv1.KickResponse{Kicked: kicked, Warnings: append(unknowns(snap), failures...)}), nil
}

// gateways returns the snapshot's gateways, or the one with the id. Those marked
// unreachable are among them: they may be back, and if not they must be named.
func gateways(snap *fleet.Snapshot, id string) []fleet.Node {
	var out []fleet.Node
	for _, n := range snap.Nodes {
		if n.Kind == fleet.Gateway && (id == "" || n.ID == id) {
			out = append(out, n)
		}
	}
	return out
}

// unknowns says, in a warning, that there may be gateways that were not asked.
func unknowns(snap *fleet.Snapshot) []string {
	if snap.Directory {
		return nil
	}
	return []string{"no router answers: gateways that started lately are not known and were not asked"}
}

// fanOut calls f for every node, at most fanoutWidth at a time and for
// fanoutTimeout in all, and returns a line for each that failed, in the order
// of nodes.
func (s *Service) fanOut(ctx context.Context, nodes []fleet.Node, f func(context.Context, fleet.Node, gatewayv1connect.GatewayServiceClient) error) []string {
	ctx, cancel := context.WithTimeout(ctx, fanoutTimeout)
	defer cancel()
	errs := make([]error, len(nodes))
	slots := make(chan struct{}, fanoutWidth)
	var wg sync.WaitGroup
	for i, n := range nodes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(ctx, n, gatewayv1connect.NewGatewayServiceClient(s.cfg.HTTP, n.Endpoint, rpc.ClientOptions()...))
		})
	}
	wg.Wait()
	var failures []string
	for i, err := range errs {
		if err != nil {
			s.fanoutFailed.Inc()
			failures = append(failures, fmt.Sprintf("gateway %s did not answer: %s", nodes[i].ID, fleet.Reason(err)))
		}
	}
	return failures
}

// field is an argument with the name by which the caller knows it.
type field struct{ name, value string }

// checkIDs checks lengths, and presence where required.
func checkIDs(required bool, fields ...field) error {
	for _, f := range fields {
		if required && f.value == "" {
			return fault.New(fault.Invalid, f.name+": required")
		}
		if len(f.value) > maxID {
			return fault.New(fault.Invalid, fmt.Sprintf("%s: %d bytes: at most %d", f.name, len(f.value), maxID))
		}
	}
	return nil
}
