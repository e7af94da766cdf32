package controlplane

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mics-im/mics/controlplane/internal/access"
	"github.com/mics-im/mics/controlplane/internal/drain"
	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/controlplane/internal/store/redis"
	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/trust"
)

// Defaults of what operators seldom set.
const (
	defaultPollInterval = time.Second
	// defaultForgetAfter lets an operator see a node that died, and is over
	// before the next one has to be told from it.
	defaultForgetAfter = 30 * time.Second
	// defaultDrainMaxRate is two fifths of what one core connects at 200 µs each.
	defaultDrainMaxRate = 2000
	defaultDrainBudget  = 1
)

// Memory is the value of REDIS__CONNECTION that means the same as an empty one.
const Memory = "memory"

// Config is a control plane's configuration. Zero durations mean the defaults.
type Config struct {
	// NodeID names this process in logs and answers.
	NodeID string
	// Listen is where operators and the console connect.
	Listen string
	// InternalListen serves /healthz, /readyz and /metrics.
	InternalListen string
	// RouterEndpoints are base URLs or dns://host:port names of routers.
	RouterEndpoints []string
	// PublicEndpoint is the base URL at which other control planes reach this one's
	// INTERNAL_LISTEN; empty: this host, at the port of InternalListen.
	PublicEndpoint string
	// Redis is REDIS__CONNECTION; empty or Memory: state is kept in this process,
	// which must then be the only control plane.
	Redis string
	// PollInterval is how often the inventory is refreshed.
	PollInterval time.Duration
	// ForgetAfter is how long a node stays in the inventory that is neither in
	// the directory nor answers.
	ForgetAfter time.Duration
	// DrainBudget is how many gateways are drained at a time, DrainMaxRate the
	// fastest that one is, in sessions per second. SessionsMax is what a gateway
	// takes that does not say so itself; 0: unknown.
	DrainBudget               int
	DrainMaxRate, SessionsMax int
	// Cluster is how this process and the cluster's others know each other.
	Cluster trust.Config
	// Rebalance evens out sessions by itself, beyond 1.1 times the mean and 1,000.
	Rebalance bool
	// Weights is where canaries' weights for new connections go.
	Weights WeightsConfig
	// Kubernetes is where the gateways run, if they do.
	Kubernetes KubeConfig
	// Access is who may operate.
	Access    access.Config
	Telemetry telemetry.Config
}

// LoadConfig reads the configuration from flags and, through lookup, from the
// environment. An error wraps config.ErrInvalid or, when usage was asked for
// (its text is then the usage), config.ErrHelp.
func LoadConfig(args []string, lookup func(string) (string, bool)) (Config, error) {
	c := Config{
		PollInterval: defaultPollInterval, ForgetAfter: defaultForgetAfter,
		DrainBudget: defaultDrainBudget, DrainMaxRate: defaultDrainMaxRate,
	}
	s := config.New("mics-controlplane")
	s.String(&c.NodeID, "NODE_ID", config.HostName(), "name of this process")
	s.String(&c.Listen, "LISTEN", ":8070", "address for operators")
	s.String(&c.InternalListen, "INTERNAL_LISTEN", ":9080", "address for /healthz, /readyz and /metrics")
	s.List(&c.RouterEndpoints, "ROUTER_ENDPOINTS", "routers: comma-separated base URLs, or dns://HOST:PORT (required)")
	s.String(&c.PublicEndpoint, "PUBLIC_ENDPOINT", "", "base URL at which other control planes reach this one (default: this host, port of INTERNAL_LISTEN)")
	s.String(&c.Redis, "REDIS__CONNECTION", "", "Redis for what must survive this process, and to elect a leader; empty or memory: a single control plane that forgets at its end")
	s.Duration(&c.PollInterval, "POLL_INTERVAL_MS", time.Millisecond, config.Bound{Min: 100, Max: 60_000}, "milliseconds between refreshes of the inventory")
	s.Duration(&c.ForgetAfter, "FORGET_AFTER_SECONDS", time.Second, config.Bound{Min: 1, Max: 3600}, "seconds for which a node that is gone stays in the inventory")
	s.Int(&c.DrainBudget, "DRAIN_BUDGET", config.Bound{Min: 1, Max: 1000}, "gateways that are drained at a time")
	s.Int(&c.DrainMaxRate, "DRAIN_MAX_RATE", config.Bound{Min: 1, Max: 1_000_000}, "sessions per second at which a gateway is drained at most, unless told otherwise for one drain")
	s.Int(&c.SessionsMax, "GATEWAY_SESSIONS_MAX", config.Bound{Max: 100_000_000}, "sessions that a gateway takes which does not say so itself, for the check of room; 0: unknown")
	c.Cluster.Register(s)
	s.Bool(&c.Rebalance, "REBALANCE_AUTOMATIC", "even out the sessions of gateways by itself, when one has 1.1 times the mean of its track and 1,000 sessions more")
	c.Weights.register(s)
	c.Kubernetes.register(s)
	c.Access.Register(s)
	c.Telemetry.Register(s)
	s.Check(func() error { _, err := c.routers(); return err })
	s.Check(func() error { return c.check() })
	if err := s.Parse(args, lookup); err != nil {
		if errors.Is(err, config.ErrHelp) {
			err = helpText("mics-controlplane operates a MICS cluster.\n\nSettings, as flags or [environment variables]:\n" + s.Usage())
		}
		return Config{}, err
	}
	return c, nil
}

