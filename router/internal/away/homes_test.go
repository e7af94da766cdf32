package away

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/router/internal/directory"
	"github.com/mics-im/mics/router/internal/route"
)

// Routers start, die and are cut off; what one alone knew must not be lost with it.

// TestAHomeThatDiesBeforeItHasRebuilt: what it had not written yet is written by its next
// start, or by who is the home then.
func TestAHomeThatDiesBeforeItHasRebuilt(t *testing.T) {
	for name, back := range map[string]time.Duration{"is back at once": time.Second, "is away for longer than a lease": 10 * time.Second} {
		for loss, lose := range map[string]func(*world){
			"flushed": func(w *world) { w.flush() },
			"away":    func(w *world) { w.down.Store(true); pass(5 * time.Second) },
		} {
			t.Run(loss+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, 3, 2)
					victim := w.routers[1]
					k := w.homedAt(victim)
					at, _, _ := w.connect(k, w.gateways[0])
					lose(w)
					if w.down.Load() {
						at, _, _ = w.connect(k, w.gateways[1]) // the store has not heard of it
						pass(time.Second)
						w.down.Store(false)
						pass(700 * time.Millisecond) // all have found it, and ask whether it stays
					}
					victim.kill()
					other := w.routers[0]
					if _, err := other.LookupFresh(t.Context(), key("no", "body").UserKey); err != nil {
						t.Error(err)
					}
					pass(back)
					w.restart(victim)
					pass(20 * time.Second)
					w.clearMirrors()
					w.want(k, &at)
					w.end()
				})
			})
		}
	}
}

// bereft is a world in which a device's home has been dead for a while.
func bereft(t *testing.T, routers int) (w *world, dead *member, k route.DeviceKey) {
	w = newWorld(t, routers, 2)
	dead = w.routers[1]
	k = w.homedAt(dead)
	dead.kill()
	pass(10 * time.Second)
	return w, dead, k
}

// TestWhoLeftAFewMomentsAfterTheHomeChanged: his home had not seen him come, and the one
// before did not see him leave.
func TestWhoLeftAFewMomentsAfterTheHomeChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, first, k := bereft(t, 2)
		at, epoch, _ := w.connect(k, w.gateways[0])
		w.restart(first)
		pass(10 * time.Second)
		w.leave(k, at, epoch)
		w.flush()
		pass(10 * time.Second)
		w.clearMirrors()
		w.want(k, nil)
		w.end()
	})
}

// TestWhoLeftBeforeTheHomeChanged: his home knows him by the store alone, and the one before
// has to say that it remembers him as soon as the store has not.
func TestWhoLeftBeforeTheHomeChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, first, k := bereft(t, 3)
		at, epoch, _ := w.connect(k, w.gateways[0])
		w.connect(key(k.User, "stays"), w.gateways[1])
		w.leave(k, at, epoch)
		first = w.restart(first)
		pass(10 * time.Second)
		w.flush()
		for range 2 { // also when a device of the user is in the store again
			first.finds(k, route.Ghost)
		}
		w.want(k, nil)
		pass(10 * time.Second)
		w.want(k, nil)
		w.end()
	})
}

// TestWhoIsLeavingWhenTheStoreIsEmptied: until a router has taken the end of his session
// only his gateway knows of him, and the routes are the same whoever takes it.
func TestWhoIsLeavingWhenTheStoreIsEmptied(t *testing.T) {
	for name, taker := range map[string]int{"the home takes the end": 1, "another router takes the end": 0} {
		for when, wait := range map[string]time.Duration{"at once": 0, "after the rebuilding": 10 * time.Second} {
			t.Run(name+" "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, 2, 2)
					home := w.routers[1]
					k := w.homedAt(home)
					at, epoch, _ := w.connect(k, w.gateways[0])
					w.clearMirrors()
					w.at(at.Node).end(at.Session)
					w.flush()
					home.finds(k, route.Closing)
					pass(wait)
					w.routers[taker].ends(k, at, epoch)
					w.at(at.Node).drop(at.Session)
					home.finds(k, route.Closing, route.Ghost)
					pass(10 * time.Second)
					w.want(k, nil)
					w.clearMirrors()
					w.want(k, nil)
					w.end()
				})
			})
		}
	}
}

