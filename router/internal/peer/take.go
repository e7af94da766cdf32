package peer

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/recall"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	// askFor is how long after a change of the routers others are asked what they
	// still hold; moves are over by then.
	askFor = 30 * time.Second
	// askTimeout bounds the asking. Who does not answer counts as dead for this user;
	// if it is not, it moves later what it has, and that comes behind the backlog.
	askTimeout = 500 * time.Millisecond
	// loan is how long the asked router gives it to nobody else.
	loan = 4 * time.Second
	// sayTaken is how long a device has to have it before that is said: this router
	// may die before the device's gateway has it.
	sayTaken = 2 * time.Second
	// maxLent bounds an answer, in bytes.
	maxLent     = 32 << 20
	takenTries  = 3
	takenBudget = time.Second
)

// TakeFor takes what is kept for a device that connects here, its user's home, all
// over the cluster; its route must be registered. front is what was handed back:
// older than what gateways that died had accepted, which in turn is older than
// rest. What other routers gave is theirs until the device has it: if this one
// dies it is not lost. recent is what the device's ended sessions took. lost is the session
// before if its gateway does not know it, or if it never got its backlog, else zero: what
// other routers hold for it is taken, too.
//
// An error is ctx's; nothing was taken then.
func (b *Buffer) TakeFor(ctx context.Context, key route.DeviceKey, lost route.Location) (front, rest []offline.Entry, recent recall.Keys, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, recall.Keys{}, err
	}
	var older []offline.Held
	if b.opts.Members != nil {
		v := b.view()
		alive := v.alive
		// Not the home: then its picture is newer who says so.
		if time.Since(v.changed) < askFor || v.duty(key.UserKey).home != nil {
			// Others first: what they move here meanwhile is in both then, and the
			// order is known.
			var silent []route.NodeRef
			older, silent = b.ask(ctx, v.src, key, lost, &recent)
			if len(silent) > 0 {
				// The others may have copies of what those had.
				rest := slices.DeleteFunc(slices.Clone(v.src), func(r route.Router) bool { return slices.Contains(silent, r.NodeRef) })
				more, _ := b.ask(ctx, rest, key, lost, &recent)
				older = append(older, more...)
				alive = func(r route.NodeRef) bool { return v.alive(r) && !slices.Contains(silent, r) }
			}
		}
		b.adoptUser(key.UserKey, alive)
	}
	b.amu.Lock()
	defer b.amu.Unlock()
	front, rest = merge(older, b.opts.Local.TakeHeld(key), b.opts.Local.Since)
	return front, rest, recent.Join(b.opts.Recall.Of(key)), nil
}

// merge puts what other routers had together with what was kept here, in the order of
// offline.Buffer.Put, each message once: theirs is older, but for what the cluster took
// since homes have changed last.
func merge(older, local []offline.Held, since func(at int64) bool) (front, rest []offline.Entry) {
	part := func(h offline.Held, elsewhere bool) int {
		switch {
		case h.Front:
			return 0
		case elsewhere && !since(h.At), !elsewhere && h.Moved:
			return 1
		default:
			return 2
		}
	}
	type placed struct {
		part int
		offline.Held
	}
	var all []placed
	for _, h := range older {
		all = append(all, placed{part(h, true), h})
	}
	for _, h := range local {
		all = append(all, placed{part(h, false), h})
	}
	slices.SortStableFunc(all, func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.part, b.part), cmp.Compare(a.At, b.At))
	})
	seen := make(map[[16]byte]bool, len(all))
	for _, p := range all {
		switch {
		case seen[p.Key]:
		case p.Front:
			front = append(front, p.Entry)
		default:
			rest = append(rest, p.Entry)
		}
		seen[p.Key] = true
	}
	return front, rest
}

