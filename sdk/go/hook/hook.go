package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// The messages of the contract, so that a tenant needs one import.
type (
	// AuthRequest asks whom a token stands for.
	AuthRequest = hookv1.AuthRequest
	// AuthResponse is made with [Accept] or [Refuse].
	AuthResponse = hookv1.AuthResponse
	// RuntimeConfig is what a tenant wants of the cluster. Zero and unset fields
	// mean the cluster's defaults.
	RuntimeConfig = hookv1.TenantRuntimeConfig
	// CheckMessageRequest asks whether a message may be delivered.
	CheckMessageRequest = hookv1.CheckMessageRequest
	// CheckMessageResponse is made with [Allow] or [Deny].
	CheckMessageResponse = hookv1.CheckMessageResponse
	// GetGroupMembersRequest asks for the members of a group.
	GetGroupMembersRequest = hookv1.GetGroupMembersRequest
	// GetOfflineMessagesRequest asks for a page of what was kept for a device.
	GetOfflineMessagesRequest = hookv1.GetOfflineMessagesRequest
	// GetOfflineMessagesResponse is such a page; OK must be set.
	GetOfflineMessagesResponse = hookv1.GetOfflineMessagesResponse
	// Message is a chat message.
	Message = messagev1.MessageRequest
)

// The hooks, as they are named in URLs.
const (
	NameAuth            = "auth"
	NameCheckMessage    = "check-message"
	NameGroupMembers    = "get-group-members"
	NameOfflineMessages = "get-offline-messages"
)

const (
	// DefaultMaxAge is how far a request's time may be from this machine's.
	DefaultMaxAge = 5 * time.Minute
	// DefaultMaxRequestBytes leaves room around the largest message that a
	// cluster takes by default (1 MiB).
	DefaultMaxRequestBytes = 2 << 20

	contentType = "application/protobuf"
)

// Options configures a Handler: a secret, and a function for each hook that the
// tenant implements. The functions own their requests, must not answer nil
// without an error, and must not modify an answer that they have returned.
type Options struct {
	// Secret is what the cluster signs with.
	Secret string
	// Secrets, instead of Secret, returns the secrets that a request of this
	// tenant may be signed with: several while one replaces another, none for an
	// unknown tenant. An error is answered with 500. It is called for every
	// request, before anything about the request is known to be true.
	Secrets func(ctx context.Context, tenantID string) ([]string, error)
	// AllowUnsigned lets requests without a signature in; those that carry one
	// must still be signed rightly if there is a secret. Without a secret at all
	// it must be set. Only for networks where nobody else can call.
	AllowUnsigned bool

	// Auth says whom a token stands for.
	Auth func(context.Context, *AuthRequest) (*AuthResponse, error)
	// CheckMessage says whether a message may be delivered.
	CheckMessage func(context.Context, *CheckMessageRequest) (*CheckMessageResponse, error)
	// GroupMembers returns the user ids of a group; none fails the message.
	GroupMembers func(context.Context, *GetGroupMembersRequest) ([]string, error)
	// OfflineMessages returns a page of kept messages, oldest first. It is asked
	// only where the configuration sets offline_use_hook_pull.
	OfflineMessages func(context.Context, *GetOfflineMessagesRequest) (*GetOfflineMessagesResponse, error)

	// MaxAge bounds how far the time of a signed request may be from now, in
	// either direction; 0 means DefaultMaxAge, negative no bound: then whoever
	// has seen a request can repeat it at any time.
	MaxAge time.Duration
	// MaxRequestBytes bounds a request's body; 0 means DefaultMaxRequestBytes.
	MaxRequestBytes int64
	// Logger gets refused requests at Warn, errors and panics of the functions at
	// Error. Nil: no logging. It never gets a token, a secret or a message.
	Logger *slog.Logger
}

// Accept lets a user in. cfg may be nil.
func Accept(userID string, cfg *RuntimeConfig) *AuthResponse {
	return &AuthResponse{Ok: true, UserId: userID, Config: cfg}
}

// Refuse refuses a token; clients are shown the reason.
func Refuse(reason string) *AuthResponse { return &AuthResponse{Reason: reason} }

