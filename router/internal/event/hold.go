package event

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Locks are locks over all routers (route.Store).
type Locks interface {
	// Lock takes the named lock for ttl, or prolongs it if owner holds it; false:
	// somebody else does.
	Lock(ctx context.Context, name, owner string, ttl time.Duration) (bool, error)
	// Unlock gives it back if owner holds it.
	Unlock(ctx context.Context, name, owner string) error
}

// Errors of the lock of a redrive; compare with errors.Is.
var (
	// ErrRedriving: another redrive of the tenant is under way, through this router
	// or another one.
	ErrRedriving = errors.New("the tenant's dead letters are being redriven already")
	// ErrNoLock: it cannot be told whether one is, because who keeps the locks does
	// not answer. Nothing was sent.
	ErrNoLock = errors.New("it is not known whether the tenant's dead letters are being redriven already")
	// ErrLeaseLost: the lock could not be prolonged in time, and somebody else may
	// redrive by now. It ended early; how far it came within the last second is not
	// remembered.
	ErrLeaseLost = errors.New("the lock of the redrive was lost")
)

const (
	// redriveLease is how long others wait for a router that died in a redrive.
	redriveLease = 10 * time.Second
	// renewEvery leaves room for three attempts of a second each.
	renewEvery = 2 * time.Second
	// trusted is how long after a renewal its holder relies on the lock; the rest
	// is for clocks that go differently, and for what it has begun to send.
	trusted = redriveLease - 2*time.Second
)

// hold is a lock being held and renewed.
type hold struct {
	// ctx ends with the caller's, and when the lock is lost: then its cause is
	// ErrLeaseLost.
	ctx context.Context

	locks       Locks
	name, owner string
	cancel      context.CancelCauseFunc
	renewing    sync.WaitGroup

	mu    sync.Mutex
	until time.Time // guarded by mu: relied on before
}

// hold takes the tenant's lock and keeps it until release.
func (p *Publisher) hold(ctx context.Context, tenant string) (*hold, error) {
	// An owner of its own for each: two redrives in one process are two.
	h := &hold{locks: p.opts.Locks, name: "redrive/" + tenant, owner: rand.Text()}
	if ok, err := h.renew(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoLock, err)
	} else if !ok {
		return nil, ErrRedriving
	}
	h.ctx, h.cancel = context.WithCancelCause(ctx)
	h.renewing.Go(h.keep)
	return h, nil
}

// renew asks for the lock once.
func (h *hold) renew(ctx context.Context) (ok bool, err error) {
	began := time.Now()
	if ok, err = h.locks.Lock(ctx, h.name, h.owner, redriveLease); ok && err == nil {
		h.mu.Lock()
		h.until = began.Add(trusted)
		h.mu.Unlock()
	}
	return ok, err
}

// lost tells whether the lock must not be relied on any more. It looks at the
// clock: this process may have stood still.
func (h *hold) lost() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return errors.Is(context.Cause(h.ctx), ErrLeaseLost) || !time.Now().Before(h.until)
}

func (h *hold) keep() {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-tick.C:
		}
		// An old lock is not taken again: somebody else may have had it meanwhile.
		if h.lost() {
			h.cancel(ErrLeaseLost)
			return
		}
		if ok, err := h.renew(h.ctx); err == nil && !ok {
			h.cancel(ErrLeaseLost)
			return
		}
	}
}

// release gives the lock back.
func (h *hold) release() {
	h.cancel(nil)
	h.renewing.Wait()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.ctx), time.Second)
	defer cancel()
	_ = h.locks.Unlock(ctx, h.name, h.owner) // else it runs out by itself
}