// ask asks the other routers what they hold for the device, also of what those had
// that are not among them, and tells who did not answer. What they know of the
// device's earlier sessions is added to recent.
func (b *Buffer) ask(ctx context.Context, routers []route.Router, key route.DeviceKey, lost route.Location, recent *recall.Keys) (all []offline.Held, silent []route.NodeRef) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req := &routerv1.TakeRequest{
		TenantId: key.Tenant, UserId: key.User, DeviceId: key.Device,
		LostGateway: &gatewayv1.GatewayRef{NodeId: lost.Node.ID, Incarnation: lost.Node.Incarnation}, LostSession: lost.Session,
	}
	for _, r := range routers {
		req.Routers = append(req.Routers, ref(r.NodeRef))
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, r := range routers {
		if r.NodeRef == b.opts.Members.Self().NodeRef {
			continue
		}
		wg.Go(func() {
			res, err := b.opts.Client(r).Take(ctx, connect.NewRequest(req))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent = append(silent, r.NodeRef)
				return
			}
			*recent = recent.Join(recall.FromWire(res.Msg.RecentKeys, res.Msg.RecentAges))
			var ids []uint64
			for _, e := range res.Msg.Entries {
				if e.Entry == nil {
					continue
				}
				ids = append(ids, e.Id)
				all = append(all, offline.Held{Entry: entryOf(e.Entry, 0), ID: e.Id})
			}
			if len(ids) > 0 {
				b.wg.Go(func() { b.taken(r, key, ids) })
			}
		})
	}
	wg.Wait()
	return all, silent
}

// taken tells a router that the device has what it lent. If that does not arrive
// the router moves the entries here when the loan is over; their keys tell then.
func (b *Buffer) taken(from route.Router, key route.DeviceKey, ids []uint64) {
	req := &routerv1.TakeRequest{TenantId: key.Tenant, UserId: key.User, DeviceId: key.Device, Taken: ids}
	if !sleep(b.ctx, sayTaken) {
		return
	}
	for range takenTries {
		ctx, cancel := context.WithTimeout(b.ctx, takenBudget)
		_, err := b.opts.Client(from).Take(ctx, connect.NewRequest(req))
		cancel()
		if err == nil || !sleep(b.ctx, putPause) {
			return
		}
	}
}

// ServeTake serves another router's Take call.
func (b *Buffer) ServeTake(ctx context.Context, req *routerv1.TakeRequest) *routerv1.TakeResponse {
	key := route.DeviceKey{UserKey: route.UserKey{Tenant: req.TenantId, User: req.UserId}, Device: req.DeviceId}
	res := &routerv1.TakeResponse{}
	if len(req.Taken) > 0 {
		b.opts.Local.Taken(key, req.Taken)
		return res
	}
	if b.opts.Members != nil {
		v := b.view()
		// The caller's picture may be newer: it is the home because another one died.
		b.adoptUser(key.UserKey, func(owner route.NodeRef) bool {
			return v.alive(owner) && slices.ContainsFunc(req.Routers, func(r *routerv1.RouterRef) bool {
				return r.NodeId == owner.ID && r.Incarnation == owner.Incarnation
			})
		})
	}
	b.surrender(ctx, key, route.Location{
		Node:    route.NodeRef{ID: req.GetLostGateway().GetNodeId(), Incarnation: req.GetLostGateway().GetIncarnation()},
		Session: req.GetLostSession(),
	})
	recent := b.opts.Recall.Of(key)
	res.RecentKeys, res.RecentAges = recent.Keys, recent.Ages
	held := b.opts.Local.Lend(key, loan, maxLent)
	inOrder(held)
	for _, h := range held {
		res.Entries = append(res.Entries, &routerv1.HeldEntry{Id: h.ID, Entry: wireEntry(key.UserKey, h.Entry)})
	}
	return res
}

// surrender puts into the buffer what is promised to a device that another router lets
// in: from here it would come behind the backlog that is made there, with what was sent
// later in it.
func (b *Buffer) surrender(ctx context.Context, key route.DeviceKey, lost route.Location) {
	if b.opts.Surrender == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout/2)
	defer cancel()
	msgs := b.opts.Surrender(ctx, key, lost)
	for i, m := range msgs {
		e := b.incoming(dispatch.BufferEntry{Key: key.UserKey, Devices: []string{key.Device}, Message: m, Front: m.First()})
		e.Moved = true
		if _, _, ok := b.opts.Local.Put(key.UserKey, e.Entry); !ok { // there is no room
			b.opts.Deliver(key, msgs[i:])
			break
		}
	}
	if len(msgs) > 0 {
		b.mark([]route.UserKey{key.UserKey}, nil)
		kick(b.moveKick)
	}
}

// inOrder makes the times of a user's entries rise in their order: elsewhere they
// are ordered by time, and clocks of several routers may have been at work here.
func inOrder(entries []offline.Held) {
	for i := 1; i < len(entries); i++ {
		if entries[i].Front == entries[i-1].Front {
			entries[i].At = max(entries[i].At, entries[i-1].At)
		}
	}
}
