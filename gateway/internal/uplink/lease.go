package uplink

import "time"

// lease is what this gateway may believe of its own lease: it counts from when
// a request was sent, which is not later than when a router took it.
type lease struct {
	until  time.Time // zero: never had one
	fenced bool
}

// renewed takes an answer to a request that was sent then.
func (l *lease) renewed(sent time.Time, d time.Duration) {
	if t := sent.Add(d); t.After(l.until) {
		l.until = t
	}
}

// held reports whether a router holds the lease, as far as is known.
func (l *lease) held(now time.Time) bool { return now.Before(l.until) }

// change is what check found.
type change int

const (
	same change = iota
	fencedNow
	unfencedNow
)

// check compares with the clock. A gateway that never had a lease is not
// fenced: nobody sends it anything.
func (l *lease) check(now time.Time) change {
	switch out := !l.until.IsZero() && !l.held(now); {
	case out && !l.fenced:
		l.fenced = true
		return fencedNow
	case !out && l.fenced:
		l.fenced = false
		return unfencedNow
	}
	return same
}
