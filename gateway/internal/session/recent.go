package session

import "time"

const (
	// maxRecent bounds the keys that a session remembers.
	maxRecent = 512
	// keyLife is how long a key is remembered. It is less than the 60 s after
	// which a V1 client may use the same msg_id with the same content for a new
	// message (CONTRACT section 1.2), and more than any failover takes.
	keyLife = 45 * time.Second
	// inheritedAge is how old a key counts that comes without its age.
	inheritedAge = 15 * time.Second
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

// inherit adds the keys of the sessions that were here before, and how many seconds
// ago they were taken.
func (r *recent) inherit(keys, ages []byte, now int64) {
	const size = len(key{})
	n := len(keys) / size
	for i := max(0, n-maxRecent); i < n; i++ {
		age := int64(inheritedAge)
		if i < len(ages) {
			age = int64(ages[i]) * int64(time.Second)
		}
		if age < int64(keyLife) {
			r.add(key(keys[i*size:]), now-age)
		}
	}
}

// bequeath returns the keys that the next session should know, oldest first, and
// their ages in seconds, rounded up. Those of without are left out: that session
// has yet to get the messages.
func (r *recent) bequeath(now int64, without map[key]bool) (keys, ages []byte) {
	if r == nil {
		return nil, nil
	}
	for i := range r.ring {
		e := &r.ring[(r.next+i)%len(r.ring)]
		if age := now - e.at; age < int64(keyLife) && !without[e.key] {
			keys = append(keys, e.key[:]...)
			ages = append(ages, byte((age+int64(time.Second)-1)/int64(time.Second)))
		}
	}
	return keys, ages
}
