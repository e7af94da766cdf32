package peer

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	// maxMoveBytes bounds the entries of one call.
	maxMoveBytes = 4 << 20
	// movePause is the wait before what could not be moved is tried again, keepPause
	// the same for copies; both grow up to maxPause.
	movePause  = 200 * time.Millisecond
	keepPause  = 500 * time.Millisecond
	maxPause   = 10 * time.Second
	sweepEvery = 10 * time.Second
)

// Rebalance is for the owner to call when the routers may have changed. It does
// not block.
func (b *Buffer) Rebalance() {
	if b.opts.Members != nil {
		b.view()
	}
}

// Recheck has the routes of everybody looked at for whom something is kept: devices
// may be there whose routes were not known. It does not block.
func (b *Buffer) Recheck() {
	if b.opts.Members == nil {
		return // routes are in this process, and cannot be wrong
	}
	b.rmu.Lock()
	b.opts.Local.Users(func(key route.UserKey) bool {
		b.rechecks[key] = struct{}{}
		return true
	})
	b.rmu.Unlock()
	kick(b.moveKick)
}

// keeper sees to it that everything has its copy at the right place, and that what
// dead routers left has an owner.
func (b *Buffer) keeper() {
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	pause := time.Duration(0)
	for {
		var again <-chan time.Time
		if pause > 0 {
			again = time.After(pause)
		}
		select {
		case <-b.keepKick:
			pause = 0
		case <-again:
		case <-sweep.C:
			b.replicas.sweep()
			continue
		case <-b.ctx.Done():
			return
		}
		if !b.keepPass() {
			pause = 0
		} else {
			pause = min(max(keepPause, 2*pause), maxPause)
		}
	}
}

// keepPass is one look at everything; again tells that something is not yet as it
// has to be.
func (b *Buffer) keepPass() (again bool) {
	v := b.view()
	b.prune(v)
	for _, key := range b.replicas.orphans(v.alive) {
		b.adoptUser(key, v.alive)
	}
	moves := false
	b.opts.Local.Users(func(key route.UserKey) bool {
		d := v.duty(key)
		moves = moves || d.home != nil
		if d.copy == nil {
			return true
		}
		if l := b.link(*d.copy); l == nil || !b.opts.Local.HasCopies(key, l.copies()) {
			b.mark([]route.UserKey{key}, nil)
			again = true
		}
		return b.ctx.Err() == nil
	})
	// Copies at other places go when they are at the right one.
	for _, l := range b.all() {
		l.mu.Lock()
		var misplaced []route.UserKey
		for key := range l.held {
			if c := v.duty(key).copy; c == nil || c.NodeRef != l.to.NodeRef {
				misplaced = append(misplaced, key)
			}
		}
		l.mu.Unlock()
		for _, key := range misplaced {
			if l.elsewhere(key) {
				l.mark([]route.UserKey{key})
			}
			again = true
		}
	}
	if moves {
		kick(b.moveKick)
	}
	return again
}

// adoptUser makes what routers left that are not alive this router's own. Whoever
// has called it finds all of it in the buffer.
func (b *Buffer) adoptUser(key route.UserKey, alive func(route.NodeRef) bool) {
	b.amu.Lock()
	defer b.amu.Unlock()
	for _, list := range b.replicas.orphansOf(key, alive) {
		b.adopt(key, list)
	}
}

func (b *Buffer) adopt(key route.UserKey, list []replica) {
	now := time.Now()
	var held []offline.Held
	for i := range list {
		if c := &list[i]; !c.over(now) {
			c.TTL = c.expires.Sub(now)
			held = append(held, offline.Held{Entry: c.Entry})
		}
	}
	if len(held) == 0 {
		return
	}
	inOrder(held)
	for _, h := range held {
		h.Moved = true
		b.opts.Local.Put(key, h.Entry) // what does not fit is counted there
	}
	b.opts.Hooks.Moved(len(held))
	b.mark([]route.UserKey{key}, nil)
	b.recheck(key)
	kick(b.moveKick)
}

// mover brings what this router holds for others' users to their homes.
func (b *Buffer) mover() {
	pause := time.Duration(0)
	for {
		var again <-chan time.Time
		if pause > 0 {
			again = time.After(pause)
		}
		select {
		case <-b.moveKick:
			pause = 0
		case <-again:
		case <-b.ctx.Done():
			return
		}
		switch {
		case !b.movePass():
			pause = 0
		case b.left.Load() != 0:
			pause = movePause
		default:
			pause = min(max(movePause, 2*pause), maxPause)
		}
	}
}

// moving is a user's entries on their way.
type moving struct {
	key  route.UserKey
	held offline.Held
}

