// Package upgrade takes clients in: what is checked before the upgrade, what is
// refused after it, and the opening of the session at a router.
package upgrade

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/gateway/internal/arrival"
	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// logEvery is how often a line about refused handshakes is logged at most.
const logEvery = time.Second

// Options are what a Handler needs; the limits may be zero: none.
type Options struct {
	Registry *registry.Registry
	// OpenSession asks a router, the home of the user with that hash first (0: not
	// known). unsure: one that has not answered may have admitted the session.
	OpenSession func(ctx context.Context, req *routerv1.OpenSessionRequest, home uint64) (res *routerv1.OpenSessionResponse, unsure bool, err error)
	Gateway     *gatewayv1.GatewayRef
	// Closed says why no connection is taken now, empty: they are.
	Closed func() string

	AllowedOrigins []string
	TrustedProxies []netip.Prefix
	// AcceptRate and AcceptRatePerAddress bound new connections per second.
	AcceptRate, AcceptRatePerAddress int
	MaxConnections                   int
	// Arrived is told of each session that goes on here.
	Arrived   func(arrival.Arrival)
	Telemetry *telemetry.Telemetry
}

// Handler serves /ws.
type Handler struct {
	opts    Options
	limiter *limiter
	log     *slog.Logger
	refused *telemetry.CounterVec
	gone    *telemetry.Counter
	accept  *telemetry.Buckets
	anew    *telemetry.Counter
	total   atomic.Uint64
	logged  atomic.Int64 // when rate_limited was logged last, in nanoseconds

	ctx    context.Context // of all OpenSession calls
	cancel context.CancelFunc
	mu     sync.Mutex
	wg     sync.WaitGroup
	closed bool // guarded by mu
}

// acceptBounds are in milliseconds.
var acceptBounds = []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000}

// reasons why a handshake is refused before the upgrade, besides the verdicts.
const (
	unavailable    = "unavailable"
	notWebSocket   = "not_websocket"
	badOrigin      = "origin"
	maxConnections = "max_connections"
)

// goneEvery is how often is looked whether a client still waits.
const goneEvery = 200 * time.Millisecond

// New returns a handler; Stop ends it.
func New(o Options) *Handler {
	h := &Handler{
		opts: o, log: o.Telemetry.Log, limiter: newLimiter(o.AcceptRate, o.AcceptRatePerAddress),
		refused: o.Telemetry.CounterVec("mics_ws_handshakes_refused_total", "handshakes refused before the upgrade", "reason"),
		gone:    o.Telemetry.Counter("mics_ws_handshakes_abandoned_total", "handshakes whose client had gone before its session was opened"),
		anew:    o.Telemetry.Counter("mics_ws_resumes_failed_total", "resume tokens that were not taken: their clients begin anew"),
		accept:  o.Telemetry.Buckets("mics_ws_accept_ms", "from the request to the ConnectAck of admitted connections", acceptBounds...),
	}
	for _, r := range []string{unavailable, notWebSocket, badOrigin, maxConnections, string(perNode), string(perAddress)} {
		h.refused.With(r)
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// Refused is how many handshakes were refused before the upgrade.
func (h *Handler) Refused() uint64 { return h.total.Load() }

// ResumesFailed is how many resume tokens were not taken.
func (h *Handler) ResumesFailed() uint64 { return uint64(h.anew.Value()) }

// AcceptMS is the histogram of the time from the request to the ConnectAck, in
// milliseconds.
func (h *Handler) AcceptMS() (bounds []float64, counts []uint64) { return h.accept.Read() }

// Stop gives up the sessions that are being opened and waits for them; later
// handshakes get 503.
func (h *Handler) Stop(ctx context.Context) error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.wg.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("sessions still being opened: %w", ctx.Err())
	}
}

