package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mics-im/mics/gateway/internal/upgrade"
	"github.com/mics-im/mics/internal/buildinfo"
	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/trust"
)

// Config is a gateway's configuration. LoadConfig fills in the defaults; New
// takes zero values for them too, except that a zero rate, limit or window means none.
type Config struct {
	// NodeID names this gateway, in routes too: no two may have the same.
	NodeID string
	// Listen is where clients connect.
	Listen string
	// InternalListen is where routers and the control plane connect, and where
	// /healthz, /readyz and /metrics are.
	InternalListen string
	// PublicEndpoint is the base URL at which routers reach this very gateway;
	// empty: this host, at the port of InternalListen.
	PublicEndpoint string
	// ClientURL is where clients reach this very gateway, so that they can be sent
	// to it; empty: only through what balances them.
	ClientURL string
	// RouterEndpoints are base URLs or dns://host:port names of routers.
	RouterEndpoints []string
	// ControlPlaneEndpoints are base URLs or dns://host:port names of control
	// planes, which are asked before a drain at a stop; none: it drains by itself.
	ControlPlaneEndpoints []string
	// Track is stable or canary; Version is free text.
	Track, Version string
	// DrainTimeout is what Stop takes for ending the sessions.
	DrainTimeout time.Duration
	// Keepalive is how often a WebSocket ping goes out; 0: never.
	Keepalive time.Duration
	// ResumeWindow is how long a V2 session waits for its client after its socket
	// was lost; 0: not at all.
	ResumeWindow time.Duration
	// MaxMessageBytes bounds a message's body.
	MaxMessageBytes int
	// TLSCert and TLSKey are PEM files; empty: no TLS.
	TLSCert, TLSKey string
	// AllowedOrigins are the origins of web pages that may connect; empty: all.
	AllowedOrigins []string
	// TrustedProxies are the addresses whose X-Forwarded-For is believed.
	TrustedProxies []string
	// AcceptRate and AcceptRatePerAddress bound new connections per second,
	// MaxConnections those at one time, FloodPerSecond the frames of one client
	// per second; 0: no limit.
	AcceptRate, AcceptRatePerAddress, MaxConnections, FloodPerSecond int
	// QueueFrames and QueueBytes bound what waits for one client.
	QueueFrames, QueueBytes int
	// Cluster is how this gateway and the other processes know each other.
	Cluster   trust.Config
	Telemetry telemetry.Config
}

// Defaults.
const (
	defaultListen         = ":8080"
	defaultInternalListen = ":9080"
	defaultTrack          = "stable"
	defaultDrainTimeout   = 10 * time.Second
	defaultKeepalive      = 30 * time.Second
	defaultResumeWindow   = 60 * time.Second
	defaultMessageBytes   = 1 << 20
	defaultQueueFrames    = 1024
	defaultQueueBytes     = 4 << 20
	// defaultPerAddress is generous: behind one address there may be a company.
	defaultPerAddress = 2000
	defaultFlood      = 200
	// maxMessageBytes leaves room for a message in a batch of 64 MiB.
	maxMessageBytes = 16 << 20
	maxNodeID       = 128
	maxClientURL    = 2048
)

func defaultConfig() Config {
	return Config{
		DrainTimeout: defaultDrainTimeout, Keepalive: defaultKeepalive, ResumeWindow: defaultResumeWindow, MaxMessageBytes: defaultMessageBytes,
		AcceptRatePerAddress: defaultPerAddress, FloodPerSecond: defaultFlood,
		QueueFrames: defaultQueueFrames, QueueBytes: defaultQueueBytes,
	}
}

