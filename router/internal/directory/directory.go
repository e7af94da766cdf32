// Package directory keeps a router's picture of who is alive: gateways by the
// leases that they renew through any router, and routers by their own.
package directory

import (
	"context"
	"log/slog"
	"sync"
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
	// maxStrangers bounds the remembered references to nodes nobody knows.
	maxStrangers = 4096
	storeTimeout = time.Second
)

// Store is what the directory needs of the route store.
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

	view atomic.Pointer[view]

	mu        sync.Mutex                 // serialises refreshes
	strangers map[route.NodeRef]struct{} // guarded by mu: looked up afresh and not found
	cancel    context.CancelFunc
	done      chan struct{}
}

// view is one immutable picture.
type view struct {
	gateways map[route.NodeRef]route.Node
	list     []route.Node
	routers  []route.Router
	names    []string // of routers, for the ring
	err      error    // of the refresh; the picture is an earlier one then
}

// New returns a directory that knows nobody but this router. changed is called
// after every refresh that changed the picture.
func New(store Store, self route.Router, log *slog.Logger, changed func()) *Directory {
	d := &Directory{store: store, self: self, log: log, changed: changed, strangers: map[route.NodeRef]struct{}{}, done: make(chan struct{})}
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

// refresh renews this router's lease and reads the picture. When the store is
// away the last picture stands: forgetting everybody would lose every route.
func (d *Directory) refresh(ctx context.Context) {
	d.mu.Lock()
	changed := d.refreshLocked(ctx)
	d.mu.Unlock()
	if changed {
		d.changed()
	}
}

func (d *Directory) refreshLocked(ctx context.Context) (changed bool) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err := d.store.RenewRouter(ctx, d.self, Lease)
	var gateways []route.Node
	var routers []route.Router
	if err == nil {
		gateways, err = d.store.Nodes(ctx)
	}
	if err == nil {
		routers, err = d.store.Routers(ctx)
	}
	old := d.view.Load()
	if err != nil {
		if old.err == nil && ctx.Err() != context.Canceled {
			d.log.Warn("directory_stale", "err", err)
		}
		stale := *old
		stale.err = err
		d.view.Store(&stale)
		return false
	}
	v := &view{gateways: make(map[route.NodeRef]route.Node, len(gateways)), list: gateways, routers: routers}
	changed = len(gateways) != len(old.list)
	for _, g := range gateways {
		v.gateways[g.NodeRef] = g
		delete(d.strangers, g.NodeRef)
		if old.gateways[g.NodeRef] != g {
			changed = true
		}
	}
	for _, r := range routers {
		v.names = append(v.names, r.ID)
	}
	d.view.Store(v)
	return changed
}

// Renew takes a gateway's word that it lives. It is known here at once.
func (d *Directory) Renew(ctx context.Context, n route.Node) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if err := d.store.RenewNode(ctx, n, Lease); err != nil {
		return err
	}
	if known := d.view.Load().gateways[n.NodeRef]; known != n {
		d.refresh(ctx)
	}
	return nil
}

// Remove takes a gateway that stopped in order out of the directory.
func (d *Directory) Remove(ctx context.Context, n route.NodeRef) error {
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
	d.refreshLocked(context.Background())
	_, ok := d.view.Load().gateways[ref]
	if !ok {
		if len(d.strangers) >= maxStrangers {
			clear(d.strangers)
		}
		d.strangers[ref] = struct{}{}
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

// Err is why the picture may be stale, nil when it is not.
func (d *Directory) Err() error { return d.view.Load().err }
