package offline

import (
	"slices"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// Held is an entry as it is kept: what another router needs to keep a copy of
// it, or to keep it instead. TTL is what is left, At and Key are set.
type Held struct {
	Entry
	ID      uint64
	Version uint32
	// Known: a copy of just this was made over the stream that was asked for.
	Known bool
	// Taken: a device took it a moment ago.
	Taken bool
}

func (k *kept) held(now time.Time, tenure int64) Held {
	return Held{
		Entry: Entry{
			Message: k.Message, Devices: slices.Clone(k.devices), TTL: k.expires.Sub(now),
			Front: k.part == handedBack, Moved: k.partNow(tenure) == moved, At: k.at,
		},
		ID: k.id, Version: k.version,
	}
}

// Limits returns the limits of this buffer.
func (b *Buffer) Limits() Limits { return b.limits }

// Users calls f with every user that something is kept for, in parts that are
// collected under a lock: f may use the buffer, and who comes or goes meanwhile
// may or may not be among them. It ends when f returns false.
func (b *Buffer) Users(f func(route.UserKey) bool) {
	var keys []route.UserKey
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		for key, u := range s.users {
			if len(u.entries) > 0 {
				keys = append(keys, key)
			}
		}
		s.mu.Unlock()
		for _, key := range keys {
			if !f(key) {
				return
			}
		}
		keys = keys[:0]
	}
}

// with calls f with what is kept for the user, if anything is, and tells OnChange
// when f says so. The shard is locked meanwhile.
func (b *Buffer) with(key route.UserKey, f func(u *user, now time.Time) (changed bool)) {
	s := b.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[key]
	if u == nil {
		return
	}
	now := time.Now()
	b.expire(key, u, now)
	changed := f(u, now)
	b.forgetEmpty(s, key, u)
	if changed {
		b.changed(key)
	}
}

// TakeHeld is Take with all that is known of the entries.
func (b *Buffer) TakeHeld(key route.DeviceKey) []Held { return b.take(key, true) }

// TakeFree is TakeHeld without what is lent.
func (b *Buffer) TakeFree(key route.DeviceKey) []Held { return b.take(key, false) }

func (b *Buffer) take(key route.DeviceKey, lent bool) (out []Held) {
	b.with(key.UserKey, func(u *user, now time.Time) bool {
		for i := 0; i < len(u.entries); {
			k := &u.entries[i]
			if !k.isFor(key.Device) || !lent && now.UnixNano() < k.lent {
				i++
				continue
			}
			out = append(out, k.held(now, b.tenure.Load()))
			i += b.less(u, i, key.Device)
		}
		return len(out) > 0
	})
	return out
}

// DropCopied drops what a copy was made of, and returns how much that was. It does
// not call OnChange.
func (b *Buffer) DropCopied() (n int) {
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		for key, u := range s.users {
			for i := 0; i < len(u.entries); {
				if u.entries[i].copied == 0 {
					i++
					continue
				}
				b.remove(u, i)
				n++
			}
			b.forgetEmpty(s, key, u)
		}
		s.mu.Unlock()
	}
	return n
}

// Settle says that the device has confirmed all that it took: nothing of it needs
// to linger.
func (b *Buffer) Settle(key route.DeviceKey) {
	b.with(key.UserKey, func(u *user, _ time.Time) bool {
		u.taken = slices.DeleteFunc(u.taken, func(k kept) bool {
			if !k.isFor(key.Device) {
				return false
			}
			b.bytes.Add(-int64(k.size()))
			return true
		})
		return false
	})
}

// isFor tells whether the device is owed the entry.
func (k *kept) isFor(device string) bool {
	return len(k.devices) == 0 || slices.Contains(k.devices, device)
}

// less keeps entry i no longer for the device, and returns how far the next
// entry is from i.
func (b *Buffer) less(u *user, i int, device string) (next int) {
	k := &u.entries[i]
	if b.copied && (k.copied == 0 || len(k.devices) > 1) {
		t := *k
		t.id, t.copied, t.devices, t.lent = b.ids.Add(1), 0, []string{device}, time.Now().Add(linger).UnixNano()
		u.taken = append(u.taken, t)
		b.bytes.Add(int64(t.size()))
	}
	if len(k.devices) > 1 {
		k.devices = slices.DeleteFunc(k.devices, func(d string) bool { return d == device })
		k.modified()
		return 1
	}
	b.remove(u, i)
	return 0
}

