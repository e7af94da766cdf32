package reaper

import (
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// grace is how long a lease must be seen lapsed, look after look, before its
// holder is buried. Leases that lapsed while the store was away, or while this
// process stood still, get that long to be renewed; a gateway that dies is
// buried within 3 s (lease) + 0.5 s (look) + 1.5 s + 0.5 s.
const grace = 1500 * time.Millisecond

// memory is what earlier looks have seen.
type memory struct {
	since map[route.NodeRef]time.Time // first of the looks in a row that saw it lapsed
	last  time.Time                   // when the last look ended
}

// decide returns which of the dead are to be cleaned up now, and what to
// remember. A lapsed one that living knows (it may have said so to this very
// router) is not.
func decide(m memory, dead []route.DeadNode, living func(route.NodeRef) bool, now time.Time) (memory, []route.DeadNode) {
	if now.Sub(m.last) > grace {
		// Who did not look for so long cannot tell who was silent.
		m.since = nil
	}
	next := memory{since: map[route.NodeRef]time.Time{}, last: now}
	var due []route.DeadNode
	for _, n := range dead {
		if n.Why != route.Lapsed {
			due = append(due, n)
			continue
		}
		if living(n.NodeRef) {
			continue
		}
		first, seen := m.since[n.NodeRef]
		if !seen {
			first = now
		}
		next.since[n.NodeRef] = first
		if now.Sub(first) >= grace {
			due = append(due, n)
		}
	}
	return next, due
}
