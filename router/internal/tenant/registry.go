package tenant

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/watchfile"
)

// Settings are the operators' defaults for all tenants.
type Settings struct {
	HookMaxConcurrency int           // HOOK_MAX_CONCURRENCY: calls at once per (tenant, hook)
	HookQueueTimeout   time.Duration // HOOK_QUEUE_TIMEOUT_MS: wait for one of them
	SignRequired       bool          // HOOK_SIGN_REQUIRED: call no hook unsigned
}

// DefaultSettings are the contract's.
var DefaultSettings = Settings{HookMaxConcurrency: 32, HookQueueTimeout: 10 * time.Millisecond}

// Source is where the operators' part comes from.
type Source struct {
	AuthMap        string // TENANT_AUTH_MAP, JSON object tenant → base URL
	HookSecrets    string // TENANT_HOOK_SECRETS, JSON object tenant → secret
	MaxConcurrency string // TENANT_HOOK_MAX_CONCURRENCY, JSON object tenant → calls
	File           string // TENANTS_FILE, path of a YAML file; empty: none
	Settings       Settings
	Log            *slog.Logger // nil: none
}

// Register declares the settings and checks the environment's maps with the
// others. The file is read by New.
func (s *Source) Register(set *config.Set) {
	s.Settings = DefaultSettings
	set.String(&s.AuthMap, settingAuthMap, "", "JSON object: tenant to the base URL of its hooks")
	set.String(&s.HookSecrets, settingSecrets, "", "JSON object: tenant to the secret that signs its hooks")
	set.String(&s.MaxConcurrency, settingConcurrency, "", "JSON object: tenant to calls of one hook at once")
	set.String(&s.File, settingFile, "", "YAML file of tenants, watched")
	set.Bool(&s.Settings.SignRequired, "HOOK_SIGN_REQUIRED", "call no hook of a tenant whose secret is not known")
	set.Int(&s.Settings.HookMaxConcurrency, "HOOK_MAX_CONCURRENCY", config.Bound{Min: 1, Max: MaxHookConcurrency},
		"calls at once per tenant and hook")
	set.Duration(&s.Settings.HookQueueTimeout, "HOOK_QUEUE_TIMEOUT_MS", time.Millisecond,
		config.Bound{Min: 0, Max: int(MaxHookTime / time.Millisecond)}, "longest wait for one of them")
	set.Check(func() error {
		_, err := environment(*s)
		return err
	})
}

// Registry is the set of tenants. Safe for concurrent use.
type Registry struct {
	src     Source
	env     map[string]entry // from the environment; never modified
	tenants atomic.Pointer[map[string]*Tenant]
	file    *watchfile.Follower // nil: none
}

// New reads the configuration and, if there is a TENANTS_FILE, watches it until
// Close. All problems are reported at once, each with its setting and key; the
// error wraps config.ErrInvalid. Secrets are never part of an error or a log.
//
// A later version of the file that has a problem is refused as a whole
// (tenants_file_refused says where) and the tenants stay as they are.
func New(src Source) (*Registry, error) {
	if src.Log == nil {
		src.Log = slog.New(slog.DiscardHandler)
	}
	r := &Registry{src: src}
	r.tenants.Store(&map[string]*Tenant{})
	env, err := environment(src)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	r.env = env
	if src.File == "" {
		if err := r.apply(nil); err != nil {
			return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
		}
		return r, nil
	}
	r.file, err = watchfile.New(watchfile.Options{
		Name: settingFile, Files: []string{src.File}, MaxBytes: maxFile, Log: src.Log,
		Take: func(contents [][]byte) error {
			file, err := parseFile(contents[0])
			if err != nil {
				return err
			}
			return r.apply(file)
		},
		Taken:   func() { r.src.Log.Info("tenants_file_taken", "tenants", r.Len()) },
		Refused: func(err error) { r.src.Log.Error("tenants_file_refused", "err", err, "kept", r.Len()) },
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	r.file.Start()
	return r, nil
}

// Close ends the watching and waits for it; the tenants stay readable.
func (r *Registry) Close() {
	if r.file != nil {
		_ = r.file.Close() // of the operating system's notices: nothing to be done
	}
}

// Get returns a tenant by name. It takes no lock.
func (r *Registry) Get(name string) (*Tenant, bool) {
	t, ok := (*r.tenants.Load())[name]
	return t, ok
}

// Len returns the number of tenants.
func (r *Registry) Len() int { return len(*r.tenants.Load()) }

// apply takes what the file says, the whole of it or nothing. It is called by
// one goroutine at a time.
func (r *Registry) apply(file map[string]entry) error {
	entries, err := merge(r.env, file)
	if err != nil {
		return err
	}
	old := *r.tenants.Load()
	next := make(map[string]*Tenant, len(entries))
	for name, e := range entries {
		t := old[name]
		if t == nil {
			t = newTenant(name, r.src.Settings, r.src.Log)
		}
		t.configure(e)
		next[name] = t
	}
	r.tenants.Store(&next)
	for name, t := range old {
		if next[name] == nil {
			t.removed.Store(true)
		}
	}
	return nil
}
