// Package offline keeps messages for devices that are absent: in memory, for a
// tenant's TTL, bounded per user and in all. A user's buffer lives at the
// user's home router (DESIGN section 5).
package offline

import (
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// Message is one message as it will be delivered.
type Message struct {
	Bytes       []byte // a serialized MessageRequest; never modified
	Unmoderated bool
	// Key names it; a message that is there already is kept once. Zero: nobody
	// can tell.
	Key [16]byte
}

// Entry is a message and whom it is for.
type Entry struct {
	Message
	// Devices are the absent devices it is kept for; empty: for whichever
	// device of the user comes first.
	Devices []string
	// TTL is how long it is kept.
	TTL time.Duration
	// Front puts it before what is already there: it was handed back by a
	// closing session, so it is older.
	Front bool
}

// Limits bound the buffer.
type Limits struct {
	MaxMessagesPerUser int
	MaxBytesPerUser    int
	// MaxBytes bounds the whole buffer.
	MaxBytes int64
}

// Drop says why a message was not kept, or not kept longer.
type Drop string

const (
	// DropOverflow: the user's buffer was full and this was the oldest.
	DropOverflow Drop = "overflow"
	// DropExpired: its time was over.
	DropExpired Drop = "expired"
	// DropTooLarge: it alone is over the user's limit.
	DropTooLarge Drop = "too_large"
	// DropFull: the whole buffer is full.
	DropFull Drop = "full"
	// DropDisabled: the tenant keeps nothing.
	DropDisabled Drop = "disabled"
)

// Drops lists every reason, for counters that start at zero.
var Drops = []Drop{DropOverflow, DropExpired, DropTooLarge, DropFull, DropDisabled}

// entryOverhead is what an entry costs besides its bytes, so that empty
// messages are not free.
const entryOverhead = 96

const shardCount = 64

// Buffer is safe for concurrent use.
type Buffer struct {
	limits  Limits
	dropped func(tenant string, why Drop, n int)
	shards  [shardCount]shard
	seed    maphash.Seed
	ids     atomic.Uint64
	bytes   atomic.Int64
}

type shard struct {
	mu    sync.Mutex
	users map[route.UserKey]*user // guarded by mu
}

// user is guarded by its shard's mu.
type user struct {
	entries []kept // oldest first
	bytes   int
}

type kept struct {
	Message
	id      uint64
	devices []string // nil: whichever comes first
	expires time.Time
	front   bool // handed back
}

func (k *kept) size() int { return len(k.Bytes) + entryOverhead }

// New returns an empty buffer; dropped is told of every message that is not
// kept to its delivery, and must not call back.
func New(limits Limits, dropped func(tenant string, why Drop, n int)) *Buffer {
	b := &Buffer{limits: limits, dropped: dropped, seed: maphash.MakeSeed()}
	for i := range b.shards {
		b.shards[i].users = make(map[route.UserKey]*user)
	}
	return b
}

// Put keeps the entry and returns its id, for TakeBack. ok is false when it
// was not kept. A repeat of what is there is kept once, under its first id.
func (b *Buffer) Put(key route.UserKey, e Entry) (id uint64, ok bool) {
	k := kept{Message: e.Message, devices: slices.Clone(e.Devices), front: e.Front}
	switch {
	case e.TTL <= 0:
		b.dropped(key.Tenant, DropDisabled, 1)
		return 0, false
	case k.size() > b.limits.MaxBytesPerUser || b.limits.MaxMessagesPerUser < 1:
		b.dropped(key.Tenant, DropTooLarge, 1)
		return 0, false
	case !b.reserve(k.size()):
		b.dropped(key.Tenant, DropFull, 1)
		return 0, false
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
	if id, ok := u.merge(k); ok {
		b.bytes.Add(-int64(k.size()))
		return id, true
	}
	for len(u.entries) >= b.limits.MaxMessagesPerUser || u.bytes+k.size() > b.limits.MaxBytesPerUser {
		if e.Front {
			// It is the oldest itself.
			b.bytes.Add(-int64(k.size()))
			b.dropped(key.Tenant, DropOverflow, 1)
			return 0, false
		}
		b.remove(u, 0)
		b.dropped(key.Tenant, DropOverflow, 1)
	}
	u.bytes += k.size()
	if e.Front {
		u.entries = slices.Insert(u.entries, frontIndex(u.entries), k)
	} else {
		u.entries = append(u.entries, k)
	}
	return k.id, true
}

// merge adds the devices of k to the same message, if it is there already. The
// shard is locked.
func (u *user) merge(k kept) (id uint64, ok bool) {
	if k.Key == [16]byte{} {
		return 0, false
	}
	for i := range u.entries {
		e := &u.entries[i]
		if e.Key != k.Key || (len(e.devices) == 0) != (len(k.devices) == 0) {
			continue
		}
		for _, d := range k.devices {
			if !slices.Contains(e.devices, d) {
				e.devices = append(e.devices, d)
			}
		}
		return e.id, true
	}
	return 0, false
}

// frontIndex is where a handed-back entry goes: before everything that was
// put normally, behind what was handed back before it.
func frontIndex(entries []kept) int {
	i := slices.IndexFunc(entries, func(k kept) bool { return !k.front })
	if i < 0 {
		return len(entries)
	}
	return i
}

// TakeBack removes an entry that Put kept and reports whether it was still
// there, that is, whether no device has taken it meanwhile.
func (b *Buffer) TakeBack(key route.UserKey, id uint64) bool {
	s := b.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[key]
	if u == nil {
		return false
	}
	i := slices.IndexFunc(u.entries, func(k kept) bool { return k.id == id })
	if i < 0 {
		return false
	}
	b.remove(u, i)
	b.forgetEmpty(s, key, u)
	return true
}

// Take returns what is kept for the device, oldest first, and no longer keeps
// it for that device.
func (b *Buffer) Take(key route.DeviceKey) []Message {
	s := b.shard(key.UserKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[key.UserKey]
	if u == nil {
		return nil
	}
	b.expire(key.UserKey, u, time.Now())
	var out []Message
	for i := 0; i < len(u.entries); {
		k := &u.entries[i]
		at := slices.Index(k.devices, key.Device)
		if len(k.devices) > 0 && at < 0 {
			i++
			continue
		}
		out = append(out, k.Message)
		if len(k.devices) > 1 {
			k.devices = slices.Delete(k.devices, at, at+1)
			i++
			continue
		}
		b.remove(u, i)
	}
	b.forgetEmpty(s, key.UserKey, u)
	return out
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

func (b *Buffer) forgetEmpty(s *shard, key route.UserKey, u *user) {
	if len(u.entries) == 0 {
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
