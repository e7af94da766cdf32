package session

import (
	"sync"
	"sync/atomic"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// Delivery ids with the highest bit set are those of backlogs, a sequence of
// their own (gateway.proto, Confirm).
const (
	backlogIDs = uint64(1) << 63
	// LastLive and LastBacklog are the highest ids of the two sequences.
	LastLive    = backlogIDs - 1
	LastBacklog = 1<<64 - 1
)

// Router is one start of one router, as its deliveries and their confirms know
// it. It outlives its streams: a confirm for which there is no stream is not
// kept, because the next stream asks for it (DeliverRequest.confirm_sessions).
// Safe for concurrent use.
type Router struct {
	Ref RouterRef
	// Process is held while a batch of its deliveries is given to sessions, so
	// that a stream that is being replaced and its successor do not mix.
	Process sync.Mutex
	// processed is the highest delivery id that has been given to sessions.
	processed atomic.Uint64

	mu       sync.Mutex
	wake     chan<- struct{}     // guarded by mu: of the attached stream; nil: none
	confirms map[sequence]uint64 // guarded by mu: the latest of each
}

// sequence is what a Confirm is cumulative over.
type sequence struct {
	session uint64
	backlog bool
}

// Router returns the one with the name, which is made if it is new.
func (h *Host) Router(ref RouterRef) *Router {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.routers[ref]
	if r == nil {
		r = &Router{Ref: ref, confirms: map[sequence]uint64{}}
		h.routers[ref] = r
		h.forgetBefore(ref)
	}
	return r
}

// forgetBefore drops earlier starts of a router that have no stream: they never
// come back. The host is locked.
func (h *Host) forgetBefore(ref RouterRef) {
	for old, r := range h.routers {
		if old.ID == ref.ID && old.Incarnation < ref.Incarnation && !r.attached() {
			delete(h.routers, old)
		}
	}
}

func (r *Router) attached() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wake != nil
}

// Attach makes wake, of capacity 1, the channel that is signalled when there is
// something to Take; it replaces another stream's.
func (r *Router) Attach(wake chan<- struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wake = wake
	clear(r.confirms)
}

// Detach undoes Attach, unless another stream has replaced this one.
func (r *Router) Detach(wake chan<- struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wake == wake {
		r.wake = nil
		clear(r.confirms)
	}
}

// Processed says that sessions have been given the delivery.
func (r *Router) Processed(id uint64) {
	if id > r.processed.Load() {
		r.processed.Store(id)
	}
}

// Post sets what a session confirms; through says by its highest bit of which
// sequence. A later Post of the same sequence replaces an earlier one that has
// not been taken, also when it is lower: the map is bounded by the sessions.
func (r *Router) Post(session, through uint64) {
	r.mu.Lock()
	wake := r.wake
	if wake != nil {
		r.confirms[sequence{session, through >= backlogIDs}] = through
	}
	r.mu.Unlock()
	signal(wake)
}

func signal(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}: // not if it is nil
	default:
	}
}

// Take returns at most limit confirms for the attached stream whose wake it is.
func (r *Router) Take(wake chan<- struct{}, limit int) []*gatewayv1.Confirm {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wake != wake || len(r.confirms) == 0 {
		return nil
	}
	confirms := make([]*gatewayv1.Confirm, 0, min(limit, len(r.confirms)))
	for at, through := range r.confirms {
		if len(confirms) == limit {
			break
		}
		confirms = append(confirms, &gatewayv1.Confirm{SessionId: at.session, ThroughId: through})
		delete(r.confirms, at)
	}
	return confirms
}