// ServeHTTP takes a connection over or refuses it. It returns soon: the session
// is opened by a goroutine that does not have net/http's deep stack.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	if why := h.opts.Closed(); why != "" {
		h.refuse(w, http.StatusServiceUnavailable, unavailable, why, time.Second)
		return
	}
	if err := ws.Check(r); err != nil {
		h.refuse(w, http.StatusBadRequest, notWebSocket, err.Error(), 0)
		return
	}
	if !originAllowed(h.opts.AllowedOrigins, r.Header.Get("Origin")) {
		h.refuse(w, http.StatusForbidden, badOrigin, "origin not allowed", 0)
		return
	}
	if n := h.opts.Registry.Connected(); h.opts.MaxConnections > 0 && n >= h.opts.MaxConnections {
		h.limited(maxConnections, h.opts.MaxConnections, n)
		h.refuse(w, http.StatusTooManyRequests, maxConnections, "too many connections", time.Second)
		return
	}
	addr := clientAddr(r, h.opts.TrustedProxies)
	if v, wait := h.limiter.allow(addr, time.Now()); v != allowed {
		limit := h.opts.AcceptRate
		if v == perAddress {
			limit = h.opts.AcceptRatePerAddress
		}
		h.limited(string(v), limit, limit+1)
		h.refuse(w, http.StatusTooManyRequests, string(v), "too many new connections", wait)
		return
	}
	h.take(w, r, addr, began)
}

// take upgrades and goes on in a goroutine.
func (h *Handler) take(w http.ResponseWriter, r *http.Request, addr netip.Addr, began time.Time) {
	h.mu.Lock()
	closed := h.closed
	if !closed {
		h.wg.Add(1)
	}
	h.mu.Unlock()
	if closed {
		h.refuse(w, http.StatusServiceUnavailable, unavailable, "stopping", time.Second)
		return
	}
	req, no := parse(r)
	req.began = began
	conn, err := ws.Upgrade(w, r, req.protocol)
	if err != nil {
		h.wg.Done()
		h.log.Debug("upgrade_failed", "remote", r.RemoteAddr, "error", err)
		return
	}
	remote := r.RemoteAddr
	if len(h.opts.TrustedProxies) > 0 {
		remote = addr.String()
	}
	go func() {
		defer h.wg.Done()
		h.open(conn, req, no, remote)
	}()
}

// open admits or refuses a session.
func (h *Handler) open(conn *ws.Conn, req request, no refusal, remote string) {
	if conn.Gone() {
		// It has waited here for longer than its client had patience, as after a
		// stall. Opening it would take the place of where the client is now.
		h.gone.Inc()
		_ = conn.Close()
		conn.Done()
		return
	}
	p := session.Params{Version: req.version, RemoteAddr: remote}
	if no.code == 0 { // else they may be anything
		p.Tenant, p.Device = req.tenant, req.device
	}
	s := h.opts.Registry.Add(conn, p)
	if no.code != 0 {
		s.Refuse(no.code, no.reason, false)
		return
	}
	ctx, span := h.opts.Telemetry.Tracer.Start(h.ctx, "connect")
	defer span.End()
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	defer h.watch(conn, leave)()
	res, unsure, err := h.opts.OpenSession(ctx, &routerv1.OpenSessionRequest{
		Gateway: h.opts.Gateway, SessionId: s.ID(), TenantId: req.tenant, Token: req.token, DeviceId: req.device,
		Version: req.version, Traceparent: telemetry.TraceParent(ctx),
		ResumeToken: req.resume, LastSeq: req.lastSeq,
	}, req.home)
	if req.resume != "" && err == nil && !res.GetResumed() && (res.GetRefusal() == nil || res.GetRefusal().GetResume()) {
		h.anew.Inc()
	}
	switch {
	case err != nil:
		h.log.Warn("open_session_failed", telemetry.TenantID, req.tenant, "error", err)
		s.Refuse(codeUnauthorized, "auth unavailable", unsure)
	case res.GetRefusal() != nil:
		s.Refuse(int(res.GetRefusal().GetCloseCode()), res.GetRefusal().GetReason(), unsure)
	default:
		s.Open(session.Admission{
			Identity:   session.Identity{Tenant: req.tenant, User: res.GetUserId(), Device: res.GetDeviceId()},
			Epoch:      res.GetEpoch(),
			Heartbeat:  time.Duration(res.GetHeartbeatTimeoutSeconds()) * time.Second,
			Backlog:    res.GetBacklog(),
			Home:       session.RouterRef{ID: res.GetRouterId(), Incarnation: res.GetRouterIncarnation()},
			RecentKeys: res.GetRecentKeys(), RecentAges: res.GetRecentAges(),
			TraceID: res.GetTraceId(),

			ResumeToken: res.GetResumeToken(), Resumed: res.GetResumed(), Migrated: res.GetMigrating(), NextSeq: res.GetNextSeq(),
			Acked: h.acked(req, res),
		})
	}
}

