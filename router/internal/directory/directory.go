// Package directory keeps a router's picture of who is alive: gateways by the
// leases that they renew through any router, and routers by their own.
package directory

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/internal/ring"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	// Lease is how long a node lives without a word (DESIGN section 4).
	Lease = 3 * time.Second
	// refreshEvery bounds how late another router's news arrives.
	refreshEvery = 500 * time.Millisecond
	// takeOver is how long after the end of its lease a router may still be in others'
	// pictures: they look every refreshEvery, and while the store may lack some they
	// count a lease from when they saw it last.
	takeOver = 2 * refreshEvery
	// maxStrangers bounds the remembered references to nodes that are not there.
	maxStrangers = 4096
	storeTimeout = time.Second
)

// Store is what the directory needs of the route store. An answer of Nodes or
// Routers with route.ErrPartial may lack some.
type Store interface {
	RenewNode(ctx context.Context, n route.Node, lease time.Duration) error
	RemoveNode(ctx context.Context, n route.NodeRef) error
	Nodes(ctx context.Context) ([]route.Node, error)
	RenewRouter(ctx context.Context, r route.Router, lease time.Duration) error
	RemoveRouter(ctx context.Context, r route.NodeRef) error
	Routers(ctx context.Context) ([]route.Router, error)
}

// Directory is safe for concurrent use.
type Directory struct {
	store   Store
	self    route.Router
	log     *slog.Logger
	changed func()
	lapsed  func(taken bool)

	view  atomic.Pointer[view]
	heard heard

	mu        mutex                       // serialises refreshes
	seen      map[string]time.Time        // guarded by mu: when routers were in the store last
	listed    map[route.NodeRef]time.Time // guarded by mu: the same of gateways
	gone      map[route.NodeRef]struct{}  // guarded by mu: left the picture, by the store's word
	missed    map[route.NodeRef]struct{}  // guarded by mu: gateways that left the picture, whyever
	left      map[string]uint64           // guarded by mu: incarnations of routers that have said so, which the store may still list
	renewed   time.Time                   // guarded by mu: when the last renewal that succeeded began
	strangers map[route.NodeRef]struct{}  // guarded by mu: looked up afresh and not found
	back      time.Time                   // guarded by mu: when the store was there again before the first picture
	unsaid    bool                        // guarded by mu: Alive saw a change that changed has not been called for
	cancel    context.CancelFunc
	done      chan struct{}
}

// mutex is held while the store is asked, for a second at most.
type mutex chan struct{}

func (m mutex) Lock()   { m <- struct{}{} }
func (m mutex) Unlock() { <-m }

// view is one immutable picture.
type view struct {
	gateways map[route.NodeRef]route.Node
	list     []route.Node
	routers  []route.Router
	names    []string  // of routers, for the ring
	ring     uint64    // counts the changes of names
	returns  uint64    // counts the gateways that were not in a picture and are again
	err      error     // of the refresh; the picture is an earlier one then
	read     time.Time // when the last refresh began that had no error
}

// New returns a directory that knows nobody but this router. changed is called
// within refreshEvery of every change of the picture, of gateways or of routers;
// lapsed when this router did not renew its lease in time. taken: it stood still, and
// others have counted it as dead, and taken over; it is told before it takes the lease
// again. Else it could not reach the store, which others may have reached, or is heard
// again and still cannot reach it, or has just read its first picture, and was in nobody's
// before. It must not block nor call back.
func New(store Store, self route.Router, log *slog.Logger, changed func(), lapsed func(taken bool)) *Directory {
	d := &Directory{
		store: store, self: self, log: log, changed: changed, lapsed: lapsed, mu: make(mutex, 1), done: make(chan struct{}), strangers: map[route.NodeRef]struct{}{},
		seen: map[string]time.Time{}, listed: map[route.NodeRef]time.Time{}, gone: map[route.NodeRef]struct{}{}, missed: map[route.NodeRef]struct{}{}, left: map[string]uint64{},
	}
	d.view.Store(&view{routers: []route.Router{self}, names: []string{self.ID}})
	return d
}

// Start announces this router and keeps the picture fresh until Stop.
func (d *Directory) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	d.refresh(ctx)
	go func() {
		defer close(d.done)
		tick := time.NewTicker(refreshEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				d.refresh(ctx)
			case <-ctx.Done():
				return
			}
		}
	}()
}

// Stop ends the refreshes and takes this router out of the directory.
func (d *Directory) Stop(ctx context.Context) error {
	d.cancel()
	<-d.done
	return d.store.RemoveRouter(ctx, d.self.NodeRef)
}

