package harness

import (
	"context"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mics-im/mics/sdk/go/hook"
	"google.golang.org/protobuf/proto"
)

// Tenant is a tenant's business system: it signs users in whose token is their
// name after "user:", knows groups, and can be told to misbehave. All methods
// are safe for concurrent use; changes hold from the next call on.
type Tenant struct {
	Name, Secret, URL string

	mu     sync.Mutex
	cfg    *hook.RuntimeConfig // guarded by mu; replaced, never changed
	groups map[string][]string // guarded by mu
	denied string              // guarded by mu
	modes  map[string]mode     // guarded by mu; by hook
	calls  map[string]int      // guarded by mu; by hook
}

// mode is how a hook misbehaves.
type mode struct {
	delay  time.Duration
	status int
	body   []byte
	hang   bool
}

// tokenPrefix begins the tokens that are let in; a user's name follows.
const tokenPrefix = "user:"

// startTenant serves a tenant until the test ends.
func startTenant(t testing.TB, name string) *Tenant {
	t.Helper()
	tenant := &Tenant{
		Name: name, Secret: name + "-secret",
		groups: map[string][]string{}, modes: map[string]mode{}, calls: map[string]int{},
	}
	tenant.cfg = &hook.RuntimeConfig{
		TenantSecret: tenant.Secret, HookSignRequired: proto.Bool(true),
		HeartbeatTimeoutSeconds: 30, OfflineBufferTtlSeconds: 600,
		// A busy machine must not look like a broken tenant.
		HookQueueTimeoutMs: proto.Int32(150), HookBreakerFailureThreshold: proto.Int32(50), HookBreakerOpenMs: proto.Int32(200),
	}
	h, err := hook.New(hook.Options{
		Secret: tenant.Secret, Auth: tenant.auth, CheckMessage: tenant.check, GroupMembers: tenant.members,
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tenant.URL = "http://" + ln.Addr().String() + "/hooks"
	ctx, cancel := context.WithCancel(context.Background())
	srv := &http.Server{
		Handler: tenant.misbehave(h), ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln) // ends with Close
	}()
	t.Cleanup(func() {
		cancel()
		_ = srv.Close()
		<-done
	})
	return tenant
}

// Configure changes what logins are answered with from now on.
func (t *Tenant) Configure(change func(*hook.RuntimeConfig)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cfg = proto.CloneOf(t.cfg)
	change(t.cfg)
}

// Group sets a group's members.
func (t *Tenant) Group(group string, users ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.groups[group] = slices.Clone(users)
}

// Deny refuses every message with a reason; empty: no more.
func (t *Tenant) Deny(reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.denied = reason
}

// Slow delays a hook's answers.
func (t *Tenant) Slow(name string, d time.Duration) { t.set(name, mode{delay: d}) }

// Garbage answers a hook with bytes that mean nothing.
func (t *Tenant) Garbage(name string) {
	t.set(name, mode{status: http.StatusOK, body: []byte("\xff\xfe garbage")})
}

// Breaks answers a hook with an HTTP status.
func (t *Tenant) Breaks(name string, status int) { t.set(name, mode{status: status}) }

// Hangs never answers a hook.
func (t *Tenant) Hangs(name string) { t.set(name, mode{hang: true}) }

// Works ends a hook's misbehaviour.
func (t *Tenant) Works(name string) { t.set(name, mode{}) }

// Calls is how often a hook has been called.
func (t *Tenant) Calls(name string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.calls[name]
}

func (t *Tenant) set(name string, m mode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.modes[name] = m
}

func (t *Tenant) misbehave(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := path.Base(r.URL.Path)
		t.mu.Lock()
		m := t.modes[name]
		t.calls[name]++
		t.mu.Unlock()
		var due <-chan time.Time // never, for one that hangs
		if !m.hang {
			due = time.After(m.delay)
		}
		if m.hang || m.delay > 0 {
			select {
			case <-due:
			case <-r.Context().Done():
				return
			}
		}
		if m.status != 0 {
			w.Header().Set("Content-Type", "application/protobuf")
			w.WriteHeader(m.status)
			_, _ = w.Write(m.body)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (t *Tenant) auth(_ context.Context, r *hook.AuthRequest) (*hook.AuthResponse, error) {
	user, ok := strings.CutPrefix(r.GetToken(), tokenPrefix)
	if !ok || user == "" {
		return hook.Refuse("no such token"), nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return hook.Accept(user, t.cfg), nil
}

func (t *Tenant) check(context.Context, *hook.CheckMessageRequest) (*hook.CheckMessageResponse, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.denied != "" {
		return hook.Deny(t.denied), nil
	}
	return hook.Allow(), nil
}

func (t *Tenant) members(_ context.Context, r *hook.GetGroupMembersRequest) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.groups[r.GetGroupId()], nil
}
