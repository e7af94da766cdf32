// Package orphans finds what sessions have accepted and not confirmed whose
// keeper is gone: a router that died or stopped took its copies with it. Each
// gets a new keeper, the home router of its recipient, so that within seconds of
// a death every message is in two memories again (DESIGN section 5).
package orphans

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/gateway/internal/uplink"
	"github.com/mics-im/mics/internal/telemetry"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

const (
	// Bounds of one Hold call.
	maxSessions = 500
	maxMessages = 5_000
	maxBytes    = 8 << 20
	// retryEvery is the pause after a round in which something found no keeper.
	retryEvery = 500 * time.Millisecond
)

// Routers are what the rescuer needs of the uplink.
type Routers interface {
	Living() []session.RouterRef
	Hold(ctx context.Context, sessions []*routerv1.HoldSession) []uplink.Held
}

// Rescuer looks for orphans when the set of routers has changed. Safe for
// concurrent use.
type Rescuer struct {
	registry *registry.Registry
	routers  Routers
	log      *slog.Logger
	adopted  *telemetry.Counter

	wake   chan struct{} // capacity 1
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// New returns a rescuer; nothing runs until Start.
func New(reg *registry.Registry, t *telemetry.Telemetry) *Rescuer {
	return &Rescuer{
		registry: reg, log: t.Log, wake: make(chan struct{}, 1), cancel: func() {},
		adopted: t.Counter("mics_orphans_adopted_total", "Deliveries whose router was gone and that another router keeps a copy of now."),
	}
}

// Changed says that the set of routers is another one. It never blocks.
func (r *Rescuer) Changed() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Start looks for orphans from now on.
func (r *Rescuer) Start(routers Routers) {
	r.routers = routers
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.done.Go(func() { r.run(ctx) })
}

// Stop ends the search and waits for it.
func (r *Rescuer) Stop() {
	r.cancel()
	r.done.Wait()
}

func (r *Rescuer) run(ctx context.Context) {
	again := time.NewTimer(retryEvery)
	again.Stop()
	for {
		select {
		case <-r.wake:
		case <-again.C:
		case <-ctx.Done():
			return
		}
		if !r.round(ctx) {
			again.Reset(retryEvery)
		}
	}
}

// round gives every orphan a keeper; false: some found none.
func (r *Rescuer) round(ctx context.Context) bool {
	living := r.routers.Living()
	if len(living) == 0 {
		return true // Changed comes with the first one
	}
	gone := func(ref session.RouterRef) bool { return !slices.Contains(living, ref) }
	all := true
	var found []session.Orphans
	r.registry.Walk(func(s *session.Session) bool {
		o := s.Orphans(gone)
		all = all && !o.Later
		if n, _ := o.Size(); n > 0 {
			found = append(found, o)
		}
		return ctx.Err() == nil
	})
	adopted := 0
	for len(found) > 0 && ctx.Err() == nil {
		n := batchOf(found)
		got, ok := r.adopt(ctx, found[:n])
		adopted += got
		all = all && ok
		found = found[n:]
	}
	if adopted > 0 {
		r.log.Info("orphans_adopted", "messages", adopted)
	}
	return all
}

// batchOf is how many of the first fit one call, at least one.
func batchOf(found []session.Orphans) int {
	messages, bytes := 0, 0
	for i, o := range found {
		n, size := o.Size()
		messages += n
		bytes += size
		if i > 0 && (i == maxSessions || messages > maxMessages || bytes > maxBytes) {
			return i
		}
	}
	return len(found)
}

// adopt asks for keepers of one batch.
func (r *Rescuer) adopt(ctx context.Context, batch []session.Orphans) (adopted int, all bool) {
	req := make([]*routerv1.HoldSession, len(batch))
	for i, o := range batch {
		id := o.Session.Identity()
		req[i] = &routerv1.HoldSession{
			SessionId: o.Session.ID(), TenantId: id.Tenant, UserId: id.User, DeviceId: id.Device, Messages: o.Messages(),
		}
	}
	all = true
	for i, h := range r.routers.Hold(ctx, req) {
		if len(h.IDs) == 0 {
			all = false
			continue
		}
		batch[i].Adopt(r.registry.Router(h.Keeper), h.IDs)
		adopted += len(h.IDs)
	}
	r.adopted.Add(int64(adopted))
	return adopted, all
}
