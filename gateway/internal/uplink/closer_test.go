package uplink

import (
	"context"
	"slices"
	"testing"

	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"pgregory.net/rapid"
)

// closerModel plays the routers of a closer: queues come, go, take and fail.
type closerModel struct {
	c      *closer
	queues []*closeQueue // living ones
	calls  map[*closeQueue][]*closing
	finals map[uint64]int // session → times done
	told   map[uint64]map[*closeQueue]int
	next   uint64
}

func (m *closerModel) applyHomes(homes []*closeQueue) {
	homes = slices.Clone(homes)
	m.c.setHomes(homes, func(_, user string) *closeQueue {
		if len(homes) == 0 {
			return nil
		}
		return homes[int(user[0])%len(homes)]
	})
}

func (m *closerModel) final(user byte, never bool) {
	m.next++
	id := m.next
	m.finals[id] = 0
	m.told[id] = map[*closeQueue]int{}
	m.c.final(&routerv1.ClosedSession{SessionId: id, UserId: string(user), NeverOpened: never, Stage: routerv1.ClosedSession_STAGE_FINAL},
		func() { m.finals[id]++ })
}

func (m *closerModel) takeAll(q *closeQueue, limit int) {
	if len(m.calls[q]) == 0 {
		m.calls[q] = m.c.take(q, limit)
	}
}

func (m *closerModel) end(q *closeQueue, ok bool) {
	items := m.calls[q]
	delete(m.calls, q)
	if !ok {
		m.c.back(q, items)
		return
	}
	for _, i := range items {
		m.told[i.s.GetSessionId()][q]++
	}
	finish(items)
}

// TestCloserProperty: whatever fails, moves or is forgotten, each ended session
// is taken by a router once, and one that never opened by each that lives on.
func TestCloserProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &closerModel{c: newCloser(), calls: map[*closeQueue][]*closing{}, finals: map[uint64]int{}, told: map[uint64]map[*closeQueue]int{}}
		pick := func(t *rapid.T) *closeQueue {
			if len(m.queues) == 0 {
				t.Skip("no router")
			}
			return rapid.SampledFrom(m.queues).Draw(t, "queue")
		}
		t.Repeat(map[string]func(*rapid.T){
			"final": func(t *rapid.T) {
				m.final(rapid.Byte().Draw(t, "user"), rapid.IntRange(0, 4).Draw(t, "never") == 0)
			},
			"add": func(*rapid.T) {
				if len(m.queues) < 3 {
					q := newCloseQueue()
					m.c.add(q)
					m.queues = append(m.queues, q)
					m.applyHomes(m.queues)
				}
			},
			"forget": func(t *rapid.T) {
				q := pick(t)
				m.queues = slices.DeleteFunc(m.queues, func(o *closeQueue) bool { return o == q })
				m.applyHomes(m.queues)
				m.c.forget(q)
			},
			"homes": func(t *rapid.T) {
				if len(m.queues) > 0 {
					m.applyHomes(m.queues[:rapid.IntRange(1, len(m.queues)).Draw(t, "n")])
				}
			},
			"take": func(t *rapid.T) { m.takeAll(pick(t), rapid.IntRange(1, 3).Draw(t, "limit")) },
			"ok":   func(t *rapid.T) { m.end(pick(t), true) },
			"fail": func(t *rapid.T) { m.end(pick(t), false) },
			"failForgotten": func(*rapid.T) {
				for q := range m.calls {
					if !slices.Contains(m.queues, q) {
						m.end(q, false)
					}
				}
			},
		})
		// Everything heals.
		q := newCloseQueue()
		m.c.add(q)
		m.queues = append(m.queues, q)
		m.applyHomes(m.queues)
		for range 3 {
			for o := range m.calls {
				m.end(o, slices.Contains(m.queues, o))
			}
			for _, o := range m.queues {
				m.takeAll(o, 1<<20)
				m.end(o, true)
			}
		}
		for id, n := range m.finals {
			if n != 1 {
				t.Fatalf("final %d was done %d times", id, n)
			}
			for _, times := range m.told[id] {
				if times != 1 {
					t.Fatalf("final %d was told %d times to one router", id, times)
				}
			}
		}
		if n := m.c.waiting(); n != 0 {
			t.Fatalf("%d finals wait", n)
		}
		if err := m.c.wait(context.Background()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCloserKeepsTheOrder(t *testing.T) {
	c := newCloser()
	q := newCloseQueue()
	c.add(q)
	home := func(string, string) *closeQueue { return q }
	ctx, cancel := context.WithCancel(t.Context())
	var order []string
	note := func(s string) func() { return func() { order = append(order, s) } }
	c.release(ctx, &routerv1.ClosedSession{SessionId: 1}, note("release 1")) // no router yet
	c.setHomes([]*closeQueue{q}, home)
	c.release(ctx, &routerv1.ClosedSession{SessionId: 2}, note("release 2"))
	c.back(q, c.take(q, 1)) // to the front again
	c.final(&routerv1.ClosedSession{SessionId: 1}, note("final 1"))
	c.setHomes([]*closeQueue{q}, home)
	finish(c.take(q, 3))
	if want := []string{"release 1", "release 2", "final 1"}; !slices.Equal(order, want) {
		t.Errorf("told in the order %q", order)
	}
	c.release(ctx, &routerv1.ClosedSession{SessionId: 3}, note("release 3"))
	cancel()
	if items := c.take(q, 3); len(items) != 0 {
		t.Error("a release that nobody waits for is told")
	}
}

func TestCloserBoundsACall(t *testing.T) {
	c := newCloser()
	q := newCloseQueue()
	c.add(q)
	c.setHomes([]*closeQueue{q}, func(string, string) *closeQueue { return q })
	big := &routerv1.ClosedSession{Undelivered: undelivered(maxCloseBytes)}
	small := &routerv1.ClosedSession{Undelivered: undelivered(1)}
	for _, s := range []*routerv1.ClosedSession{small, big, big, small} {
		c.final(s, func() {})
	}
	var sizes []int
	for {
		items := c.take(q, maxCloseSessions)
		if len(items) == 0 {
			break
		}
		sizes = append(sizes, len(items))
	}
	if !slices.Equal(sizes, []int{1, 1, 1, 1}) {
		t.Errorf("calls of %v sessions", sizes)
	}
}