// LoadConfig reads the configuration from flags and, through lookup, from the
// environment. An error wraps config.ErrInvalid or, when usage was asked for
// (its text is then the usage), config.ErrHelp.
func LoadConfig(args []string, lookup func(string) (string, bool)) (Config, error) {
	c := defaultConfig()
	s := config.New("mics-gateway")
	anyNumber := config.Bound{Max: math.MaxInt32}
	s.String(&c.NodeID, "NODE_ID", config.HostName(), "name of this gateway; no two may have the same")
	s.String(&c.Listen, "LISTEN", defaultListen, "address for clients")
	s.String(&c.InternalListen, "INTERNAL_LISTEN", defaultInternalListen, "address for routers and the control plane, /healthz, /readyz and /metrics")
	s.String(&c.PublicEndpoint, "PUBLIC_ENDPOINT", "", "base URL at which routers reach this very gateway (default: this host, port of INTERNAL_LISTEN)")
	s.String(&c.ClientURL, "CLIENT_URL", "", "ws:// or wss:// URL, with its path, at which clients reach this very gateway (default: only through what balances them)")
	s.List(&c.RouterEndpoints, "ROUTER_ENDPOINTS", "routers: comma-separated base URLs, or dns://HOST:PORT (required)")
	s.List(&c.ControlPlaneEndpoints, "CONTROLPLANE_ENDPOINTS", "control planes that say when and how to drain at a stop: comma-separated base URLs of their INTERNAL_LISTEN, or dns://HOST:PORT; none: it drains by itself")
	s.Enum(&c.Track, "TRACK", "stable or canary", defaultTrack, "canary")
	s.String(&c.Version, "VERSION", buildinfo.Version(), "version that operators see")
	s.Duration(&c.DrainTimeout, "DRAIN_TIMEOUT_SECONDS", time.Second, config.Bound{Min: 1, Max: 3600}, "seconds for ending the sessions at a stop")
	s.Duration(&c.Keepalive, "WS_KEEPALIVE_INTERVAL_SECONDS", time.Second, config.Bound{Max: 3600}, "seconds between WebSocket pings; 0: none")
	s.Duration(&c.ResumeWindow, "RESUME_WINDOW_SECONDS", time.Second, config.Bound{Max: 3600}, "seconds in which a V2 client that has lost its connection can go on with its session; 0: none")
	s.Int(&c.MaxMessageBytes, "MAX_MESSAGE_BYTES", config.Bound{Min: 1, Max: maxMessageBytes}, "largest body of a message")
	s.String(&c.TLSCert, "TLS_CERT_FILE", "", "PEM file with the certificate for clients; read again when it changes")
	s.String(&c.TLSKey, "TLS_KEY_FILE", "", "PEM file with its key")
	s.List(&c.AllowedOrigins, "ALLOWED_ORIGINS", "origins of web pages that may connect, comma-separated; empty or *: all")
	s.List(&c.TrustedProxies, "TRUSTED_PROXIES", "addresses or CIDR prefixes whose X-Forwarded-For is believed, comma-separated")
	s.Int(&c.AcceptRate, "ACCEPT_RATE", anyNumber, "new connections per second; 0: no limit")
	s.Int(&c.AcceptRatePerAddress, "ACCEPT_RATE_PER_ADDRESS", anyNumber, "new connections per second from one address; 0: no limit")
	s.Int(&c.MaxConnections, "MAX_CONNECTIONS", anyNumber, "connections at one time; 0: no limit")
	s.Int(&c.FloodPerSecond, "FLOOD_MESSAGES_PER_SECOND", anyNumber, "frames per second from one client, in the long run; 0: no limit")
	s.Int(&c.QueueFrames, "SESSION_QUEUE_FRAMES", config.Bound{Min: 16, Max: 1 << 20}, "frames that may wait for one client")
	s.Int(&c.QueueBytes, "SESSION_QUEUE_BYTES", config.Bound{Min: 64 << 10, Max: 1 << 30}, "bytes that may wait for one client")
	c.Cluster.Register(s)
	c.Telemetry.Register(s)
	s.Check(func() error { return c.check() })
	if err := s.Parse(args, lookup); err != nil {
		if errors.Is(err, config.ErrHelp) {
			err = helpText("mics-gateway holds clients' connections.\n\nSettings, as flags or [environment variables]:\n" + s.Usage())
		}
		return Config{}, err
	}
	return c, nil
}

// helpText is the usage, returned as an error.
type helpText string

func (h helpText) Error() string { return string(h) }
func (helpText) Unwrap() error   { return config.ErrHelp }