// Refresh reads the picture afresh; it waits for the store, for a second at most.
func (d *Directory) Refresh(ctx context.Context) { d.refresh(ctx) }

// refresh renews this router's lease and reads the picture. When the store is
// away the routers stay, for forgetting them would move every user, and gateways
// live by what they say here.
func (d *Directory) refresh(ctx context.Context) {
	d.mu.Lock()
	changed := d.refreshLocked(ctx) || d.unsaid
	d.unsaid = false
	d.mu.Unlock()
	if changed {
		d.changed()
	}
}

func (d *Directory) refreshLocked(ctx context.Context) (changed bool) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	began := time.Now()
	others := func(r route.Router) bool { return r.ID != d.self.ID }
	old := d.view.Load()
	late := !d.renewed.IsZero() && began.Sub(d.renewed) > Lease && slices.ContainsFunc(old.routers, others)
	if late && old.err == nil {
		d.log.Warn("lease_lapsed", "for", (began.Sub(d.renewed) - Lease).String())
		// What was not taken over must not be given up; what was, twice there, is recognised.
		d.lapsed(began.Sub(d.renewed) > Lease+takeOver)
	}
	var p picture
	p.err = d.store.RenewRouter(ctx, d.self, Lease)
	if p.err == nil {
		if late && old.err != nil {
			d.lapsed(false)
		}
		d.renewed = began
	}
	if p.err == nil {
		p.gateways, p.err = d.store.Nodes(ctx)
		p.partial = errors.Is(p.err, route.ErrPartial)
	}
	if p.err == nil || p.partial {
		p.routers, p.err = d.store.Routers(ctx)
		p.partial = p.partial || errors.Is(p.err, route.ErrPartial)
	}
	if errors.Is(p.err, route.ErrPartial) {
		p.err = nil
	}
	if ctx.Err() == context.Canceled && p.err != nil {
		return false // a caller who left, or Stop
	}
	if p.err != nil && old.err == nil {
		d.log.Warn("directory_stale", "err", p.err)
	}
	v := d.draw(old, p, time.Now())
	if v.read = old.read; p.err == nil && !d.early(old, p, began) {
		v.read = began
	}
	d.view.Store(v)
	if old.read.IsZero() && !v.read.IsZero() {
		d.lapsed(false)
	}
	return !slices.Equal(v.list, old.list) || !slices.Equal(v.routers, old.routers)
}

// picture is what the store says.
type picture struct {
	gateways []route.Node
	routers  []route.Router
	partial  bool  // more may be alive
	err      error // nothing is known
}

// draw makes the next view. d.mu is held.
func (d *Directory) draw(old *view, p picture, now time.Time) *view {
	sure := p.err == nil && !p.partial
	gateways := map[string]route.Node{} // the latest incarnation of each
	add := func(n route.Node, overwrite bool) {
		have, ok := gateways[n.ID]
		if !ok || n.Incarnation > have.Incarnation || n.Incarnation == have.Incarnation && overwrite {
			gateways[n.ID] = n
		}
	}
	// Who hears neither the store nor a single gateway is cut off, and they are not
	// dead: what they have accepted from here is not to be delivered again when this
	// router is back. Then they do not all speak at once.
	deaf, restored := d.heard.deaf(now)
	spared := restored || deaf && p.err != nil
	if !sure {
		for _, n := range old.list {
			if at, ok := d.listed[n.NodeRef]; ok && now.Sub(at) < Lease || spared {
				add(n, false)
			}
		}
	}
	for _, n := range d.heard.living(now) {
		add(n, true)
	}
	for _, n := range p.gateways {
		add(n, true)
		d.listed[n.NodeRef] = now
		delete(d.strangers, n.NodeRef)
		delete(d.gone, n.NodeRef)
	}
	v := &view{gateways: make(map[route.NodeRef]route.Node, len(gateways)), err: p.err, returns: old.returns}
	for _, n := range gateways {
		if _, ok := d.missed[n.NodeRef]; ok {
			delete(d.missed, n.NodeRef)
			v.returns++
		}
		v.gateways[n.NodeRef] = n
		v.list = append(v.list, n)
	}
	slices.SortFunc(v.list, func(a, b route.Node) int { return cmp.Compare(a.ID, b.ID) })
	for _, n := range old.list {
		if _, ok := v.gateways[n.NodeRef]; !ok {
			delete(d.listed, n.NodeRef)
			remember(d.missed, n.NodeRef)
			if sure {
				remember(d.gone, n.NodeRef)
			}
		}
	}
	d.drawRouters(v, old, p, now)
	return v
}

