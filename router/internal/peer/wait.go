package peer

import "sync"

// wait waits until copies were made, or not.
type wait struct {
	mu     sync.Mutex
	left   int  // guarded by mu
	single bool // guarded by mu
	done   chan struct{}
}

func newWait() *wait { return &wait{left: 1, done: make(chan struct{})} }

func (w *wait) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left++
}

// finish ends one hold; copied tells whether there are two copies.
func (w *wait) finish(copied bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left--
	w.single = w.single || !copied
	if w.left == 0 {
		close(w.done)
	}
}

// result ends the wait: whether everything has two copies.
func (w *wait) result() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.left == 0 && !w.single
}
