package away

import (
	"container/list"
	"slices"
	"sync"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/router/internal/route"
)

// mirror remembers routes beside the store, of users whose home this router is or
// was: bounded, the longest unused go first, those with unsaved records last. Safe
// for concurrent use.
type mirror struct {
	max       int
	forgotten *telemetry.Counter // unsaved records that had to go

	mu     sync.Mutex
	users  map[route.UserKey]*entry // guarded by mu
	order  *list.List               // guarded by mu: of *entry, the one used last in front
	dirty  map[route.DeviceKey]bool // guarded by mu: not in the store, or not certainly
	toTell map[route.DeviceKey]bool // guarded by mu: what other routers remember of these may be wrong
	// copies are ghosts that another router, the home, has told of. Guarded by mu.
	copies map[route.DeviceKey]bool
	ring   uint64 // guarded by mu: which set of routers the entries are right for
}

// entry is guarded by its mirror's mu.
type entry struct {
	key     route.UserKey
	records []route.Record // sorted by device
	// complete: all devices are in records. Only this router, the user's home,
	// binds them, so it stays true until another one becomes the home.
	complete bool
	version  uint64 // counts changes
	used     time.Time
	at       *list.Element
}

func newMirror(max int, forgotten *telemetry.Counter) *mirror {
	return &mirror{
		max: max, forgotten: forgotten,
		users: map[route.UserKey]*entry{}, order: list.New(), dirty: map[route.DeviceKey]bool{}, toTell: map[route.DeviceKey]bool{}, copies: map[route.DeviceKey]bool{},
	}
}

// get returns the user's entry, a new one if there is none. mu is held.
func (m *mirror) get(key route.UserKey) *entry {
	e := m.users[key]
	if e == nil {
		if len(m.users) >= m.max {
			m.evict()
		}
		e = &entry{key: key}
		e.at = m.order.PushFront(e)
		m.users[key] = e
	} else {
		m.order.MoveToFront(e.at)
	}
	e.used = time.Now()
	return e
}

// evictScan bounds the search for an entry without unsaved records.
const evictScan = 64

// evict drops the entry that was used longest ago. mu is held.
func (m *mirror) evict() {
	victim := m.order.Back()
	for at, n := victim, 0; at != nil && n < evictScan; at, n = at.Prev(), n+1 {
		if !m.unsaved(at.Value.(*entry)) {
			victim = at
			break
		}
	}
	e := victim.Value.(*entry)
	for _, r := range e.records {
		key := route.DeviceKey{UserKey: e.key, Device: r.Device}
		if m.dirty[key] {
			m.forgotten.Inc()
			delete(m.dirty, key)
		}
		delete(m.copies, key)
	}
	m.order.Remove(victim)
	delete(m.users, e.key)
}

func (m *mirror) unsaved(e *entry) bool {
	return slices.ContainsFunc(e.records, func(r route.Record) bool { return m.dirty[route.DeviceKey{UserKey: e.key, Device: r.Device}] })
}

// turn adapts to another set of routers, ring being the number of its version. Of
// users that are not mine any more only ghosts and what is unsaved are kept, and
// so of all if it is not the next set: between two a user may have been elsewhere.
func (m *mirror) turn(ring uint64, mine func(route.UserKey) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ring == m.ring {
		return
	}
	next := ring == m.ring+1
	m.ring = ring
	for _, e := range m.users {
		if next && mine(e.key) {
			continue
		}
		e.complete = false
		e.version++
		e.records = slices.DeleteFunc(e.records, func(r route.Record) bool {
			return r.State != route.Ghost && !m.dirty[route.DeviceKey{UserKey: e.key, Device: r.Device}]
		})
	}
}

// unsure says that others may have bound users of this router meanwhile.
func (m *mirror) unsure() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.users {
		e.complete = false
		e.version++
	}
}

// records returns a copy of what is remembered of the user, forgotten ghosts
// included, and whether that is all there is.
func (m *mirror) records(key route.UserKey) (records []route.Record, complete bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.users[key]
	if e == nil {
		return nil, false
	}
	return slices.Clone(e.records), e.complete
}

// device returns what is remembered of one device, nil for nothing.
func (m *mirror) device(key route.DeviceKey) *route.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.users[key.UserKey]; e != nil {
		if i, ok := find(e.records, key.Device); ok {
			r := e.records[i]
			return &r
		}
	}
	return nil
}

// version is the state of an entry to hand to saw.
func (m *mirror) version(key route.UserKey) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.users[key]; e != nil {
		return e.version
	}
	return 0
}

// saw takes a whole user as the store, which nobody doubts, has him. version is
// from before the store was asked: what changed meanwhile stays.
func (m *mirror) saw(key route.UserKey, records []route.Record, version uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.get(key)
	switch {
	case e.version != version:
		e.records = join(e.records, records...)
	case m.unsaved(e):
		return
	default:
		e.records = slices.Clone(records)
	}
	e.complete = true
}

// put sets a device's record, which follows prev (nil: none): the store has it so.
func (m *mirror) put(key route.DeviceKey, r route.Record, prev *route.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set(m.get(key.UserKey), r)
	delete(m.dirty, key)
	m.follows(key, prev)
}

