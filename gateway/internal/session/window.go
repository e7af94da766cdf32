package session

import "math"

// unsent is the position of what will not be written, or not yet.
const unsent = math.MaxInt64

// window holds what a session has accepted and not confirmed, in the order in
// which the device gets it. It is not safe for concurrent use.
//
// A position says where a delivery is in what the session writes: for V1 the
// number of bytes up to its end, for V2 its seq. So one comparison confirms.
type window struct {
	entries []entry
	bytes   int // of their messages
	sources []source
}

type entry struct {
	d   *Delivery
	end int64 // position
	// also is the same message from other routers, which keep their copies
	// until it is confirmed, too.
	also *also
}

type also struct {
	d    *Delivery
	next *also
}

// source is a router of which the session has taken something.
type source struct {
	router *Router
	// live and backlog are the highest ids taken of the two sequences; 0: none.
	// They are apart because a delivery may arrive after the backlog of a session
	// although it was sent before.
	live, backlog               uint64
	changedLive, changedBacklog bool
}

func (w *window) source(r *Router) *source {
	for i := range w.sources {
		if w.sources[i].router == r {
			return &w.sources[i]
		}
	}
	return nil
}

// took notes that the id was taken.
func (w *window) took(r *Router, id uint64) {
	src := w.source(r)
	if src == nil {
		w.forgetBefore(r.Ref)
		w.sources = append(w.sources, source{router: r})
		src = &w.sources[len(w.sources)-1]
	}
	if id >= backlogIDs {
		src.backlog = max(src.backlog, id)
	} else {
		src.live = max(src.live, id)
	}
}

// forgetBefore drops earlier starts of the router of which nothing is here.
func (w *window) forgetBefore(ref RouterRef) {
	kept := w.sources[:0]
	for _, src := range w.sources {
		old := src.router.Ref
		if old.ID != ref.ID || old.Incarnation >= ref.Incarnation || w.holds(src.router) {
			kept = append(kept, src)
		}
	}
	clear(w.sources[len(kept):])
	w.sources = kept
}

func (w *window) holds(r *Router) bool {
	for i := range w.entries {
		for d := range w.entries[i].all {
			if d.router == r {
				return true
			}
		}
	}
	return false
}

// all are the deliveries of the entry.
func (e *entry) all(yield func(*Delivery) bool) {
	if !yield(e.d) {
		return
	}
	for a := e.also; a != nil; a = a.next {
		if !yield(a.d) {
			return
		}
	}
}

// add appends a delivery, which was noted with took.
func (w *window) add(d *Delivery, end int64) {
	w.entries = append(w.entries, entry{d: d, end: end})
	w.bytes += len(d.message)
}

// join adds a repeat to the entry that has its key; false when there is none.
func (w *window) join(d *Delivery) bool {
	for i := range w.entries {
		if e := &w.entries[i]; e.d.key == d.key {
			e.also = &also{d, e.also}
			return true
		}
	}
	return false
}

// confirm drops what ends at the position or before it, and marks the sources.
func (w *window) confirm(pos int64) (any bool) {
	n := 0
	for n < len(w.entries) && w.entries[n].end <= pos {
		for d := range w.entries[n].all {
			w.change(d)
		}
		w.bytes -= len(w.entries[n].d.message)
		n++
	}
	if n > 0 {
		rest := copy(w.entries, w.entries[n:])
		clear(w.entries[rest:])
		w.entries = w.entries[:rest]
	}
	return n > 0
}

// change marks the delivery's sequence: its confirm is to be told.
func (w *window) change(d *Delivery) {
	src := w.source(d.router)
	if d.id >= backlogIDs {
		src.changedBacklog = true
	} else {
		src.changedLive = true
	}
}

// changeAll marks every sequence of which something was taken.
func (w *window) changeAll() {
	for i := range w.sources {
		src := &w.sources[i]
		src.changedLive, src.changedBacklog = src.live > 0, src.backlog > 0
	}
}

// tell posts the confirms of the marked sequences.
func (w *window) tell(session uint64) {
	for i := range w.sources {
		src := &w.sources[i]
		if !src.changedLive && !src.changedBacklog {
			continue
		}
		live, backlog := w.through(src)
		if src.changedLive {
			src.router.Post(session, live)
		}
		if src.changedBacklog {
			src.router.Post(session, backlog)
		}
		src.changedLive, src.changedBacklog = false, false
	}
}

// through is what is confirmed to a router: all before the first that is not. Of
// the whole window, because the ids of one router need not rise in it (join).
func (w *window) through(src *source) (live, backlog uint64) {
	live, backlog = src.live, max(src.backlog, backlogIDs)
	for i := range w.entries {
		for d := range w.entries[i].all {
			switch {
			case d.router != src.router:
			case d.id >= backlogIDs:
				backlog = min(backlog, max(d.id-1, backlogIDs))
			default:
				live = min(live, d.id-1)
			}
		}
	}
	return live, backlog
}

// cut gives up the writing of what begins after the position.
func (w *window) cut(sent int64) {
	for i := range w.entries {
		if e := &w.entries[i]; e.end > sent {
			e.end = unsent
		}
	}
}

// underWay says that something was written, or is, and is not confirmed.
func (w *window) underWay(sent int64) bool {
	return len(w.entries) > 0 && w.entries[0].end <= sent
}

// take empties the window and returns what was in it.
func (w *window) take() []entry {
	entries := w.entries
	w.entries, w.bytes = nil, 0
	return entries
}
