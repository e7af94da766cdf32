package peer

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/ring"
	"github.com/mics-im/mics/router/internal/dedup"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/route"
)

// TestAHomeThatDiesWithABacklogLosesNothing: it has taken what was kept, said so
// to others, and dies before any gateway has it.
func TestAHomeThatDiesWithABacklogLosesNothing(t *testing.T) {
	for name, prepare := range map[string]func(home, other *member, mute *atomic.Bool){
		"there was a copy": func(home, _ *member, _ *atomic.Bool) {
			home.put("1")
		},
		"the copy was not made yet": func(home, _ *member, mute *atomic.Bool) {
			mute.Store(true)
			home.mark([]route.UserKey{{Tenant: "t", User: "somebody"}}, nil) // is in the way
			time.Sleep(10 * time.Millisecond)                                // fake time
			go home.put("1")
			time.Sleep(100 * time.Millisecond) // fake time
		},
		"it was at another router": func(_, other *member, _ *atomic.Bool) {
			other.local.Put(phone.UserKey, offline.Entry{
				Message: offline.Message{Bytes: []byte("1"), Key: dedup.Key{1}}, Devices: []string{"phone"}, TTL: time.Hour,
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mute atomic.Bool
				w := newWorld(t, 1, 2, func(_ *world, call string) bool { return call == "to sync" && mute.Load() })
				defer w.close()
				time.Sleep(askFor / 2) // fake time: others are still asked
				home := w.homeOf(phone.UserKey)
				other := w.all[0]
				if other == home {
					other = w.all[1]
				}
				prepare(home, other, &mute)
				loc := route.Location{Node: gate, Session: 1}
				epoch, _, err := w.store.Bind(t.Context(), phone, loc, 2)
				if err != nil {
					t.Fatal(err)
				}
				if _, rest, _, err := home.TakeFor(t.Context(), phone, route.Location{}); err != nil || len(rest) != 1 {
					t.Fatal(rest, err)
				}
				mute.Store(false)
				time.Sleep(300 * time.Millisecond) // fake time: what is to be said is said
				w.kill(home)
				if _, err := w.store.Change(t.Context(), []route.Change{{Key: phone, Node: gate, Session: 1, Epoch: epoch, To: route.Ghost, GhostTTL: time.Hour}}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(heal) // fake time
				if _, rest, _, err := other.TakeFor(t.Context(), phone, route.Location{}); err != nil || len(rest) != 1 {
					t.Errorf("the next home has %d messages, %v", len(rest), err)
				}
			})
		})
	}
}

// TestADeviceThatConnectsAtTheOldHome: a new home has kept a message, and the old
// one, which has not heard of it, lets the device in.
func TestADeviceThatConnectsAtTheOldHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, _ := settled(t, never)
		defer w.close()
		names := []string{"r0", "r1", "r2"}
		var key route.DeviceKey
		for i := 0; key.User == ""; i++ {
			if user := fmt.Sprint(i); ring.Pick(names, "t", user) == 2 {
				key = route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: user}, Device: "phone"}
			}
		}
		old := w.homeOf(key.UserKey)
		newHome := w.join()
		results := make(chan dispatch.BufferResult, 1)
		newHome.Put(dispatch.BufferEntry{
			Key: key.UserKey, Devices: []string{"phone"}, Message: &dispatch.Message{Bytes: []byte("1")},
			Done: func(r dispatch.BufferResult) { results <- r },
		})
		time.Sleep(4 * time.Millisecond) // fake time: longer than a look at the routes takes
		if _, _, err := w.store.Bind(t.Context(), key, route.Location{Node: gate, Session: 1}, 2); err != nil {
			t.Fatal(err)
		}
		if _, rest, _, err := old.TakeFor(t.Context(), key, route.Location{}); err != nil || len(rest) != 0 {
			t.Fatal(rest, err)
		}
		if r := <-results; r != dispatch.Online {
			t.Errorf("%v: the message waits for a device that is here", r)
		}
	})
}

