package away

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	// askTimeout bounds one call to a gateway or a router.
	askTimeout = time.Second
	// maxWaiting bounds the users that wait for one gateway's or router's next
	// answer; further questions fail.
	maxWaiting = 1 << 14
)

// asker asks one process about users, many at a time: what comes while a call is
// under way goes along with the next one. Safe for concurrent use.
type asker struct {
	call     func(ctx context.Context, keys []route.UserKey) (map[route.UserKey]answer, error)
	life     context.Context // of its owner
	spawn    func(func())    // starts a goroutine that the owner waits for
	overflow *telemetry.Counter

	mu      sync.Mutex
	next    *batch // guarded by mu: has not been asked yet; nil: nobody waits
	running bool   // guarded by mu
}

// answer is what a process says of one user.
type answer struct {
	records []route.Record
	// whole: nobody knows of another device. Gateways do not say so.
	whole bool
}

// batch is one call's; all but keys is written before done is closed.
type batch struct {
	keys  map[route.UserKey]struct{}
	done  chan struct{}
	found map[route.UserKey]answer
	err   error
}

// ask returns what the process knows of at least these users, or ctx's error. The
// answers are shared and must not be modified.
func (a *asker) ask(ctx context.Context, keys []route.UserKey) (map[route.UserKey]answer, error) {
	a.mu.Lock()
	b := a.next
	if b == nil {
		b = &batch{keys: map[route.UserKey]struct{}{}, done: make(chan struct{})}
		a.next = b
	}
	if len(b.keys) > 0 && len(b.keys)+len(keys) > maxWaiting {
		a.mu.Unlock()
		a.overflow.Add(int64(len(keys)))
		return nil, fmt.Errorf("%w: too many users are being asked for", route.ErrUnavailable)
	}
	for _, k := range keys {
		b.keys[k] = struct{}{}
	}
	start := !a.running
	a.running = true
	a.mu.Unlock()
	if start {
		a.spawn(a.run)
	}
	select {
	case <-b.done:
		return b.found, b.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// run makes calls until nobody waits.
func (a *asker) run() {
	for {
		a.mu.Lock()
		b := a.next
		a.next = nil
		if b == nil {
			a.running = false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		keys := make([]route.UserKey, 0, len(b.keys))
		for k := range b.keys {
			keys = append(keys, k)
		}
		ctx, cancel := context.WithTimeout(a.life, askTimeout)
		b.found, b.err = a.call(ctx, keys)
		cancel()
		close(b.done)
	}
}

// askers are one asker per process, made when it is needed.
type askers struct {
	mu sync.Mutex
	by map[route.NodeRef]*asker // guarded by mu
}

func (a *askers) get(ref route.NodeRef, create func() *asker) *asker {
	a.mu.Lock()
	defer a.mu.Unlock()
	one := a.by[ref]
	if one == nil {
		one = create()
		if a.by == nil {
			a.by = map[route.NodeRef]*asker{}
		}
		a.by[ref] = one
	}
	return one
}

// keep forgets all others.
func (a *askers) keep(living func(route.NodeRef) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for ref := range a.by {
		if !living(ref) {
			delete(a.by, ref)
		}
	}
}

// flights lets callers share a check: a caller gets the result of one that began
// after it came. Safe for concurrent use.
type flights struct {
	turn chan struct{} // capacity 1: full during a check
	mu   sync.Mutex
	next *flight // guarded by mu: has not begun
}

type flight struct {
	done chan struct{}
	ok   bool // written before done is closed
}

func newFlights() flights { return flights{turn: make(chan struct{}, 1)} }

// do may use any waiting caller's check for all of them.
func (f *flights) do(check func() bool) bool {
	f.mu.Lock()
	mine := f.next
	lead := mine == nil
	if lead {
		mine = &flight{done: make(chan struct{})}
		f.next = mine
	}
	f.mu.Unlock()
	if !lead {
		<-mine.done
		return mine.ok
	}
	f.turn <- struct{}{}
	f.mu.Lock()
	f.next = nil
	f.mu.Unlock()
	mine.ok = check()
	<-f.turn
	close(mine.done)
	return mine.ok
}
