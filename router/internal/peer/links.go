package peer

import (
	"github.com/mics-im/mics/internal/ring"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dedup"
	"github.com/mics-im/mics/router/internal/recall"
	"github.com/mics-im/mics/router/internal/route"
)

// link returns the link to a router of the present picture, else nil.
func (b *Buffer) link(to route.Router) *link {
	b.lmu.Lock()
	defer b.lmu.Unlock()
	if l := b.links[to.NodeRef]; l != nil {
		return l
	}
	if b.ctx.Err() != nil || !b.view().alive(to.NodeRef) {
		return nil
	}
	l := newLink(b, to)
	b.links[to.NodeRef] = l
	go l.run() // until close
	return l
}

// mark lets the copies of the users' states be brought up to date. w, if not nil,
// is finished once more for each of them.
func (b *Buffer) mark(keys []route.UserKey, w *wait) {
	var waits []*wait
	if w != nil {
		waits = []*wait{w}
		for range keys {
			w.hold()
		}
	}
	b.markFor(keys, waits...)
}

// markFor is mark for waits that are held already.
func (b *Buffer) markFor(keys []route.UserKey, waits ...*wait) {
	finish := func(keys []route.UserKey, copied bool) {
		for range keys {
			for _, w := range waits {
				w.finish(copied)
			}
		}
	}
	for len(keys) > 0 && b.ctx.Err() == nil {
		v := b.view()
		by := map[route.NodeRef][]route.UserKey{}
		for _, key := range keys {
			if to := v.duty(key).copy; to != nil {
				by[to.NodeRef] = append(by[to.NodeRef], key)
			} else {
				finish([]route.UserKey{key}, true) // one copy is all there can be
			}
		}
		keys = nil // that have to be marked by a newer picture
		for _, to := range v.routers {
			some := by[to.NodeRef]
			if len(some) == 0 {
				continue
			}
			l := b.link(to)
			switch {
			case l == nil:
				keys = append(keys, some...)
			case len(waits) > 0 && l.suspect():
				l.mark(some)
				finish(some, false)
			case !l.mark(some, waits...):
				keys = append(keys, some...)
			}
		}
	}
	finish(keys, false)
}

// prune ends the links to routers that are gone, and marks what they had to send
// for whoever has the copies now.
func (b *Buffer) prune(v *view) {
	b.lmu.Lock()
	var gone []*link
	for ref, l := range b.links {
		if !v.alive(ref) {
			gone = append(gone, l)
			delete(b.links, ref)
		}
	}
	b.lmu.Unlock()
	for _, l := range gone {
		for key, waits := range l.close() {
			b.markFor([]route.UserKey{key}, waits...)
		}
	}
}

// all returns the present links.
func (b *Buffer) all() []*link {
	b.lmu.Lock()
	defer b.lmu.Unlock()
	var out []*link
	for _, l := range b.links {
		out = append(out, l)
	}
	return out
}

// Took lets the other router that answers for the user know what a device took whose
// session has ended.
func (b *Buffer) Took(key route.DeviceKey, k recall.Keys) {
	if b.opts.Members == nil {
		return
	}
	for _, to := range b.view().pair(ring.Hash(key.Tenant, key.User)) {
		if to.NodeRef == b.opts.Members.Self().NodeRef {
			continue
		}
		if l := b.link(to); l != nil {
			l.pushTook(&routerv1.SyncTook{
				TenantId: key.Tenant, UserId: key.User, DeviceId: key.Device, RecentKeys: k.Keys, RecentAges: k.Ages,
			})
		}
	}
}

// Sent lets the other routers that answer for the sender know that a message was
// answered SENT. It does not block.
func (b *Buffer) Sent(r dedup.Record) {
	if b.opts.Members == nil || r.User == 0 {
		return
	}
	for _, to := range b.view().pair(r.User) {
		if to.NodeRef != b.opts.Members.Self().NodeRef {
			if l := b.link(to); l != nil {
				l.push(r)
			}
		}
	}
}

// pusher tells new homes and backups of senders what was sent before they were.
func (b *Buffer) pusher(pushed *view) {
	for {
		select {
		case <-b.pushKick:
		case <-b.ctx.Done():
			return
		}
		v := b.view()
		if b.opts.Sents != nil {
			b.pushFor(pushed, v)
		}
		pushed = v
	}
}

func (b *Buffer) pushFor(old, v *view) {
	b.opts.Sents.Records(func(part []dedup.Record) bool {
		by := map[route.NodeRef][]dedup.Record{}
		for _, r := range part {
			for _, heir := range v.heirs(old, r.User) {
				by[heir.NodeRef] = append(by[heir.NodeRef], r)
			}
		}
		for _, to := range v.routers {
			if records := by[to.NodeRef]; len(records) > 0 {
				if l := b.link(to); l != nil {
					l.pushAll(b.ctx, records)
				}
			}
		}
		return b.ctx.Err() == nil
	})
}

// UserHash is the hash of a sender for a dedup.Record.
func UserHash(tenant, user string) uint64 { return max(ring.Hash(tenant, user), 1) }
