package session

import (
	"slices"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// Orphans are deliveries of one session that nobody keeps a copy of any more.
type Orphans struct {
	Session *Session
	// Later: the session is being opened, and its user not known yet; ask again.
	Later      bool
	deliveries []*Delivery
}

// Size is how many there are, and the bytes of their messages.
func (o Orphans) Size() (n, bytes int) {
	for _, d := range o.deliveries {
		bytes += len(d.message)
	}
	return len(o.deliveries), bytes
}

// Messages are the orphans as they are given to a new keeper.
func (o Orphans) Messages() []*gatewayv1.Undelivered {
	out := make([]*gatewayv1.Undelivered, len(o.deliveries))
	for i, d := range o.deliveries {
		out[i] = d.undelivered()
	}
	return out
}

// Orphans returns what the window holds whose keepers are all gone, in order;
// none of a session that is being handed back.
func (s *Session) Orphans(gone func(RouterRef) bool) Orphans {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := Orphans{Session: s}
	if s.phase == ended || s.frozen {
		return o
	}
	lost := false
	for i := range s.win.sources {
		lost = lost || gone(s.win.sources[i].router.Ref)
	}
	if !lost {
		return o
	}
	if s.phase == opening {
		o.Later = true
		return o
	}
next:
	for i := range s.win.entries {
		e := &s.win.entries[i]
		for d := range e.all {
			if !gone(d.router.Ref) {
				continue next
			}
		}
		o.deliveries = append(o.deliveries, e.d)
	}
	return o
}

// Adopt makes home the keeper of the orphans, under one id each. What has been
// confirmed meanwhile is confirmed to it.
func (o Orphans) Adopt(home *Router, ids []uint64) {
	s := o.Session
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, d := range o.deliveries {
		s.win.took(home, ids[n])
		copied := *d
		copied.router, copied.id = home, ids[n]
		i := slices.IndexFunc(s.win.entries, func(e entry) bool { return e.d == d })
		if i < 0 {
			s.win.change(&copied)
			continue
		}
		e := &s.win.entries[i]
		e.d, e.also = &copied, nil
	}
	s.win.tell(s.id)
	if s.gone {
		home.Post(s.id, LastBacklog)
	}
}
