// Package hook calls the tenants' HTTP hooks (CONTRACT section 2): signed,
// bounded in time, and isolated from each other, so that one tenant's slow hook
// does not move another tenant's latency.
package hook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/mics-im/mics/internal/telemetry"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"github.com/mics-im/mics/router/internal/tenant"
	"github.com/sony/gobreaker/v2"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
)

const (
	// totalTime bounds a call, waiting for its turn included.
	totalTime = tenant.MaxHookTime
	// maxResponse bounds an answer: 200,000 members with ids of 40 bytes, or a
	// page of 100 messages with bodies of 80 KiB.
	maxResponse = 8 << 20
	contentType = "application/protobuf"
)

// Op names a hook, and is the last part of its URL.
type Op string

// The hooks.
const (
	Auth         Op = "auth"
	CheckMessage Op = "check-message"
	GroupMembers Op = "get-group-members"
	Offline      Op = "get-offline-messages"
)

var ops = []Op{Auth, CheckMessage, GroupMembers, Offline}

// Result classifies a call; the values are a metric's.
type Result string

// Results of calls.
const (
	OK            Result = "ok"
	Timeout       Result = "timeout"
	HTTP4xx       Result = "http_4xx"
	HTTP5xx       Result = "http_5xx"
	Network       Result = "network"
	CircuitOpen   Result = "circuit_open"
	QueueRejected Result = "queue_rejected"
	BadResponse   Result = "bad_response"
)

var results = []Result{OK, Timeout, HTTP4xx, HTTP5xx, Network, CircuitOpen, QueueRejected, BadResponse}

// Error is a call that gave no usable answer. An explicit denial is an answer.
type Error struct {
	Op     Op
	Result Result
	Err    error

	// ours: it says nothing of the tenant's server (a full bulkhead, a caller
	// that gave up), so it does not move the breaker.
	ours bool
}

func (e *Error) Error() string { return fmt.Sprintf("hook %s: %s: %v", e.Op, e.Result, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// ErrUnsigned: signing is required and no secret is known; nothing was sent.
var ErrUnsigned = errors.New("signature required and no secret known")

// Client calls hooks. Safe for concurrent use.
type Client struct {
	http *http.Client
	log  *slog.Logger

	requests map[Op]map[Result]*telemetry.Counter
	rejected map[Op]*telemetry.Counter
	duration map[Op]telemetry.Recorder

	mu    sync.Mutex
	gates map[gateKey]*gate // guarded by mu: bounded by tenants × hooks
}

// New returns a client that counts in tel; Close ends its connections.
func New(tel *telemetry.Telemetry) *Client {
	c := &Client{
		log:      tel.Log,
		gates:    map[gateKey]*gate{},
		requests: map[Op]map[Result]*telemetry.Counter{}, rejected: map[Op]*telemetry.Counter{}, duration: map[Op]telemetry.Recorder{},
		http: &http.Client{
			// As many kept as the largest default bulkhead, so that a busy tenant
			// does not dial anew for each call.
			Transport:     &http.Transport{MaxIdleConnsPerHost: 32, MaxIdleConns: 4096, IdleConnTimeout: 90 * time.Second},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	requests := tel.CounterVec("mics_hook_requests_total", "Hook calls by outcome.", "op", "result")
	rejected := tel.CounterVec("mics_hook_limiter_rejected_total", "Hook calls that found no free slot in time.", "op")
	duration := tel.Histogram("mics_hook_duration_ms", "Time of a hook call, in milliseconds.", "op", 1, 2, 5, 10, 20, 50, 100, 150)
	for _, op := range ops {
		c.rejected[op] = rejected.With(string(op))
		c.duration[op] = duration(string(op))
		c.requests[op] = map[Result]*telemetry.Counter{}
		for _, r := range results {
			c.requests[op][r] = requests.With(string(op), string(r))
		}
	}
	return c
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request is a hook's request message; all of them start with a HookMeta.
type request interface {
	proto.Message
	GetMeta() *hookv1.HookMeta
}

// call makes one call and reads the answer into res.
func (c *Client) call(ctx context.Context, t *tenant.Tenant, op Op, req request, res proto.Message) error {
	start := time.Now()
	bounded, cancel := context.WithTimeout(ctx, totalTime)
	defer cancel()
	g, h := c.gate(t, op), t.Hooks()
	_, err := g.circuit(h).Execute(func() (struct{}, error) {
		err := c.queued(bounded, g, h, &attempt{t, op, req, res})
		if e, ok := errors.AsType[*Error](err); ok && ctx.Err() != nil {
			e.ours = true // the caller gave up
		}
		return struct{}{}, err
	})
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		err = &Error{Op: op, Result: CircuitOpen, Err: err}
	}
	result := OK
	if e, ok := errors.AsType[*Error](err); ok {
		result = e.Result
		if unlogged, now := g.complain(time.Now()); now {
			c.log.WarnContext(ctx, "hook_request_failed", telemetry.TenantID, t.Name(), "op", string(op),
				"result", string(result), "err", e.Err.Error(), "unlogged", unlogged, telemetry.TraceID, req.GetMeta().GetTraceId())
		}
	}
	c.requests[op][result].Inc()
	c.duration[op].Record(float64(time.Since(start).Microseconds()) / 1000)
	return err
}

// attempt is one call.
type attempt struct {
	tenant *tenant.Tenant
	op     Op
	req    request
	res    proto.Message
}

// queued waits for a slot and sends.
func (c *Client) queued(ctx context.Context, g *gate, h *tenant.HookConfig, a *attempt) error {
	switch err := g.slots.take(ctx, h.MaxConcurrency, h.QueueTimeout); {
	case errors.Is(err, errNoSlot):
		c.rejected[a.op].Inc()
		return &Error{Op: a.op, Result: QueueRejected, Err: err, ours: true}
	case err != nil:
		return &Error{Op: a.op, Result: Timeout, Err: err, ours: true}
	}
	defer g.slots.release()
	return c.send(ctx, h, a)
}

func (c *Client) send(ctx context.Context, h *tenant.HookConfig, a *attempt) error {
	fail := func(r Result, err error) error { return &Error{Op: a.op, Result: r, Err: err} }
	base, secret := h.BaseURL, h.Secret
	if a.op == Auth {
		base, secret = h.AuthBaseURL, h.AuthSecret
	}
	body, err := encode(ctx, a, secret, h.SignRequired)
	if err != nil {
		return &Error{Op: a.op, Result: BadResponse, Err: err, ours: true}
	}
	target, err := url.JoinPath(base, string(a.op))
	if err != nil {
		return fail(Network, err)
	}
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return fail(Network, err)
	}
	hr.Header.Set("Content-Type", contentType)
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(hr.Header))
	answer, err := c.http.Do(hr)
	if err != nil {
		return fail(broken(ctx), err)
	}
	defer func() { _ = answer.Body.Close() }()
	switch code := answer.StatusCode; {
	case code >= 500:
		return fail(HTTP5xx, fmt.Errorf("status %d", code))
	case code >= 400:
		return fail(HTTP4xx, fmt.Errorf("status %d", code))
	case code != http.StatusOK:
		return fail(BadResponse, fmt.Errorf("status %d", code))
	}
	raw, err := io.ReadAll(io.LimitReader(answer.Body, maxResponse+1))
	if err != nil {
		return fail(broken(ctx), err)
	}
	if len(raw) > maxResponse {
		return fail(BadResponse, fmt.Errorf("answer over %d bytes", maxResponse))
	}
	if err := proto.Unmarshal(raw, a.res); err != nil {
		return fail(BadResponse, err)
	}
	return nil
}

// broken classifies a connection that failed.
func broken(ctx context.Context) Result {
	if ctx.Err() != nil {
		return Timeout
	}
	return Network
}

// encode fills in the meta and signs.
func encode(ctx context.Context, a *attempt, secret string, signRequired bool) ([]byte, error) {
	m := a.req.GetMeta()
	m.TenantId = a.tenant.Name()
	m.RequestId = uuid.NewString()
	m.TimestampMs = time.Now().UnixMilli()
	if sc := trace.SpanContextFromContext(ctx); sc.HasTraceID() {
		m.TraceId = sc.TraceID().String()
	}
	if secret == "" {
		if signRequired {
			return nil, ErrUnsigned
		}
		return proto.Marshal(a.req)
	}
	sign, err := Sign(secret, a.req)
	if err != nil {
		return nil, err
	}
	m.Sign = sign
	return proto.MarshalOptions{Deterministic: true}.Marshal(a.req)
}

// Sign returns the signature of a request: Base64 of HMAC-SHA256 over the
// request with an empty sign, its request_id, and its timestamp_ms as 8 bytes
// little-endian (CONTRACT section 2). It clears the request's sign.
func Sign(secret string, req request) (string, error) {
	m := req.GetMeta()
	m.Sign = ""
	plain, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = mac.Write(plain)
	_, _ = mac.Write([]byte(m.RequestId))
	_, _ = mac.Write(binary.LittleEndian.AppendUint64(nil, uint64(m.TimestampMs)))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil)), nil
}

