// Package downlink answers the routers and the control plane: deliveries,
// handovers, what is held here, kicks. It knows sessions and no sockets.
package downlink

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/ring"
	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
)

// Options of a Service.
type Options struct {
	Registry  *registry.Registry
	Telemetry *telemetry.Telemetry
	// Info is the gateway as it is now.
	Info func() *gatewayv1.GatewayInfo
	// RoutersLinked and RefusedHandshakes are for Status; nil means 0.
	RoutersLinked     func() int
	RefusedHandshakes func() uint64
	// Drainer drains and sheds.
	Drainer Drainer
	// Steerer keeps the canary's rule.
	Steerer Steerer
	// Complete adds to a Status what is known elsewhere; nil: nothing.
	Complete func(*gatewayv1.StatusResponse)
}

// Drainer moves sessions to other gateways. Errors are of package fault.
type Drainer interface {
	Drain(*gatewayv1.DrainRequest) (*gatewayv1.DrainProgress, error)
	Undrain(operation string) (*gatewayv1.DrainProgress, error)
	Shed(*gatewayv1.ShedRequest) (*gatewayv1.ShedResponse, error)
}

// Steerer brings clients to their tracks. Errors are of package fault.
type Steerer interface {
	Steer(*gatewayv1.SteerRequest) (*gatewayv1.SteerResponse, error)
}

// Service implements gatewayv1connect.GatewayServiceHandler.
type Service struct {
	gatewayv1connect.UnimplementedGatewayServiceHandler

	o       Options
	started time.Time
	refused *telemetry.CounterVec

	mu      sync.Mutex
	closed  bool           // guarded by mu: no streams are taken any more
	quit    chan struct{}  // closed by Close
	streams sync.WaitGroup // the goroutines of streams; Add under mu while not closed
}

var _ gatewayv1connect.GatewayServiceHandler = (*Service)(nil)

// New returns a service; Close ends it.
func New(o Options) *Service {
	s := &Service{o: o, started: time.Now(), quit: make(chan struct{})}
	s.refused = o.Telemetry.CounterVec("mics_deliveries_refused_total", "deliveries that a session did not take", "reason")
	for reason := range gatewayv1.Refusal_Reason_name {
		if r := gatewayv1.Refusal_Reason(reason); r != gatewayv1.Refusal_REASON_UNSPECIFIED {
			s.refused.With(label(r))
		}
	}
	return s
}

// Close ends the streams and waits for them.
func (s *Service) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.quit)
	}
	s.mu.Unlock()
	s.streams.Wait()
}

// enter counts a goroutine of a stream; false: the service is closed.
func (s *Service) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.streams.Add(1)
	}
	return !s.closed
}

// errClosing lets the router try again: another start of this gateway, or none,
// will answer.
func errClosing() error { return fault.New(fault.Unavailable, "the gateway is stopping") }

// Handover implements GatewayService.
func (s *Service) Handover(ctx context.Context, req *connect.Request[gatewayv1.HandoverRequest]) (*connect.Response[gatewayv1.HandoverResponse], error) {
	m := req.Msg
	res := &gatewayv1.HandoverResponse{}
	if m.GetGatewayIncarnation() != s.o.Info().GetIncarnation() {
		return connect.NewResponse(res), nil // that one is gone, with its sessions
	}
	code, reason := int(m.GetCloseCode()), m.GetCloseReason()
	if code == 0 {
		code, reason = session.CodeReplaced, "replaced"
	}
	sess := s.o.Registry.Get(m.GetSessionId())
	switch {
	case sess == nil:
	case m.GetCheck():
		res.Found, res.Ahead = sess.Resumable(m.GetLastSeq())
	default:
		var h session.Handed
		at := time.Now()
		h, res.Found = sess.Freeze(ctx, session.Takeover{Code: code, Reason: reason, Resume: m.GetResume(), LastSeq: m.GetLastSeq()})
		res.Undelivered, res.NextSeq, res.AcknowledgedSeq = h.Undelivered, h.NextSeq, h.AckedSeq
		res.RecentKeys, res.RecentAges, res.Whole = h.Keys, h.Ages, h.Whole
		if s.o.Telemetry.Log.Enabled(ctx, slog.LevelDebug) {
			id := sess.Identity()
			s.o.Telemetry.Log.DebugContext(ctx, "session_frozen", telemetry.TenantID, id.Tenant, "UserId", id.User, "DeviceId", id.Device,
				"SessionId", sess.ID(), "found", res.Found, "at_ns", at.UnixNano())
		}
	}
	return connect.NewResponse(res), nil
}

