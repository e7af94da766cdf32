package session

import (
	"testing"
	"time"
)

func k(n int) key { return key{byte(n), byte(n >> 8), 1} }

func TestRecentIsBoundedInNumberAndTime(t *testing.T) {
	var none *recent
	want(t, "empty", none.has(k(1), 0), false)
	r := &recent{}
	for n := range maxRecent + 100 {
		r.add(k(n), int64(n))
	}
	r.add(key{}, 0)
	now := int64(maxRecent + 100)
	want(t, "the oldest left", r.has(k(100), now), true)
	want(t, "older", r.has(k(99), now), false)
	want(t, "no key", r.has(key{}, now), false)
	want(t, "kept", len(r.ring), maxRecent)
	want(t, "too old", r.has(k(200), int64(keyLife)+200), false)
	want(t, "young enough", r.has(k(200), int64(keyLife)+199), true)
	newest := int64(maxRecent + 99)
	want(t, "not expired", r.expired(newest+int64(keyLife)-1), false)
	want(t, "expired", r.expired(newest+int64(keyLife)), true)
}

func TestRecentIsHandedOnInOrder(t *testing.T) {
	r := &recent{}
	for n := range maxRecent + 3 {
		r.add(k(n), int64(n))
	}
	keys, ages := r.bequeath(int64(time.Second), map[key]bool{k(4): true})
	want(t, "bytes", len(keys), 16*(maxRecent-1))
	want(t, "ages", len(ages), maxRecent-1)
	want(t, "oldest first", key(keys[:16]), k(3))
	want(t, "without what was not got", key(keys[16:32]), k(5))
	want(t, "rounded up", ages[0], 1)

	next := &recent{}
	now := int64(time.Hour)
	next.inherit(append(keys, "rest"...), ages, now)
	want(t, "known", next.has(k(5), now), true)
	again, older := next.bequeath(now+int64(10*time.Second), nil)
	want(t, "handed on again", len(again), len(keys))
	want(t, "its age", older[0], 11)
	want(t, "not for ever", next.has(k(5), now+int64(keyLife-time.Second)), false)
	again, _ = next.bequeath(now+int64(keyLife-time.Second), nil)
	want(t, "too old to be handed on", len(again), 0)
	next.inherit(make([]byte, 16*(maxRecent+5)), nil, now)
	want(t, "zero keys", len(next.ring), maxRecent-1)

	old := &recent{}
	old.inherit(keys[:16], nil, now)
	want(t, "of a peer that tells no ages", old.has(k(3), now+int64(keyLife-inheritedAge-1)), true)
	want(t, "and not for ever", old.has(k(3), now+int64(keyLife-inheritedAge)), false)
}