// watch calls leave when the client hangs up, until stop is called: an admission
// that takes long must not take the place of where the client is by then.
func (h *Handler) watch(conn *ws.Conn, leave func()) (stop func()) {
	var mu sync.Mutex
	var t *time.Timer
	look := func() {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case t == nil: // stopped
		case conn.Gone():
			h.gone.Inc()
			leave()
		default:
			t.Reset(goneEvery)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	t = time.AfterFunc(goneEvery, look)
	return func() {
		mu.Lock()
		defer mu.Unlock()
		t.Stop()
		t = nil
	}
}

// acked is what is to be done when an admitted connection has its ConnectAck.
func (h *Handler) acked(req request, res *routerv1.OpenSessionResponse) func() {
	began := req.began
	if !res.GetResumed() {
		return func() { h.accept.Record(ms(time.Since(began))) }
	}
	seqs := make([]uint64, len(res.GetBacklog()))
	for i, u := range res.GetBacklog() {
		seqs[i] = u.GetSeq()
	}
	a := arrival.Arrival{Origin: res.GetOrigin(), Migrated: res.GetMigrating()}
	// What came over the old socket after the client had asked is no loss.
	seen := max(req.lastSeq, res.GetAcknowledgedSeq())
	a.Lost, a.Repeated = arrival.Audit(seen, res.GetNextSeq(), seqs)
	if a.Lost > 0 || a.Repeated > 0 {
		h.log.Error("sequence_broken", telemetry.TenantID, req.tenant, "UserId", res.GetUserId(), "DeviceId", res.GetDeviceId(),
			"from", a.Origin.GetNodeId(), "lost", a.Lost, "repeated", a.Repeated, "last_seq", req.lastSeq, "acknowledged_seq", res.GetAcknowledgedSeq(), "next_seq", res.GetNextSeq())
	}
	frozen := time.Duration(res.GetFrozenMs() * float64(time.Millisecond))
	answered := time.Now()
	return func() {
		now := time.Now()
		h.accept.Record(ms(now.Sub(began)))
		a.Gap = frozen + now.Sub(answered)
		h.opts.Arrived(a)
		if h.log.Enabled(h.ctx, slog.LevelDebug) {
			h.log.Debug("session_went_on", telemetry.TenantID, req.tenant, "UserId", res.GetUserId(), "DeviceId", res.GetDeviceId(),
				"from", a.Origin.GetNodeId(), "gap_ms", ms(a.Gap), "answered_ns", answered.UnixNano(), "at_ns", now.UnixNano())
		}
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// refuse answers before the upgrade.
func (h *Handler) refuse(w http.ResponseWriter, status int, reason, text string, retryAfter time.Duration) {
	h.total.Add(1)
	h.refused.With(reason).Inc()
	if retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(retryAfter.Seconds()))))
	}
	// The connection may hold a client that comes back at once, elsewhere.
	w.Header().Set("Connection", "close")
	http.Error(w, text, status)
}

// limited logs rate_limited, seldom.
func (h *Handler) limited(kind string, threshold, current int) {
	now := time.Now().UnixNano()
	last := h.logged.Load()
	if now-last < int64(logEvery) || !h.logged.CompareAndSwap(last, now) {
		return
	}
	h.log.Warn("rate_limited", "type", kind, "threshold", threshold, "current", current)
}
