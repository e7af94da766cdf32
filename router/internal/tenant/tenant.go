// Package tenant knows the tenants: what operators configured, and what each
// tenant's /auth hook said last (CONTRACT sections 2 and 4).
package tenant

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"sync/atomic"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

// Defaults of what a tenant leaves unsaid.
const (
	DefaultHeartbeatTimeout = 30 * time.Second
	// DefaultOfflineTTL: long enough for a phone in a tunnel or a night, short
	// enough for memory.
	DefaultOfflineTTL = 24 * time.Hour

	minHeartbeatTimeout = time.Second
	maxHeartbeatTimeout = time.Hour
	maxOfflineTTL       = 7 * 24 * time.Hour
	// maxName bounds a tenant's name, as in the handshake (CONTRACT section 1).
	maxName = 128
)

// Settings are the operators' defaults for the hook isolation of every tenant.
type Settings struct {
	HookMaxConcurrency int           // calls at once per (tenant, hook)
	HookQueueTimeout   time.Duration // wait for one of them
	SignRequired       bool          // refuse to call a hook unsigned
	BreakerThreshold   int           // failures in a row that open the breaker
	BreakerOpen        time.Duration
}

// DefaultSettings are the contract's.
var DefaultSettings = Settings{HookMaxConcurrency: 32, HookQueueTimeout: 10 * time.Millisecond, BreakerThreshold: 5, BreakerOpen: 5 * time.Second}

// Tenant is one tenant. Safe for concurrent use.
type Tenant struct {
	name       string
	authURL    string
	authSecret string
	settings   Settings
	learnt     atomic.Pointer[hookv1.TenantRuntimeConfig]
}

// Registry is the set of tenants; it does not change after New.
type Registry struct {
	tenants map[string]*Tenant
}

// Get returns a tenant by name.
func (r *Registry) Get(name string) (*Tenant, bool) {
	t, ok := r.tenants[name]
	return t, ok
}

// Source is what operators configure.
type Source struct {
	AuthMap        string // TENANT_AUTH_MAP, JSON object tenant → base URL
	HookSecrets    string // TENANT_HOOK_SECRETS, JSON object tenant → secret
	MaxConcurrency string // TENANT_HOOK_MAX_CONCURRENCY, JSON object tenant → calls
	Settings       Settings
}

// New reads the configuration; all problems are reported at once, each with its
// setting and key. Secrets are never part of an error.
func New(src Source) (*Registry, error) {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	bases, err := object[string]("TENANT_AUTH_MAP", src.AuthMap)
	if err != nil {
		problems = append(problems, err)
	}
	secrets, err := object[string]("TENANT_HOOK_SECRETS", src.HookSecrets)
	if err != nil {
		problems = append(problems, err)
	}
	calls, err := object[int]("TENANT_HOOK_MAX_CONCURRENCY", src.MaxConcurrency)
	if err != nil {
		problems = append(problems, err)
	}
	r := &Registry{tenants: map[string]*Tenant{}}
	for name, base := range bases {
		if name == "" || len(name) > maxName {
			bad("TENANT_AUTH_MAP: tenant %.20q: must have 1 to %d bytes", name, maxName)
		}
		if err := checkURL(base); err != nil {
			bad("TENANT_AUTH_MAP: tenant %q: %w", name, err)
		}
		t := &Tenant{name: name, authURL: base, authSecret: secrets[name], settings: src.Settings}
		if n, ok := calls[name]; ok {
			if n < 1 || n > 10_000 {
				bad("TENANT_HOOK_MAX_CONCURRENCY: tenant %q: %d is not from 1 to 10000", name, n)
			}
			t.settings.HookMaxConcurrency = n
		}
		r.tenants[name] = t
	}
	for name := range secrets {
		if _, ok := bases[name]; !ok {
			bad("TENANT_HOOK_SECRETS: tenant %q is not in TENANT_AUTH_MAP", name)
		}
	}
	for name := range calls {
		if _, ok := bases[name]; !ok {
			bad("TENANT_HOOK_MAX_CONCURRENCY: tenant %q is not in TENANT_AUTH_MAP", name)
		}
	}
	return r, errors.Join(problems...)
}

func object[T any](setting, text string) (map[string]T, error) {
	if text == "" {
		return nil, nil
	}
	var m map[string]T
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		// The decoder's error may quote a secret; its position does not.
		if se, ok := errors.AsType[*json.SyntaxError](err); ok {
			return nil, fmt.Errorf("%s: not a JSON object (at byte %d)", setting, se.Offset)
		}
		return nil, fmt.Errorf("%s: must be a JSON object of %T values", setting, *new(T))
	}
	return m, nil
}

func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return errors.New("base URL must be http:// or https:// with a host")
	}
	return nil
}

