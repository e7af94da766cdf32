package peer

import (
	"slices"
	"time"

	"github.com/mics-im/mics/internal/ring"
	"github.com/mics-im/mics/router/internal/route"
)

// view is one picture of the routers; it is never modified.
type view struct {
	src     []route.Router // as Members gave it
	routers []route.Router // who can be a home: not this one when it leaves
	names   []string       // of routers
	self    int            // this router's index in routers; -1: it is not there
	leaving bool
	changed time.Time // when the routers last changed
	before  *view     // what was before that; nil: this router has just begun
}

// view returns the present picture, and notes when it has changed.
func (b *Buffer) view() *view {
	v := b.present.Load()
	if v != nil && same(v.src, b.opts.Members.Routers()) {
		return v
	}
	b.vmu.Lock()
	defer b.vmu.Unlock()
	return b.viewLocked()
}

func (b *Buffer) viewLocked() *view {
	old := b.present.Load()
	v := newView(b.opts.Members.Routers(), b.opts.Members.Self().NodeRef, b.left.Load() != 0)
	if old != nil && slices.Equal(old.refs(), v.refs()) && old.self == v.self {
		v.changed, v.before = old.changed, old.before
		b.present.Store(v)
		return v
	}
	if old != nil {
		before := *old
		before.before = nil // not all of history
		v.before = &before
		b.opts.Local.Begin()
	}
	b.present.Store(v)
	kick(b.keepKick)
	kick(b.pushKick)
	return v
}

// changed is when the routers last changed.
func (b *Buffer) changed() (at time.Time) {
	if b.opts.Members != nil {
		at = b.view().changed
	}
	return at
}

// same tells whether two slices are one.
func same(a, b []route.Router) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func newView(src []route.Router, self route.NodeRef, leaving bool) *view {
	v := &view{src: src, self: -1, leaving: leaving, changed: time.Now()}
	for _, r := range src {
		if r.NodeRef == self {
			if leaving {
				continue
			}
			v.self = len(v.routers)
		}
		v.routers = append(v.routers, r)
		v.names = append(v.names, r.ID)
	}
	return v
}

func (v *view) refs() []route.NodeRef {
	refs := make([]route.NodeRef, len(v.routers))
	for i, r := range v.routers {
		refs[i] = r.NodeRef
	}
	return refs
}

// alive tells whether the router is in the picture.
func (v *view) alive(ref route.NodeRef) bool {
	return slices.ContainsFunc(v.src, func(r route.Router) bool { return r.NodeRef == ref })
}

// duty is what this router has to do with what it holds for a user.
type duty struct {
	// home is where it has to go; nil: here, or nobody is there to take it.
	home *route.Router
	// copy is where the copy has to be; nil: there is no other router.
	copy *route.Router
}

// dutyOf is the plan of every move and every copy. What is not at its home goes
// there; meanwhile the home has the copy, so that it needs nobody else when this
// router dies. One that leaves makes no copies: who had them takes them for its
// own as soon as it is out of the directory.
func (v *view) dutyOf(h uint64) duty {
	home, backup := ring.Pair(v.names, h)
	switch {
	case home < 0 || home == v.self && backup < 0:
		return duty{}
	case home == v.self:
		return duty{copy: &v.routers[backup]}
	case v.leaving:
		return duty{home: &v.routers[home]}
	default:
		return duty{home: &v.routers[home], copy: &v.routers[home]}
	}
}

func (v *view) duty(key route.UserKey) duty { return v.dutyOf(ring.Hash(key.Tenant, key.User)) }

// unsettled is how long the user's former home may still take itself for the home,
// and let a device in without asking here.
func (v *view) unsettled(key route.UserKey) time.Duration {
	h := ring.Hash(key.Tenant, key.User)
	if v.before == nil && len(v.routers) < 2 || v.before != nil && v.before.dutyOf(h).home == nil {
		return 0
	}
	return settleFor - time.Since(v.changed)
}

// home returns the user's home, and whether it is this router.
func (b *Buffer) home(key route.UserKey) (route.Router, bool) {
	if b.opts.Members == nil {
		return b.opts.Directory.Home(key)
	}
	if d := b.view().duty(key); d.home != nil {
		return *d.home, false
	}
	return b.opts.Members.Self(), true
}

// heirs returns the routers that have to learn what was sent by a user of hash h
// when the picture changes from old to v: the new home and backup that were
// neither before. This router tells them if it was one of the old ones.
func (v *view) heirs(old *view, h uint64) (heirs []route.Router) {
	before, after := old.pair(h), v.pair(h)
	if old.self < 0 || !slices.Contains(before, old.routers[old.self]) {
		return nil
	}
	for _, r := range after {
		mine := v.self >= 0 && r.NodeRef == v.routers[v.self].NodeRef
		knew := slices.ContainsFunc(before, func(o route.Router) bool { return o.NodeRef == r.NodeRef })
		if !mine && !knew {
			heirs = append(heirs, r)
		}
	}
	return heirs
}

// pair returns the user's home and backup, as far as there are any.
func (v *view) pair(h uint64) (pair []route.Router) {
	home, backup := ring.Pair(v.names, h)
	for _, i := range []int{home, backup} {
		if i >= 0 {
			pair = append(pair, v.routers[i])
		}
	}
	return pair
}