// TestWhoHasJustLeftWhenHisGatewayIsAsked: it does not hold him any more, so who took the
// end of his session has him in the store.
func TestWhoHasJustLeftWhenHisGatewayIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 2)
		home, other := w.routers[1], w.routers[0]
		k := w.homedAt(home)
		at, epoch, _ := w.connect(k, w.gateways[0])
		w.clearMirrors()
		w.at(at.Node).end(at.Session)
		w.flush()
		w.at(at.Node).asked = func() {
			other.ends(k, at, epoch)
			w.at(at.Node).drop(at.Session)
		}
		home.finds(k, route.Closing, route.Ghost)
		pass(10 * time.Second)
		w.want(k, nil)
		w.end()
	})
}

// TestARouterThatStartsJustBeforeAnOutage: the others know it, though they have not read
// the store since.
func TestARouterThatStartsJustBeforeAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, first, k := bereft(t, 2)
		other := w.routers[0]
		at, epoch, _ := w.connect(k, w.gateways[0])
		first = w.restart(first)
		synctest.Wait()
		w.down.Store(true)
		if home, _ := other.dir.Home(k.UserKey); home.NodeRef != first.opts.Self.NodeRef {
			t.Errorf("the home is %v", home)
		}
		pass(time.Second)
		w.connect(key(k.User, "stays"), w.gateways[1])
		w.leave(k, at, epoch)
		w.want(k, nil)
		w.down.Store(false)
		pass(20 * time.Second)
		w.want(k, nil)
		w.end()
	})
}

// TestARouterThatStartsJustBeforeAnotherLosesTheStore: the other one still takes itself for
// the home, and waits for the store to say who has started. It must not go by the gateways
// alone: who has left them is absent.
func TestARouterThatStartsJustBeforeAnotherLosesTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 2)
		first, other := w.routers[1], w.routers[0]
		k := w.homedAt(first)
		at, epoch, _ := w.connect(k, w.gateways[0])
		w.connect(key(k.User, "stays"), w.gateways[1])
		first.kill()
		pass(10 * time.Second)
		other.hole.Store(true)
		first = w.restart(first)
		pass(100 * time.Millisecond)
		if o := other.others(); len(o) != 1 || o[0].NodeRef != first.opts.Self.NodeRef || len(other.dir.Routers()) != 1 {
			t.Errorf("it asks %v, and lists %v", o, other.dir.Routers())
		}
		w.at(at.Node).drop(at.Session)
		first.ends(k, at, epoch)
		other.finds(k, route.Ghost)
		other.hole.Store(false)
		pass(20 * time.Second)
		w.want(k, nil)
		w.end()
	})
}

// TestWhoLeftBeforeTheHomeChangedInAnOutage: the home that is has not been told of him yet,
// and there is no store to ask.
func TestWhoLeftBeforeTheHomeChangedInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, first, k := bereft(t, 2)
		at, epoch, _ := w.connect(k, w.gateways[0])
		w.connect(key(k.User, "stays"), w.gateways[1])
		w.leave(k, at, epoch)
		pass(tellEvery / 2) // nobody tells anybody anything just now
		first = w.restart(first)
		w.down.Store(true)
		first.finds(k, route.Ghost)
		pass(time.Second)
		w.want(k, nil)
		w.down.Store(false)
		pass(20 * time.Second)
		w.want(k, nil)
		w.end()
	})
}

