// Package reaper tidies up after gateways that are gone: their routes become
// ghosts, their connection counts go, and whoever waits for the end of their
// sessions is told. A route of a dead incarnation is of no use
// from the moment its lease is over (package directory); this keeps the store
// from filling up, and lets the devices be forgotten in time.
//
// Every router looks; one at a time cleans, under a lock that it prolongs as it
// goes. If it dies another one goes on where it stopped.
package reaper

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	// lookEvery is how often a router looks for dead nodes.
	lookEvery = 500 * time.Millisecond
	lockName  = "reaper"
	// lockTTL is how long the others wait for a cleaner that has died; a batch
	// takes a few round trips, each bounded by a second.
	lockTTL = 3 * time.Second
	// batch bounds the routes between two signs of life, and how long Redis is
	// kept from others' commands (router/DESIGN.md, "Measured").
	batch = 500
	// unlockTimeout bounds giving the lock back at a stop.
	unlockTimeout = time.Second
	// patience bounds the waits of one clean-up for room for what it tells: an
	// outage of Kafka must not keep routes in the store. It is well below lockTTL.
	patience  = time.Second
	roomPause = 5 * time.Millisecond
)

// Store is what the reaper needs of the route store.
type Store interface {
	DeadNodes(ctx context.Context) ([]route.DeadNode, error)
	Bury(ctx context.Context, n route.NodeRef) (buried bool, err error)
	Reap(ctx context.Context, n route.NodeRef, limit int, ghostTTL func(tenant string) time.Duration) (ended []route.Ended, more bool, err error)
	ForgetNode(ctx context.Context, n route.NodeRef) error
	Lock(ctx context.Context, name, owner string, ttl time.Duration) (bool, error)
	Unlock(ctx context.Context, name, owner string) error
}

// Options is what New needs; all of it is required.
type Options struct {
	// Store must fail while the leases in it may be out of date.
	Store Store
	// Owner names this router's incarnation.
	Owner string
	// Living tells that this router has a gateway's own word. It must not block.
	Living func(route.NodeRef) bool
	// GhostTTL is how long a tenant's absent devices are remembered.
	GhostTTL func(tenant string) time.Duration
	// Ended is told of each session that ended with its gateway, once over all
	// routers. It must not block.
	Ended func(key route.DeviceKey, node route.NodeRef, epoch uint64)
	// Room tells whether Ended has room for one more of the tenant. It must not
	// block.
	Room      func(tenant string) bool
	Telemetry *telemetry.Telemetry
}

// Reaper looks and cleans from Start to Stop.
type Reaper struct {
	opts             Options
	log              *slog.Logger
	cleanups, routes *telemetry.Counter
	memory           memory // owned by the loop

	cancel context.CancelFunc
	loop   sync.WaitGroup
}

// New registers the metrics; nothing runs until Start.
func New(o Options) *Reaper {
	return &Reaper{
		opts: o, log: o.Telemetry.Log, cancel: func() {},
		cleanups: o.Telemetry.Counter("mics_dead_node_cleanups_total", "Dead gateways that this router cleaned up after."),
		routes:   o.Telemetry.Counter("mics_dead_node_routes_processed_total", "Routes of dead gateways that this router turned into ghosts."),
	}
}

// Start begins to look. Call it once.
func (r *Reaper) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.loop.Go(func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				r.look(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
}

// Stop ends it between two round trips; what is left to clean is another
// router's. It may be called without Start.
func (r *Reaper) Stop() {
	r.cancel()
	r.loop.Wait()
}

// look cleans up after every node that is due. A failure is not worth a log
// line of its own: the directory tells that the store is away, and the next look
// goes on.
func (r *Reaper) look(ctx context.Context) {
	dead, err := r.opts.Store.DeadNodes(ctx)
	if err != nil {
		r.memory = memory{}
		return
	}
	var due []route.DeadNode
	r.memory, due = decide(r.memory, dead, r.opts.Living, time.Now())
	if len(due) == 0 {
		return
	}
	if ok, err := r.opts.Store.Lock(ctx, lockName, r.opts.Owner, lockTTL); !ok || err != nil {
		return
	}
	defer r.unlock()
	for _, n := range due {
		if !r.clean(ctx, n) {
			break
		}
	}
	// Cleaning took a while, but this process did not stand still.
	r.memory.last = time.Now()
}

func (r *Reaper) unlock() {
	ctx, cancel := context.WithTimeout(context.Background(), unlockTimeout)
	defer cancel()
	// Else it runs out by itself.
	_ = r.opts.Store.Unlock(ctx, lockName, r.opts.Owner)
}

// clean cleans up after one node; false: no more in this look.
func (r *Reaper) clean(ctx context.Context, n route.DeadNode) bool {
	c := cleanup{Reaper: r, node: n, began: time.Now(), patience: patience}
	buried, err := r.opts.Store.Bury(ctx, n.NodeRef)
	if err != nil || !buried {
		return err == nil // it came back
	}
	if n.Why != route.Stopped {
		c.start()
	}
	for locked := time.Now(); ; {
		ended, more, err := r.opts.Store.Reap(ctx, n.NodeRef, batch, r.opts.GhostTTL)
		if len(ended) > 0 {
			c.start() // a gateway that stopped in order and left something behind
			c.routes += len(ended)
			r.routes.Add(int64(len(ended)))
			c.tell(ctx, ended)
		}
		if err != nil {
			return c.interrupted(ctx, err)
		}
		if !more {
			break
		}
		if time.Since(locked) < lockTTL/5 {
			continue
		}
		ok, err := r.opts.Store.Lock(ctx, lockName, r.opts.Owner, lockTTL)
		if err != nil || !ok {
			return c.interrupted(ctx, err)
		}
		locked = time.Now()
	}
	if err := r.opts.Store.ForgetNode(ctx, n.NodeRef); err != nil {
		return c.interrupted(ctx, err)
	}
	c.done()
	return true
}

// cleanup is one node's, for the log: an orderly stop that left nothing is none.
type cleanup struct {
	*Reaper
	node     route.DeadNode
	began    time.Time
	said     bool
	routes   int
	patience time.Duration // left
}

// tell passes ends of sessions on: their routes are gone, and nobody else will.
func (c *cleanup) tell(ctx context.Context, ended []route.Ended) {
	for _, e := range ended {
		for c.patience > 0 && !c.opts.Room(e.Key.Tenant) && ctx.Err() == nil {
			select {
			case <-time.After(roomPause):
			case <-ctx.Done():
			}
			c.patience -= roomPause
		}
		c.opts.Ended(e.Key, c.node.NodeRef, e.Epoch)
	}
}

func (c *cleanup) start() {
	if !c.said {
		c.said = true
		c.log.Info("dead_node_cleanup_start", "node", c.node.ID, "incarnation", c.node.Incarnation, "why", c.node.Why.String())
	}
}

// interrupted tells that another look, or router, has to go on.
func (c *cleanup) interrupted(ctx context.Context, err error) bool {
	if c.said && ctx.Err() == nil {
		why := "another router has the lock"
		if err != nil {
			why = err.Error()
		}
		c.log.Warn("dead_node_cleanup_interrupted", "node", c.node.ID, "incarnation", c.node.Incarnation, "routes", c.routes, "err", why)
	}
	return false
}

func (c *cleanup) done() {
	if c.said {
		c.cleanups.Inc()
		c.log.Info("dead_node_cleanup_done", "node", c.node.ID, "incarnation", c.node.Incarnation, "routes", c.routes,
			"duration_ms", time.Since(c.began).Milliseconds())
	}
}
