package router

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"github.com/mics-im/mics/internal/buildinfo"
	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/trust"
	"github.com/mics-im/mics/router/internal/event"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/pipeline"
	"github.com/mics-im/mics/router/internal/tenant"
	"github.com/mics-im/mics/router/internal/token"
)

// Memory is the value of REDIS__CONNECTION that keeps routes in this process:
// for a cluster with one router.
const Memory = "memory"

// Config is a router's configuration. Get one from LoadConfig.
type Config struct {
	// NodeID names this router among all routers.
	NodeID string
	// InternalListen serves gateways, other routers, /healthz, /readyz and
	// /metrics.
	InternalListen string
	// PublicEndpoint is the base URL at which gateways and routers reach this
	// very router; empty: made from where it listens.
	PublicEndpoint string
	// Redis is REDIS__CONNECTION, or Memory.
	Redis string
	// Version labels this router in the directory; empty: that of the build.
	Version string

	// TokenKeys seal resume tokens, `id:base64,…` (32 bytes each): the first
	// seals, all open. Empty: a random key, so that tokens are of use at the
	// routers that made them only.
	TokenKeys string

	tenants  tenant.Source
	offline  offline.Limits
	messages pipeline.Limits
	events   event.Config
	// dedupEntries bounds the remembered messages.
	dedupEntries int
	// Cluster is how this router and the other processes know each other.
	Cluster   trust.Config
	Telemetry telemetry.Config
}

// Bounds of settings, against slips of the finger.
const (
	maxBytes   = 1 << 40
	maxEntries = 1 << 28
	// maxBody leaves room for a batch of messages in one RPC message.
	maxBody = 32 << 20
)

// LoadConfig reads the configuration from flags and, through lookup, from the
// environment. An error wraps config.ErrInvalid or, when usage was asked for
// (its text is then the usage), config.ErrHelp.
func LoadConfig(args []string, lookup func(string) (string, bool)) (Config, error) {
	c := Config{
		offline: offline.Limits{MaxMessagesPerUser: 128, MaxBytesPerUser: 1 << 20},
		messages: pipeline.Limits{
			MaxMessageBytes: 1 << 20, GroupChunk: 256, GroupMaxUsers: 200_000, GroupMaxBuffered: 1024,
			TenantMaxInFlight: 10_000,
		},
		dedupEntries: 2_000_000,
	}
	total := 256 << 20
	s := config.New("mics-router")
	s.String(&c.NodeID, "NODE_ID", config.HostName(), "name of this router")
	s.String(&c.InternalListen, "INTERNAL_LISTEN", ":9080", "address for gateways, routers, /healthz, /readyz and /metrics")
	s.String(&c.PublicEndpoint, "PUBLIC_ENDPOINT", "", "base URL at which gateways and routers reach this very router (default: from where it listens)")
	s.String(&c.Redis, "REDIS__CONNECTION", "", "Redis: redis:// URL, or host:port,password=…; or the word memory with a single router (required)")
	s.String(&c.Version, "VERSION", "", "version in the directory (default: that of the build)")
	s.String(&c.TokenKeys, "SESSION_TOKEN_KEYS", "", "keys of resume tokens, id:base64 of 32 bytes, comma-separated, the same for all routers: the first seals, all open (default: a random key of this process)")
	c.tenants.Register(s)
	s.Int(&c.messages.MaxMessageBytes, "MAX_MESSAGE_BYTES", config.Bound{Min: 1, Max: maxBody}, "largest body of a message")
	s.Int(&c.messages.GroupChunk, "GROUP_ROUTE_CHUNK_SIZE", config.Bound{Min: 1, Max: 10_000}, "members of one route look-up")
	s.Int(&c.messages.GroupMaxUsers, "GROUP_MEMBERS_MAX_USERS", config.Bound{Min: 1, Max: 10_000_000}, "largest group")
	s.Int(&c.messages.GroupMaxBuffered, "GROUP_OFFLINE_BUFFER_MAX_USERS", config.Bound{Min: 1, Max: 10_000_000}, "absent members of a group message that get a buffer entry")
	s.Int(&c.messages.TenantMaxInFlight, "TENANT_MAX_IN_FLIGHT", config.Bound{Min: 1, Max: 10_000_000}, "messages of one tenant under way at once")
	s.Int(&c.dedupEntries, "DEDUP_MAX_ENTRIES", config.Bound{Min: 1, Max: maxEntries}, "messages remembered for recognising repeats (about 55 bytes each)")
	s.Int(&c.offline.MaxMessagesPerUser, "OFFLINE_BUFFER_MAX_MESSAGES_PER_USER", config.Bound{Min: 0, Max: 1_000_000}, "messages kept for one absent user")
	s.Int(&c.offline.MaxBytesPerUser, "OFFLINE_BUFFER_MAX_BYTES_PER_USER", config.Bound{Min: 0, Max: maxBytes}, "bytes kept for one absent user")
	s.Int(&total, "OFFLINE_BUFFER_MAX_BYTES", config.Bound{Min: 0, Max: maxBytes}, "bytes kept for all absent users")
	c.events.Register(s)
	c.Cluster.Register(s)
	c.Telemetry.Register(s)
	s.Check(func() error { return c.check() })
	if err := s.Parse(args, lookup); err != nil {
		if errors.Is(err, config.ErrHelp) {
			err = helpText("mics-router routes the messages of a MICS cluster.\n\nSettings, as flags or [environment variables]:\n" + s.Usage())
		}
		return Config{}, err
	}
	c.offline.MaxBytes = int64(total)
	return c, nil
}