// TestWhoLeftBeforeHisHomeWasStartedAnew: one router remembers him beside the store at
// any time, also when each has been started anew, in turn.
func TestWhoLeftBeforeHisHomeWasStartedAnew(t *testing.T) {
	for name, turns := range map[string][]int{"the home": {1}, "each router in turn": {1, 0, 2, 1}} {
		for loss, lose := range map[string]func(*world){
			"flushed": func(w *world) { w.flush() },
			"away":    func(w *world) { w.down.Store(true) },
		} {
			t.Run(name+", "+loss, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, 3, 2)
					k := w.homedAt(w.routers[1])
					at, epoch, _ := w.connect(k, w.gateways[0])
					w.connect(key(k.User, "stays"), w.gateways[1])
					w.leave(k, at, epoch)
					for _, i := range turns {
						pass(time.Second)
						w.routers[i].kill()
						pass(5 * time.Second)
						w.restart(w.routers[i])
						pass(2 * time.Second)
					}
					lose(w)
					w.want(k, nil)
					w.down.Store(false)
					pass(10 * time.Second)
					w.want(k, nil)
					// What is remembered must not stand in the way of one who is back.
					at, _, _ = w.connect(k, w.gateways[1])
					pass(time.Second)
					lose(w)
					w.want(k, &at)
					pass(time.Second)
					w.want(k, &at)
					w.down.Store(false)
					pass(10 * time.Second)
					w.want(k, &at)
					w.end()
				})
			})
		}
	}
}

func TestOneRouterCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2)
		cut := w.routers[1]
		k := w.homedAt(cut)
		at, e, _ := w.connect(k, w.gateways[0])
		cut.cut.Store(true)
		// The others do not notice, and must find what it binds.
		moved, e2, prev := w.connect(k, w.gateways[1])
		if prev == nil || prev.Location() != at || e2 != e+1 {
			t.Errorf("it replaces %v, epoch %d after %d", prev, e2, e)
		}
		w.at(at.Node).drop(at.Session)
		w.want(k, &moved)
		for range 20 {
			pass(time.Second)
			for _, m := range w.routers {
				if len(m.dir.Routers()) != 3 {
					t.Fatalf("%s: the routers are %v", m.opts.Self.ID, m.dir.Routers())
				}
			}
		}
		second := key(k.User, "e")
		at2, _, _ := w.connect(second, w.gateways[0])
		w.want(k, &moved)
		w.want(second, &at2)
		w.leave(second, at2, cut.mirror.device(second).Epoch)
		w.want(second, nil)
		cut.cut.Store(false)
		pass(10 * time.Second)
		w.want(k, &moved)
		w.want(second, nil)
		w.end()
	})
}

// TestARouterThatWasAlone: the others are told of what it binds as soon as it can be
// reached again, for their store knows nothing of it.
func TestARouterThatWasAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2)
		cut := w.routers[1]
		k := w.homedAt(cut)
		at, _, _ := w.connect(k, w.gateways[0])
		cut.cut.Store(true)
		cut.alone.Store(true)
		pass(directory.Lease - time.Second)
		cut.alone.Store(false)
		moved, _, _ := w.connect(k, w.gateways[1])
		w.at(at.Node).drop(at.Session)
		w.want(k, &moved)
		cut.cut.Store(false)
		pass(10 * time.Second)
		w.want(k, &moved)
		w.end()
	})
}

// TestARouterThatWasReplaced: cut off from everything for longer than its lease it knows
// nothing of what the next home has bound, and may not give the same epoch again.
func TestARouterThatWasReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 2)
		cut := w.routers[1]
		k := w.homedAt(cut)
		at, epoch, _ := w.connect(k, w.gateways[0])
		if _, err := cut.LookupFresh(t.Context(), k.UserKey); err != nil {
			t.Fatal(err)
		}
		w.leave(k, at, epoch)
		cut.cut.Store(true)
		cut.alone.Store(true)
		pass(directory.Lease + 2*time.Second)
		at, second, _ := w.connect(k, w.gateways[1])
		w.leave(k, at, second)
		cut.alone.Store(false)
		cut.Lapsed() // a gateway is heard again
		loc := w.gateways[0].next()
		third, _, err := cut.Bind(t.Context(), k, loc, 2)
		if err != nil || third <= second {
			t.Errorf("epoch %d after %d, %v", third, second, err)
		}
		w.gateways[0].hold(k, loc, third)
		cut.cut.Store(false)
		pass(10 * time.Second)
		w.want(k, &loc)
		w.end()
	})
}