// check checks what concerns several settings or is more than a number.
func (c Config) check() error {
	var errs []error
	bad := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	_, err := c.routers()
	bad("ROUTER_ENDPOINTS", err)
	_, err = rpc.ParseEndpoints(c.ControlPlaneEndpoints)
	bad("CONTROLPLANE_ENDPOINTS", err)
	if c.PublicEndpoint != "" {
		_, err := rpc.ParseURL(c.PublicEndpoint)
		bad("PUBLIC_ENDPOINT", err)
	}
	if c.ClientURL != "" {
		bad("CLIENT_URL", checkClientURL(c.ClientURL))
	}
	if len(c.NodeID) > maxNodeID || strings.ContainsFunc(c.NodeID, func(r rune) bool { return r <= ' ' || r == 0x7f || r == utf8.RuneError }) {
		bad("NODE_ID", fmt.Errorf("must be at most %d bytes without blanks", maxNodeID))
	}
	for _, o := range c.AllowedOrigins {
		bad("ALLOWED_ORIGINS", upgrade.CheckOrigin(o))
	}
	_, err = c.proxies()
	bad("TRUSTED_PROXIES", err)
	if err := c.Cluster.Check(cmp.Or(c.InternalListen, defaultInternalListen), slices.Concat(c.RouterEndpoints, c.ControlPlaneEndpoints, []string{c.PublicEndpoint})...); err != nil {
		errs = append(errs, err)
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		bad("TLS_CERT_FILE, TLS_KEY_FILE", errors.New("one of them alone is of no use"))
	}
	if c.QueueBytes > 0 && c.QueueBytes < c.MaxMessageBytes {
		bad("SESSION_QUEUE_BYTES", errors.New("must have room for one message (MAX_MESSAGE_BYTES)"))
	}
	return errors.Join(errs...)
}

func (c Config) routers() ([]rpc.Endpoint, error) {
	if len(c.RouterEndpoints) == 0 {
		return nil, errors.New("required: base URLs of routers, or dns://HOST:PORT")
	}
	return rpc.ParseEndpoints(c.RouterEndpoints)
}

func checkClientURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "ws" && u.Scheme != "wss" || u.Hostname() == "" || u.User != nil || u.Fragment != "" || len(s) > maxClientURL {
		return fmt.Errorf("%q: want ws://HOST/ws or wss://HOST/ws", s)
	}
	return nil
}

func (c Config) proxies() ([]netip.Prefix, error) { return upgrade.ParseProxies(c.TrustedProxies) }

func (c Config) withDefaults() Config {
	d := defaultConfig()
	c.NodeID = cmp.Or(c.NodeID, config.HostName())
	c.Listen = cmp.Or(c.Listen, defaultListen)
	c.InternalListen = cmp.Or(c.InternalListen, defaultInternalListen)
	c.Track = cmp.Or(c.Track, defaultTrack)
	c.Version = cmp.Or(c.Version, buildinfo.Version())
	c.DrainTimeout = cmp.Or(c.DrainTimeout, d.DrainTimeout)
	c.MaxMessageBytes = cmp.Or(c.MaxMessageBytes, d.MaxMessageBytes)
	c.QueueFrames = cmp.Or(c.QueueFrames, d.QueueFrames)
	c.QueueBytes = cmp.Or(c.QueueBytes, d.QueueBytes)
	c.Telemetry.Service = cmp.Or(c.Telemetry.Service, "mics-gateway")
	c.Telemetry.NodeID = cmp.Or(c.Telemetry.NodeID, c.NodeID)
	return c
}

// endpoint is PublicEndpoint, or what it is by default for a listener at addr.
func (c Config) endpoint(addr string) string {
	if c.PublicEndpoint != "" {
		return c.PublicEndpoint
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return c.Cluster.Scheme() + "://" + addr
	}
	if ip, err := netip.ParseAddr(host); err != nil || ip.IsUnspecified() {
		host = config.HostName()
	}
	return c.Cluster.Scheme() + "://" + net.JoinHostPort(host, port)
}
