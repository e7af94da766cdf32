package directory

import (
	"sync"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// heard is what gateways have said to this very router. The zero value is ready;
// safe for concurrent use.
type heard struct {
	mu   sync.Mutex
	by   map[route.NodeRef]word // guarded by mu
	last time.Time              // guarded by mu: of the latest word of anybody
	back time.Time              // guarded by mu: when somebody spoke after a time without any
}

// deafAfter is how long nobody may speak until it is this router that does not hear:
// gateways renew their leases three times as often as they have to.
const deafAfter = Lease / 2

type word struct {
	node route.Node
	at   time.Time
}

// note takes a gateway's word, and tells whether it ends a time in which nobody was heard.
func (h *heard) note(n route.Node, now time.Time) (restored bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.by == nil {
		h.by = map[route.NodeRef]word{}
	}
	h.by[n.NodeRef] = word{n, now}
	restored = now.Sub(h.last) > deafAfter && !h.last.IsZero()
	if restored {
		h.back = now
	}
	h.last = now
	return restored
}

// deaf tells whether nobody has been heard for a while; restored, that somebody is heard
// again, not long enough for the silence of others to mean anything.
func (h *heard) deaf(now time.Time) (deaf, restored bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return now.Sub(h.last) > deafAfter, now.Sub(h.back) < Lease
}

// forget tells whether there was something to forget.
func (h *heard) forget(ref route.NodeRef) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.by[ref]
	delete(h.by, ref)
	return ok
}

func (h *heard) lives(ref route.NodeRef, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	w, ok := h.by[ref]
	return ok && now.Sub(w.at) < Lease
}

// living returns those whose lease has not run out, and forgets the others.
func (h *heard) living(now time.Time) []route.Node {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []route.Node
	for ref, w := range h.by {
		if now.Sub(w.at) >= Lease {
			delete(h.by, ref)
		} else {
			out = append(out, w.node)
		}
	}
	return out
}
