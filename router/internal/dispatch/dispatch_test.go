package dispatch

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

func send(d *Dispatcher, text string, records []route.Record, done func(Result)) {
	d.Send(Job{Message: &Message{Bytes: []byte(text)}, Recipients: []Recipient{{Key: ann, Records: records}}, Done: done})
}

func TestEveryDeviceGetsItAndTheAbsentOneLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		d := w.dispatcher()
		defer d.Close()
		w.bind("phone", node(1), 1)
		w.bind("desk", node(2), 1)
		w.bind("pad", node(2), 2)
		w.leave("pad")
		var res Result
		send(d, "hi", w.cached(), func(r Result) { res = r })
		time.Sleep(time.Second) // fake time
		synctest.Wait()
		w.bring(1)
		if res != (Result{Delivered: 1}) || len(w.got["phone"]) != 1 || len(w.got["desk"]) != 1 || len(w.kept["pad"]) != 1 {
			t.Fatalf("%+v got %v kept %v", res, w.got, w.kept)
		}
	})
}

// TestADeviceThatLeftWhenNobodyKnowsTheRoutes: another one of the user has got the message,
// so its sender is told SENT; that is not said before this one's is kept.
func TestADeviceThatLeftWhenNobodyKnowsTheRoutes(t *testing.T) {
	for looks, want := range map[int]string{2: "hi", maxUnknown + 1: ""} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			d := w.dispatcher()
			defer d.Close()
			w.bind("phone", node(1), 1)
			w.bind("pad", node(2), 2)
			stale := w.cached()
			w.leave("pad")
			w.blind = looks
			var res Result
			send(d, "hi", stale, func(r Result) { res = r })
			time.Sleep(10 * time.Second) // fake time
			synctest.Wait()
			if got := strings.Join(w.kept["pad"], ","); res != (Result{Delivered: 1}) || got != want {
				t.Errorf("%d looks fail: %+v, kept %q", looks, res, got)
			}
		})
	}
}

func TestWrongRouteOfALivingGatewayEndsInTheBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.records = []route.Record{{Device: "phone", State: route.Live, Node: node(1), Session: 9, Epoch: 4}}
		d := w.dispatcher()
		defer d.Close()
		var res Result
		send(d, "hi", w.cached(), func(r Result) { res = r })
		time.Sleep(10 * time.Second) // fake time
		synctest.Wait()
		if res != (Result{Buffered: 1}) || !slices.Equal(w.kept["phone"], []string{"hi"}) || w.records[0].State != route.Ghost {
			t.Fatalf("%+v kept %v records %v", res, w.kept, w.records)
		}
	})
}

func TestBufferedUsersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newWorld().dispatcher()
		defer d.Close()
		var job Job
		for i := range 10 {
			job.Recipients = append(job.Recipients, Recipient{Key: route.UserKey{Tenant: "t", User: fmt.Sprint(i)}})
		}
		var res Result
		job.Message, job.MaxBuffered, job.Done = &Message{}, 4, func(r Result) { res = r }
		d.Send(job)
		time.Sleep(time.Second) // fake time
		synctest.Wait()
		if res != (Result{Buffered: 4, Skipped: 6}) {
			t.Fatalf("%+v", res)
		}
	})
}

// TestOrderAndOnceWhateverHappens is the property that a flow exists for: a
// sender's messages arrive exactly once and in order, whatever the route does,
// with stale caches and slow answers, with streams that break after the gateway
// took a delivery and before it answered, and with gateways that die holding
// what they had accepted.
func TestOrderAndOnceWhateverHappens(t *testing.T) {
	for seed := range uint64(200) {
		synctest.Test(t, func(t *testing.T) { history(t, seed) })
	}
}

