package dispatch

import "sync"

// outcome is a set of what happened to a user's copies.
type outcome uint8

const (
	delivered outcome = 1 << iota
	buffered
	skipped
)

// tracker waits for all copies of one job and then tells the result. Whoever
// puts a copy somewhere holds it and finishes it later. A nil tracker is that of
// a copy whose job has been told already.
type tracker struct {
	done func(Result)
	all  int // the index that stands for no user

	mu      sync.Mutex
	held    int       // guarded by mu
	users   []outcome // guarded by mu
	room    int       // guarded by mu: users that may still be buffered
	bounded bool
}

// newTracker returns a tracker that is held once, by its job.
func newTracker(users, maxBuffered int, done func(Result)) *tracker {
	return &tracker{done: done, all: users, held: 1, users: make([]outcome, users+1), room: maxBuffered, bounded: maxBuffered > 0}
}

func (t *tracker) hold() {
	if t == nil {
		return
	}
	t.mu.Lock()
	t.held++
	t.mu.Unlock()
}

func (t *tracker) note(user int, o outcome) {
	if t == nil {
		return
	}
	t.mu.Lock()
	t.users[user] |= o
	t.mu.Unlock()
}

// mayBuffer takes one of the places for absent users.
func (t *tracker) mayBuffer() bool {
	if t == nil {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.bounded {
		return true
	}
	t.room--
	return t.room >= 0
}

// finish notes an outcome (0: none) and gives one hold back.
func (t *tracker) finish(user int, o outcome) {
	if t == nil {
		return
	}
	t.mu.Lock()
	t.users[user] |= o
	t.held--
	last := t.held == 0
	var r Result
	if last {
		for _, u := range t.users[:t.all] {
			switch {
			case u&delivered != 0:
				r.Delivered++
			case u&buffered != 0:
				r.Buffered++
			default:
				r.Skipped++
			}
		}
	}
	t.mu.Unlock()
	if last && t.done != nil {
		t.done(r)
	}
}
