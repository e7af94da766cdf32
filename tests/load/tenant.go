package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/mics-im/mics/sdk/go/hook"
	"google.golang.org/protobuf/proto"
)

const (
	// TenantName and TenantSecret are of the tenant that a cluster is started
	// with.
	TenantName   = "load"
	TenantSecret = "load-test-secret"
	// silence is the heartbeat timeout: longer than any run.
	silence = 3600
)

// TenantHandler answers the hooks of the load tests' tenant. It keeps nothing: a
// token names its user, a group's name its members. Messages are not checked.
func TenantHandler(secret string) (http.Handler, error) {
	// One answer for all: the handler does not change it.
	cfg := &hook.RuntimeConfig{
		TenantSecret: secret, HeartbeatTimeoutSeconds: silence, OfflineBufferTtlSeconds: 600,
		// Overload must be seen as slowness and not as an open breaker.
		HookMaxConcurrency: proto.Int32(512), HookQueueTimeoutMs: proto.Int32(150),
		HookBreakerFailureThreshold: proto.Int32(1000), HookBreakerOpenMs: proto.Int32(100),
		CheckMessageEnabled: proto.Bool(false),
	}
	return hook.New(hook.Options{
		Secret: secret, AllowUnsigned: secret == "",
		Auth: func(_ context.Context, r *hook.AuthRequest) (*hook.AuthResponse, error) {
			user, ok := strings.CutPrefix(r.GetToken(), tokenPrefix)
			if !ok || user == "" {
				return hook.Refuse("not a token of the load test"), nil
			}
			return hook.Accept(user, cfg), nil
		},
		GroupMembers: func(_ context.Context, r *hook.GetGroupMembersRequest) ([]string, error) {
			first, n := members(r.GetGroupId())
			users := make([]string, n)
			for i := range users {
				users[i] = UserID(first + i)
			}
			return users, nil
		},
	})
}

// members tells who is in a group that GroupID named; nobody is in others.
func members(group string) (first, n int) {
	const most = 1_000_000
	size, k, ok := strings.Cut(strings.TrimPrefix(group, "g-"), "-")
	s, err := strconv.Atoi(size)
	i, err2 := strconv.Atoi(k)
	if !ok || err != nil || err2 != nil || s < 0 || s > most || i < 0 || i > most {
		return 0, 0
	}
	return s * i, s
}

// Serve serves h on ln until ctx ends.
func Serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	if err := srv.Close(); err != nil {
		return err
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
