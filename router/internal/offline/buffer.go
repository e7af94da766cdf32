// Package offline keeps messages for devices that are absent: in memory, for a
// tenant's TTL, bounded per user and in all. A user's buffer lives at the
// user's home router (DESIGN section 5).
//
// A user's entries have three parts, each older than the next: what closing
// sessions handed back, what another router kept before it came here, and what
// was kept here.
package offline

import (
	"crypto/rand"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

const shardCount = 64

// Buffer is safe for concurrent use.
type Buffer struct {
	limits  Limits
	dropped func(tenant string, why Drop, n int)
	shards  [shardCount]shard
	seed    maphash.Seed
	ids     atomic.Uint64
	bytes   atomic.Int64
	changed func(route.UserKey) // set before use
	copied  bool                // set before use: copies are made
	tenure  atomic.Int64        // see Begin
}

type shard struct {
	mu    sync.Mutex
	users map[route.UserKey]*user // guarded by mu
	clock int64                   // guarded by mu: of the last entry kept
}

// user is guarded by its shard's mu.
type user struct {
	entries []kept // oldest first
	bytes   int
	// taken is what devices took and no copy was made of, lent to them for linger:
	// if this process dies before it has passed it on, the copy is all there is.
	taken []kept
}

// linger is how long a device's admission may take to become known elsewhere.
const linger = 5 * time.Second

type kept struct {
	Message
	id      uint64
	devices []string // nil: whichever comes first
	expires time.Time
	at      int64
	part    part
	version uint32 // rises with every change of the entry
	copied  uint64 // the stream over which a copy of it was made; 0: none
	lent    int64  // until when it is another router's to deliver, Unix time in nanoseconds
}

// part is where an entry belongs.
type part uint8

const (
	handedBack part = iota
	moved
	normal
)

func partOf(e Entry) part {
	switch {
	case e.Front:
		return handedBack
	case e.Moved:
		return moved
	default:
		return normal
	}
}

// partNow is where the entry belongs since tenure began.
func (k *kept) partNow(tenure int64) part {
	if k.part == normal && k.at <= tenure {
		return moved
	}
	return k.part
}

func (k *kept) size() int { return len(k.Bytes) + entryOverhead }

// modified notes that copies of the entry are out of date.
func (k *kept) modified() { k.version, k.copied = k.version+1, 0 }

// New returns an empty buffer; dropped is told of every message that is not
// kept to its delivery, and must not call back.
func New(limits Limits, dropped func(tenant string, why Drop, n int)) *Buffer {
	b := &Buffer{limits: limits, dropped: dropped, seed: maphash.MakeSeed(), changed: func(route.UserKey) {}}
	for i := range b.shards {
		b.shards[i].users = make(map[route.UserKey]*user)
	}
	return b
}

// OnChange has f called with every user of whom an entry was taken away or
// given less devices, except by Put and by time. f must not block or call back.
// It is for the owner, before the buffer is used.
func (b *Buffer) OnChange(f func(route.UserKey)) { b.changed, b.copied = f, true }

// Begin says that what is here already was kept before what other routers kept
// from now on: homes have changed. It counts as moved.
func (b *Buffer) Begin() { b.tenure.Store(time.Now().UnixNano()) }

// Since tells whether what the cluster took at that time, Unix time in nanoseconds, came
// after Begin: kept elsewhere, by a router that did not know of the change, it is no older
// than the rest.
func (b *Buffer) Since(at int64) bool {
	tenure := b.tenure.Load()
	return tenure > 0 && at > tenure
}

// Put keeps the entry and returns its id, for TakeBack. ok is false when it
// was not kept. A repeat of what is there is kept once, under its first id and
// in the older of the two places; known: it was kept for all of the devices already.
func (b *Buffer) Put(key route.UserKey, e Entry) (id uint64, known, ok bool) {
	k := kept{Message: e.Message, devices: slices.Clone(e.Devices), part: partOf(e), at: e.At}
	named := k.Key != [16]byte{}
	if !named {
		_, _ = rand.Read(k.Key[:]) // never fails
	}
	switch {
	case e.TTL <= 0:
		b.dropped(key.Tenant, DropDisabled, 1)
		return 0, false, false
	case k.size() > b.limits.MaxBytesPerUser || b.limits.MaxMessagesPerUser < 1:
		b.dropped(key.Tenant, DropTooLarge, 1)
		return 0, false, false
	case !b.reserve(k.size()):
		b.dropped(key.Tenant, DropFull, 1)
		return 0, false, false
	}
	now := time.Now()
	k.expires = now.Add(e.TTL)
	k.id = b.ids.Add(1)

	s := b.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[key]
	if u == nil {
		u = &user{}
		s.users[key] = u
	}
	b.expire(key, u, now)
	switch {
	case k.at == 0:
		k.at = max(now.UnixNano(), s.clock+1)
		s.clock = k.at
	case k.part == moved && b.Since(k.at):
		k.part = normal
		s.clock = max(s.clock, k.at)
	}
	if named {
		id, rest, more := u.merge(k, b.tenure.Load())
		if len(rest) == 0 && id != 0 {
			b.bytes.Add(-int64(k.size()))
			return id, !more, true
		}
		k.devices = rest
	}
	for len(u.entries) >= b.limits.MaxMessagesPerUser || u.bytes+k.size() > b.limits.MaxBytesPerUser {
		b.dropped(key.Tenant, DropOverflow, 1)
		if u.place(k, b.tenure.Load()) == 0 {
			// It is the oldest itself.
			b.bytes.Add(-int64(k.size()))
			return 0, false, false
		}
		b.remove(u, 0)
	}
	u.bytes += k.size()
	u.entries = slices.Insert(u.entries, u.place(k, b.tenure.Load()), k)
	return k.id, false, true
}

// merge finds the devices of k that are owed the same message already, and adds
// those to its entry that have nothing behind it: what they have there was put
// before k and has to come before it, which is more than before. rest are the devices for
// which k is to be an entry of its own, as is one without devices if id is 0. The shard
// is locked.
func (u *user) merge(k kept, tenure int64) (id uint64, rest []string, more bool) {
	if len(k.devices) == 0 {
		i := slices.IndexFunc(u.entries, func(e kept) bool { return e.Key == k.Key && len(e.devices) == 0 })
		if i < 0 {
			return 0, nil, false
		}
		id = u.entries[i].id
		if k.part < u.entries[i].part {
			u.older(i, k, tenure)
		}
		return id, nil, false
	}
	rest = k.devices
	for i := 0; i < len(u.entries) && len(rest) > 0; i++ {
		e := &u.entries[i]
		if e.Key != k.Key || len(e.devices) == 0 {
			continue
		}
		var left []string
		for _, d := range rest {
			switch {
			case slices.Contains(e.devices, d):
				if k.part < e.part && len(e.devices) > 1 {
					// Older for this device, and for no other.
					e.devices = slices.DeleteFunc(e.devices, func(o string) bool { return o == d })
					e.modified()
					left = append(left, d)
				}
			case k.part == normal && e.part == normal && !u.behind(i, d):
				e.devices = append(e.devices, d)
				e.modified()
				more = true
			default:
				left = append(left, d)
			}
		}
		if len(left) < len(rest) {
			id = e.id
		}
		rest = left
		if k.part < e.part && slices.Contains(k.devices, e.devices[0]) && len(e.devices) == 1 {
			u.older(i, k, tenure)
		}
	}
	return id, rest, more
}

// behind tells whether the device is owed something behind entry i.
func (u *user) behind(i int, device string) bool {
	return slices.ContainsFunc(u.entries[i+1:], func(e kept) bool { return e.isFor(device) })
}

// older moves entry i to the older part that k has.
func (u *user) older(i int, k kept, tenure int64) {
	e := u.entries[i]
	e.part, e.at = k.part, k.at
	e.modified()
	u.entries = slices.Delete(u.entries, i, i+1)
	u.entries = slices.Insert(u.entries, u.place(e, tenure), e)
}

// place is the index at which k goes in: the end of its part, in the order of at,
// because entries may come from several routers.
func (u *user) place(k kept, tenure int64) int {
	i := len(u.entries)
	for i > 0 {
		before := &u.entries[i-1]
		part := before.partNow(tenure)
		if part < k.part || part == k.part && before.at <= k.at {
			break
		}
		i--
	}
	return i
}

// TakeBack removes an entry that Put kept and reports whether it was still
// there, that is, whether no device has taken it meanwhile.
func (b *Buffer) TakeBack(key route.UserKey, id uint64) bool {
	return b.TakeBackAll(key, []Back{{ID: id}})[0]
}

// Back names what Put kept.
type Back struct {
	ID uint64
	// Devices are those that were put; an earlier put of the same message may have
	// been for others, which is not taken back. None: all.
	Devices []string
}

// TakeBackAll is TakeBack of several entries at once: a device that connects
// takes all of them or none.
func (b *Buffer) TakeBackAll(key route.UserKey, entries []Back) []bool {
	out := make([]bool, len(entries))
	b.with(key, func(u *user, now time.Time) (changed bool) {
		for n, e := range entries {
			i := slices.IndexFunc(u.entries, func(k kept) bool { return k.id == e.ID })
			if i < 0 || now.UnixNano() < u.entries[i].lent { // another router delivers it
				continue
			}
			k := &u.entries[i]
			others := slices.DeleteFunc(slices.Clone(k.devices), func(d string) bool { return slices.Contains(e.Devices, d) })
			switch {
			case len(e.Devices) == 0 || len(others) == 0:
				b.remove(u, i)
			case len(others) == len(k.devices):
				continue
			default:
				k.devices = others
				k.modified()
			}
			out[n], changed = true, true
		}
		return changed
	})
	return out
}

// Take returns what is kept for the device, oldest first, and no longer keeps
// it for that device. front is what was handed back, rest came later.
func (b *Buffer) Take(key route.DeviceKey) (front, rest []Message) {
	for _, h := range b.TakeHeld(key) {
		if h.Front {
			front = append(front, h.Message)
		} else {
			rest = append(rest, h.Message)
		}
	}
	return front, rest
}

// Sweep drops everything whose time is over. The owner calls it now and then;
// a user who is asked for is swept at once.
func (b *Buffer) Sweep() {
	now := time.Now()
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		for key, u := range s.users {
			b.expire(key, u, now)
			b.forgetEmpty(s, key, u)
		}
		s.mu.Unlock()
	}
}