// Allow lets a message be delivered.
func Allow() *CheckMessageResponse { return &CheckMessageResponse{Allow: true} }

// Deny refuses a message; its sender is shown the reason.
func Deny(reason string) *CheckMessageResponse { return &CheckMessageResponse{Reason: reason} }

// Handler answers hooks. The last element of the URL's path names the hook; what
// comes before it does not matter. Safe for concurrent use.
//
// Statuses: 400 no such request, 401 not signed rightly or too old, 404 no such
// hook, 405 not POST, 413 too large, 415 not protobuf, 501 hook without a
// function, 500 the function failed.
type Handler struct {
	opts  Options
	hooks map[string]endpoint
}

// New checks the options. It fails if neither a secret nor AllowUnsigned is
// given, or no function.
func New(o Options) (*Handler, error) {
	var errs []error
	if o.Secret != "" && o.Secrets != nil {
		errs = append(errs, errors.New("hook: Options.Secret and Options.Secrets exclude each other"))
	}
	if o.Secret == "" && o.Secrets == nil && !o.AllowUnsigned {
		errs = append(errs, errors.New("hook: Options.Secret or Options.Secrets is required (or AllowUnsigned)"))
	}
	if o.Auth == nil && o.CheckMessage == nil && o.GroupMembers == nil && o.OfflineMessages == nil {
		errs = append(errs, errors.New("hook: Options has no function for any hook"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if o.MaxAge == 0 {
		o.MaxAge = DefaultMaxAge
	}
	if o.MaxRequestBytes <= 0 {
		o.MaxRequestBytes = DefaultMaxRequestBytes
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Handler{opts: o}
	h.hooks = h.endpoints()
	return h, nil
}

// ServeHTTP answers one hook.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	body, err := h.serve(w, r, name)
	var refused *statusError
	switch {
	case err == nil:
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body) // the router may have hung up, which is its affair
	case errors.As(err, &refused):
		h.opts.Logger.WarnContext(r.Context(), "hook_refused", "hook", name, "status", refused.status, "reason", refused.reason)
		http.Error(w, refused.reason, refused.status)
	default:
		h.opts.Logger.ErrorContext(r.Context(), "hook_failed", "hook", name, "error", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
	}
}

// statusError is a request that is the caller's fault.
type statusError struct {
	status int
	reason string
}

func (e *statusError) Error() string { return e.reason }

func refuse(status int, format string, args ...any) error {
	return &statusError{status, fmt.Sprintf(format, args...)}
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, name string) ([]byte, error) {
	e, ok := h.hooks[name]
	switch {
	case !ok:
		return nil, refuse(http.StatusNotFound, "no such hook")
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		return nil, refuse(http.StatusMethodNotAllowed, "hooks are called with POST")
	case e.call == nil:
		return nil, refuse(http.StatusNotImplemented, "this tenant does not implement %s", name)
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != contentType && kind != "application/x-protobuf" {
		return nil, refuse(http.StatusUnsupportedMediaType, "Content-Type must be %s", contentType)
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.opts.MaxRequestBytes))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, refuse(http.StatusRequestEntityTooLarge, "request over %d bytes", tooLarge.Limit)
	}
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "request cut off")
	}
	req := e.newRequest()
	if err := proto.Unmarshal(raw, req); err != nil {
		return nil, refuse(http.StatusBadRequest, "no %s", req.ProtoReflect().Descriptor().FullName())
	}
	ctx := withTraceParent(r.Context(), r.Header.Get("Traceparent"))
	if err := h.authenticate(ctx, raw, req); err != nil {
		if refused := (*statusError)(nil); errors.As(err, &refused) && refused.status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", "MICS-HMAC-SHA256")
		}
		return nil, err
	}
	res, err := h.call(ctx, e, req)
	if err != nil {
		return nil, err
	}
	body, err := proto.Marshal(res)
	if err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return body, nil
}

// call runs the tenant's function; a panic of it is an error with its stack.
func (h *Handler) call(ctx context.Context, e endpoint, req Request) (res proto.Message, err error) {
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler: // whoever panics with it means it
			panic(p)
		default:
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return e.call(ctx, req)
}
