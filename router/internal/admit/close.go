package admit

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/mics-im/mics/internal/fault"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/recall"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	// closeTimeout bounds a batch; the gateway says it again after an error.
	closeTimeout = 10 * time.Second
	// closeAtOnce is how many sessions of a batch hand messages back at once.
	closeAtOnce = 16
)

// CloseSessions takes routes away and keeps what was not delivered. When it
// returns nil everything is stored; after an error all of it may be said again.
// A gateway whose lease has run out is heard too: its changes apply only where
// its session is still the device's latest.
func (a *Admitter) CloseSessions(ctx context.Context, req *routerv1.CloseSessionsRequest) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	node := ref(req.GetGateway())
	var released, ended []route.Change
	var handing, never []*routerv1.ClosedSession
	for _, s := range req.Sessions {
		change := a.change(node, s)
		if s.Stage == routerv1.ClosedSession_STAGE_FINAL && !s.NeverOpened {
			// Before the route goes: the next session reads it after that.
			a.opts.Recall.Ended(change.Key, recall.FromWire(s.RecentKeys, s.RecentAges))
		}
		switch {
		case s.NeverOpened:
			never = append(never, s)
		case change.Key.Check() != nil:
			return fault.New(fault.Invalid, "tenant_id, user_id and device_id are required")
		case s.Stage == routerv1.ClosedSession_STAGE_RELEASE:
			change.To = route.Closing
			released = append(released, change)
		case s.Stage != routerv1.ClosedSession_STAGE_FINAL:
			return fault.New(fault.Invalid, "unknown stage")
		case len(s.Undelivered) > 0:
			handing = append(handing, s)
		default:
			ended = append(ended, change)
		}
	}
	// In this order: both stages of one session may be in one batch.
	for _, changes := range [][]route.Change{released, ended} {
		if len(changes) == 0 {
			continue
		}
		if _, err := a.opts.Routes.Change(ctx, changes); err != nil {
			return fault.Wrap(fault.Unavailable, "change routes", err)
		}
	}
	for _, c := range append(released, ended...) {
		a.ledger.forget(route.Location{Node: c.Node, Session: c.Session})
	}
	return errors.Join(
		each(handing, func(s *routerv1.ClosedSession) error { return a.handBack(ctx, node, s) }),
		each(never, func(s *routerv1.ClosedSession) error {
			return a.abandon(ctx, route.Location{Node: node, Session: s.SessionId}, s.Undelivered)
		}),
	)
}

func (a *Admitter) change(node route.NodeRef, s *routerv1.ClosedSession) route.Change {
	c := route.Change{
		Key:  route.DeviceKey{UserKey: route.UserKey{Tenant: s.TenantId, User: s.UserId}, Device: s.DeviceId},
		Node: node, Session: s.SessionId, Epoch: s.Epoch, To: route.Ghost,
	}
	if t, ok := a.opts.Tenant(s.TenantId); ok {
		c.GhostTTL = t.OfflineTTL()
	}
	return c
}