// listBatch is how many sessions one message lists.
const listBatch = 512

// Sessions implements GatewayService.
func (s *Service) Sessions(ctx context.Context, req *connect.Request[gatewayv1.SessionsRequest], stream *connect.ServerStream[gatewayv1.SessionsResponse]) error {
	m := req.Msg
	if want := m.GetGatewayIncarnation(); want != 0 && want != s.o.Info().GetIncarnation() {
		return fault.New(fault.FailedPrecondition, "this is another incarnation of the gateway")
	}
	homes := m.GetRouters()
	home := slices.Index(homes, m.GetHomeRouter())
	var batch []*gatewayv1.SessionInfo
	var err error
	n := uint32(0)
	send := func() {
		if err == nil && len(batch) > 0 {
			err = stream.Send(&gatewayv1.SessionsResponse{Sessions: batch})
		}
		batch = nil
	}
	more := func() bool {
		return err == nil && ctx.Err() == nil && (m.GetLimit() == 0 || n < m.GetLimit())
	}
	visit := func(sess *session.Session) bool {
		info, ok := sess.Info()
		if !ok || info.Ending && !m.GetEnding() || m.GetTenantId() != "" && info.TenantId != m.GetTenantId() || m.GetUserId() != "" && info.UserId != m.GetUserId() {
			return true
		}
		if len(homes) > 0 && ring.Pick(homes, info.TenantId, info.UserId) != home {
			return true
		}
		batch = append(batch, info)
		n++
		if len(batch) == listBatch {
			send()
		}
		return more()
	}
	switch {
	case len(m.GetUsers()) > 0:
		seen := make(map[[2]string]bool, len(m.GetUsers()))
		for _, u := range m.GetUsers() {
			user := [2]string{u.GetTenantId(), u.GetUserId()}
			if seen[user] || !more() {
				continue
			}
			seen[user] = true
			s.o.Registry.WalkUser(user[0], user[1], visit)
		}
	case m.GetTenantId() != "" && m.GetUserId() != "":
		s.o.Registry.WalkUser(m.GetTenantId(), m.GetUserId(), visit)
	default:
		s.o.Registry.Walk(visit)
	}
	send()
	return err
}

// Kick implements GatewayService.
func (s *Service) Kick(_ context.Context, req *connect.Request[gatewayv1.KickRequest]) (*connect.Response[gatewayv1.KickResponse], error) {
	m := req.Msg
	if m.GetTenantId() == "" || m.GetUserId() == "" {
		return nil, fault.New(fault.Invalid, "tenant_id and user_id are required")
	}
	reason := m.GetReason()
	if reason == "" {
		reason = "kicked"
	}
	res := &gatewayv1.KickResponse{}
	s.o.Registry.WalkUser(m.GetTenantId(), m.GetUserId(), func(sess *session.Session) bool {
		if m.GetDeviceId() == "" || sess.Identity().Device == m.GetDeviceId() {
			if sess.Kick(reason) {
				res.Kicked++
			}
		}
		return true
	})
	return connect.NewResponse(res), nil
}

// Status implements GatewayService.
func (s *Service) Status(context.Context, *connect.Request[gatewayv1.StatusRequest]) (*connect.Response[gatewayv1.StatusResponse], error) {
	t := s.o.Registry.Totals()
	res := &gatewayv1.StatusResponse{
		Gateway: s.o.Info(), Sessions: uint64(s.o.Registry.Len()), SessionsV2: uint64(s.o.Registry.LenV2()),
		StartedAtMs: s.started.UnixMilli(), ConnectsTotal: t.Connects, MessagesInTotal: t.MessagesIn,
		DeliveriesTotal: t.Deliveries, DisconnectsTotal: t.Disconnects, HeartbeatTimeoutsTotal: t.HeartbeatTimeouts,
		AbnormalClosesTotal: t.AbnormalCloses, ResumesTotal: t.Resumes,
	}
	if s.o.RoutersLinked != nil {
		res.RoutersLinked = uint32(s.o.RoutersLinked())
	}
	if s.o.RefusedHandshakes != nil {
		res.RefusedHandshakesTotal = s.o.RefusedHandshakes()
	}
	if s.o.Complete != nil {
		s.o.Complete(res)
	}
	return connect.NewResponse(res), nil
}
