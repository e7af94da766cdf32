package hook

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"github.com/mics-im/mics/router/internal/tenant"
	"github.com/sony/gobreaker/v2"
	"google.golang.org/protobuf/proto"
)

func TestSlotsAreServedInOrderAndHeldToTheLatestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s slots
		take := func(limit int, wait time.Duration) error { return s.take(t.Context(), limit, wait) }
		if err := errors.Join(take(2, 0), take(2, 0)); err != nil {
			t.Fatal("two slots are two slots")
		}
		if err := take(2, 0); !errors.Is(err, errNoSlot) {
			t.Fatalf("no wait: %v", err)
		}
		start := time.Now()
		if err := take(2, 10*time.Millisecond); !errors.Is(err, errNoSlot) || time.Since(start) != 10*time.Millisecond {
			t.Fatalf("waited %v: %v", time.Since(start), err)
		}
		if err := take(3, 0); err != nil {
			t.Fatalf("a higher limit did not hold at once: %v", err)
		}
		// Three are under way; with a limit of one, two must end before a free
		// place is one.
		for range 2 {
			s.release()
			if err := take(1, 0); !errors.Is(err, errNoSlot) {
				t.Fatalf("a lower limit forgot what is under way: %v", err)
			}
		}
		var order []int
		for i := range 3 {
			go func() {
				if take(1, time.Second) == nil {
					order = append(order, i)
					s.release()
				}
			}()
			synctest.Wait()
		}
		s.release()
		synctest.Wait()
		if len(order) != 3 || order[0] != 0 || order[1] != 1 || order[2] != 2 || s.taken != 0 || s.waiting.Len() != 0 {
			t.Fatalf("served %v, %d taken", order, s.taken)
		}
	})
}

func TestAHigherLimitLetsWaitersIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s slots
		if s.take(t.Context(), 1, 0) != nil {
			t.Fatal("no slot")
		}
		got := make(chan error, 1)
		go func() { got <- s.take(context.Background(), 1, time.Minute) }()
		synctest.Wait()
		if err := s.take(t.Context(), 3, 0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case err := <-got:
			if err != nil || s.taken != 3 {
				t.Fatalf("%v, %d taken", err, s.taken)
			}
		default:
			t.Fatal("still waiting")
		}
	})
}

func TestWaitersAreBoundedAndLeaveNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s slots
		if s.take(t.Context(), 1, 0) != nil {
			t.Fatal("no slot")
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for range maxWaiting {
			wg.Go(func() {
				if err := s.take(ctx, 1, time.Minute); !errors.Is(err, context.Canceled) {
					t.Errorf("a waiter whose caller gave up: %v", err)
				}
			})
		}
		synctest.Wait()
		if err := s.take(t.Context(), 1, time.Minute); !errors.Is(err, errNoSlot) {
			t.Fatalf("one waiter too many: %v", err)
		}
		cancel()
		wg.Wait()
		s.release()
		if s.taken != 0 || s.waiting.Len() != 0 || s.take(t.Context(), 1, 0) != nil {
			t.Fatalf("%d taken, %d waiting", s.taken, s.waiting.Len())
		}
	})
}

func TestNewLimitsKeepAnOpenBreakerOpenForTheNewTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{}
		fail := func(h *tenant.HookConfig) error {
			_, err := g.circuit(h).Execute(func() (struct{}, error) {
				return struct{}{}, &Error{Op: Auth, Result: HTTP5xx, Err: io.EOF}
			})
			return err
		}
		first := &tenant.HookConfig{BreakerThreshold: 2, BreakerOpen: time.Second}
		_ = fail(first)
		same := *first
		same.Secret = "a new picture with the same limits"
		if _ = fail(&same); !errors.Is(fail(first), gobreaker.ErrOpenState) {
			t.Fatal("a new picture with the same limits reset the breaker")
		}
		longer := &tenant.HookConfig{BreakerThreshold: 3, BreakerOpen: time.Minute}
		if !errors.Is(fail(longer), gobreaker.ErrOpenState) {
			t.Fatal("new limits closed an open breaker")
		}
		time.Sleep(59 * time.Second)
		if !errors.Is(fail(longer), gobreaker.ErrOpenState) {
			t.Fatal("it closed before the new time")
		}
		time.Sleep(2 * time.Second)
		if errors.Is(fail(longer), gobreaker.ErrOpenState) {
			t.Fatal("it lets nothing through after the new time")
		}
		if !errors.Is(fail(longer), gobreaker.ErrOpenState) {
			t.Fatal("one call that failed should have opened it again")
		}
	})
}