func (b *Buffer) movePass() (again bool) {
	b.rmu.Lock()
	rechecks := b.rechecks
	b.rechecks = map[route.UserKey]struct{}{}
	b.rmu.Unlock()
	v := b.view()
	for key := range rechecks {
		// Elsewhere the home does it, which knows whether it is letting a device in.
		if v.duty(key).home == nil {
			b.deliver(key)
		}
	}
	loads := map[route.NodeRef][]moving{}
	sizes := map[route.NodeRef]int{}
	silent := map[route.NodeRef]bool{}
	send := func(home route.Router) {
		load := loads[home.NodeRef]
		delete(loads, home.NodeRef)
		delete(sizes, home.NodeRef)
		if len(load) > 0 && !b.move(home, load) {
			again, silent[home.NodeRef] = true, true
		}
	}
	b.opts.Local.Users(func(key route.UserKey) bool {
		d := v.duty(key)
		if d.home == nil {
			return true
		}
		if b.opts.Admitting(key) {
			again = true // the backlog has to be one piece
			return true
		}
		if silent[d.home.NodeRef] {
			again = true
			return true
		}
		held, lent := b.opts.Local.Movable(key)
		again = again || lent
		inOrder(held)
		for _, h := range held {
			loads[d.home.NodeRef] = append(loads[d.home.NodeRef], moving{key, h})
			sizes[d.home.NodeRef] += len(h.Bytes) + wireOverhead
			if len(loads[d.home.NodeRef]) >= maxPerBatch || sizes[d.home.NodeRef] >= maxMoveBytes {
				send(*d.home)
			}
			if silent[d.home.NodeRef] {
				break
			}
		}
		return b.ctx.Err() == nil
	})
	for _, home := range v.routers {
		send(home)
	}
	b.rmu.Lock()
	defer b.rmu.Unlock()
	return again || len(b.rechecks) > 0
}

// recheck has the user's routes looked at by the mover's next pass.
func (b *Buffer) recheck(key route.UserKey) {
	b.rmu.Lock()
	defer b.rmu.Unlock()
	b.rechecks[key] = struct{}{}
}

// move hands entries to their users' home; they stay here until it has them.
func (b *Buffer) move(home route.Router, load []moving) (ok bool) {
	// The picture of a router that has left does not change any more.
	left := b.left.Load()
	req := &routerv1.BufferRequest{Insist: left != 0 && time.Since(time.Unix(0, left)) >= insistAfter}
	for _, m := range load {
		m.held.Moved = true
		req.Entries = append(req.Entries, wireEntry(m.key, m.held.Entry))
	}
	ctx, cancel := context.WithTimeout(b.ctx, putTimeout)
	defer cancel()
	res, err := b.opts.Client(home).Buffer(ctx, connect.NewRequest(req))
	if err != nil || len(res.Msg.Results) != len(load) {
		return false
	}
	ok = true
	moved := 0
	for i, m := range load {
		switch res.Msg.Results[i] {
		case routerv1.BufferResponse_RESULT_STORED:
			moved++
			ok = b.opts.Local.Drop(m.key, m.held) && ok
		case routerv1.BufferResponse_RESULT_SKIPPED: // counted there
			ok = b.opts.Local.Drop(m.key, m.held) && ok
		default: // the routers do not agree yet; what was moved is never refused as online
			ok = false
		}
	}
	b.opts.Hooks.Moved(moved)
	return ok
}

// deliver brings the user's live devices what is kept here for them: they took
// their backlog before this was there. All of it at once, so that a device that
// connects just now gets it either so or in its backlog.
func (b *Buffer) deliver(key route.UserKey) {
	ctx, cancel := context.WithTimeout(b.ctx, lookupTimeout)
	defer cancel()
	records, err := b.opts.Lookup(ctx, key)
	if err != nil {
		return // whoever connects takes it
	}
	b.deliverTo(key, records)
}

// deliverTo is deliver when the records are known. While a backlog is being made here it
// puts that off, and says so: what the backlog does not take comes behind it.
func (b *Buffer) deliverTo(key route.UserKey, records []route.Record) (later bool) {
	if b.opts.Deliver == nil {
		return false
	}
	if b.opts.Admitting(key) {
		b.recheck(key)
		return true
	}
	// Who takes a backlog meanwhile finds it in the buffer, or on its way.
	b.amu.Lock()
	defer b.amu.Unlock()
	for _, r := range route.PlanFor(records, "", b.opts.Directory.Alive, time.Now()).Live {
		device := route.DeviceKey{UserKey: key, Device: r.Device}
		var msgs []*dispatch.Message
		for _, h := range b.opts.Local.TakeFree(device) {
			msgs = append(msgs, dispatch.Kept(h.Entry))
		}
		if len(msgs) > 0 {
			b.opts.Deliver(device, msgs)
		}
	}
	return false
}

// Leave makes this router nobody's home, and begins to move what it holds to those
// that are left. It does not block.
func (b *Buffer) Leave() {
	if b.opts.Members == nil {
		return
	}
	b.vmu.Lock()
	b.left.Store(time.Now().UnixNano())
	b.viewLocked()
	b.vmu.Unlock()
	kick(b.moveKick)
}

// Leaving tells whether Leave has been called.
func (b *Buffer) Leaving() bool { return b.left.Load() != 0 }

// Changed tells whether the routers have changed so lately that what was meant for a
// user's former home may still be on its way to the next one.
func (b *Buffer) Changed() bool {
	return b.opts.Members != nil && time.Since(b.view().changed) < askFor
}

// Home returns the user's home, and whether it is this router: it is not once this
// one leaves, unless there is no other.
func (b *Buffer) Home(key route.UserKey) (home route.Router, self bool) { return b.home(key) }

// HandOn waits until everything that this router held is at its users' new homes. It
// is called after Leave, and before this router stops to serve: others may still ask
// for it. It ends when all is there, nobody else is, or ctx ends, which is an error.
func (b *Buffer) HandOn(ctx context.Context) error {
	if b.opts.Members == nil || len(b.view().routers) == 0 {
		return nil
	}
	for {
		left := 0
		b.opts.Local.Users(func(route.UserKey) bool { left++; return true })
		if left == 0 && b.SyncQueue() == 0 {
			return nil
		}
		if !sleep(ctx, movePause/4) {
			return fmt.Errorf("what is kept for %d users was not handed on: %w", left, ctx.Err())
		}
	}
}
