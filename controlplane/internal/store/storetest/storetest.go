// Package storetest is the contract of store.Store as a test suite, run on every
// backend.
package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mics-im/mics/controlplane/internal/store"
)

// long is a lease that no test outlives.
const long = time.Minute

var (
	ann = store.Candidate{Instance: "ann/1", Name: "ann", Address: "http://ann"}
	bob = store.Candidate{Instance: "bob/1", Name: "bob", Address: "http://bob"}
)

// Run runs the suite; open returns an empty store.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for name, f := range map[string]func(*testing.T, store.Store){
		"Items": items, "ConflictChangesNothing": conflict, "OneLeads": oneLeads, "DeposedWritesNothing": deposed,
		"LogsAreBounded": logs, "BatchIsOneStep": batch, "Bounds": bounds, "LapsedLease": lapsed,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			t.Cleanup(s.Close)
			f(t, s)
		})
	}
}

func lead(t *testing.T, s store.Store, c store.Candidate) uint64 {
	t.Helper()
	l, err := s.Campaign(t.Context(), c, long)
	if err != nil || l.Candidate != c || l.Term == 0 {
		t.Fatalf("campaign of %s: %+v, %v", c.Name, l, err)
	}
	return l.Term
}

func put(t *testing.T, s store.Store, term uint64, c store.Change) uint64 {
	t.Helper()
	v, err := s.Commit(t.Context(), term, store.Batch{Changes: []store.Change{c}})
	if err != nil {
		t.Fatalf("put %s: %v", c.Key, err)
	}
	return v[0]
}

func get(t *testing.T, s store.Store, key string) store.Item {
	t.Helper()
	it, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return it
}

func items(t *testing.T, s store.Store) {
	if it := get(t, s, "drain/1"); it.Version != 0 {
		t.Errorf("an item that nobody wrote: %+v", it)
	}
	term := lead(t, s, ann)
	value := []byte("a:b\x00\xff")
	v1 := put(t, s, term, store.Change{Key: "drain/1", Value: value})
	value[0] = 'x'
	put(t, s, term, store.Change{Key: "drain/2", Value: nil})
	put(t, s, term, store.Change{Key: "canary/1", Value: []byte("c")})
	if it := get(t, s, "drain/1"); string(it.Value) != "a:b\x00\xff" || it.Version != v1 || v1 == 0 || it.Key != "drain/1" {
		t.Errorf("got %+v", it)
	}
	v2 := put(t, s, term, store.Change{Key: "drain/1", Version: v1, Value: []byte("new")})
	list, err := s.List(t.Context(), "drain/")
	if err != nil || len(list) != 2 || list[0].Key != "drain/1" || string(list[0].Value) != "new" || list[0].Version != v2 || list[1].Key != "drain/2" {
		t.Errorf("list %+v, %v", list, err)
	}
	put(t, s, term, store.Change{Key: "drain/1", Version: v2, Delete: true})
	if it := get(t, s, "drain/1"); it.Version != 0 {
		t.Errorf("removed, and there: %+v", it)
	}
	if again := put(t, s, term, store.Change{Key: "drain/1"}); again == v1 || again == v2 {
		t.Errorf("version %d was there before", again)
	}
}

