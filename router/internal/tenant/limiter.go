package tenant

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
)

// Kinds of limits, as in mics_rate_limited_total and the rate_limited log.
const (
	KindMessageQPS     = "message_qps"
	KindUserMessageQPS = "user_message_qps"
)

// Leaser hands out tokens of a tenant's bucket, which all routers share and
// which holds at most one second's worth; route.Store is one.
type Leaser interface {
	LeaseTokens(ctx context.Context, tenant string, rate, want int) (granted int, err error)
}

// LimiterOptions configure a Limiter.
type LimiterOptions struct {
	Leaser Leaser
	// Routers is how many routers share the tenants' rates; nil: one. It must not
	// block.
	Routers func() int
	// MaxUsers bounds the users whose rate is followed at once; 0: 131072. A user
	// is followed only until he has been silent for a second.
	MaxUsers int
	Log      *slog.Logger // nil: none
}

const (
	defaultMaxUsers = 1 << 17
	// leaseTimeout: a store slower than this counts as unavailable, because
	// messages come in meanwhile.
	leaseTimeout = 50 * time.Millisecond
	// storeRetry is how long rates are local after the store failed.
	storeRetry = time.Second
	// storeLogEvery bounds how often that is logged.
	storeLogEvery = 10 * time.Second
)

// Limiter holds message rates. Safe for concurrent use; nothing in it blocks on
// I/O but Close.
//
// A tenant's rate holds over all routers: each leases tokens in bulk, ahead of
// need and in the background, so that a message costs no call to the store and
// never waits for one. What that gives away:
//
//   - Before its first lease arrives (also: the first one after an idle time)
//     a router admits at most its share of one second's worth, and pays it back
//     from the leases that follow. So over any longer time the rate is exact,
//     and at once at most two seconds' worth pass.
//   - A router that falls silent keeps at most a tenth of a second's worth.
//   - A lease that was not granted in full says that the rate is used up: an
//     empty bucket then refuses at once, until the store has something again.
//   - With the store away each router admits up to the whole rate by itself: no
//     message is refused because of the store.
//
// A user's rate is local, because all of a user's messages pass his home router.
type Limiter struct {
	leaser  Leaser
	routers func() int
	log     *slog.Logger
	users   users

	ctx    context.Context // of leases; ends with Close
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool      // guarded by mu
	logged time.Time // guarded by mu: when a failure of the store was logged last
	wg     sync.WaitGroup
}

// NewLimiter returns a Limiter for the tenants of one registry; Close it.
func NewLimiter(o LimiterOptions) *Limiter {
	l := &Limiter{leaser: o.Leaser, routers: o.Routers, log: o.Log}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if l.routers == nil {
		l.routers = func() int { return 1 }
	}
	if o.MaxUsers <= 0 {
		o.MaxUsers = defaultMaxUsers
	}
	l.users.init(o.MaxUsers)
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Close ends leases that are under way and waits for them. Messages are still
// limited afterwards, locally.
func (l *Limiter) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.cancel()
	l.wg.Wait()
}

// AllowMessage takes one message of the user. If it is over a limit nothing is
// taken, and kind and limit (messages per second) say which one.
func (l *Limiter) AllowMessage(t *Tenant, user string) (ok bool, kind string, limit int) {
	now := time.Now()
	perUser, perTenant := t.UserMaxQPS(), t.MaxQPS()
	withinUser, withinTenant := true, true
	if perUser == 0 {
		withinTenant = l.takeTenant(t, perTenant, now)
	} else {
		withinUser = l.users.take(userKey{t, user}, perUser, now, func() bool {
			withinTenant = l.takeTenant(t, perTenant, now)
			return withinTenant
		})
	}
	switch {
	case !withinTenant:
		return false, KindMessageQPS, perTenant
	case !withinUser:
		return false, KindUserMessageQPS, perUser
	}
	return true, "", 0
}

// Forgotten counts users whose rate was forgotten before its time because
// MaxUsers was reached.
func (l *Limiter) Forgotten() int64 { return l.users.forgotten.Load() }

func (l *Limiter) takeTenant(t *Tenant, rate int, now time.Time) bool {
	if rate == 0 {
		return true
	}
	ok, want := t.bucket.take(rate, max(1, l.routers()), now)
	if want > 0 {
		l.lease(t, rate, want)
	}
	return ok
}

// lease asks the store in the background. At most one is under way for a
// tenant: bucket.take sees to it.
func (l *Limiter) lease(t *Tenant, rate, want int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		t.bucket.failed(time.Now())
		return
	}
	l.wg.Go(func() {
		ctx, cancel := context.WithTimeout(l.ctx, leaseTimeout)
		defer cancel()
		granted, err := l.leaser.LeaseTokens(ctx, t.name, rate, want)
		if err != nil {
			t.bucket.failed(time.Now())
			l.complain(t, err)
			return
		}
		t.bucket.granted(granted, want, time.Now())
	})
}

func (l *Limiter) complain(t *Tenant, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || (!l.logged.IsZero() && time.Since(l.logged) < storeLogEvery) {
		return
	}
	l.logged = time.Now()
	l.log.Warn("rate_lease_failed", telemetry.TenantID, t.name, "err", err)
}