// Bytes returns what the buffer holds in all, overhead included.
func (b *Buffer) Bytes() int64 { return b.bytes.Load() }

func (b *Buffer) expire(key route.UserKey, u *user, now time.Time) {
	u.taken = slices.DeleteFunc(u.taken, func(k kept) bool { return b.over(&k, now) })
	n := 0
	for i := 0; i < len(u.entries); {
		if now.Before(u.entries[i].expires) {
			i++
			continue
		}
		b.remove(u, i)
		n++
	}
	if n > 0 {
		// Copies expire by themselves.
		b.dropped(key.Tenant, DropExpired, n)
	}
}

// remove takes entry i out; the shard is locked.
func (b *Buffer) remove(u *user, i int) {
	size := u.entries[i].size()
	u.entries = slices.Delete(u.entries, i, i+1)
	u.bytes -= size
	b.bytes.Add(-int64(size))
}

// over ends the lingering of what was taken.
func (b *Buffer) over(k *kept, now time.Time) bool {
	if now.UnixNano() < k.lent && now.Before(k.expires) {
		return false
	}
	b.bytes.Add(-int64(k.size()))
	return true
}

func (b *Buffer) forgetEmpty(s *shard, key route.UserKey, u *user) {
	if len(u.entries)+len(u.taken) == 0 {
		delete(s.users, key)
	}
}

// reserve takes n bytes of the whole buffer's bound.
func (b *Buffer) reserve(n int) bool {
	if b.bytes.Add(int64(n)) > b.limits.MaxBytes {
		b.bytes.Add(-int64(n))
		return false
	}
	return true
}

func (b *Buffer) shard(key route.UserKey) *shard {
	return &b.shards[maphash.Comparable(b.seed, key)%shardCount]
}
