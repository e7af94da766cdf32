// Package admit lets connections in and takes their routes away: authentication
// at whichever router is asked, and, at the user's home router, limits, the
// route, the takeover of an older session of the device, and what was kept for
// it (DESIGN section 4).
package admit

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/recall"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/signals"
	"github.com/mics-im/mics/router/internal/stats"
	"github.com/mics-im/mics/router/internal/tenant"
	"github.com/mics-im/mics/router/internal/token"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
)

// Close codes of refusals (CONTRACT section 1.3).
const (
	codeAuth     = 4001
	codeTenant   = 4002
	codeReplaced = 4201
	codeLimit    = 4429
)

// refusedResume is the result of openings whose resume token was refused.
const refusedResume = "refused_resume"

// Texts of refusals.
const (
	textUnavailable  = "auth unavailable"
	textUnauthorized = "unauthorized"
	textTenant       = "invalid tenant"
	textTenantLimit  = "tenant connection limit"
	textUserLimit    = "user connection limit"
	textReplaced     = "replaced"
)

const (
	// maxName bounds tenant, user and device, maxToken the token, in bytes.
	maxName  = 128
	maxToken = 4096
	// maxReason is what fits into a close frame (RFC 6455, section 5.5.1).
	maxReason = 123
	// forwardTimeout bounds the call to the user's home.
	forwardTimeout = 6 * time.Second
	// maxPulls bounds the devices for which messages are pulled at once.
	maxPulls = 256
)

// Hooks are the tenants' hooks of a connect.
type Hooks interface {
	Authenticate(ctx context.Context, t *tenant.Tenant, token, device string) (*hookv1.AuthResponse, error)
	OfflinePage(ctx context.Context, t *tenant.Tenant, req *hookv1.GetOfflineMessagesRequest) (*hookv1.GetOfflineMessagesResponse, error)
}

// Directory tells who is alive.
type Directory interface {
	Alive(route.NodeRef) bool
	Gateway(route.NodeRef) (route.Node, bool)
	Refs() []route.NodeRef
}

// Homes tells who is a user's home. This router is not when it leaves, unless there is
// no other one. Changed: lately, and what is said to a home may have gone to another one,
// or wait for one that is dead.
type Homes interface {
	Home(route.UserKey) (home route.Router, self bool)
	Leaving() bool
	Changed() bool
}

// Dispatcher is what an admission needs of it.
type Dispatcher interface {
	Gate(key route.DeviceKey)
	Ungate(key route.DeviceKey)
	Reclaim(ctx context.Context, key route.DeviceKey, lost func(route.Location) bool) (collect func() []*dispatch.Message, err error)
	Hold(key route.DeviceKey, loc route.Location, msgs []*dispatch.Message) (ids []uint64, ok bool)
	Owes(key route.DeviceKey, at route.Location) bool
	Abandon(loc route.Location)
	SendTo(key route.DeviceKey, m *dispatch.Message, done func(dispatch.Result))
	SendOlder(key route.DeviceKey, msgs []*dispatch.Message)
}

// Kept is the offline buffer, for who takes from it. front was handed back and is
// older than everything that is held for the device; recent is what its ended
// sessions took.
type Kept interface {
	TakeFor(ctx context.Context, key route.DeviceKey, lost route.Location) (front, rest []offline.Entry, recent recall.Keys, err error)
}

// Options configure an Admitter; all are required.
type Options struct {
	Self       route.Router
	Directory  Directory
	Homes      Homes
	Routes     Routes
	Tenant     func(name string) (*tenant.Tenant, bool)
	Hooks      Hooks
	Dispatcher Dispatcher
	// Kept takes what is kept for a device, here and at other routers.
	Kept   Kept
	Buffer dispatch.Buffer
	// Stalled tells whether this router stood still until a moment ago.
	Stalled func() bool
	// Recall is told what ended sessions took.
	Recall *recall.Memory
	// Peer and Gateway return clients of other processes.
	Peer    func(route.Router) routerv1connect.PeerServiceClient
	Gateway func(route.Node) gatewayv1connect.GatewayServiceClient
	// Tokens seal and open resume tokens.
	Tokens *token.Keys
	// MaxMessageBytes bounds the body of a message that a tenant's hook returns.
	MaxMessageBytes int
	Events          Events
	Stats           *stats.Stats
	Signals         *signals.Table // nil: not counted
	Log             *slog.Logger
	Tracer          trace.Tracer
}

