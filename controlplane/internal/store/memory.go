package store

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Memory keeps everything in this process: for mics-dev and trials. It is lost
// with it, and one control plane cannot see another's.
type Memory struct {
	mu      sync.Mutex
	items   map[string]Item     // guarded by mu
	logs    map[string][]Record // oldest first; guarded by mu
	version uint64              // guarded by mu
	entries uint64              // guarded by mu
	term    uint64              // guarded by mu
	leader  Leader              // guarded by mu
	until   time.Time           // of leader; guarded by mu
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{items: map[string]Item{}, logs: map[string][]Record{}}
}

var _ Store = (*Memory)(nil)

// Get implements Store.
func (m *Memory) Get(_ context.Context, key string) (Item, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it := m.items[key]
	it.Value = bytes.Clone(it.Value)
	return it, nil
}

// List implements Store.
func (m *Memory) List(_ context.Context, prefix string) ([]Item, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Item
	for k, it := range m.items {
		if strings.HasPrefix(k, prefix) {
			it.Value = bytes.Clone(it.Value)
			out = append(out, it)
		}
	}
	slices.SortFunc(out, func(a, b Item) int { return cmp.Compare(a.Key, b.Key) })
	return out, nil
}

// Commit implements Store.
func (m *Memory) Commit(_ context.Context, term uint64, b Batch) ([]uint64, error) {
	if err := b.Check(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.current(); l.Term != term || term == 0 {
		return nil, ErrDeposed
	}
	more := 0
	for _, c := range b.Changes {
		if m.items[c.Key].Version != c.Version {
			return nil, ErrConflict
		}
		switch {
		case c.Delete:
			more--
		case c.Version == 0:
			more++
		}
	}
	if more > 0 && len(m.items)+more > MaxItems {
		return nil, ErrFull
	}
	versions := make([]uint64, len(b.Changes))
	for i, c := range b.Changes {
		if c.Delete {
			delete(m.items, c.Key)
			continue
		}
		m.version++
		versions[i] = m.version
		m.items[c.Key] = Item{Key: c.Key, Value: bytes.Clone(c.Value), Version: m.version}
	}
	for _, e := range b.Entries {
		m.add(e)
	}
	return versions, nil
}

// Append implements Store.
func (m *Memory) Append(_ context.Context, e Entry) error {
	if err := e.Check(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.add(e)
	return nil
}

func (m *Memory) add(e Entry) {
	m.entries++
	l := append(m.logs[e.Log], Record{ID: strconv.FormatUint(m.entries, 10), At: time.Now(), Value: bytes.Clone(e.Value)})
	if over := len(l) - e.Keep; over > 0 {
		l = slices.Delete(l, 0, over)
	}
	m.logs[e.Log] = l
}

// Tail implements Store.
func (m *Memory) Tail(_ context.Context, log string, since time.Time, limit int) ([]Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Record
	for _, r := range slices.Backward(m.logs[log]) {
		if len(out) >= limit || r.At.Before(since) {
			break
		}
		r.Value = bytes.Clone(r.Value)
		out = append(out, r)
	}
	return out, nil
}

// current returns who leads now. Callers hold mu.
func (m *Memory) current() Leader {
	if !time.Now().Before(m.until) {
		m.leader = Leader{}
	}
	return m.leader
}

// Campaign implements Store.
func (m *Memory) Campaign(_ context.Context, c Candidate, ttl time.Duration) (Leader, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.current()
	switch {
	case l.Term == 0:
		m.term++
		m.leader = Leader{Candidate: c, Term: m.term}
	case l.Instance != c.Instance:
		return l, nil
	default:
		m.leader.Candidate = c
	}
	m.until = time.Now().Add(ttl)
	return m.leader, nil
}

// Leader implements Store.
func (m *Memory) Leader(context.Context) (Leader, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current(), nil
}

// Resign implements Store.
func (m *Memory) Resign(_ context.Context, instance string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current().Instance == instance {
		m.leader, m.until = Leader{}, time.Time{}
	}
	return nil
}

// Close implements Store.
func (m *Memory) Close() {}
