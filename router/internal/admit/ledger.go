package admit

import (
	"sync"
	"time"

	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	// remembered is how long an admission can be repeated or taken back: longer
	// than a gateway goes on asking.
	remembered = 15 * time.Second
	// maxRemembered bounds the table; the oldest goes first.
	maxRemembered = 1 << 17
)

// ledger remembers what became of the openings of late. A gateway that got no
// answer asks again, and gets the same answer: the same epoch, the same backlog
// under the same ids. Or it gives up and says never_opened, possibly before the
// opening has come to its end here: then it comes to nothing.
type ledger struct {
	forgot func()

	mu      sync.Mutex
	entries map[route.Location]*entry // guarded by mu
	order   []*entry                  // guarded by mu: oldest first
}

// entry is guarded by its ledger's mu.
type entry struct {
	loc       route.Location
	at        time.Time
	key       route.DeviceKey // whose admission has begun here; zero: none
	bound     time.Time       // when its route was; zero: it was not
	abandoned bool
	handed    bool       // its window went to the next session of its device
	admitted  *admission // nil: not (yet) admitted
}

// admission is one that was answered, or is about to be; immutable.
type admission struct {
	opening
	epoch uint64
	res   *routerv1.AdmitResponse
	// frozen is since when the session that goes on has been frozen; zero: none.
	frozen time.Time
}

func newLedger(forgot func()) *ledger {
	return &ledger{forgot: forgot, entries: map[route.Location]*entry{}}
}

// get returns the location's entry, a new one if there is none. mu is held.
func (l *ledger) get(loc route.Location) *entry {
	now := time.Now()
	for len(l.order) > 0 && (now.Sub(l.order[0].at) > remembered || len(l.order) >= maxRemembered) {
		oldest := l.order[0]
		if l.entries[oldest.loc] == oldest { // not where handedOver has put a later one
			if now.Sub(oldest.at) <= remembered {
				l.forgot()
			}
			delete(l.entries, oldest.loc)
		}
		l.order[0] = nil
		l.order = l.order[1:]
	}
	e := l.entries[loc]
	if e == nil {
		e = &entry{loc: loc, at: now}
		l.entries[loc] = e
		l.order = append(l.order, e)
	}
	return e
}

// begin is for the start of an admission, under the user's lock: it returns what is known
// of the opening already.
func (l *ledger) begin(loc route.Location, key route.DeviceKey) (admitted *admission, abandoned bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.get(loc)
	if e.admitted == nil && !e.abandoned {
		e.key = key
	}
	return e.admitted, e.abandoned
}

// bind notes that the opening's route is bound: routers send to the session from now on.
func (l *ledger) bind(loc route.Location, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.get(loc).bound = at
}

// look returns the admission, if it is complete and not undone, and when its route was
// bound; zero: it was not.
func (l *ledger) look(loc route.Location) (admitted *admission, bound time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.entries[loc]; e != nil {
		return e.admitted, e.bound
	}
	return nil, time.Time{}
}

// admit notes an admission; false: it has been given up meanwhile.
func (l *ledger) admit(a *admission) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.get(a.loc)
	e.admitted = a
	return !e.abandoned
}

// abandon gives an opening up and returns whose it is, if its admission has begun here.
func (l *ledger) abandon(loc route.Location) (key route.DeviceKey, begun bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.get(loc)
	e.abandoned = true
	return e.key, e.key != route.DeviceKey{}
}

// forget drops the admission: the session is known to have been opened, or has
// been taken back. That it was abandoned stays known.
func (l *ledger) forget(loc route.Location) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.entries[loc]; e != nil {
		e.admitted = nil
	}
}

// handedOver notes that the session's window went to the next session of its device,
// which is remembered from now on.
func (l *ledger) handedOver(loc route.Location) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := *l.get(loc)
	e.at, e.admitted, e.handed = time.Now(), nil, true
	l.entries[loc] = &e
	l.order = append(l.order, &e)
}

// wasHandedOver tells whether what the session hands back at its end is known to be
// with the next one already.
func (l *ledger) wasHandedOver(loc route.Location) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[loc]
	return e != nil && e.handed
}