// Admitter is safe for concurrent use.
type Admitter struct {
	opts   Options
	locks  locks
	ledger *ledger

	pulls  chan struct{}   // a place for each pull under way
	ctx    context.Context // of pulls; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// New returns an admitter; Close ends it.
func New(opts Options) *Admitter {
	a := &Admitter{opts: opts, ledger: newLedger(opts.Stats.AdmissionsForgot.Inc), pulls: make(chan struct{}, maxPulls)}
	a.locks.users = map[route.UserKey]*userLock{}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

// Admitting tells whether a session of the user is being opened or ended here.
func (a *Admitter) Admitting(key route.UserKey) bool { return a.locks.taken(key) }

// Close ends the pulls that are under way and waits for them. No other method
// may be called any more.
func (a *Admitter) Close() {
	a.cancel()
	a.wg.Wait()
}

// opening is one connection that wants in, authenticated.
type opening struct {
	tenant  *tenant.Tenant
	key     route.DeviceKey
	loc     route.Location
	version uint8
	resume  resumption
}

// OpenSession authenticates a connection and has it admitted at its user's
// home. A refusal is an answer. After an error nothing is known: the home may
// have admitted it, and the gateway asks again or reports never_opened.
func (a *Admitter) OpenSession(ctx context.Context, req *routerv1.OpenSessionRequest) (*routerv1.OpenSessionResponse, error) {
	refuse := func(result string, code int32, reason string) (*routerv1.OpenSessionResponse, error) {
		a.opts.Stats.Sessions.With(result).Inc()
		return &routerv1.OpenSessionResponse{Refusal: &routerv1.SessionRefusal{
			CloseCode: code, Reason: clip(reason), Resume: result == refusedResume,
		}}, nil
	}
	loc := route.Location{Node: ref(req.GetGateway()), Session: req.SessionId}
	if !a.opts.Directory.Alive(loc.Node) {
		return nil, fault.New(fault.FailedPrecondition, "this gateway incarnation holds no lease")
	}
	if req.Version != 1 && req.Version != 2 || !usable(req.DeviceId) || len(req.Token) > maxToken {
		return nil, fault.New(fault.Invalid, "version, device_id or token is out of bounds")
	}
	t, ok := a.opts.Tenant(req.TenantId)
	if !ok {
		return refuse("invalid_tenant", codeTenant, textTenant)
	}
	if req.Traceparent != "" {
		var span trace.Span
		ctx, span = a.opts.Tracer.Start(telemetry.WithTraceParent(ctx, req.Traceparent), "open session")
		defer span.End()
	}
	r, migrating, no := a.present(t, req)
	if no != "" {
		return refuse(refusedResume, codeAuth, no)
	}
	o := opening{tenant: t, loc: loc, version: uint8(req.Version), resume: r}
	var config *hookv1.TenantRuntimeConfig
	if migrating {
		o.key = r.claims.Key
	} else {
		asked := time.Now()
		res, err := a.opts.Hooks.Authenticate(ctx, t, req.Token, req.DeviceId)
		a.opts.Signals.Of(loc.Node).Auth(time.Since(asked), err)
		if err != nil {
			return refuse("auth_unavailable", codeAuth, textUnavailable)
		}
		if !res.Ok {
			return refuse("denied", codeAuth, cmp.Or(res.Reason, textUnauthorized))
		}
		o.key = route.DeviceKey{UserKey: route.UserKey{Tenant: t.Name(), User: res.UserId}, Device: cmp.Or(res.DeviceId, req.DeviceId)}
		if !usable(o.key.User) || !usable(o.key.Device) {
			return refuse("auth_unusable", codeAuth, textUnavailable)
		}
		t.Learn(res.Config)
		config = res.Config
		if r.claims != nil && r.claims.Key != o.key {
			return refuse(refusedResume, codeAuth, textForeign)
		}
	}
	got, err := a.atHome(ctx, o, config)
	if err != nil {
		a.opts.Stats.Sessions.With("failed").Inc()
		return nil, err
	}
	if r := got.Refusal; r != nil {
		result := "refused"
		if r.Resume {
			result = refusedResume
		}
		return refuse(result, r.CloseCode, r.Reason)
	}
	result := "admitted"
	if got.Resumed {
		result = "resumed"
	}
	a.opts.Stats.Sessions.With(result).Inc()
	out := &routerv1.OpenSessionResponse{
		UserId: o.key.User, DeviceId: o.key.Device, Epoch: got.Epoch, Backlog: got.Backlog,
		HeartbeatTimeoutSeconds: uint32(t.HeartbeatTimeout() / time.Second),
		RouterId:                got.RouterId, RouterIncarnation: got.RouterIncarnation, RecentKeys: got.RecentKeys, RecentAges: got.RecentAges,
		ResumeToken: got.ResumeToken, Resumed: got.Resumed, NextSeq: got.NextSeq, AcknowledgedSeq: got.AcknowledgedSeq,
		Origin: got.Origin, Migrating: got.Migrating, FrozenMs: got.FrozenMs,
	}
	if sc := trace.SpanContextFromContext(ctx); sc.HasTraceID() {
		out.TraceId = sc.TraceID().String()
	}
	return out, nil
}

// atHome has an authenticated connection admitted at its user's home.
func (a *Admitter) atHome(ctx context.Context, o opening, config *hookv1.TenantRuntimeConfig) (*routerv1.AdmitResponse, error) {
	home, self := a.opts.Homes.Home(o.key.UserKey)
	if self {
		return a.admit(ctx, o)
	}
	req := &routerv1.AdmitRequest{
		Gateway:   &gatewayv1.GatewayRef{NodeId: o.loc.Node.ID, Incarnation: o.loc.Node.Incarnation},
		SessionId: o.loc.Session, TenantId: o.key.Tenant, UserId: o.key.User, DeviceId: o.key.Device,
		Version: uint32(o.version), Traceparent: telemetry.TraceParent(ctx),
	}
	o.resume.write(req)
	if config != nil {
		raw, err := proto.Marshal(config)
		if err != nil {
			return nil, fault.Wrap(fault.Internal, "serialize the tenant's configuration", err)
		}
		req.TenantConfig = raw
	}
	return a.askHome(ctx, home, req)
}

func (a *Admitter) askHome(ctx context.Context, home route.Router, req *routerv1.AdmitRequest) (*routerv1.AdmitResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	res, err := a.opts.Peer(home).Admit(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, "the user's home router did not answer", err)
	}
	return res.Msg, nil
}

// Admit serves another router's call at the user's home. A router that leaves is no
// home, whatever the caller knows: what it keeps for the user is on its way to the next
// one.
func (a *Admitter) Admit(ctx context.Context, req *routerv1.AdmitRequest) (*routerv1.AdmitResponse, error) {
	if a.opts.Homes.Leaving() && !req.PassedOn {
		if home, self := a.opts.Homes.Home(route.UserKey{Tenant: req.TenantId, User: req.UserId}); !self {
			req.PassedOn = true
			return a.askHome(ctx, home, req)
		}
	}
	o := opening{
		loc:     route.Location{Node: ref(req.GetGateway()), Session: req.SessionId},
		version: uint8(req.Version),
		key:     route.DeviceKey{UserKey: route.UserKey{Tenant: req.TenantId, User: req.UserId}, Device: req.DeviceId},
	}
	if !a.opts.Directory.Alive(o.loc.Node) {
		return nil, fault.New(fault.FailedPrecondition, "this gateway incarnation holds no lease")
	}
	if req.Version != 1 && req.Version != 2 || !usable(req.UserId) || !usable(req.DeviceId) {
		return nil, fault.New(fault.Invalid, "version, user_id or device_id is out of bounds")
	}
	t, ok := a.opts.Tenant(req.TenantId)
	if !ok {
		return refusal(codeTenant, textTenant), nil
	}
	o.tenant = t
	r, no := a.presented(o.key, req)
	if no != "" {
		return resumeRefusal(no), nil
	}
	o.resume = r
	if len(req.TenantConfig) > 0 {
		config := &hookv1.TenantRuntimeConfig{}
		if err := proto.Unmarshal(req.TenantConfig, config); err != nil {
			return nil, fault.Wrap(fault.Invalid, "tenant_config", err)
		}
		t.Learn(config)
	}
	return a.admit(telemetry.WithTraceParent(ctx, req.Traceparent), o)
}

func refusal(code int32, reason string) *routerv1.AdmitResponse {
	return &routerv1.AdmitResponse{Refusal: &routerv1.SessionRefusal{CloseCode: code, Reason: reason}}
}

// resumeRefusal refuses the resume token.
func resumeRefusal(reason string) *routerv1.AdmitResponse {
	res := refusal(codeAuth, reason)
	res.Refusal.Resume = true
	return res
}

func ref(g *gatewayv1.GatewayRef) route.NodeRef {
	return route.NodeRef{ID: g.GetNodeId(), Incarnation: g.GetIncarnation()}
}

// usable tells whether s can be a user or a device: bounded, and printable, so
// that it holds no separator.
func usable(s string) bool {
	if s == "" || len(s) > maxName || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// clip makes a text fit into a close frame.
func clip(s string) string {
	if len(s) <= maxReason {
		return s
	}
	s = s[:maxReason]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

// errBusy: too many admissions of one user wait already.
var errBusy = errors.New("too many connections of the user are being admitted")
