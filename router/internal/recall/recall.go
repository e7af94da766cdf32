// Package recall remembers which messages devices have got whose sessions have
// ended. A session recognises a repeat by the keys that it and those before it took
// lately; one that takes over an older session gets the keys from there. One that
// begins when there is none gets them from here, for what was under way in a process
// that stood still can come much later than the end of a session.
package recall

import (
	"bytes"
	"sync"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

const (
	// life is how old a key gets: what the gateways' sessions keep to. It is less
	// than the 60 s after which a V1 client may use a msg_id with the same content
	// for a new message (CONTRACT section 1.2).
	life    = 45 * time.Second
	keySize = 16
	// most bounds the keys of one device, total those of all, about 20 MB.
	most  = 512
	total = 1 << 20
	// unknownAge, in seconds, is for peers that tell no ages.
	unknownAge = 15
)

// Keys are names of messages, 16 bytes each, oldest first, and for each how many
// seconds ago a session took it. Both are immutable.
type Keys struct{ Keys, Ages []byte }

// FromWire returns what a peer tells, whose ages may be missing.
func FromWire(keys, ages []byte) Keys {
	n := len(keys) / keySize
	k := Keys{keys[:n*keySize], ages[:min(n, len(ages))]}
	if missing := n - len(k.Ages); missing > 0 {
		k.Ages = append(k.Ages[:len(k.Ages):len(k.Ages)], bytes.Repeat([]byte{unknownAge}, missing)...)
	}
	return k
}

// Join returns the keys of both, k's first.
func (k Keys) Join(o Keys) Keys {
	switch {
	case len(k.Ages) == 0:
		return o
	case len(o.Ages) == 0:
		return k
	}
	n := len(k.Ages) * keySize
	return Keys{append(k.Keys[:n:n], o.Keys...), append(k.Ages[:len(k.Ages):len(k.Ages)], o.Ages...)}
}

// Memory is safe for concurrent use.
type Memory struct {
	forgot func(keys int)
	ended  func(route.DeviceKey, Keys)

	mu      sync.Mutex
	devices map[route.DeviceKey]*device // guarded by mu
	order   []*device                   // guarded by mu: by at
	keys    int                         // guarded by mu
}

type device struct {
	key  route.DeviceKey
	at   time.Time
	kept Keys
}

// New returns an empty Memory, which calls forgot, locked, when it has no room for
// keys that are still wanted.
func New(forgot func(keys int)) *Memory {
	return &Memory{forgot: forgot, ended: func(route.DeviceKey, Keys) {}, devices: map[route.DeviceKey]*device{}}
}

// OnEnded has f called with what Ended says. It is for the owner, before use.
func (m *Memory) OnEnded(f func(route.DeviceKey, Keys)) { m.ended = f }

// Ended says what a device has got whose session has ended.
func (m *Memory) Ended(key route.DeviceKey, k Keys) {
	if len(k.Ages) > 0 {
		m.ended(key, k)
	}
	m.Learn(key, k)
}

// Learn is Ended of another router.
func (m *Memory) Learn(key route.DeviceKey, k Keys) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.expire(now)
	if len(k.Ages) == 0 {
		return
	}
	if d := m.devices[key]; d != nil {
		k = d.aged(now).Join(d.without(k))
		m.remove(d)
	}
	if n := len(k.Ages); n > most {
		k = Keys{k.Keys[(n-most)*keySize:], k.Ages[n-most:]}
	}
	d := &device{key, now, k}
	m.devices[key] = d
	m.order = append(m.order, d)
	m.keys += len(k.Ages)
	for m.keys > total {
		m.forgot(len(m.order[0].kept.Ages))
		m.drop()
	}
}

// Of returns what the device's ended sessions took, with its age now.
func (m *Memory) Of(key route.DeviceKey) Keys {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.expire(now)
	if d := m.devices[key]; d != nil {
		return d.aged(now)
	}
	return Keys{}
}

// aged returns what is not too old by now. Ages do not fall in the order: sessions'
// keys are joined.
func (d *device) aged(now time.Time) (out Keys) {
	passed := int((now.Sub(d.at) + time.Second - 1) / time.Second)
	for i, age := range d.kept.Ages {
		if age := int(age) + passed; age < int(life/time.Second) {
			out.Keys = append(out.Keys, d.kept.Keys[i*keySize:(i+1)*keySize]...)
			out.Ages = append(out.Ages, byte(age))
		}
	}
	return out
}

// without returns what of k is not known yet: a router may say it twice.
func (d *device) without(k Keys) (out Keys) {
	known := make(map[string]struct{}, len(d.kept.Ages))
	for i := range d.kept.Ages {
		known[string(d.kept.Keys[i*keySize:(i+1)*keySize])] = struct{}{}
	}
	for i, age := range k.Ages {
		if one := k.Keys[i*keySize : (i+1)*keySize]; !has(known, one) {
			out.Keys, out.Ages = append(out.Keys, one...), append(out.Ages, age)
		}
	}
	return out
}

func has(known map[string]struct{}, key []byte) bool {
	_, ok := known[string(key)]
	return ok
}

// remove forgets a device whose place in the order stays, empty. mu is held.
func (m *Memory) remove(d *device) {
	delete(m.devices, d.key)
	m.keys -= len(d.kept.Ages)
	d.kept = Keys{}
}

// expire drops the devices of which everything is too old. mu is held.
func (m *Memory) expire(now time.Time) {
	for len(m.order) > 0 && now.Sub(m.order[0].at) >= life {
		m.drop()
	}
}

// drop forgets the oldest. mu is held.
func (m *Memory) drop() {
	d := m.order[0]
	m.order[0] = nil
	m.order = m.order[1:]
	m.keys -= len(d.kept.Ages)
	if m.devices[d.key] == d {
		delete(m.devices, d.key)
	}
}
