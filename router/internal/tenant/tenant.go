// Package tenant knows the tenants: what operators configured, what each
// tenant's /auth hook said last, and how many messages each may send (CONTRACT
// sections 2 and 4).
package tenant

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"google.golang.org/protobuf/proto"
)

// HookConfig is how to call a tenant's hooks: one consistent picture, never
// modified. A new picture is a new pointer.
type HookConfig struct {
	AuthBaseURL, AuthSecret string // of /auth
	BaseURL, Secret         string // of all later hooks; Secret signs events too
	// SignRequired: without a secret no hook is called.
	SignRequired bool
	// MaxConcurrency bounds the calls of one hook at once, QueueTimeout the wait
	// for one of them.
	MaxConcurrency int
	QueueTimeout   time.Duration
	// BreakerThreshold failures in a row open the breaker for BreakerOpen.
	BreakerThreshold int
	BreakerOpen      time.Duration
}

// noteEvery bounds how often one tenant's odd configuration is logged.
const noteEvery = time.Minute

// Tenant is one tenant. Safe for concurrent use; reading costs one atomic load.
// It stays the same object while its configuration changes.
type Tenant struct {
	name     string
	settings Settings
	log      *slog.Logger
	now      atomic.Pointer[effective]
	removed  atomic.Bool
	bucket   bucket // tenant-wide message rate

	mu     sync.Mutex
	entry  entry                       // guarded by mu: the operators' part
	said   *hookv1.TenantRuntimeConfig // guarded by mu: the tenant's part; nil before
	notes  time.Time                   // guarded by mu: when oddities were logged last
	values values                      // guarded by mu: what said means
}

func newTenant(name string, s Settings, log *slog.Logger) *Tenant {
	return &Tenant{name: name, settings: s, log: log.With(telemetry.TenantID, name)}
}

// configure takes the operators' part.
func (t *Tenant) configure(e entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now.Load() != nil && t.entry == e {
		return
	}
	t.entry = e
	t.now.Store(decide(t.settings, e, t.values))
}

// Learn takes the configuration that an /auth answer carried; nil changes
// nothing. What is out of its limits is clamped or ignored, and logged
// (tenant_config_odd). The caller must not modify cfg afterwards.
func (t *Tenant) Learn(cfg *hookv1.TenantRuntimeConfig) {
	if cfg == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.said != nil && proto.Equal(t.said, cfg) {
		return
	}
	v, notes := learnt(cfg)
	t.said, t.values = cfg, v
	t.now.Store(decide(t.settings, t.entry, v))
	if len(notes) > 0 && (t.notes.IsZero() || time.Since(t.notes) >= noteEvery) {
		t.notes = time.Now()
		t.log.Warn("tenant_config_odd", "fields", notes)
	}
}

// Name is the tenant's id. It is one of a set that operators configure, and so
// fit for a metric's label.
func (t *Tenant) Name() string { return t.name }

// Removed tells that operators took the tenant away; Registry.Get does not
// know it any more.
func (t *Tenant) Removed() bool { return t.removed.Load() }

// Hooks is how to call the tenant's hooks now.
func (t *Tenant) Hooks() *HookConfig { return &t.now.Load().hooks }

// HookBaseURL is the base URL of all hooks after /auth.
func (t *Tenant) HookBaseURL() string { return t.Hooks().BaseURL }

// AuthSecret signs /auth; empty when none is known.
func (t *Tenant) AuthSecret() string { return t.Hooks().AuthSecret }

// Secret signs later hooks and events; empty when none is known.
func (t *Tenant) Secret() string { return t.Hooks().Secret }

// SignRequired: without a secret no hook is called.
func (t *Tenant) SignRequired() bool { return t.Hooks().SignRequired }

func (t *Tenant) seconds(k intKey) time.Duration {
	return time.Duration(t.now.Load().ints[k]) * time.Second
}

// HeartbeatTimeout is how long a connection may be silent, 1 s to 1 h.
func (t *Tenant) HeartbeatTimeout() time.Duration { return t.seconds(heartbeatSeconds) }

// OfflineTTL is how long messages are kept for absent devices; 0: not at all.
func (t *Tenant) OfflineTTL() time.Duration { return t.seconds(offlineTTLSeconds) }

// MaxConnections bounds the tenant's connections; 0 means no limit.
func (t *Tenant) MaxConnections() int { return t.now.Load().ints[tenantConnections] }

// UserMaxConnections bounds one user's connections; 0 means no limit.
func (t *Tenant) UserMaxConnections() int { return t.now.Load().ints[userConnections] }

// MaxQPS bounds the tenant's messages per second over all routers; 0 means no
// limit.
func (t *Tenant) MaxQPS() int { return t.now.Load().ints[tenantQPS] }

// UserMaxQPS bounds one user's messages per second; 0 means no limit.
func (t *Tenant) UserMaxQPS() int { return t.now.Load().ints[userQPS] }

// CheckEnabled: check-message is called.
func (t *Tenant) CheckEnabled() bool { return t.now.Load().bools[checkEnabled] }

// EventsRequired: SENT waits for the broker.
func (t *Tenant) EventsRequired() bool { return t.now.Load().bools[eventsRequired] }

// OfflineHookPull: offline messages are pulled from the tenant on connect.
func (t *Tenant) OfflineHookPull() bool { return t.now.Load().bools[offlineHookPull] }
