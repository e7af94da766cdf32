package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/sdk/go/hook"
)

// basePath is where the hooks are.
const basePath = "/hooks"

// denyPrefix begins a message that check-message refuses; the rest is its
// reason. So whoever tries the cluster can see a refusal.
const denyPrefix = "deny:"

// Config of a Tenant. All but LogWriter is required.
type Config struct {
	// Listen is where the hooks are served, host:port.
	Listen string
	// Secret is what the cluster signs every hook with.
	Secret string
	// LogWriter gets what goes wrong, as JSON lines; nil: nothing is logged.
	LogWriter io.Writer
}

// Tenant is the demo tenant's business system: an HTTP server that answers the
// cluster's hooks.
type Tenant struct {
	members *members
	secret  string
	server  *rpc.Server
}

// New binds the listener. Stop must be called also without Start.
func New(c Config) (*Tenant, error) {
	if c.Secret == "" {
		return nil, errors.New("no secret: the demo tenant wants its hooks signed")
	}
	log := slog.New(slog.DiscardHandler)
	if c.LogWriter != nil {
		log = slog.New(slog.NewJSONHandler(c.LogWriter, &slog.HandlerOptions{Level: slog.LevelWarn})).With("Service", "demo-tenant")
	}
	t := &Tenant{members: newMembers(maxMembers), secret: c.Secret}
	h, err := hook.New(hook.Options{
		Secret: c.Secret, Auth: t.auth, CheckMessage: t.check, GroupMembers: t.groupMembers, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle(basePath+"/", h)
	t.server = rpc.NewServer(ln, mux, nil, log)
	return t, nil
}

// URL is the base URL of the hooks, for TENANT_AUTH_MAP.
func (t *Tenant) URL() string { return "http://" + t.server.Addr() + basePath }

// Start serves in the background.
func (t *Tenant) Start() { t.server.Start() }

// Stop ends serving; running calls may end until ctx does.
func (t *Tenant) Stop(ctx context.Context) error { return t.server.Stop(ctx) }

// auth lets in whoever says valid:USER.
func (t *Tenant) auth(_ context.Context, r *hook.AuthRequest) (*hook.AuthResponse, error) {
	user, refusal := userOf(r.GetToken())
	if refusal != "" {
		return hook.Refuse(refusal), nil
	}
	t.members.login(user)
	return hook.Accept(user, t.config()), nil
}

// config is what a demo needs: short enough to see things happen, and limits
// that a person at a keyboard never meets. What is left out is the cluster's
// default.
func (t *Tenant) config() *hook.RuntimeConfig {
	return &hook.RuntimeConfig{
		TenantSecret:            t.secret,
		HookSignRequired:        proto.Bool(true),
		HeartbeatTimeoutSeconds: 30,
		OfflineBufferTtlSeconds: 600,
		CheckMessageEnabled:     proto.Bool(true),
		OfflineUseHookPull:      proto.Bool(false),
	}
}

func (t *Tenant) check(_ context.Context, r *hook.CheckMessageRequest) (*hook.CheckMessageResponse, error) {
	if reason, denied := strings.CutPrefix(string(r.GetMessage().GetMsgBody()), denyPrefix); denied {
		reason = strings.TrimSpace(strings.ToValidUTF8(reason, ""))
		if reason == "" {
			reason = "denied by the demo tenant"
		}
		return hook.Deny(reason), nil
	}
	return hook.Allow(), nil
}

func (t *Tenant) groupMembers(_ context.Context, r *hook.GetGroupMembersRequest) ([]string, error) {
	if r.GetGroupId() != Group {
		return nil, nil
	}
	return t.members.all(), nil
}
