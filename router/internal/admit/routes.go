package admit

import (
	"context"
	"log/slog"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/stats"
)

// Routes is what an admission needs of the route store. Change must give the
// connection counts of ended sessions back, as Counted does.
type Routes interface {
	LookupFresh(ctx context.Context, key route.UserKey) ([]route.Record, error)
	Bind(ctx context.Context, key route.DeviceKey, loc route.Location, version uint8) (epoch uint64, prev *route.Record, err error)
	Change(ctx context.Context, changes []route.Change) (applied []bool, err error)
	AcquireConn(ctx context.Context, tenant string, node route.NodeRef, limit int, live []route.NodeRef) (ok bool, current int, err error)
	ReleaseConns(ctx context.Context, tenant string, node route.NodeRef, n int) error
}

// Counted is a route store that keeps the tenants' connection counts true:
// whoever takes a record out of live or closing, by a change to a ghost or by a
// bind, gives its count back. The store applies such a step once, however often
// a gateway says that a session has ended.
//
// A step whose answer was lost may leave a count one too high, until its gateway
// is gone.
type Counted struct {
	route.Store
	// Ended, unless nil, is told of each session that was turned into a ghost. It
	// is set before use and must not block.
	Ended func(key route.DeviceKey, node route.NodeRef, epoch uint64)

	stats *stats.Stats
	log   *slog.Logger
}

// NewCounted wraps a store.
func NewCounted(s route.Store, st *stats.Stats, log *slog.Logger) *Counted {
	return &Counted{Store: s, stats: st, log: log}
}

const (
	releaseTries = 3
	releasePause = 50 * time.Millisecond
)

// Change implements route.Store.
func (c *Counted) Change(ctx context.Context, changes []route.Change) ([]bool, error) {
	applied, err := c.Store.Change(ctx, changes)
	type share struct {
		tenant string
		node   route.NodeRef
	}
	ended := map[share]int{}
	for i, ok := range applied {
		if ok && changes[i].To == route.Ghost {
			ended[share{changes[i].Key.Tenant, changes[i].Node}]++
			if c.Ended != nil {
				c.Ended(changes[i].Key, changes[i].Node, changes[i].Epoch)
			}
		}
	}
	for s, n := range ended {
		c.release(ctx, s.tenant, s.node, n)
	}
	return applied, err
}

// Bind implements route.Store.
func (c *Counted) Bind(ctx context.Context, key route.DeviceKey, loc route.Location, version uint8) (uint64, *route.Record, error) {
	epoch, prev, err := c.Store.Bind(ctx, key, loc, version)
	if err == nil && prev != nil && prev.State != route.Ghost {
		c.release(ctx, key.Tenant, prev.Node, 1)
	}
	return epoch, prev, err
}

// release gives counts back. The caller's step is done and cannot be undone, so
// a failure is tried again, and then told to nobody but the operators.
func (c *Counted) release(ctx context.Context, tenant string, node route.NodeRef, n int) {
	ctx = context.WithoutCancel(ctx)
	for try := 1; ; try++ {
		err := c.ReleaseConns(ctx, tenant, node, n)
		if err == nil {
			return
		}
		if try == releaseTries {
			c.stats.ReleasesFailed.Add(int64(n))
			c.log.Warn("connection_count_release_failed", telemetry.TenantID, tenant, "gateway", node.ID, "count", n, "err", err)
			return
		}
		time.Sleep(releasePause)
	}
}
