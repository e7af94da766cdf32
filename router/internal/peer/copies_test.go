package peer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/ring"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dedup"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/recall"
	"github.com/mics-im/mics/router/internal/route"
)

// TestDuties: every router that sees the same others has a duty that fits theirs.
func TestDuties(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 500 {
		var routers []route.Router
		for i := range 1 + rng.IntN(6) {
			routers = append(routers, route.Router{NodeRef: route.NodeRef{ID: fmt.Sprint("r", i), Incarnation: rng.Uint64()}})
		}
		left := slices.Delete(slices.Clone(routers), 0, 1)
		for range 20 {
			h := rng.Uint64()
			pair := newView(routers, route.NodeRef{}, false).pair(h)
			for _, r := range routers {
				d := newView(routers, r.NodeRef, false).dutyOf(h)
				switch {
				case r.NodeRef == pair[0].NodeRef && (d.home != nil || len(pair) > 1 && *d.copy != pair[1] || len(pair) == 1 && d.copy != nil):
					t.Fatalf("%v is the home of %v: %+v", r, pair, d)
				case r.NodeRef != pair[0].NodeRef && (*d.home != pair[0] || *d.copy != pair[0]):
					t.Fatalf("%v is not the home of %v: %+v", r, pair, d)
				}
			}
			if d := newView(routers, routers[0].NodeRef, true).dutyOf(h); len(left) > 0 && (d.home == nil || d.home.NodeRef == routers[0].NodeRef || d.copy != nil) {
				t.Fatalf("a router that leaves: %+v", d)
			}
			// Whoever answers for the user afterwards is told, unless he was one before.
			for _, after := range [][]route.Router{left, append(slices.Clone(routers), route.Router{NodeRef: route.NodeRef{ID: "new"}})} {
				told := map[route.NodeRef]bool{}
				for _, r := range routers {
					if !slices.Contains(after, r) {
						continue
					}
					before := newView(routers, r.NodeRef, false)
					for _, heir := range newView(after, r.NodeRef, false).heirs(before, h) {
						told[heir.NodeRef] = true
					}
				}
				for _, r := range newView(after, route.NodeRef{}, false).pair(h) {
					someoneLeft := slices.ContainsFunc(pair, func(p route.Router) bool { return slices.Contains(after, p) })
					if someoneLeft && told[r.NodeRef] == slices.Contains(pair, r) {
						t.Fatalf("%v told %v, pair before %v", r, told[r.NodeRef], pair)
					}
				}
			}
		}
	}
}

// settled is a world of two routers in which nothing has changed for a while.
func settled(t *testing.T, loses func(*world, string) bool) (w *world, home, backup *member) {
	w = newWorld(t, 1, 2, loses)
	time.Sleep(2 * askFor) // fake time
	home = w.homeOf(phone.UserKey)
	for _, m := range w.all {
		if m != home {
			backup = m
		}
	}
	return w, home, backup
}

func (m *member) put(text string) dispatch.BufferResult {
	results := make(chan dispatch.BufferResult, 1)
	m.Put(dispatch.BufferEntry{
		Key: phone.UserKey, Devices: []string{"phone"}, Done: func(r dispatch.BufferResult) { results <- r },
		Message: &dispatch.Message{Bytes: []byte(text), Key: dedup.Key{2, text[0]}},
	})
	return <-results
}

// What a device took is known at its user's backup too: its home may die before the
// device comes back.
func TestWhatADeviceTookHasTwoCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, home, backup := settled(t, never)
		defer w.close()
		home.opts.Recall.Ended(phone, recall.FromWire([]byte("0123456789abcdef"), []byte{3}))
		time.Sleep(time.Second) // fake time
		if k := backup.opts.Recall.Of(phone); string(k.Keys) != "0123456789abcdef" {
			t.Errorf("the backup knows %q", k.Keys)
		}
		w.kill(home)
		time.Sleep(heal) // fake time
		if _, _, k, err := backup.TakeFor(t.Context(), phone, route.Location{}); err != nil || string(k.Keys) != "0123456789abcdef" {
			t.Errorf("the next home knows %q, %v", k.Keys, err)
		}
	})
}

func TestStoredMeansTwoCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, home, backup := settled(t, never)
		defer w.close()
		for _, text := range []string{"1", "2"} {
			if r := backup.put(text); r != dispatch.Stored {
				t.Fatalf("%s: %v", text, r)
			}
		}
		before := backup.CopiesBytes()
		if before == 0 || backup.local.Bytes() != 0 || home.local.Bytes() == 0 || home.CopiesBytes() != 0 || home.single.Load() != 0 {
			t.Fatalf("%d bytes of copies, %d single", before, home.single.Load())
		}
		if _, rest, _, err := home.TakeFor(t.Context(), phone, route.Location{}); err != nil || len(rest) != 2 {
			t.Fatal(rest, err)
		}
		time.Sleep(linger + 2*sweepEvery) // fake time
		if n := backup.CopiesBytes(); n != 0 || home.SyncQueue() != 0 {
			t.Fatalf("%d bytes of copies of what was taken", n)
		}
	})
}

// TestWhatAnotherRouterHasPromised: it is on its way to nobody there, and goes into the
// backlog in its time. It is that router's until the device has it.
func TestWhatAnotherRouterHasPromised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, never)
		defer w.close()
		home := w.homeOf(phone.UserKey)
		other := w.all[0]
		if other == home {
			other = w.all[1]
		}
		keep := func(text string, at int64) {
			results := make(chan dispatch.BufferResult, 1)
			home.Put(dispatch.BufferEntry{
				Key: phone.UserKey, Devices: []string{"phone"}, Done: func(r dispatch.BufferResult) { results <- r },
				Message: &dispatch.Message{Bytes: []byte(text), Key: dedup.Key{2, text[0]}, At: at},
			})
			<-results
		}
		keep("1", 10)
		keep("4", 40)
		now := time.Now().UnixNano() // the homes have changed before it
		keep("5", now)
		keep("7", now+2)
		lost := route.Location{Node: gate, Session: 7}
		other.opts.Surrender = func(_ context.Context, key route.DeviceKey, at route.Location) []*dispatch.Message {
			if key != phone || at != lost {
				t.Errorf("%v is to give up %v", key, at)
			}
			return []*dispatch.Message{{Bytes: []byte("2"), Key: dedup.Key{2, '2'}, At: 20}, {Bytes: []byte("3"), Key: dedup.Key{2, '3'}, At: 30}, {Bytes: []byte("6"), Key: dedup.Key{2, '6'}, At: now + 1}}
		}
		_, rest, _, err := home.TakeFor(t.Context(), phone, lost)
		var got string
		for _, e := range rest {
			got += string(e.Bytes)
		}
		if err != nil || got != "1234567" {
			t.Errorf("took %q, %v", got, err)
		}
		if other.local.Bytes() == 0 {
			t.Error("nobody has it if the home dies now")
		}
		time.Sleep(loan) // fake time
		if n := other.local.Bytes() + home.local.Bytes(); n != 0 {
			t.Errorf("%d bytes stay", n)
		}
	})
}

func TestABackupThatDoesNotAnswerHoldsNobodyForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mute atomic.Bool
		w, home, backup := settled(t, func(_ *world, call string) bool { return call == "sync" && mute.Load() })
		defer w.close()
		room := func(n int64) { // what arrives although its answer is lost must not count
			backup.replicas.mu.Lock()
			defer backup.replicas.mu.Unlock()
			backup.replicas.max = n
		}
		mute.Store(true)
		room(0)
		begun := time.Now()
		if r := home.put("1"); r != dispatch.Stored || home.single.Load() != 1 {
			t.Fatalf("%v, %d single", r, home.single.Load())
		}
		if d := time.Since(begun); d < holdFor || d > holdFor+time.Second {
			t.Errorf("held for %v", d)
		}
		time.Sleep(time.Second) // fake time
		begun = time.Now()
		if r := home.put("2"); r != dispatch.Stored || home.single.Load() != 2 {
			t.Fatalf("%v, %d single", r, home.single.Load())
		}
		if d := time.Since(begun); d > time.Second {
			t.Errorf("held for %v by a backup that is known not to answer", d)
		}
		mute.Store(false)
		room(1 << 20)
		time.Sleep(2 * maxPause) // fake time
		synctest.Wait()
		if n := backup.CopiesBytes(); n < 2*wireOverhead {
			t.Fatalf("not repaired: %d bytes of copies", n)
		}
		if home.put("3"); home.single.Load() != 2 {
			t.Error("a copy that was made counts as none")
		}
	})
}

func TestADeadBackupIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, home, backup := settled(t, never)
		defer w.close()
		next := w.join()
		time.Sleep(2 * askFor) // fake time
		if w.homeOf(phone.UserKey) != home {
			t.Fatal("the new router is the home: choose another user")
		}
		if ring.PickHash([]string{backup.self.ID, next.self.ID}, ring.Hash(phone.Tenant, phone.User)) == 1 {
			backup, next = next, backup
		}
		home.put("1")
		w.kill(backup)
		if r := home.put("2"); r != dispatch.Stored || home.single.Load() != 0 {
			t.Fatalf("%v, %d single", r, home.single.Load())
		}
		time.Sleep(2 * lag) // fake time
		if n := next.CopiesBytes(); n < 2*wireOverhead {
			t.Fatalf("the next one has %d bytes of copies", n)
		}
	})
}

func TestCallsOfAStreamCount(t *testing.T) {
	refused := 0
	r := newReplicas(2*(wireOverhead+1), func(n int) { refused += n })
	owner := route.NodeRef{ID: "r1", Incarnation: 1}
	entry := func(id uint64, text string) *routerv1.HeldEntry {
		e := &routerv1.HeldEntry{Id: id}
		if text != "" {
			e.Entry = wireEntry(phone.UserKey, offline.Entry{Message: offline.Message{Bytes: []byte(text), Key: dedup.Key{byte(id)}}, TTL: time.Hour})
		}
		return e
	}
	sync := func(stream, seq uint64, entries ...*routerv1.HeldEntry) *routerv1.SyncResponse {
		return r.apply(owner, &routerv1.SyncRequest{Stream: stream, Seq: seq, Users: []*routerv1.SyncUser{{TenantId: phone.Tenant, UserId: phone.User, Entries: entries}}})
	}
	texts := func() (out string) {
		for _, c := range r.sets[owner].users[phone.UserKey] {
			if c.gone.IsZero() {
				out += string(c.Bytes)
			}
		}
		return out
	}
	expect := func(what string, res *routerv1.SyncResponse, inStep bool, missing, full int, want string) {
		t.Helper()
		if res.InStep != inStep || len(res.Missing) != missing || len(res.Full) != full || texts() != want {
			t.Errorf("%s: %v, copies %q", what, res, texts())
		}
	}
	if res := sync(1, 5, entry(1, "a")); res.InStep || len(r.sets) != 0 {
		t.Errorf("a stream without its beginning: %v", res)
	}
	expect("first", sync(2, 1, entry(1, "a")), true, 0, 0, "a")
	expect("second", sync(2, 2, entry(1, ""), entry(2, "b")), true, 0, 0, "ab")
	expect("the same again", sync(2, 2, entry(3, "c")), true, 0, 0, "ab")
	expect("a late one", sync(2, 1), true, 0, 0, "ab")
	expect("one is missing", sync(2, 4), false, 0, 0, "ab")
	expect("an older stream", sync(1, 1), false, 0, 0, "ab")
	expect("an unknown entry", sync(2, 3, entry(1, ""), entry(9, "")), true, 1, 0, "a")
	expect("no room", sync(2, 4, entry(1, ""), entry(2, ""), entry(3, "c")), true, 0, 1, "ab")
	expect("a new stream", sync(3, 1, entry(4, "d")), true, 0, 0, "d")
	if refused != 1 || r.size() != wireOverhead+1 {
		t.Errorf("%d refused, %d bytes", refused, r.size())
	}
}