// helpText is the usage, returned as an error.
type helpText string

func (h helpText) Error() string { return string(h) }
func (helpText) Unwrap() error   { return config.ErrHelp }

func (c Config) check() error {
	var problems []error
	if c.NodeID == "" || len(c.NodeID) > 128 || strings.ContainsAny(c.NodeID, "\x00\r\n") {
		problems = append(problems, errors.New("NODE_ID: must be 1 to 128 bytes on one line"))
	}
	if c.Redis == "" {
		problems = append(problems, errors.New("REDIS__CONNECTION: required: where Redis is, or the word memory"))
	}
	if c.PublicEndpoint != "" {
		if _, err := rpc.ParseURL(c.PublicEndpoint); err != nil {
			problems = append(problems, fmt.Errorf("PUBLIC_ENDPOINT: %w", err))
		}
	}
	if err := c.Cluster.Check(c.InternalListen, c.PublicEndpoint); err != nil {
		problems = append(problems, err)
	}
	if c.TokenKeys != "" {
		if _, err := token.Parse(c.TokenKeys); err != nil {
			problems = append(problems, fmt.Errorf("SESSION_TOKEN_KEYS: %w", err))
		}
	}
	return errors.Join(problems...)
}

// tokenKeys are those of TokenKeys, which check has seen, or random ones.
func (c Config) tokenKeys(log *slog.Logger) *token.Keys {
	if k, err := token.Parse(c.TokenKeys); err == nil {
		return k
	}
	if c.Redis != Memory {
		log.Warn("session_token_keys_unset", "effect", "sessions are resumed by way of the router that admitted them only; elsewhere they begin anew")
	}
	return token.Random()
}

func (c Config) withDefaults() Config {
	c.Version = cmp.Or(c.Version, buildinfo.Version())
	c.Telemetry.Service = cmp.Or(c.Telemetry.Service, "mics-router")
	c.Telemetry.NodeID = cmp.Or(c.Telemetry.NodeID, c.NodeID)
	return c
}

// endpoint is where others reach this router, which listens at addr.
func (c Config) endpoint(addr net.Addr) string {
	if c.PublicEndpoint != "" {
		return strings.TrimSuffix(c.PublicEndpoint, "/")
	}
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return c.Cluster.Scheme() + "://" + addr.String()
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = config.HostName()
	}
	return c.Cluster.Scheme() + "://" + net.JoinHostPort(host, port)
}
