package session

import "time"

const (
	// maxRecent bounds the keys that a session remembers.
	maxRecent = 512
	// keyLife is how long a key is remembered. It is less than the 60 s after
	// which a V1 client may use the same msg_id with the same content for a new
	// message (CONTRACT section 1.2), and more than any failover takes.
	keyLife = 45 * time.Second
	// An inherited key has no time with it and counts as inheritedAge old. What
	// is bequeathAge old is not handed on. So a device that reconnects every few
	// seconds keeps what it knows, and other takeovers do not keep a key alive.
	inheritedAge = 15 * time.Second
	bequeathAge  = 30 * time.Second
)

// recent is the memory of the keys taken lately, a ring in the order of time.
// The nil one is empty.
type recent struct {
	ring []remembered
	next int // the oldest, once the ring is full
}

type remembered struct {
	key key
	at  int64
}

// has tells whether the key was added within keyLife. A scan: the ring is small
// and the keys are hashes, so that one comparison in nearly all cases settles it.
func (r *recent) has(k key, now int64) bool {
	if r == nil || k == (key{}) {
		return false
	}
	for i := range r.ring {
		if r.ring[i].key == k && now-r.ring[i].at < int64(keyLife) {
			return true
		}
	}
	return false
}

func (r *recent) add(k key, at int64) {
	switch {
	case k == (key{}):
	case len(r.ring) < maxRecent:
		r.ring = append(r.ring, remembered{k, at})
	default:
		r.ring[r.next] = remembered{k, at}
		r.next = (r.next + 1) % maxRecent
	}
}

// expired says that all of it can be forgotten.
func (r *recent) expired(now int64) bool {
	if len(r.ring) == 0 {
		return true
	}
	newest := (r.next + len(r.ring) - 1) % len(r.ring)
	return now-r.ring[newest].at >= int64(keyLife)
}

// inherit adds the keys of the session that was here before.
func (r *recent) inherit(keys []byte, now int64) {
	const size = len(key{})
	for len(keys) > maxRecent*size {
		keys = keys[size:]
	}
	for ; len(keys) >= size; keys = keys[size:] {
		r.add(key(keys[:size]), now-int64(inheritedAge))
	}
}

// bequeath returns the keys that the next session should know, oldest first.
// Those of without are left out: that session has yet to get the messages.
func (r *recent) bequeath(now int64, without map[key]bool) []byte {
	if r == nil {
		return nil
	}
	var out []byte
	for i := range r.ring {
		e := &r.ring[(r.next+i)%len(r.ring)]
		if now-e.at < int64(bequeathAge) && !without[e.key] {
			out = append(out, e.key[:]...)
		}
	}
	return out
}