// each runs f for every item, a few at once, and joins the errors.
func each[T any](items []T, f func(T) error) error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	places := make(chan struct{}, closeAtOnce)
	for _, it := range items {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if err := f(it); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// handBack ends one session and keeps what its device has not got, before
// anything that came later. The user's lock keeps a device that connects at the
// same time behind it.
func (a *Admitter) handBack(ctx context.Context, node route.NodeRef, s *routerv1.ClosedSession) error {
	c := a.change(node, s)
	unlock, err := a.locks.lock(ctx, c.Key.UserKey)
	if err != nil {
		return fault.Wrap(fault.Unavailable, "wait for the user's other sessions", err)
	}
	defer unlock()
	loc := route.Location{Node: node, Session: s.SessionId}
	if a.ledger.wasHandedOver(loc) {
		return nil // the next session has it, and the route
	}
	if _, err := a.opts.Routes.Change(ctx, []route.Change{c}); err != nil {
		return fault.Wrap(fault.Unavailable, "change routes", err)
	}
	a.ledger.forget(loc)
	a.opts.Stats.HandedBack.Add(int64(len(s.Undelivered)))
	return a.keep(ctx, c.Key, dispatch.Messages(s.Undelivered))
}

// keep puts messages into the device's buffer, in their order: where they were, or
// in front if a session had them. What the
// device must get live, because it is back already, is on its way when keep
// returns, and the dispatcher keeps a copy: waiting for more could be waiting
// for the very gateway that waits for this answer.
func (a *Admitter) keep(ctx context.Context, key route.DeviceKey, msgs []*dispatch.Message) error {
	keeps := false
	if t, ok := a.opts.Tenant(key.Tenant); ok {
		keeps = t.OfflineTTL() > 0
	}
	// What is online is sent together, in order; what is so too late by itself.
	var mu sync.Mutex
	late := false
	online := make([]*dispatch.Message, len(msgs))
	results := make(chan dispatch.BufferResult, len(msgs)) // none blocks
	for i, m := range msgs {
		a.opts.Buffer.Put(dispatch.BufferEntry{
			Key: key.UserKey, Devices: []string{key.Device}, Message: m, Front: m.First(),
			Done: func(r dispatch.BufferResult) {
				if r == dispatch.Online {
					mu.Lock()
					online[i] = m
					alone := late
					mu.Unlock()
					if alone {
						a.opts.Dispatcher.SendOlder(key, []*dispatch.Message{m})
					}
				}
				results <- r
			},
		})
	}
	lost := 0
	var err error
	for n := 0; n < len(msgs) && err == nil; n++ {
		select {
		case r := <-results:
			if r == dispatch.NotKept {
				lost++
			}
		case <-ctx.Done():
			err = fault.Wrap(fault.Unavailable, "keep what was not delivered", ctx.Err())
		}
	}
	mu.Lock()
	late = true
	back := slices.DeleteFunc(slices.Clone(online), func(m *dispatch.Message) bool { return m == nil })
	mu.Unlock()
	a.opts.Dispatcher.SendOlder(key, back)
	if err != nil {
		return err
	}
	// Elsewhere the home may only have been out of reach, and whoever handed it
	// back can say it again to the next one.
	if _, self := a.opts.Homes.Home(key.UserKey); lost > 0 && keeps && !self {
		return fault.New(fault.Unavailable, "the user's home router keeps nothing now")
	}
	a.opts.Stats.Lost.Add(int64(lost))
	return nil
}

// abandon gives up a session whose opening got no answer, whether it has been
// admitted or is about to be. Nobody but its home knows whose it is, and any
// router may hold copies of what it had accepted, so its gateway tells all of
// them. They deliver again what they had sent to it; what others had sent, that have
// died, is kept by the home. The user's lock keeps it apart from the device's next
// opening, whose backlog is newer, and the answer behind the end of an admission: when
// it has it the gateway forgets the session, and confirms whatever is held for it.
func (a *Admitter) abandon(ctx context.Context, loc route.Location, accepted []*gatewayv1.Undelivered) error {
	key, begun := a.ledger.abandon(loc)
	if begun {
		unlock, err := a.locks.lock(ctx, key.UserKey)
		if err != nil {
			return fault.Wrap(fault.Unavailable, "wait for the user's other sessions", err)
		}
		defer unlock()
	}
	adm, bound := a.ledger.look(loc)
	if adm == nil {
		a.opts.Dispatcher.Abandon(loc)
	} else if err := a.undo(ctx, adm); err != nil {
		return fault.Wrap(fault.Unavailable, "change routes", err)
	}
	if bound.IsZero() {
		return nil // it is not known whose it was, or nobody knew where to send to
	}
	return a.keep(ctx, key, dispatch.Accepted(accepted, bound))
}

// keyBytes is a key for the wire; one that names nothing is left out.
func keyBytes(k [16]byte) []byte {
	if k == ([16]byte{}) {
		return nil
	}
	return k[:]
}
