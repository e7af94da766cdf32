package registry

import (
	"sync"
	"time"

	"github.com/mics-im/mics/gateway/internal/session"
)

const (
	// graveLife is how long a session that took deliveries is remembered after it
	// has left the table. A router whose stream broke is back within a second, or
	// its lease ends.
	graveLife = 10 * time.Second
	// maxGraves bounds them; the oldest goes.
	maxGraves = 8192
)

// graves remember what gone sessions took, for resends.
type graves struct {
	mu    sync.Mutex
	byID  map[uint64]*session.Session // guarded by mu
	queue []grave                     // guarded by mu: oldest first
}

type grave struct {
	id    uint64
	since time.Time
}

func (g *graves) init() { g.byID = map[uint64]*session.Session{} }

func (g *graves) add(s *session.Session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.byID[s.ID()] = s
	g.queue = append(g.queue, grave{s.ID(), time.Now()})
	if len(g.queue) > maxGraves {
		delete(g.byID, g.queue[0].id)
		g.queue = g.queue[1:]
	}
}

func (g *graves) get(id uint64) *session.Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.byID[id]
}

// expire drops the old ones.
func (g *graves) expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for n < len(g.queue) && time.Since(g.queue[n].since) > graveLife {
		delete(g.byID, g.queue[n].id)
		n++
	}
	if n > 0 {
		g.queue = append([]grave(nil), g.queue[n:]...)
	}
}