// Authenticate calls /auth. A refused token is an answer with ok false.
func (c *Client) Authenticate(ctx context.Context, t *tenant.Tenant, token, device string) (*hookv1.AuthResponse, error) {
	res := &hookv1.AuthResponse{}
	return res, c.call(ctx, t, Auth, &hookv1.AuthRequest{Meta: &hookv1.HookMeta{}, Token: token, DeviceId: device}, res)
}

// Check calls check-message. The caller decides what a failure means; an
// explicit denial is an answer.
func (c *Client) Check(ctx context.Context, t *tenant.Tenant, m *messagev1.MessageRequest) (*hookv1.CheckMessageResponse, error) {
	res := &hookv1.CheckMessageResponse{}
	return res, c.call(ctx, t, CheckMessage, &hookv1.CheckMessageRequest{Meta: &hookv1.HookMeta{}, Message: m}, res)
}

// Members calls get-group-members and returns each member once, in the hook's
// order, empty ids left out.
func (c *Client) Members(ctx context.Context, t *tenant.Tenant, group string) ([]string, error) {
	res := &hookv1.GetGroupMembersResponse{}
	if err := c.call(ctx, t, GroupMembers, &hookv1.GetGroupMembersRequest{Meta: &hookv1.HookMeta{}, GroupId: group}, res); err != nil {
		return nil, err
	}
	seen := make(map[string]struct{}, len(res.UserIds))
	out := res.UserIds[:0]
	for _, u := range res.UserIds {
		if _, again := seen[u]; !again && u != "" {
			seen[u] = struct{}{}
			out = append(out, u)
		}
	}
	return out, nil
}

// OfflinePage calls get-offline-messages for one page.
func (c *Client) OfflinePage(ctx context.Context, t *tenant.Tenant, req *hookv1.GetOfflineMessagesRequest) (*hookv1.GetOfflineMessagesResponse, error) {
	req.Meta = &hookv1.HookMeta{}
	res := &hookv1.GetOfflineMessagesResponse{}
	return res, c.call(ctx, t, Offline, req, res)
}