func TestOnlyTheTenantsOwnFailuresMoveItsBreaker(t *testing.T) {
	c := newClient(t)
	arrived := make(chan struct{}, 64)
	hang := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	gone := newTenant(t, "gone", hang, "s")
	for range 8 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- c.call(ctx, gone, Auth, &hookv1.AuthRequest{Meta: &hookv1.HookMeta{}}, &hookv1.AuthResponse{})
		}()
		<-arrived
		cancel()
		if err := <-done; resultOf(err) != Timeout {
			t.Fatalf("a caller that gave up: %v", err)
		}
	}
	missing := newTenant(t, "missing", serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }), "s")
	unsigned := newTenant(t, "unsigned", hang, "")
	for range 8 {
		if _, err := c.Check(t.Context(), missing, nil); resultOf(err) != HTTP4xx {
			t.Fatalf("4xx: %v", err)
		}
		if _, err := c.Check(t.Context(), unsigned, nil); !errors.Is(err, ErrUnsigned) {
			t.Fatalf("unsigned: %v", err)
		}
	}
	for _, tt := range []*tenant.Tenant{gone, missing, unsigned} {
		for _, op := range []Op{Auth, CheckMessage} {
			if n := c.gate(tt, op).circuit(tt.Hooks()).Counts().ConsecutiveFailures; n != 0 {
				t.Errorf("%s/%s: %d failures counted", tt.Name(), op, n)
			}
		}
	}
}

func TestACallSeesOnePictureOfItsTenant(t *testing.T) {
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		var req hookv1.CheckMessageRequest
		if err := proto.Unmarshal(raw, &req); err != nil {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		got := req.Meta.Sign
		if want, _ := Sign(strings.TrimPrefix(strings.TrimSuffix(r.URL.Path, "/check-message"), "/"), &req); got != want {
			http.Error(w, "the secret of one picture and the URL of another", http.StatusForbidden)
		}
	})
	c := newClient(t)
	tt := newTenant(t, "demo", base+"/s0", "s0")
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := make(chan struct{})
	defer close(stop)
	wg.Go(func() {
		for i := 0; ; i = 1 - i {
			s := []string{"s0", "s1"}[i]
			select {
			case <-stop:
				return
			default:
				tt.Learn(&hookv1.TenantRuntimeConfig{HookBaseUrl: base + "/" + s, TenantSecret: s})
			}
		}
	})
	for range 200 {
		// Busy machines may time out; a mixed picture would be a 403.
		if _, err := c.Check(t.Context(), tt, nil); resultOf(err) == HTTP4xx {
			t.Fatal(err)
		}
	}
}

func TestFailuresAreLoggedOnceInAWhileAndWithoutSecrets(t *testing.T) {
	var log bytes.Buffer
	c := newLoggingClient(t, &log)
	base := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	bad := newTenant(t, "bad", strings.Replace(base, "://", "://user:hunter2@", 1), "hush")
	for range 50 {
		_, _ = c.Authenticate(t.Context(), bad, "to-ken", "d")
	}
	_, _ = c.Check(t.Context(), newTenant(t, "gone", "http://user:hunter2@127.0.0.1:1", "hush"), nil)
	text := log.String()
	if strings.Count(text, "hook_request_failed") != 2 || !strings.Contains(text, `"TenantId":"bad"`) || !strings.Contains(text, "http_5xx") || !strings.Contains(text, `"result":"network"`) {
		t.Errorf("log: %s", text)
	}
	for _, secret := range []string{"hunter2", "hush", "to-ken"} {
		if strings.Contains(text, secret) {
			t.Errorf("%s is in the log: %s", secret, text)
		}
	}
}

func TestGatesOfRemovedTenantsGo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tenants.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	up := serve(t, func(http.ResponseWriter, *http.Request) {})
	write("tenants: {a: {auth_url: '" + up + "'}, b: {auth_url: '" + up + "'}}")
	r, err := tenant.New(tenant.Source{File: file, Settings: tenant.DefaultSettings, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := newClient(t)
	a, _ := r.Get("a")
	b, _ := r.Get("b")
	_, _ = c.Check(t.Context(), a, nil)
	write("tenants: {b: {auth_url: '" + up + "'}}")
	testkit.Eventually(t, "a is removed", a.Removed)
	_, _ = c.Check(t.Context(), b, nil)
	if _, kept := c.gates[gateKey{a, CheckMessage}]; kept || len(c.gates) != 1 {
		t.Errorf("%d gates, a's kept: %v", len(c.gates), kept)
	}
}
