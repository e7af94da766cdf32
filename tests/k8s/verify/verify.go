// Package verify is a tenant and its users in one program: it answers the hooks,
// keeps clients of both versions connected, has them talk on demand and judges
// what they saw. It runs where a cluster's pods reach it and it reaches them; a
// test outside tells it by HTTP when a phase begins and ends.
package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mics-im/mics/sdk/go/hook"
)

// Tenant, and the secret of its hooks.
const (
	Tenant = "verify"
	Secret = "verify-secret"
)

// Spec is what POST /join wants.
type Spec struct {
	// URL is where clients connect.
	URL string
	// Users of each version, and messages per second of all together.
	V1, V2 int
	Rate   float64
}

// Report is what POST /end answers.
type Report struct {
	Phase                  string
	Seconds                float64
	Messages, Sent, Failed int
	Deliveries             int
	Lost, Repeated         int
	// Others are violations of other kinds, and examples of these two.
	Others []string
	// DisconnectsV2 are told one by one: there should be none.
	DisconnectsV2 []string
	// DisconnectsV1 by close code.
	DisconnectsV1     map[int]int
	LongestDelivery   time.Duration
	LongestGapV1      time.Duration
	FailedWithReasons map[string]int
}

// Server is safe for concurrent use.
type Server struct {
	hooks http.Handler

	mu    sync.Mutex
	crowd *crowd // guarded by mu; nil: nobody has joined
}

// New returns a server without users.
func New() (*Server, error) {
	s := &Server{}
	h, err := hook.New(hook.Options{
		Secret: Secret,
		Auth: func(_ context.Context, r *hook.AuthRequest) (*hook.AuthResponse, error) {
			user, ok := strings.CutPrefix(r.GetToken(), "user:")
			if !ok {
				return hook.Refuse("no such token"), nil
			}
			return hook.Accept(user, &hook.RuntimeConfig{
				TenantSecret: Secret, HeartbeatTimeoutSeconds: 30, OfflineBufferTtlSeconds: 600,
				// A busy machine must not look like a broken tenant.
				HookQueueTimeoutMs: proto.Int32(150), HookBreakerFailureThreshold: proto.Int32(50), HookBreakerOpenMs: proto.Int32(200),
			}), nil
		},
		CheckMessage: func(context.Context, *hook.CheckMessageRequest) (*hook.CheckMessageResponse, error) {
			return hook.Allow(), nil
		},
		GroupMembers: func(_ context.Context, r *hook.GetGroupMembersRequest) ([]string, error) {
			return s.members(r.GetGroupId()), nil
		},
	})
	if err != nil {
		return nil, err
	}
	s.hooks = h
	return s, nil
}

func (s *Server) members(group string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.crowd == nil {
		return nil
	}
	return s.crowd.groups[group]
}

// Handler serves the hooks below /hooks and the test's commands.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/hooks/", s.hooks)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	command(mux, "POST /join", s.join)
	command(mux, "POST /begin", s.begin)
	command(mux, "POST /end", s.end)
	return mux
}

// command answers errors with 409 and their text.
func command[In, Out any](mux *http.ServeMux, pattern string, f func(context.Context, In) (Out, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var in In
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&in)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out, err := f(r.Context(), in)
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // the test has hung up
	})
}

// join connects users and waits for all of them; those of before leave.
func (s *Server) join(ctx context.Context, spec Spec) (struct{}, error) {
	c := newCrowd(spec)
	s.mu.Lock()
	old := s.crowd
	s.crowd = c
	s.mu.Unlock()
	if old != nil {
		old.leave()
	}
	c.join()
	if away := c.await(ctx, time.Minute); away != "" {
		return struct{}{}, errors.New(away)
	}
	return struct{}{}, nil
}

// Phase is what POST /begin and /end want.
type Phase struct{ Name string }

func (s *Server) begin(_ context.Context, p Phase) (struct{}, error) {
	c, err := s.present()
	if err != nil {
		return struct{}{}, err
	}
	return struct{}{}, c.begin(p.Name)
}

func (s *Server) end(ctx context.Context, p Phase) (Report, error) {
	c, err := s.present()
	if err != nil {
		return Report{}, err
	}
	return c.finish(ctx, p.Name)
}

func (s *Server) present() (*crowd, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.crowd == nil {
		return nil, fmt.Errorf("nobody has joined: POST /join")
	}
	return s.crowd, nil
}

// Close has everybody leave.
func (s *Server) Close() {
	s.mu.Lock()
	c := s.crowd
	s.crowd = nil
	s.mu.Unlock()
	if c != nil {
		c.leave()
	}
}
