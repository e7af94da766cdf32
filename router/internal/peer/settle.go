package peer

import (
	"slices"

	"github.com/mics-im/mics/router/internal/route"
)

// maxSettled bounds the users of whom it is not told yet that a device has
// confirmed its backlog. Beyond it that is not told: the copies linger.
const maxSettled = 100_000

// Settled says that the device has confirmed the whole backlog that it took: the
// copies of it need not wait for this router's death any more, which would show
// the device the messages again.
func (b *Buffer) Settled(key route.DeviceKey) {
	if b.opts.Members == nil {
		return
	}
	b.opts.Local.Settle(key)
	b.smu.Lock()
	devices, known := b.toSettle[key.UserKey]
	full := !known && len(b.toSettle) >= maxSettled
	if !full && !slices.Contains(devices, key.Device) {
		b.toSettle[key.UserKey] = append(devices, key.Device)
	}
	b.smu.Unlock()
	if !full {
		b.mark([]route.UserKey{key.UserKey}, nil)
	}
}

// takeSettled returns what is to be told of the user. It is told once: if that is
// lost the copies linger.
func (b *Buffer) takeSettled(key route.UserKey) []string {
	b.smu.Lock()
	defer b.smu.Unlock()
	devices := b.toSettle[key]
	delete(b.toSettle, key)
	return devices
}

// Lapsed says that this router is new among those that Members lists now, or as good as
// new: the others may have counted it as dead for a while. For who looks at the routes one
// of them may still take itself for the home, or know what devices did meanwhile. It is
// also for when Members has been asked for the first time: until then this router is alone
// in its picture, and looks like everybody's home. taken: whoever had copies of what is
// kept here has taken it over, and may have delivered it. What there was no copy of stays.
func (b *Buffer) Lapsed(taken bool) {
	if b.opts.Members == nil {
		return
	}
	b.vmu.Lock()
	self := b.opts.Members.Self().NodeRef
	v := newView(b.opts.Members.Routers(), self, b.left.Load() != 0)
	v.before = newView(slices.DeleteFunc(slices.Clone(v.src), func(r route.Router) bool { return r.NodeRef == self }), self, false)
	b.opts.Local.Begin()
	b.present.Store(v)
	b.vmu.Unlock()
	kick(b.keepKick)
	kick(b.pushKick)
	if !taken {
		return
	}
	b.amu.Lock()
	defer b.amu.Unlock()
	b.opts.Local.DropCopied()
}