// TestAHomeThatDiesAfterTheDeviceHasConfirmed: the device is not shown again what it
// took, also when it has left meanwhile and does not know the messages any more.
func TestAHomeThatDiesAfterTheDeviceHasConfirmed(t *testing.T) {
	phone := route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: "ann"}, Device: "phone"}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, func(*world, string) bool { return false })
		defer w.close()
		time.Sleep(askFor / 2) // fake time
		home := w.homeOf(phone.UserKey)
		other := w.all[0]
		if other == home {
			other = w.all[1]
		}
		home.put("1")
		epoch, _, err := w.store.Bind(t.Context(), phone, route.Location{Node: gate, Session: 1}, 2)
		if err != nil {
			t.Fatal(err)
		}
		if _, rest, _, err := home.TakeFor(t.Context(), phone, route.Location{}); err != nil || len(rest) != 1 {
			t.Fatal(rest, err)
		}
		home.Settled(phone)
		time.Sleep(300 * time.Millisecond) // fake time
		if n := other.CopiesBytes(); n != 0 {
			t.Errorf("%d bytes of copies linger", n)
		}
		w.kill(home)
		if _, err := w.store.Change(t.Context(), []route.Change{{Key: phone, Node: gate, Session: 1, Epoch: epoch, To: route.Ghost, GhostTTL: time.Hour}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(heal) // fake time
		if front, rest, _, err := other.TakeFor(t.Context(), phone, route.Location{}); err != nil || len(front)+len(rest) != 0 {
			t.Errorf("the next home has %d messages, %v", len(front)+len(rest), err)
		}
	})
}

// TestWhatIsTakenOverGoesByTheHome: another router finds that the device is there, and
// leaves it to the home, which waits as long as it makes the device's backlog.
func TestWhatIsTakenOverGoesByTheHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, never)
		defer w.close()
		time.Sleep(2 * askFor) // fake time
		p := w.devices[route.UserKey{Tenant: "t", User: "u0"}]
		home, other := w.homeOf(p.key.UserKey), w.all[0]
		if other == home {
			other = w.all[1]
		}
		w.connect(p)
		p.home.Store(home)
		other.local.Put(p.key.UserKey, offline.Entry{Message: offline.Message{Bytes: []byte("1")}, Devices: []string{"phone"}, TTL: time.Hour, Moved: true, At: 1})
		other.recheck(p.key.UserKey)
		kick(other.moveKick)
		time.Sleep(2 * time.Second) // fake time
		if n, m := other.delivers.Load(), home.delivers.Load(); n+m != 0 || home.local.Bytes() == 0 || other.local.Bytes() != 0 {
			t.Errorf("the other one has brought %d, the home %d; they keep %d and %d bytes", n, m, other.local.Bytes(), home.local.Bytes())
		}
		p.home.Store(nil)
		time.Sleep(maxPause) // fake time
		if n, m := other.delivers.Load(), home.delivers.Load(); n != 0 || m != 1 || home.local.Bytes() != 0 {
			t.Errorf("the other one has brought %d, the home %d and keeps %d bytes", n, m, home.local.Bytes())
		}
	})
}

// TestAHomeThatIsThereAndDoesNotAnswer: a router that dies as soon as it has come back
// is in everybody's picture all the time. What is for its users is kept elsewhere.
func TestAHomeThatIsThereAndDoesNotAnswer(t *testing.T) {
	for name, answer := range map[string]bool{"it takes nothing": false, "it takes it and says nothing": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var well atomic.Bool
				w := newWorld(t, 1, 2, func(_ *world, call string) bool { return !well.Load() && (call == "buffer" || !answer) })
				defer w.close()
				p := w.phones()[0]
				home := w.homeOf(p.key.UserKey)
				other := w.all[0]
				if other == home {
					other = w.all[1]
				}
				results := make(chan dispatch.BufferResult, 1)
				other.Put(dispatch.BufferEntry{Key: p.key.UserKey, Message: &dispatch.Message{Bytes: []byte("hello")}, Done: func(r dispatch.BufferResult) { results <- r }})
				if r := <-results; r != dispatch.Stored {
					t.Fatalf("result %v", r)
				}
				well.Store(true)
				time.Sleep(heal) // fake time
				w.connect(p)
				time.Sleep(heal) // fake time
				if !slices.Equal(p.got, []string{"hello"}) || other.local.Bytes() != 0 {
					t.Errorf("got %q; %d bytes are still where they were kept", p.got, other.local.Bytes())
				}
			})
		})
	}
}
