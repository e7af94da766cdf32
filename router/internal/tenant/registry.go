package tenant

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/mics-im/mics/internal/config"
)

const (
	// settle is how long after a notice TENANTS_FILE is read: an editor or a
	// mounted volume changes it in several steps.
	settle = 100 * time.Millisecond
	// lookEvery is how often the file is read without a notice, which some file
	// systems never give.
	lookEvery = 30 * time.Second
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
	version [sha256.Size]byte // owned by New, then by watch: of the file as last read

	cancel context.CancelFunc
	wg     sync.WaitGroup
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
	r := &Registry{src: src, cancel: func() {}}
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
	// Watched first, so that no change falls between; and the folder, because a
	// file that is replaced by another one (an editor, a mounted ConfigMap) takes
	// its watch with it.
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", settingFile, err)
	}
	if err := w.Add(filepath.Dir(src.File)); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("%w: %s: %w", config.ErrInvalid, settingFile, err)
	}
	if _, err := r.reload(); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.wg.Go(func() { r.watch(ctx, w) })
	return r, nil
}

// Close ends the watching and waits for it; the tenants stay readable.
func (r *Registry) Close() {
	r.cancel()
	r.wg.Wait()
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

// reload reads the file and tells whether it differed from the last reading. It
// is called by one goroutine at a time.
func (r *Registry) reload() (changed bool, err error) {
	text, err := readFile(r.src.File)
	// A failure to read counts as a version too: it is worth one log line.
	version := sha256.Sum256(fmt.Append(text, "\x00", err))
	if version == r.version {
		return false, nil
	}
	r.version = version
	if err != nil {
		return true, err
	}
	file, err := parseFile(text)
	if err != nil {
		return true, err
	}
	return true, r.apply(file)
}

// watch reads the file again when it may have changed.
func (r *Registry) watch(ctx context.Context, w *fsnotify.Watcher) {
	defer func() { _ = w.Close() }()
	look := time.NewTimer(lookEvery)
	defer look.Stop()
	noticed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.Events:
		case err := <-w.Errors:
			r.src.Log.Warn("tenants_file_watch", "err", err)
		case <-look.C:
			noticed = false
			look.Reset(lookEvery)
			switch changed, err := r.reload(); {
			case err != nil:
				r.src.Log.Error("tenants_file_refused", "err", err, "kept", r.Len())
			case changed:
				r.src.Log.Info("tenants_file_taken", "tenants", r.Len())
			}
			continue
		}
		// Once per batch of notices: a busy folder must not put the reading off
		// for ever.
		if !noticed {
			noticed = true
			look.Reset(settle)
		}
	}
}