// helpText is the usage, returned as an error.
type helpText string

func (h helpText) Error() string { return string(h) }
func (helpText) Unwrap() error   { return config.ErrHelp }

// check checks what no parser has.
func (c Config) check() error {
	var errs []error
	if c.PublicEndpoint != "" {
		if _, err := rpc.ParseURL(c.PublicEndpoint); err != nil {
			errs = append(errs, fmt.Errorf("PUBLIC_ENDPOINT: %w", err))
		}
	}
	errs = append(errs, c.Access.Check(c.Listen))
	return errors.Join(append(errs, c.Cluster.Check(c.InternalListen, slices.Concat(c.RouterEndpoints, []string{c.PublicEndpoint})...))...)
}

// endpoint is PublicEndpoint, or what it is by default for a listener at addr.
func (c Config) endpoint(addr string) string {
	if c.PublicEndpoint != "" {
		return strings.TrimRight(c.PublicEndpoint, "/")
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

// openStore opens what Redis says.
func (c Config) openStore(log *slog.Logger) (store.Store, error) {
	if c.Redis == "" || c.Redis == Memory {
		return store.NewMemory(), nil
	}
	return redis.Open(c.Redis, log)
}

func (c Config) rules() drain.Rules {
	return drain.Rules{Budget: c.DrainBudget, MaxRate: float64(c.DrainMaxRate), SessionsMax: uint64(c.SessionsMax)}
}

// routers parses RouterEndpoints.
func (c Config) routers() ([]rpc.Endpoint, error) {
	if len(c.RouterEndpoints) == 0 {
		return nil, errors.New("ROUTER_ENDPOINTS: required: base URLs of routers, or dns://HOST:PORT")
	}
	list, err := rpc.ParseEndpoints(c.RouterEndpoints)
	if err != nil {
		return nil, fmt.Errorf("ROUTER_ENDPOINTS: %w", err)
	}
	return list, nil
}

func (c Config) withDefaults() Config {
	c.NodeID = cmp.Or(c.NodeID, config.HostName())
	c.PollInterval = cmp.Or(c.PollInterval, defaultPollInterval)
	c.ForgetAfter = cmp.Or(c.ForgetAfter, defaultForgetAfter)
	c.DrainBudget = cmp.Or(c.DrainBudget, defaultDrainBudget)
	c.DrainMaxRate = cmp.Or(c.DrainMaxRate, defaultDrainMaxRate)
	c.Telemetry.Service = cmp.Or(c.Telemetry.Service, "mics-controlplane")
	c.Telemetry.NodeID = cmp.Or(c.Telemetry.NodeID, c.NodeID)
	return c
}
