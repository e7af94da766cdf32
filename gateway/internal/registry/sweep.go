package registry

import (
	"sync"
	"time"

	"github.com/mics-im/mics/gateway/internal/session"
)

const (
	// sweepEvery is how soon a confirm or a deadline of closing is noticed.
	// Nothing is swept while no session asks for it.
	sweepEvery = 25 * time.Millisecond
	// tickEvery is how soon silence is.
	tickEvery = time.Second
)

// sweeper is the one goroutine that keeps the deadlines of all sessions.
type sweeper struct {
	r    *Registry
	wake chan struct{} // capacity 1: watched was empty
	quit chan struct{}
	done sync.WaitGroup
	once sync.Once

	mu      sync.Mutex
	watched []*session.Session // guarded by mu
}

func (w *sweeper) init(r *Registry) {
	w.r, w.wake, w.quit = r, make(chan struct{}, 1), make(chan struct{})
}

func (w *sweeper) start() { w.done.Go(w.run) }

func (w *sweeper) stop() {
	w.once.Do(func() { close(w.quit) })
	w.done.Wait()
}

func (w *sweeper) watch(s *session.Session) {
	w.mu.Lock()
	w.watched = append(w.watched, s)
	first := len(w.watched) == 1
	w.mu.Unlock()
	if first {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (w *sweeper) run() {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	sweep := time.NewTimer(sweepEvery)
	defer sweep.Stop()
	var spare []*session.Session
	for {
		select {
		case <-w.quit:
			return
		case <-tick.C:
			w.r.Walk(func(s *session.Session) bool { s.Tick(); return true })
			w.r.graves.expire()
		case <-w.wake:
			sweep.Reset(sweepEvery)
		case <-sweep.C:
			spare = w.pass(spare)
		}
	}
}

// pass sweeps what was watched, and keeps what goes on being.
func (w *sweeper) pass(spare []*session.Session) []*session.Session {
	w.mu.Lock()
	list := w.watched
	w.watched = spare[:0]
	w.mu.Unlock()
	kept := 0
	for _, s := range list {
		if s.Sweep() {
			list[kept] = s
			kept++
		}
	}
	again := list[:kept]
	w.mu.Lock()
	w.watched = append(w.watched, again...)
	w.mu.Unlock()
	clear(list)
	if kept > 0 {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	return list
}