// remember adds a reference; beyond the bound the others are forgotten.
func remember(refs map[route.NodeRef]struct{}, ref route.NodeRef) {
	if len(refs) >= maxStrangers {
		clear(refs)
	}
	refs[ref] = struct{}{}
}

// Renew takes a gateway's word that it lives. It is known here at once. Without
// the store its word is enough, unless it had lost its lease before or an earlier
// incarnation speaks.
func (d *Directory) Renew(ctx context.Context, n route.Node) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err := d.store.RenewNode(ctx, n, Lease)
	switch {
	case errors.Is(err, route.ErrSuperseded):
		if d.heard.forget(n.NodeRef) {
			d.refresh(ctx)
		}
		return err
	case err != nil && d.passed(n.NodeRef):
		return err
	case err != nil && d.superseded(n.NodeRef):
		return route.ErrSuperseded
	}
	if d.heard.note(n, time.Now()) && d.view.Load().err != nil {
		// It was cut off from everything, and may have been replaced meanwhile.
		d.lapsed(false)
	}
	if known := d.view.Load().gateways[n.NodeRef]; known != n {
		d.refresh(ctx)
	}
	return nil
}

// passed tells whether the gateway had lost its lease when the store was there.
func (d *Directory) passed(ref route.NodeRef) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, gone := d.gone[ref]
	return gone
}

// superseded tells whether a later incarnation is in the picture.
func (d *Directory) superseded(ref route.NodeRef) bool {
	for _, n := range d.view.Load().list {
		if n.ID == ref.ID && n.Incarnation > ref.Incarnation {
			return true
		}
	}
	return false
}

// Heard tells whether the gateway has renewed its lease at this very router, and
// it has not run out. It does not block.
func (d *Directory) Heard(ref route.NodeRef) bool { return d.heard.lives(ref, time.Now()) }

// Remove takes a gateway that stopped in order out of the directory.
func (d *Directory) Remove(ctx context.Context, n route.NodeRef) error {
	d.heard.forget(n)
	d.mu.Lock()
	delete(d.listed, n)
	d.mu.Unlock()
	err := d.store.RemoveNode(ctx, n)
	d.refresh(ctx)
	return err
}

// Alive reports whether the gateway's incarnation holds a lease. A reference
// nobody here has heard of may be news that reached another router first, so
// the store is asked once before it counts as dead.
func (d *Directory) Alive(ref route.NodeRef) bool {
	if _, ok := d.view.Load().gateways[ref]; ok {
		return true
	}
	d.mu.Lock()
	_, known := d.strangers[ref]
	if known || d.view.Load().err != nil {
		d.mu.Unlock()
		return false
	}
	// The caller may hold what changed needs.
	d.unsaid = d.refreshLocked(context.Background()) || d.unsaid
	_, ok := d.view.Load().gateways[ref]
	if !ok {
		remember(d.strangers, ref)
	}
	d.mu.Unlock()
	return ok
}

// Gateway returns a living gateway.
func (d *Directory) Gateway(ref route.NodeRef) (route.Node, bool) {
	n, ok := d.view.Load().gateways[ref]
	return n, ok
}

// Gateways returns all living gateways; the slice must not be modified.
func (d *Directory) Gateways() []route.Node { return d.view.Load().list }

// Refs returns the living gateways' references.
func (d *Directory) Refs() []route.NodeRef {
	list := d.view.Load().list
	out := make([]route.NodeRef, len(list))
	for i, n := range list {
		out[i] = n.NodeRef
	}
	return out
}

// Self returns this router.
func (d *Directory) Self() route.Router { return d.self }

// Routers returns all living routers; the slice must not be modified.
func (d *Directory) Routers() []route.Router { return d.view.Load().routers }

// Home returns the user's home router, and whether that is this one.
func (d *Directory) Home(key route.UserKey) (home route.Router, self bool) {
	v := d.view.Load()
	i := ring.Pick(v.names, key.Tenant, key.User)
	if i < 0 {
		return d.self, true
	}
	return v.routers[i], v.routers[i].ID == d.self.ID
}

// Ring counts the changes of the set of routers.
func (d *Directory) Ring() uint64 { return d.view.Load().ring }

// Returns counts the gateways that this router took for dead and that live. What came for
// their sessions meanwhile was kept as for absent devices.
func (d *Directory) Returns() uint64 { return d.view.Load().returns }

// Err is why the picture may be stale, nil when it is not.
func (d *Directory) Err() error { return d.view.Load().err }

// Read is when the store was last asked with success for this picture, or a part of
// it; zero: never. Who has not renewed a lease for long may be missing since.
func (d *Directory) Read() time.Time { return d.view.Load().read }
