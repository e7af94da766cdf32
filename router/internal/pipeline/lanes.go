package pipeline

import (
	"hash/maphash"
	"sync"

	"github.com/mics-im/mics/router/internal/route"
)

const laneShards = 64

// laneKey names one connection.
type laneKey struct {
	gateway route.NodeRef
	session uint64
}

// lanes keep each connection's order between messages whose preparation
// overlaps. A lane exists only while something is under way on its connection.
type lanes struct {
	out    func(*message)
	seed   maphash.Seed
	shards [laneShards]laneShard
}

type laneShard struct {
	mu    sync.Mutex
	lanes map[laneKey]*lane // guarded by mu
}

// lane is guarded by its shard's mu.
type lane struct {
	queue []*message // in the connection's order
	// moving: somebody is taking messages out, so nobody else does.
	moving bool
}

// newLanes returns empty lanes; out is called for each message in its turn, one
// at a time within a lane.
func newLanes(out func(*message)) *lanes {
	l := &lanes{out: out, seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i].lanes = map[laneKey]*lane{}
	}
	return l
}

func (l *lanes) shard(k laneKey) *laneShard {
	return &l.shards[maphash.Comparable(l.seed, k)%laneShards]
}

// idle tells that nothing is under way in the lane.
func (l *lanes) idle(k laneKey) bool {
	s := l.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lanes[k] == nil
}

// enter puts m behind all that is in its lane.
func (l *lanes) enter(m *message) {
	s := l.shard(m.lane())
	s.mu.Lock()
	ln := s.lanes[m.lane()]
	if ln == nil {
		ln = &lane{}
		s.lanes[m.lane()] = ln
	}
	ln.queue = append(ln.queue, m)
	l.advance(s, m.lane(), ln)
}

// ready lets m out when its turn comes. It may be called again, and before m
// has entered.
func (l *lanes) ready(m *message) {
	s := l.shard(m.lane())
	s.mu.Lock()
	m.ready = true
	if ln := s.lanes[m.lane()]; ln != nil {
		l.advance(s, m.lane(), ln)
		return
	}
	s.mu.Unlock()
}

// advance lets out whatever has its turn, and unlocks s.
func (l *lanes) advance(s *laneShard, k laneKey, ln *lane) {
	if ln.moving {
		s.mu.Unlock()
		return
	}
	ln.moving = true
	for len(ln.queue) > 0 && ln.queue[0].ready {
		m := ln.queue[0]
		ln.queue[0] = nil
		ln.queue = ln.queue[1:]
		s.mu.Unlock()
		l.out(m)
		s.mu.Lock()
	}
	ln.moving = false
	if len(ln.queue) == 0 {
		delete(s.lanes, k)
	}
	s.mu.Unlock()
}

func (m *message) lane() laneKey { return laneKey{m.in.gateway, m.session} }
