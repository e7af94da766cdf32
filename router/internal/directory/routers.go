package directory

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// arrival is how long routers need to announce themselves in a store that was away
// and has lost everything.
const arrival = 3 * refreshEvery

// early tells whether a first picture is not one yet: this router had started without the
// store, which has lost everything meanwhile, and the others may just be announcing
// themselves again. d.mu is held.
func (d *Directory) early(old *view, p picture, now time.Time) bool {
	if !old.read.IsZero() || !p.partial {
		return false
	}
	if old.err != nil {
		d.back = now
	}
	return now.Sub(d.back) < arrival
}

// Hear takes another router's word that it lives: one that has just started, or stood
// still for longer than its lease, is known here at once. Its lease is renewed; without
// the store its word is enough. It waits while the store is asked.
func (d *Directory) Hear(ctx context.Context, r route.Router) {
	if d.lists(r) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	d.mu.Lock()
	leaves := len(d.staying([]route.Router{r})) == 0
	d.mu.Unlock()
	if leaves || errors.Is(d.store.RenewRouter(ctx, r, Lease), route.ErrSuperseded) {
		return
	}
	d.refresh(ctx)
	d.mu.Lock()
	old := d.view.Load()
	believed := old.err != nil && !d.lists(r)
	if believed {
		d.seen[r.ID] = time.Now()
		routers := slices.DeleteFunc(slices.Clone(old.routers), func(o route.Router) bool { return o.ID == r.ID })
		routers = d.staying(append(routers, r))
		slices.SortFunc(routers, byID)
		d.show(old, routers)
	}
	d.mu.Unlock()
	if believed {
		d.changed()
	}
}

// lists tells whether this start of the router, or a later one, is in the picture.
func (d *Directory) lists(r route.Router) bool {
	return slices.ContainsFunc(d.Routers(), func(o route.Router) bool { return o.ID == r.ID && o.Incarnation >= r.Incarnation })
}

func byID(a, b route.Router) int { return cmp.Compare(a.ID, b.ID) }

// show makes these the routers of the picture, and nothing else of it. d.mu is held.
func (d *Directory) show(old *view, routers []route.Router) {
	v := *old
	v.routers = routers
	v.name(old)
	d.view.Store(&v)
}

// Left takes a router out of the picture that has said that it leaves. It waits
// while the store is asked, for a second at most.
func (d *Directory) Left(ref route.NodeRef) {
	d.mu.Lock()
	d.left[ref.ID] = max(d.left[ref.ID], ref.Incarnation)
	old := d.view.Load()
	routers := d.staying(old.routers)
	changed := len(routers) != len(old.routers)
	if changed {
		d.show(old, routers)
	}
	d.mu.Unlock()
	if changed {
		d.log.Info("router_left", "router", ref.ID)
		d.changed()
	}
}

// staying is routers without those that have said that they leave. d.mu is held.
func (d *Directory) staying(routers []route.Router) []route.Router {
	leaves := func(r route.Router) bool { at, ok := d.left[r.ID]; return ok && r.Incarnation <= at }
	if !slices.ContainsFunc(routers, leaves) {
		return routers
	}
	return slices.DeleteFunc(slices.Clone(routers), leaves)
}

// name ranks the view's routers.
func (v *view) name(old *view) {
	v.names = nil
	for _, r := range v.routers {
		v.names = append(v.names, r.ID)
	}
	if v.ring = old.ring; !slices.Equal(v.names, old.names) {
		v.ring++
	}
}

// drawRouters does the routers' part.
func (d *Directory) drawRouters(v, old *view, p picture, now time.Time) {
	v.routers = d.staying(p.routers)
	known := map[string]bool{}
	for _, r := range p.routers {
		known[r.ID] = true
		d.seen[r.ID] = now
	}
	if p.err == nil && !p.partial {
		for id, at := range d.left { // who is not listed any more does not come back
			if !slices.ContainsFunc(p.routers, func(r route.Router) bool { return r.ID == id && r.Incarnation <= at }) {
				delete(d.left, id)
			}
		}
	}
	if p.err != nil || p.partial {
		for _, r := range old.routers {
			if !known[r.ID] && (p.err != nil || r.ID == d.self.ID || now.Sub(d.seen[r.ID]) < Lease) {
				v.routers = append(v.routers, r)
			}
			if p.err != nil {
				d.seen[r.ID] = now
			}
		}
		slices.SortFunc(v.routers, byID)
	}
	v.name(old)
	for id := range d.seen {
		if !slices.Contains(v.names, id) {
			delete(d.seen, id)
		}
	}
}