// set is put for one who holds mu.
func (m *mirror) set(e *entry, r route.Record) {
	e.version++
	delete(m.copies, route.DeviceKey{UserKey: e.key, Device: r.Device})
	if i, ok := find(e.records, r.Device); ok {
		e.records[i] = r
	} else {
		e.records = slices.Insert(e.records, i, r)
	}
}

// learn adds what others say; unsaved: the store may not have it.
func (m *mirror) learn(key route.UserKey, records []route.Record, unsaved bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.get(key)
	for _, r := range records {
		if i, ok := find(e.records, r.Device); ok && !better(r, e.records[i]) {
			continue
		}
		m.set(e, r)
		if unsaved {
			m.dirty[route.DeviceKey{UserKey: key, Device: r.Device}] = true
		}
	}
}

// whole says that nothing is missing in what is remembered of the user.
func (m *mirror) whole(key route.UserKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.get(key)
	e.complete = true
}

// bind applies a bind and returns its record and the one it replaces.
func (m *mirror) bind(key route.DeviceKey, loc route.Location, version uint8) (route.Record, *route.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.get(key.UserKey)
	var known *route.Record
	if i, ok := find(e.records, key.Device); ok {
		r := e.records[i]
		known = &r
	}
	r, prev := rebound(known, key.Device, loc, version, time.Now())
	m.set(e, r)
	m.dirty[key] = true
	m.follows(key, known)
	return r, prev
}

// change applies a change and returns the record as it is then.
func (m *mirror) change(c route.Change) (route.Record, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.get(c.Key.UserKey)
	var known *route.Record
	if i, ok := find(e.records, c.Key.Device); ok {
		known = &e.records[i]
	}
	r, ok := changed(known, c, time.Now())
	if ok {
		m.set(e, r)
		m.dirty[c.Key] = true
		if r.State == route.Ghost {
			m.toTell[c.Key] = true
		}
	}
	return r, ok
}

// applied takes a change that the store has made. Of who has left it remembers also
// what it did not know: no gateway could tell it again.
func (m *mirror) applied(c route.Change) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.users[c.Key.UserKey]
	var records []route.Record
	if e != nil {
		records = e.records
	}
	i, known := find(records, c.Key.Device)
	if !known {
		if r, ok := changed(nil, c, now); ok && c.To == route.Ghost && c.GhostTTL > 0 {
			m.set(m.get(c.Key.UserKey), r)
			m.toTell[c.Key] = true
		}
		return
	}
	if e.records[i].Epoch > c.Epoch {
		return
	}
	e.version++
	switch {
	case c.To == route.Closing && e.records[i].State == route.Live:
		e.records[i].State = route.Closing
	case c.To == route.Ghost && c.GhostTTL <= 0:
		e.records = slices.Delete(e.records, i, i+1)
		delete(m.dirty, c.Key)
	case c.To == route.Ghost:
		e.records[i].State, e.records[i].Until = route.Ghost, now.Add(c.GhostTTL)
		m.toTell[c.Key] = true
	}
}

// some returns about limit unsaved records, all of a user's one after the other: whoever
// does not know yet that the store was emptied must not take one device for all.
func (m *mirror) some(limit int) []route.Restored {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]route.Restored, 0, min(limit, len(m.dirty)))
	taken := map[route.UserKey]bool{}
	for key := range m.dirty {
		if len(out) >= limit {
			break
		}
		e := m.users[key.UserKey]
		if e == nil {
			delete(m.dirty, key)
			continue
		}
		if _, ok := find(e.records, key.Device); !ok {
			delete(m.dirty, key)
			continue
		}
		if taken[key.UserKey] {
			continue
		}
		taken[key.UserKey] = true
		for _, r := range e.records {
			if one := (route.DeviceKey{UserKey: e.key, Device: r.Device}); m.dirty[one] {
				out = append(out, route.Restored{Key: one, Record: r})
			}
		}
	}
	return out
}

// saved says that the store has these, unless they changed meanwhile.
func (m *mirror) saved(records []route.Restored) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range records {
		e := m.users[r.Key.UserKey]
		if e == nil {
			continue
		}
		i, ok := find(e.records, r.Key.Device)
		if !ok || e.records[i] != r.Record {
			continue
		}
		delete(m.dirty, r.Key)
		if r.Record.Forgotten(now) {
			e.records = slices.Delete(e.records, i, i+1)
		}
	}
}

// unsavedLen is how many records are not saved.
func (m *mirror) unsavedLen() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.dirty)
}

// len is how many users are remembered.
func (m *mirror) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.users)
}

// doubt marks records as unsaved because the store may have lost them: those of
// users that were used since then, all with a zero time. Of users that are not mine
// only ghosts: these do no harm where their device is back. Copies may.
func (m *mirror) doubt(since time.Time, mine func(route.UserKey) bool) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for at := m.order.Front(); at != nil; at = at.Next() {
		e := at.Value.(*entry)
		if e.used.Before(since) {
			break
		}
		own := mine(e.key)
		for _, r := range e.records {
			key := route.DeviceKey{UserKey: e.key, Device: r.Device}
			if r.State == route.Ghost && !r.Forgotten(now) && (own || !m.copies[key]) || r.State != route.Ghost && own {
				m.dirty[key] = true
			}
		}
	}
}