// Lend returns what is kept for the device, oldest first, and goes on keeping
// it. For the time of the loan TakeBack does not take it back, and what is for
// whichever device comes first is not lent again. It stops before maxBytes.
func (b *Buffer) Lend(key route.DeviceKey, loan time.Duration, maxBytes int) (out []Held) {
	b.with(key.UserKey, func(u *user, now time.Time) bool {
		for i := range u.entries {
			k := &u.entries[i]
			if !k.isFor(key.Device) || len(k.devices) == 0 && now.UnixNano() < k.lent {
				continue
			}
			if maxBytes -= k.size(); maxBytes < 0 {
				break
			}
			k.lent = now.Add(loan).UnixNano()
			out = append(out, k.held(now, b.tenure.Load()))
		}
		return false
	})
	return out
}

// Taken no longer keeps the entries for the device: it has what was lent.
func (b *Buffer) Taken(key route.DeviceKey, ids []uint64) {
	b.with(key.UserKey, func(u *user, _ time.Time) (changed bool) {
		for i := 0; i < len(u.entries); {
			k := &u.entries[i]
			if !slices.Contains(ids, k.id) || !k.isFor(key.Device) {
				i++
				continue
			}
			i += b.less(u, i, key.Device)
			changed = true
		}
		return changed
	})
}

// Drop no longer keeps an entry that another router keeps now, unless it has
// changed since h was read: then less of it may have to be kept there.
func (b *Buffer) Drop(key route.UserKey, h Held) (ok bool) {
	b.with(key, func(u *user, _ time.Time) bool {
		i := slices.IndexFunc(u.entries, func(k kept) bool { return k.id == h.ID && k.version == h.Version })
		if i >= 0 {
			b.remove(u, i)
			ok = true
		}
		return ok
	})
	return ok
}

// Movable returns what another router could keep instead, oldest first: all
// that is not lent. lent tells whether something is.
func (b *Buffer) Movable(key route.UserKey) (out []Held, lent bool) {
	b.with(key, func(u *user, now time.Time) bool {
		for i := range u.entries {
			if now.UnixNano() < u.entries[i].lent {
				lent = true
				continue
			}
			out = append(out, u.entries[i].held(now, b.tenure.Load()))
		}
		return false
	})
	return out, lent
}

// Snapshot returns what is kept for the user, oldest first, for a copy over the
// stream. Messages that are not known there are limited to maxBytes, but one; more
// tells that some were left out.
func (b *Buffer) Snapshot(key route.UserKey, stream uint64, maxBytes int) (out []Held, more bool) {
	b.with(key, func(u *user, now time.Time) bool {
		sent := false
		for i := range u.entries {
			k := &u.entries[i]
			known := k.copied == stream
			if !known {
				if maxBytes -= k.size(); maxBytes < 0 && sent {
					more = true
					continue
				}
				sent = true
			}
			h := k.held(now, b.tenure.Load())
			h.Known = known
			out = append(out, h)
		}
		for i := range u.taken {
			if maxBytes -= u.taken[i].size(); maxBytes < 0 && sent {
				more = true
				break
			}
			sent = true
			h := u.taken[i].held(now, b.tenure.Load())
			h.Taken = true
			out = append(out, h)
		}
		return false
	})
	return out, more
}

// Copied notes that copies of the entries were made over the stream.
func (b *Buffer) Copied(key route.UserKey, entries []Held, stream uint64) {
	b.with(key, func(u *user, _ time.Time) bool {
		u.taken = slices.DeleteFunc(u.taken, func(k kept) bool {
			copied := slices.ContainsFunc(entries, func(h Held) bool { return h.ID == k.id })
			if copied {
				b.bytes.Add(-int64(k.size()))
			}
			return copied
		})
		next := 0 // both are mostly in the same order
		for i := range u.entries {
			k := &u.entries[i]
			for n := range entries {
				h := &entries[(next+n)%len(entries)]
				if h.ID == k.id {
					if h.Version == k.version {
						k.copied = stream
					}
					next = next + n + 1
					break
				}
			}
		}
		return false
	})
}

// Uncopied notes that the user's copies of the stream are gone.
func (b *Buffer) Uncopied(key route.UserKey, stream uint64) {
	b.with(key, func(u *user, _ time.Time) bool {
		for i := range u.entries {
			if u.entries[i].copied == stream {
				u.entries[i].copied = 0
			}
		}
		return false
	})
}

// HasCopies tells whether all that is kept for the user was copied over the
// stream.
func (b *Buffer) HasCopies(key route.UserKey, stream uint64) bool {
	all := true
	b.with(key, func(u *user, _ time.Time) bool {
		all = !slices.ContainsFunc(u.entries, func(k kept) bool { return k.copied != stream })
		return false
	})
	return all
}
