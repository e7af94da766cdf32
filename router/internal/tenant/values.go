package tenant

import (
	"fmt"
	"math"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Defaults of what neither operator nor tenant says.
const (
	DefaultHeartbeatTimeout = 30 * time.Second
	// DefaultOfflineTTL: what crosses the cluster lives in memory, for minutes
	// (DESIGN section 5 bounds it besides). Longer is the tenant's wish (up to
	// maxOfflineTTL) or its own store's work (offline_use_hook_pull).
	DefaultOfflineTTL = 30 * time.Minute

	maxOfflineTTL = 7 * 24 * time.Hour

	// MaxHookConcurrency bounds what a tenant may claim for one of its hooks.
	MaxHookConcurrency = 1024
	// MaxHookTime is the total time of a hook call (CONTRACT section 2), and so
	// the longest wait for a slot that makes sense.
	MaxHookTime = 150 * time.Millisecond

	defaultBreakerThreshold = 5
	defaultBreakerOpen      = 5 * time.Second
)

// intKey and boolKey number the values that a tenant's runtime configuration
// and an override in TENANTS_FILE have in common.
type (
	intKey  int
	boolKey int
)

const (
	heartbeatSeconds intKey = iota
	offlineTTLSeconds
	tenantConnections
	userConnections
	tenantQPS
	userQPS
	hookConcurrency
	hookQueueMS
	breakerThreshold
	breakerOpenMS
	numInts
)

const (
	hookSignRequired boolKey = iota
	offlineHookPull
	checkEnabled
	eventsRequired
	numBools
)

// intRules are the names, as in TenantRuntimeConfig, and the limits.
var intRules = [numInts]struct {
	name     string
	min, max int
}{
	heartbeatSeconds:  {"heartbeat_timeout_seconds", 1, 3600},
	offlineTTLSeconds: {"offline_buffer_ttl_seconds", 0, int(maxOfflineTTL / time.Second)},
	tenantConnections: {"tenant_max_connections", 0, math.MaxInt32},
	userConnections:   {"user_max_connections", 0, math.MaxInt32},
	tenantQPS:         {"tenant_max_message_qps", 0, math.MaxInt32},
	userQPS:           {"user_max_message_qps", 0, math.MaxInt32},
	hookConcurrency:   {"hook_max_concurrency", 1, MaxHookConcurrency},
	hookQueueMS:       {"hook_queue_timeout_ms", 0, int(MaxHookTime / time.Millisecond)},
	breakerThreshold:  {"hook_breaker_failure_threshold", 1, 1000},
	breakerOpenMS:     {"hook_breaker_open_ms", 100, 300_000},
}

var boolNames = [numBools]string{
	hookSignRequired: "hook_sign_required",
	offlineHookPull:  "offline_use_hook_pull",
	checkEnabled:     "check_message_enabled",
	eventsRequired:   "events_required",
}

// optional is a value that may be unsaid.
type optional[T any] struct {
	v    T
	said bool
}

func say[T any](v T) optional[T] { return optional[T]{v, true} }

// values are what one source says of a tenant; empty texts are unsaid.
type values struct {
	hookBaseURL, secret string
	ints                [numInts]optional[int]
	bools               [numBools]optional[bool]
}

// learnt reads what a tenant said. A number above its limit counts as the
// limit, one below it (a negative one) as unsaid, and so does a base URL that
// is none: a tenant's mistake must not take its connections down. Each such
// value is told in notes.
func learnt(c *hookv1.TenantRuntimeConfig) (v values, notes []string) {
	v.secret = c.GetTenantSecret()
	if u := c.GetHookBaseUrl(); u != "" {
		if err := checkURL(u); err != nil {
			notes = append(notes, fmt.Sprintf("hook_base_url: %v; ignored", err))
		} else {
			v.hookBaseURL = u
		}
	}
	m := c.ProtoReflect()
	get := func(name string) (protoreflect.Value, bool) {
		fd := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		return m.Get(fd), m.Has(fd)
	}
	for k, rule := range intRules {
		pv, said := get(rule.name)
		n := int(pv.Int())
		switch {
		case !said:
		case n < rule.min:
			notes = append(notes, fmt.Sprintf("%s: %d is below %d; ignored", rule.name, n, rule.min))
		case n > rule.max:
			notes = append(notes, fmt.Sprintf("%s: %d is above %d; taken as that", rule.name, n, rule.max))
			v.ints[k] = say(rule.max)
		default:
			v.ints[k] = say(n)
		}
	}
	for k, name := range boolNames {
		if pv, said := get(name); said {
			v.bools[k] = say(pv.Bool())
		}
	}
	return v, notes
}

// entry is what operators say of one tenant.
type entry struct {
	authURL, authSecret string
	concurrency         int    // TENANT_HOOK_MAX_CONCURRENCY; 0: unsaid
	override            values // TENANTS_FILE
}

// effective is the outcome for one tenant: what counts is, in this order, the
// operator's override, what the tenant said, the operator's default. Immutable.
type effective struct {
	hooks HookConfig
	ints  [numInts]int
	bools [numBools]bool
}

// decide computes the outcome.
func decide(s Settings, e entry, said values) *effective {
	concurrency := s.HookMaxConcurrency
	if e.concurrency > 0 {
		concurrency = e.concurrency
	}
	out := &effective{
		ints: [numInts]int{
			heartbeatSeconds:  int(DefaultHeartbeatTimeout / time.Second),
			offlineTTLSeconds: int(DefaultOfflineTTL / time.Second),
			hookConcurrency:   concurrency,
			hookQueueMS:       int(s.HookQueueTimeout / time.Millisecond),
			breakerThreshold:  defaultBreakerThreshold,
			breakerOpenMS:     int(defaultBreakerOpen / time.Millisecond),
		},
		bools: [numBools]bool{hookSignRequired: s.SignRequired, checkEnabled: true},
	}
	for _, source := range []values{said, e.override} {
		for k, o := range source.ints {
			if o.said {
				out.ints[k] = o.v
			}
		}
		for k, o := range source.bools {
			if o.said {
				out.bools[k] = o.v
			}
		}
	}
	out.hooks = HookConfig{
		AuthBaseURL:      e.authURL,
		AuthSecret:       e.authSecret,
		BaseURL:          first(e.override.hookBaseURL, said.hookBaseURL, e.authURL),
		Secret:           first(said.secret, e.authSecret),
		SignRequired:     out.bools[hookSignRequired],
		MaxConcurrency:   out.ints[hookConcurrency],
		QueueTimeout:     time.Duration(out.ints[hookQueueMS]) * time.Millisecond,
		BreakerThreshold: out.ints[breakerThreshold],
		BreakerOpen:      time.Duration(out.ints[breakerOpenMS]) * time.Millisecond,
	}
	return out
}

func first(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}