func conflict(t *testing.T, s store.Store) {
	term := lead(t, s, ann)
	v := put(t, s, term, store.Change{Key: "a", Value: []byte("1")})
	for name, c := range map[string]store.Change{
		"exists":      {Key: "a", Value: []byte("2")},
		"older":       {Key: "a", Version: v + 7, Value: []byte("2")},
		"is not":      {Key: "b", Version: 3, Value: []byte("2")},
		"remove":      {Key: "a", Version: v + 7, Delete: true},
		"remove none": {Key: "b", Version: v, Delete: true},
	} {
		if _, err := s.Commit(t.Context(), term, store.Batch{Changes: []store.Change{c}}); !errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if it := get(t, s, "a"); string(it.Value) != "1" || it.Version != v {
		t.Errorf("changed: %+v", it)
	}
}

func oneLeads(t *testing.T, s store.Store) {
	if l, err := s.Leader(t.Context()); err != nil || l != (store.Leader{}) {
		t.Fatalf("before anybody: %+v, %v", l, err)
	}
	term := lead(t, s, ann)
	if l, err := s.Campaign(t.Context(), bob, long); err != nil || l.Candidate != ann || l.Term != term {
		t.Errorf("a second one is told %+v, %v", l, err)
	}
	moved := ann
	moved.Address = "http://elsewhere"
	if l, err := s.Campaign(t.Context(), moved, long); err != nil || l.Term != term || l.Address != moved.Address {
		t.Errorf("prolonged: %+v, %v", l, err)
	}
	if l, err := s.Leader(t.Context()); err != nil || l.Term != term || l.Candidate != moved {
		t.Errorf("leader %+v, %v", l, err)
	}
	if err := s.Resign(t.Context(), bob.Instance); err != nil {
		t.Fatal(err)
	}
	if l, _ := s.Leader(t.Context()); l.Candidate != moved {
		t.Errorf("resigned by another one: %+v", l)
	}
	if err := s.Resign(t.Context(), ann.Instance); err != nil {
		t.Fatal(err)
	}
	if next := lead(t, s, bob); next <= term {
		t.Errorf("term %d after %d", next, term)
	}
}

func deposed(t *testing.T, s store.Store) {
	old := lead(t, s, ann)
	v := put(t, s, old, store.Change{Key: "a", Value: []byte("1")})
	if err := s.Resign(t.Context(), ann.Instance); err != nil {
		t.Fatal(err)
	}
	write := store.Batch{Changes: []store.Change{{Key: "a", Version: v, Value: []byte("2")}}, Entries: []store.Entry{{Log: "l", Keep: 5}}}
	for name, term := range map[string]uint64{"nobody leads": old, "no term": 0} {
		if _, err := s.Commit(t.Context(), term, write); !errors.Is(err, store.ErrDeposed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	term := lead(t, s, bob)
	if _, err := s.Commit(t.Context(), old, write); !errors.Is(err, store.ErrDeposed) {
		t.Errorf("under another leader: %v", err)
	}
	if it := get(t, s, "a"); string(it.Value) != "1" {
		t.Errorf("written: %+v", it)
	}
	if r, err := s.Tail(t.Context(), "l", time.Time{}, 10); err != nil || len(r) != 0 {
		t.Errorf("logged: %v, %v", r, err)
	}
	if _, err := s.Commit(t.Context(), term, write); err != nil {
		t.Errorf("the leader: %v", err)
	}
}

func logs(t *testing.T, s store.Store) {
	before := time.Now().Add(-time.Hour)
	for i := range 7 {
		if err := s.Append(t.Context(), store.Entry{Log: "audit", Value: fmt.Append(nil, i), Keep: 5}); err != nil {
			t.Fatal(err)
		}
	}
	read := func(since time.Time, limit int) (got []string) {
		records, err := s.Tail(t.Context(), "audit", since, limit)
		if err != nil {
			t.Fatal(err)
		}
		ids := map[string]bool{}
		for _, r := range records {
			got = append(got, string(r.Value))
			if ids[r.ID] || r.ID == "" || r.At.Before(before) {
				t.Errorf("record %+v", r)
			}
			ids[r.ID] = true
		}
		return got
	}
	if got := read(time.Time{}, 100); !slices.Equal(got, []string{"6", "5", "4", "3", "2"}) {
		t.Errorf("all: %q", got)
	}
	if got := read(before, 2); !slices.Equal(got, []string{"6", "5"}) {
		t.Errorf("two: %q", got)
	}
	if got := read(time.Now().Add(time.Hour), 100); len(got) != 0 {
		t.Errorf("since the future: %q", got)
	}
	if got := read(before, 0); len(got) != 0 {
		t.Errorf("none: %q", got)
	}
}

func batch(t *testing.T, s store.Store) {
	term := lead(t, s, ann)
	v, err := s.Commit(t.Context(), term, store.Batch{
		Changes: []store.Change{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte("2")}},
		Entries: []store.Entry{{Log: "x", Value: []byte("e1"), Keep: 3}, {Log: "y", Value: []byte("e2"), Keep: 3}},
	})
	if err != nil || len(v) != 2 || v[0] == v[1] {
		t.Fatalf("versions %v, %v", v, err)
	}
	_, err = s.Commit(t.Context(), term, store.Batch{
		Changes: []store.Change{{Key: "a", Version: v[0], Delete: true}, {Key: "b", Version: v[1] + 9, Value: []byte("3")}},
		Entries: []store.Entry{{Log: "x", Value: []byte("e3"), Keep: 3}},
	})
	if !errors.Is(err, store.ErrConflict) || get(t, s, "a").Version != v[0] {
		t.Errorf("half done: %v, %+v", err, get(t, s, "a"))
	}
	for log, want := range map[string]string{"x": "e1", "y": "e2"} {
		if r, err := s.Tail(t.Context(), log, time.Time{}, 9); err != nil || len(r) != 1 || string(r[0].Value) != want {
			t.Errorf("log %s: %v, %v", log, r, err)
		}
	}
}

func bounds(t *testing.T, s store.Store) {
	term := lead(t, s, ann)
	big := make([]byte, store.MaxValue+1)
	for name, b := range map[string]store.Batch{
		"nothing":          {},
		"big value":        {Changes: []store.Change{{Key: "a", Value: big}}},
		"no key":           {Changes: []store.Change{{}}},
		"key with a brace": {Changes: []store.Change{{Key: "{a}"}}},
		"twice":            {Changes: []store.Change{{Key: "a"}, {Key: "a"}}},
		"keep none":        {Entries: []store.Entry{{Log: "l"}}},
		"keep all":         {Entries: []store.Entry{{Log: "l", Keep: store.MaxKeep + 1}}},
		"blind removal":    {Changes: []store.Change{{Key: "a", Delete: true}}},
	} {
		if _, err := s.Commit(t.Context(), term, b); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := 0; i < store.MaxItems; i += store.MaxBatch {
		var b store.Batch
		for j := range store.MaxBatch {
			b.Changes = append(b.Changes, store.Change{Key: fmt.Sprintf("k%d", i+j)})
		}
		if _, err := s.Commit(t.Context(), term, b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Commit(t.Context(), term, store.Batch{Changes: []store.Change{{Key: "more"}}}); !errors.Is(err, store.ErrFull) {
		t.Errorf("one more: %v", err)
	}
}

func lapsed(t *testing.T, s store.Store) {
	l, err := s.Campaign(t.Context(), ann, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		next, err := s.Campaign(t.Context(), bob, long)
		if err != nil {
			t.Fatal(err)
		}
		if next.Candidate == bob {
			if next.Term <= l.Term {
				t.Errorf("term %d after %d", next.Term, l.Term)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a lease of 20 ms never lapses")
		}
		time.Sleep(5 * time.Millisecond) // the store's clock is real
	}
	if _, err := s.Commit(t.Context(), l.Term, store.Batch{Changes: []store.Change{{Key: "a"}}}); !errors.Is(err, store.ErrDeposed) {
		t.Errorf("after the lease: %v", err)
	}
}