func history(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newWorld()
	var rmu sync.Mutex
	random := func(n int) int {
		rmu.Lock()
		defer rmu.Unlock()
		return rng.IntN(n)
	}
	w.latency = func() time.Duration { return time.Duration(random(20)) * time.Millisecond }
	if seed%3 == 0 {
		w.breaks = func() bool { return random(6) == 0 }
	}
	kills := seed%2 == 0
	d := w.dispatcher()
	defer d.Close()
	var want []string
	answers := 0
	var amu sync.Mutex
	stale := w.cached()
	session, generation := uint64(0), 0
	for i := range 120 {
		where := node(10*generation + 1 + random(3))
		switch random(10) {
		case 0:
			session++
			w.bind("phone", where, session)
		case 1:
			w.leave("phone")
		case 2, 3:
			stale = w.cached()
		case 4, 5, 6:
			w.bring(1 + random(4))
		case 7:
			if kills && random(4) == 0 {
				// The lease runs out some time after the death.
				w.kill(where)
				generation++
				time.AfterFunc(time.Duration(random(100))*time.Millisecond, d.Prune)
			}
		}
		text := fmt.Sprint(i)
		want = append(want, text)
		send(d, text, stale, func(r Result) {
			amu.Lock()
			defer amu.Unlock()
			answers++
			if r.Skipped > 0 {
				t.Errorf("seed %d: %s skipped", seed, text)
			}
		})
		time.Sleep(time.Duration(random(6)) * time.Millisecond) // fake time
	}
	time.Sleep(10 * time.Second) // fake time
	w.bring(1000)
	session++
	w.bind("phone", node(1000), session)
	w.bring(1000)
	time.Sleep(time.Second) // fake time
	synctest.Wait()
	w.bring(1000)
	time.Sleep(time.Second) // fake time
	synctest.Wait()
	if answers != len(want) {
		t.Errorf("seed %d: %d of %d answered", seed, answers, len(want))
	}
	if !slices.Equal(w.got["phone"], want) {
		t.Fatalf("seed %d:\ngot  %v\nwant %v", seed, w.got["phone"], want)
	}
	if w.repeats > 0 && !kills && w.breaks == nil {
		t.Errorf("seed %d: %d repeats without a fault", seed, w.repeats)
	}
	for i := range d.shards {
		if n := len(d.shards[i].users); n != 0 {
			t.Errorf("seed %d: %d flows left", seed, n)
		}
	}
	if n := d.HeldCopies(); n != 0 {
		t.Errorf("seed %d: %d copies left", seed, n)
	}
}

// TestASessionThatNeverCameToBe accepts a message whose answer is still under way
// when it is abandoned: the message goes where the device is then.
func TestASessionThatNeverCameToBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.latency = func() time.Duration { return 10 * time.Millisecond }
		d := w.dispatcher()
		defer d.Close()
		w.bind("phone", node(1), 1)
		send(d, "answered", w.cached(), nil)
		time.Sleep(25 * time.Millisecond) // fake time
		send(d, "under way", w.cached(), nil)
		time.Sleep(15 * time.Millisecond) // fake time
		loc := route.Location{Node: node(1), Session: 1}
		w.mu.Lock()
		if s := w.sessions[loc]; s == nil || len(s.accepted) != 2 {
			t.Errorf("accepted: %+v", s)
		}
		delete(w.sessions, loc)
		w.records[0].State = route.Ghost
		w.mu.Unlock()
		d.Abandon(loc)
		time.Sleep(10 * time.Second) // fake time
		synctest.Wait()
		if !slices.Equal(w.kept["phone"], []string{"answered", "under way"}) || d.HeldCopies() != 0 {
			t.Fatalf("kept %v, %d copies", w.kept, d.HeldCopies())
		}
	})
}

// TestWhatIsSurrendered: another router lets the device in, after a session that never came
// to be. What had been promised goes into the backlog there, and this one has nothing left.
func TestWhatIsSurrendered(t *testing.T) {
	for name, abandoned := range map[string]bool{"the session's end is known": true, "it is not": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				d := w.dispatcher()
				defer d.Close()
				w.bind("phone", node(1), 1)
				send(d, "1", w.cached(), nil)
				send(d, "2", w.cached(), nil)
				time.Sleep(time.Second) // fake time
				loc := route.Location{Node: node(1), Session: 1}
				w.mu.Lock()
				delete(w.sessions, loc)
				w.blind = 1 << 20 // nobody knows where the device is
				w.mu.Unlock()
				if abandoned {
					d.Abandon(loc)
					time.Sleep(time.Second) // fake time
				}
				var got []string
				for _, m := range d.Surrender(t.Context(), route.DeviceKey{UserKey: ann, Device: "phone"}, func(at route.Location) bool { return at == loc }) {
					got = append(got, string(m.Bytes))
				}
				if !slices.Equal(got, []string{"1", "2"}) || d.HeldCopies() != 0 {
					t.Errorf("gave up %q, holds %d", got, d.HeldCopies())
				}
				time.Sleep(10 * time.Second) // fake time
				s := d.shard(ann)
				s.mu.Lock()
				defer s.mu.Unlock()
				if len(s.users) != 0 {
					t.Errorf("left behind: %+v", s.users[ann])
				}
			})
		})
	}
}

