package tenant

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"github.com/mics-im/mics/router/internal/memstore"
	"github.com/mics-im/mics/router/internal/route"
	"google.golang.org/protobuf/proto"
)

var _ Leaser = route.Store(nil)

// store is a leaser that can be away (an error) or hang (until the context ends).
type store struct {
	Leaser
	away, hang atomic.Bool
	calls      atomic.Int64
}

func (s *store) LeaseTokens(ctx context.Context, tenant string, rate, want int) (int, error) {
	s.calls.Add(1)
	if s.hang.Load() {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	if s.away.Load() {
		return 0, errors.New("away")
	}
	return s.Leaser.LeaseTokens(ctx, tenant, rate, want)
}

// router is a limiter with a tenant as one router knows it.
type router struct {
	*Limiter
	tenant *Tenant
	took   int
}

func newRouter(t *testing.T, l Leaser, routers, tenantQPS, userQPS int) *router {
	t.Helper()
	r := &router{Limiter: NewLimiter(LimiterOptions{Leaser: l, Routers: func() int { return routers }}), tenant: one(t, Source{})}
	r.tenant.Learn(&hookv1.TenantRuntimeConfig{TenantMaxMessageQps: int32(tenantQPS), UserMaxMessageQps: proto.Int32(int32(userQPS))})
	t.Cleanup(r.Close)
	return r
}

// send sends n messages at once.
func (r *router) send(n int) {
	for range n {
		if ok, _, _ := r.AllowMessage(r.tenant, "ann"); ok {
			r.took++
		}
	}
}

// run lets every router send perMS messages a millisecond for d and returns how
// many were allowed in all.
func run(d time.Duration, routers []*router, perMS ...int) int {
	for _, r := range routers {
		r.took = 0
	}
	for range d / time.Millisecond {
		for i, r := range routers {
			r.send(perMS[i])
		}
		time.Sleep(time.Millisecond)
	}
	sum := 0
	for _, r := range routers {
		sum += r.took
	}
	return sum
}

func within(t *testing.T, what string, got, low, high int) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("%s: %d, want %d to %d", what, got, low, high)
	}
}

func TestRoutersShareTheTenantsRate(t *testing.T) {
	for _, rate := range []int{1, 5, 50, 1000} {
		for name, load := range map[string][]int{"even": {2, 2}, "one silent": {4, 0}, "uneven": {1, 9}} {
			t.Run(fmt.Sprintf("%d/%s", rate, name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := memstore.New()
					both := []*router{newRouter(t, s, 2, rate, 0), newRouter(t, s, 2, rate, 0)}
					within(t, "the first second", run(time.Second, both, load...), rate, 3*rate)
					const seconds = 20
					within(t, "twenty seconds", run(seconds*time.Second, both, load...), seconds*rate*95/100-1, (seconds+1)*rate)
				})
			})
		}
	}
}

func TestBelowItsRateNothingOfATenantIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memstore.New()
		both := []*router{newRouter(t, s, 2, 2500, 0), newRouter(t, s, 2, 2500, 0)}
		if got := run(10*time.Second, both, 1, 1); got != 20_000 {
			t.Errorf("%d of 20000 allowed", got)
		}
		// After an idle hour the first messages need no lease that is there already.
		time.Sleep(time.Hour)
		if got := run(10*time.Millisecond, both, 1, 1); got != 20 {
			t.Errorf("%d of 20 allowed after an idle hour", got)
		}
	})
}

func TestLeasesAreFewerThanMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{Leaser: memstore.New()}
		r := newRouter(t, s, 1, 1000, 0)
		got := run(10*time.Second, []*router{r}, 1)
		within(t, "allowed", got, 9990, 10000)
		within(t, "leases in ten seconds", int(s.calls.Load()), 90, 250)
	})
}

func TestWithTheStoreAwayTheRateIsLocal(t *testing.T) {
	for name, fault := range map[string]func(*store, bool){
		"errors": func(s *store, on bool) { s.away.Store(on) },
		"hangs":  func(s *store, on bool) { s.hang.Store(on) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const rate, seconds = 100, 20
				s := &store{Leaser: memstore.New()}
				both := []*router{newRouter(t, s, 2, rate, 0), newRouter(t, s, 2, rate, 0)}
				run(3*time.Second, both, 2, 2)
				fault(s, true)
				run(2*time.Second, both, 2, 2)
				before := s.calls.Load()
				run(seconds*time.Second, both, 2, 2)
				for i, r := range both {
					within(t, fmt.Sprintf("router %d by itself", i), r.took, seconds*rate*98/100, (seconds+1)*rate)
				}
				within(t, "leases tried", int(s.calls.Load()-before), seconds, 2*(seconds+1))
				fault(s, false)
				run(2*time.Second, both, 2, 2)
				within(t, "with the store back", run(seconds*time.Second, both, 2, 2), seconds*rate*95/100, (seconds+1)*rate)
			})
		})
	}
}

func TestNoMessageWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		s.hang.Store(true)
		r := newRouter(t, s, 1, 10, 5)
		start := time.Now()
		r.send(1000)
		if time.Since(start) != 0 {
			t.Errorf("1000 messages waited %v", time.Since(start))
		}
	})
}

func TestARefusalSaysWhichLimitAndTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		s.hang.Store(true) // so that nothing but what is admitted moves the bucket
		r := newRouter(t, s, 1, 8, 3)
		allow := func(user string, wantOK bool, wantKind string, wantLimit int) {
			t.Helper()
			if ok, kind, limit := r.AllowMessage(r.tenant, user); ok != wantOK || kind != wantKind || limit != wantLimit {
				t.Fatalf("%s: %v, %q, %d", user, ok, kind, limit)
			}
		}
		for range 3 {
			allow("ann", true, "", 0)
		}
		for range 50 {
			allow("ann", false, KindUserMessageQPS, 3)
		}
		for i := range 5 { // what ann was refused left the tenant's rate alone
			allow(fmt.Sprint(i), true, "", 0)
		}
		for range 50 {
			allow("bob", false, KindMessageQPS, 8)
		}
		if _, known := r.users.shards[0].fullAt[userKey{r.tenant, "bob"}]; known || r.users.len() != 6 {
			t.Errorf("%d users are followed", r.users.len())
		}
		r.tenant.Learn(&hookv1.TenantRuntimeConfig{})
		for range 1000 { // no limits
			allow("ann", true, "", 0)
		}
	})
}

func TestUsersOfTheLimiterAreBounded(t *testing.T) {
	l := NewLimiter(LimiterOptions{MaxUsers: userShards})
	defer l.Close()
	tt := one(t, Source{})
	tt.Learn(&hookv1.TenantRuntimeConfig{UserMaxMessageQps: proto.Int32(1)})
	for i := range 10 * userShards {
		if ok, _, _ := l.AllowMessage(tt, fmt.Sprint(i)); !ok {
			t.Fatal("refused")
		}
	}
	if l.Forgotten() == 0 || l.users.len() > userShards {
		t.Errorf("%d forgotten, %d followed", l.Forgotten(), l.users.len())
	}
}

func TestCloseEndsLeasesAndLeavesTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := &store{}
		s.hang.Store(true)
		l := NewLimiter(LimiterOptions{Leaser: s, Log: slog.New(slog.NewJSONHandler(&log, nil))})
		r := &router{Limiter: l, tenant: one(t, Source{})}
		r.tenant.Learn(&hookv1.TenantRuntimeConfig{TenantMaxMessageQps: 10})
		r.send(1)
		start := time.Now()
		l.Close()
		if time.Since(start) != 0 {
			t.Errorf("Close waited %v for a lease", time.Since(start))
		}
		calls := s.calls.Load()
		within(t, "after Close", run(10*time.Second, []*router{r}, 1), 98, 110)
		if s.calls.Load() != calls {
			t.Error("leases after Close")
		}
		if log.Len() != 0 {
			t.Errorf("a lease that Close ended was logged: %s", log.String())
		}
		l.Close() // twice is fine
	})
}

func TestAStoreThatIsAwayIsLoggedOnceInAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logText
		s := &store{}
		s.away.Store(true)
		l := NewLimiter(LimiterOptions{Leaser: s, Log: slog.New(slog.NewJSONHandler(&log, nil))})
		defer l.Close()
		r := &router{Limiter: l, tenant: one(t, Source{})}
		r.tenant.Learn(&hookv1.TenantRuntimeConfig{TenantMaxMessageQps: 10, TenantSecret: "hush"})
		run(25*time.Second, []*router{r}, 1)
		text := log.String()
		if n := strings.Count(text, "rate_lease_failed"); n != 3 || !strings.Contains(text, `"TenantId":"demo"`) || strings.Contains(text, "hush") {
			t.Errorf("%d lines: %s", n, text)
		}
	})
}

func TestManyGoroutinesShareALimiter(t *testing.T) {
	l := NewLimiter(LimiterOptions{Leaser: memstore.New()})
	defer l.Close()
	tt := one(t, Source{})
	const rate = 1 << 20 // more than can come
	tt.Learn(&hookv1.TenantRuntimeConfig{TenantMaxMessageQps: rate, UserMaxMessageQps: proto.Int32(rate)})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 2000 {
				if ok, kind, _ := l.AllowMessage(tt, fmt.Sprint(i)); !ok {
					t.Errorf("refused by %s", kind)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkAllowMessage(b *testing.B) {
	l := NewLimiter(LimiterOptions{Leaser: memstore.New()})
	defer l.Close()
	r, err := New(Source{AuthMap: `{"demo":"http://auth"}`, Settings: DefaultSettings})
	if err != nil {
		b.Fatal(err)
	}
	tt, _ := r.Get("demo")
	tt.Learn(&hookv1.TenantRuntimeConfig{TenantMaxMessageQps: 1 << 30, UserMaxMessageQps: proto.Int32(1 << 30)})
	b.ReportAllocs()
	for b.Loop() {
		l.AllowMessage(tt, "ann")
	}
}