// Learn takes the configuration that an /auth answer carried; nil changes
// nothing. A hook base URL that is none is refused and the rest taken.
func (t *Tenant) Learn(c *hookv1.TenantRuntimeConfig) error {
	if c == nil {
		return nil
	}
	if c.HookBaseUrl != "" {
		if err := checkURL(c.HookBaseUrl); err != nil {
			c.HookBaseUrl = ""
			t.learnt.Store(c)
			return fmt.Errorf("hook_base_url of tenant %q: %w", t.name, err)
		}
	}
	t.learnt.Store(c)
	return nil
}

// Config is what the tenant said last; empty before. It must not be modified.
func (t *Tenant) Config() *hookv1.TenantRuntimeConfig {
	if c := t.learnt.Load(); c != nil {
		return c
	}
	return &hookv1.TenantRuntimeConfig{}
}

// Name is the tenant's id.
func (t *Tenant) Name() string { return t.name }

// AuthURL is the base URL of the first hook.
func (t *Tenant) AuthURL() string { return t.authURL }

// AuthSecret signs the first hook; empty when none is known.
func (t *Tenant) AuthSecret() string { return t.authSecret }

// HookURL is the base URL of all later hooks.
func (t *Tenant) HookURL() string {
	if u := t.Config().HookBaseUrl; u != "" {
		return u
	}
	return t.authURL
}

// Secret signs later hooks and events; empty when none is known.
func (t *Tenant) Secret() string {
	if s := t.Config().TenantSecret; s != "" {
		return s
	}
	return t.authSecret
}

// SignRequired: without a secret no hook is called.
func (t *Tenant) SignRequired() bool {
	if c := t.Config(); c.HookSignRequired != nil {
		return c.GetHookSignRequired()
	}
	return t.settings.SignRequired
}

// positive returns v, or def where v says nothing.
func positive(v int32, def int) int {
	if v > 0 {
		return int(v)
	}
	return def
}

// MaxConcurrency bounds the calls of one hook at once.
func (t *Tenant) MaxConcurrency() int {
	return min(positive(t.Config().GetHookMaxConcurrency(), t.settings.HookMaxConcurrency), 10_000)
}

// QueueTimeout is how long a call waits for its turn.
func (t *Tenant) QueueTimeout() time.Duration {
	if ms := t.Config().GetHookQueueTimeoutMs(); ms > 0 {
		return time.Duration(ms) * time.Millisecond
	}
	return t.settings.HookQueueTimeout
}

// Breaker is how many failures in a row open it, and for how long.
func (t *Tenant) Breaker() (threshold int, open time.Duration) {
	c := t.Config()
	open = t.settings.BreakerOpen
	if ms := c.GetHookBreakerOpenMs(); ms > 0 {
		open = time.Duration(ms) * time.Millisecond
	}
	return positive(c.GetHookBreakerFailureThreshold(), t.settings.BreakerThreshold), open
}

// HeartbeatTimeout is how long a connection may be silent.
func (t *Tenant) HeartbeatTimeout() time.Duration {
	s := t.Config().HeartbeatTimeoutSeconds
	if s <= 0 {
		return DefaultHeartbeatTimeout
	}
	return min(max(time.Duration(s)*time.Second, minHeartbeatTimeout), maxHeartbeatTimeout)
}

// OfflineTTL is how long messages are kept for absent devices. A tenant that
// sets a negative one keeps nothing.
func (t *Tenant) OfflineTTL() time.Duration {
	switch s := t.Config().OfflineBufferTtlSeconds; {
	case s < 0:
		return 0
	case s == 0:
		return DefaultOfflineTTL
	default:
		return min(time.Duration(s)*time.Second, maxOfflineTTL)
	}
}

// MaxConnections and the like are limits; 0 means none.
func (t *Tenant) MaxConnections() int { return positive(t.Config().TenantMaxConnections, 0) }

// UserMaxConnections bounds one user's devices; 0 means no limit.
func (t *Tenant) UserMaxConnections() int { return positive(t.Config().UserMaxConnections, 0) }

// MaxQPS bounds the tenant's messages per second; 0 means no limit.
func (t *Tenant) MaxQPS() int { return positive(t.Config().TenantMaxMessageQps, 0) }

// UserMaxQPS bounds one user's messages per second; 0 means no limit.
func (t *Tenant) UserMaxQPS() int { return positive(t.Config().GetUserMaxMessageQps(), 0) }

// CheckEnabled: check-message is called (unset means yes).
func (t *Tenant) CheckEnabled() bool {
	c := t.Config()
	return c.CheckMessageEnabled == nil || *c.CheckMessageEnabled
}

// OfflineHookPull: offline messages are pulled from the tenant on connect.
func (t *Tenant) OfflineHookPull() bool { return t.Config().GetOfflineUseHookPull() }