// TestWhatADeviceIsOwed: what was kept for it and its session has not confirmed, however it
// came there. What routers send live is in order by itself.
func TestWhatADeviceIsOwed(t *testing.T) {
	key := route.DeviceKey{UserKey: ann, Device: "phone"}
	loc := route.Location{Node: node(1), Session: 1}
	for name, tc := range map[string]struct {
		does func(*world, *Dispatcher)
		owes bool
	}{
		"nothing": {func(*world, *Dispatcher) {}, false},
		"live":    {func(w *world, d *Dispatcher) { send(d, "live", w.cached(), nil) }, false},
		"a backlog": {func(_ *world, d *Dispatcher) {
			if _, ok := d.Hold(key, loc, []*Message{{Bytes: []byte("kept")}}); !ok {
				t.Error("not held")
			}
		}, true},
		"older": {func(_ *world, d *Dispatcher) { d.SendOlder(key, []*Message{{Bytes: []byte("older")}}) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				d := w.dispatcher()
				defer d.Close()
				w.bind("phone", node(1), 1)
				tc.does(w, d)
				for _, after := range []time.Duration{5 * time.Millisecond, time.Second} { // under way, accepted
					time.Sleep(after) // fake time
					if got := d.Owes(key, loc); got != tc.owes {
						t.Errorf("after %v: %v, want %v", after, got, tc.owes)
					}
				}
				if d.Owes(key, route.Location{Node: node(1), Session: 2}) || d.Owes(key, route.Location{Node: node(2), Session: 1}) ||
					d.Owes(route.DeviceKey{UserKey: ann, Device: "desk"}, loc) {
					t.Error("others are owed something")
				}
				w.mu.Lock()
				w.sessions[loc].backlog = 1<<64 - 1
				w.mu.Unlock()
				w.bring(10)
				time.Sleep(time.Second) // fake time
				if d.Owes(key, loc) {
					t.Error("it is owed what it has confirmed")
				}
			})
		})
	}
}

// TestABacklogAtTheBeginningOfAStream: until a gateway has said something on a stream it may
// not know it, and drop what it has to confirm. So it is asked.
func TestABacklogAtTheBeginningOfAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		d := w.dispatcher()
		defer d.Close()
		asked := func() []uint64 {
			time.Sleep(time.Second) // fake time
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Compact(slices.Sorted(slices.Values(w.asked)))
		}
		connect := func(device string, id uint64) {
			w.kept[device] = []string{"kept for " + device}
			w.bind(device, node(1), id)
		}
		mute := func(yes bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.mute = yes
		}
		mute(true)
		connect("phone", 1)
		asked()
		connect("desk", 2)
		if got := asked(); !slices.Equal(got, []uint64{1, 2}) {
			t.Errorf("asked for the confirms of %v", got)
		}
		mute(false)
		asked()
		connect("tablet", 3)
		if got := asked(); !slices.Equal(got, []uint64{1, 2}) {
			t.Errorf("asked for the confirms of %v, one of them needlessly", got)
		}
	})
}

// TestWhatIsGivenBackKeepsItsTime: a session that never came to be had accepted what
// was sent to it before it had its backlog, so that is not older than all that is kept.
// Of what is in the front, or of an unknown time, it is so.
func TestWhatIsGivenBackKeepsItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		d := w.dispatcher()
		defer d.Close()
		w.bind("phone", node(1), 1)
		loc := route.Location{Node: node(1), Session: 1}
		backlog := []*Message{{Bytes: []byte("handed back"), At: 3, Front: true}, {Bytes: []byte("kept"), At: 5}, {Bytes: []byte("unknown")}}
		if _, ok := d.Hold(route.DeviceKey{UserKey: ann, Device: "phone"}, loc, backlog); !ok {
			t.Fatal("not held")
		}
		d.Send(Job{Message: &Message{Bytes: []byte("live"), At: 7}, Recipients: []Recipient{{Key: ann, Records: w.cached()}}, Done: func(Result) {}})
		time.Sleep(time.Second) // fake time
		w.mu.Lock()
		delete(w.sessions, loc)
		w.records[0].State = route.Ghost
		w.mu.Unlock()
		d.Abandon(loc)
		time.Sleep(10 * time.Second) // fake time
		synctest.Wait()
		want := map[string]bool{"handed back": true, "kept": false, "unknown": true, "live": false}
		if !maps.Equal(w.front, want) {
			t.Errorf("in front: %v, want %v", w.front, want)
		}
		if w.takenAt != 7 { // whom it was sent to may have to give it back
			t.Errorf("the gateway knows of %d", w.takenAt)
		}
	})
}

// TestAGatewayThatComesBack was silent for longer than its lease and goes on: what
// is sent to it then has other ids than before, or it would take them for resends.
func TestAGatewayThatComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		d := w.dispatcher()
		defer d.Close()
		w.bind("phone", node(1), 1)
		send(d, "before", w.cached(), nil)
		time.Sleep(time.Second) // fake time
		w.bring(1)
		silent := func(yes bool) {
			w.mu.Lock()
			w.dead[node(1)] = yes
			w.mu.Unlock()
		}
		silent(true)
		d.Prune()
		time.Sleep(time.Second) // fake time
		silent(false)
		send(d, "after", w.cached(), nil)
		time.Sleep(time.Second) // fake time
		synctest.Wait()
		w.bring(10)
		if got := w.got["phone"]; !slices.Contains(got, "before") || got[len(got)-1] != "after" {
			t.Fatalf("got %v", got)
		}
	})
}
