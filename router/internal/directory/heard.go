package directory

import (
	"sync"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// heard is what gateways have said to this very router. The zero value is ready;
// safe for concurrent use.
type heard struct {
	mu sync.Mutex
	by map[route.NodeRef]word // guarded by mu
}

type word struct {
	node route.Node
	at   time.Time
}

func (h *heard) note(n route.Node, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.by == nil {
		h.by = map[route.NodeRef]word{}
	}
	h.by[n.NodeRef] = word{n, now}
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
