package dispatch

import (
	"cmp"
	"context"
	"slices"

	"github.com/mics-im/mics/router/internal/route"
)

// Hold keeps copies of the messages that the caller is about to hand to a
// session as its backlog, until they are confirmed under the ids returned or
// the session is gone. ok is false when the gateway is not known or too much is
// under way to it: nothing is kept then.
func (d *Dispatcher) Hold(key route.DeviceKey, loc route.Location, msgs []*Message) (ids []uint64, ok bool) {
	if len(msgs) == 0 {
		return nil, true
	}
	l := d.link(loc.Node)
	if l == nil {
		return nil, false
	}
	s := d.shard(key.UserKey)
	s.mu.Lock()
	f := s.flow(key.UserKey)
	p := f.at(key.Device, loc)
	p.held += len(msgs)
	p.older += len(msgs)
	f.low -= int64(len(msgs))
	copies := make([]target, len(msgs))
	for i, m := range msgs {
		copies[i] = target{flow: f, session: loc.Session, item: item{msg: m, device: key.Device, order: f.low + int64(i)}}
	}
	s.mu.Unlock()
	ids, ok = l.hold(copies)
	if !ok {
		s.mu.Lock()
		for _, c := range copies {
			f.release(c.item, loc)
		}
		d.settle(f)
		d.forget(f)
		s.mu.Unlock()
	}
	return ids, ok
}

// Abandon says that a session never came to be: what is held for it is
// delivered again, wherever its device is now.
func (d *Dispatcher) Abandon(loc route.Location) {
	d.mu.Lock()
	l := d.links[loc.Node]
	d.mu.Unlock()
	if l != nil {
		d.recover(l.node.NodeRef, l.abandon(loc.Session))
	}
}

// recover delivers copies again that a gateway had accepted.
func (d *Dispatcher) recover(node route.NodeRef, copies []held) {
	if len(copies) > 0 {
		d.opts.Hooks.Recovered(len(copies))
	}
	for _, c := range copies {
		t := c.target
		s := d.shard(t.flow.key)
		s.mu.Lock()
		t.flow.release(t.item, t.loc(node))
		t.flow.refused = append(t.flow.refused, item{msg: t.item.msg, device: t.item.device, order: t.item.order})
		d.settle(t.flow)
		s.mu.Unlock()
	}
}

// SendOlder delivers messages that were kept for the device, or handed back by its
// last session, and did not make it into its backlog: they go before all that
// waits for it, in their order. Their senders have been told SENT, so they are not
// given up.
func (d *Dispatcher) SendOlder(key route.DeviceKey, msgs []*Message) {
	if len(msgs) == 0 {
		return
	}
	s := d.shard(key.UserKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flow(key.UserKey)
	f.low -= int64(len(msgs))
	for i, m := range msgs {
		f.waiting = append(f.waiting, item{msg: m, device: key.Device, order: f.low + int64(i)})
	}
	d.settle(f)
}

// Gate begins the making of a backlog: for the user's home, before the device's new route
// is bound. Until Ungate nothing new goes to the device, and nothing that waits here
// already: it belongs before what other routers send to the new session as soon as they
// see its route. One device of a user at a time.
func (d *Dispatcher) Gate(key route.DeviceKey) {
	s := d.shard(key.UserKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flow(key.UserKey).gated = key.Device
}

// Ungate ends what Gate began.
func (d *Dispatcher) Ungate(key route.DeviceKey) {
	s := d.shard(key.UserKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flow(key.UserKey)
	f.gated = ""
	d.settle(f)
	d.forget(f)
}

// Owes tells whether something that was kept for the device is held for its session there,
// or on its way, and not confirmed. It is older than what other routers have for the
// device, and they do not know of it.
func (d *Dispatcher) Owes(key route.DeviceKey, at route.Location) bool {
	s := d.shard(key.UserKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.users[key.UserKey]
	return f != nil && slices.ContainsFunc(f.underWay, func(p place) bool {
		return p.device == key.Device && p.loc == at && p.older > 0
	})
}

// Reclaim is for when the new route is bound, between Gate and Ungate, and before the
// device's offline buffer is taken. Then the caller calls collect, and holds the backlog.
//
// collect returns the copies that this router still has for the device and that
// nobody else will bring: those recovered from gateways that are gone, those held
// at places that lost says are out of reach, and what came by SendOlder. They come
// behind what is in the front of the buffer, among the rest of it by Message.At, and
// are not this router's any more.
//
// An error is ctx's; nothing was changed then.
func (d *Dispatcher) Reclaim(ctx context.Context, key route.DeviceKey, lost func(route.Location) bool) (collect func() []*Message, err error) {
	s := d.shard(key.UserKey)
	s.mu.Lock()
	f := s.flow(key.UserKey)
	// What is on its way into the buffer is either there when the caller takes
	// it, or comes back refused and newer.
	var quiet chan struct{}
	if f.buffering() {
		quiet = make(chan struct{})
		f.quiet = quiet
	}
	s.mu.Unlock()
	if quiet != nil {
		select {
		case <-quiet:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return func() []*Message { return d.collect(f, key.Device, lost) }, nil
}

// Surrender is Reclaim and collect for another router, which lets the device in: there is
// no gate here. It returns nothing when ctx ends first.
func (d *Dispatcher) Surrender(ctx context.Context, key route.DeviceKey, lost func(route.Location) bool) (msgs []*Message) {
	if collect, err := d.Reclaim(ctx, key, lost); err == nil {
		msgs = collect()
	}
	s := d.shard(key.UserKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flow(key.UserKey)
	d.settle(f)
	d.forget(f)
	return msgs
}

// collect takes the copies for a device out of a flow and of links.
func (d *Dispatcher) collect(f *flow, device string, lost func(route.Location) bool) (msgs []*Message) {
	s := d.shard(f.key)
	s.mu.Lock()
	mine := func(it item) bool { return it.tracker == nil && it.device == device }
	var items []item
	for _, it := range append(slices.Clone(f.refused), f.waiting...) {
		if mine(it) {
			items = append(items, it)
		}
	}
	f.refused = slices.DeleteFunc(f.refused, mine)
	f.waiting = slices.DeleteFunc(f.waiting, mine)
	var places []place
	for _, p := range f.underWay {
		if p.device == device && p.held > 0 && lost(p.loc) {
			places = append(places, p)
		}
	}
	s.mu.Unlock()
	for _, p := range places {
		d.mu.Lock()
		l := d.links[p.loc.Node]
		d.mu.Unlock()
		if l == nil {
			continue // its copies are being recovered
		}
		for _, c := range l.reclaim(p.loc.Session) {
			items = append(items, c.item)
			d.confirmed(c.target, p.loc.Node)
		}
	}
	slices.SortStableFunc(items, func(a, b item) int { return cmp.Compare(a.order, b.order) })
	for _, it := range items {
		msgs = append(msgs, it.msg)
	}
	return msgs
}

// buffering tells whether an entry is on its way into the offline buffer.
func (f *flow) buffering() bool {
	return slices.ContainsFunc(f.underWay, place.buffer)
}
