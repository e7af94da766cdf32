package session

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/gateway/internal/wstest"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"pgregory.net/rapid"
)

// model is a session with its device and three routers, and what must be true.
type model struct {
	t       *rapid.T
	w       *world
	s       *Session
	c       *wstest.Client
	routers []*router
	serial  string // of this case, in the names of its messages

	accepted []string          // messages in the order of the first acceptance
	copies   map[copyOf]string // what routers keep
	sent     [][]*Delivery     // per router
	opened   bool
	refused  bool // a delivery was refused
	acked    int  // how many messages the client has acknowledged
	handover chan handover
	handed   []string
	over     bool // an end was drawn
	left     bool // the client has sent a close frame of its own
}

type copyOf struct {
	router int
	id     uint64
}

// Whatever comes in whatever order: what was accepted has been confirmed by the
// device or is handed back, each once and in order, and no router is told to
// forget its copy before that.
func TestNothingIsLostOrShownTwice(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.QueueFrames = 12 })
		n := 0
		// Wrapped: rapid would ask a *testing.T for its deadline, in real time.
		rapid.Check(struct{ rapid.TB }{t}, func(rt *rapid.T) {
			n++
			w.up.mu.Lock()
			w.up.finals, w.up.taken, w.up.hold = nil, nil, rapid.Bool().Draw(rt, "finals wait")
			w.up.mu.Unlock()
			server, peer := net.Pipe()
			version := rapid.SampledFrom([]uint32{1, 2}).Draw(rt, "version")
			m := &model{t: rt, w: w, serial: fmt.Sprint(n), copies: map[copyOf]string{}, sent: make([][]*Delivery, 3)}
			var end func()
			m.s, m.c, end = w.pair(server, peer, version)
			defer end()
			m.c.Echo(rapid.Bool().Draw(rt, "echoes"))
			for i := range 3 {
				m.routers = append(m.routers, w.router(fmt.Sprint(n, "-", i)))
			}
			m.run()
		})
	})
}

func (m *model) run() {
	steps := rapid.IntRange(1, 60).Draw(m.t, "steps")
	openAt := rapid.IntRange(0, steps-1).Draw(m.t, "open at")
	for i := range steps {
		if i == openAt {
			m.open()
		}
		m.step()
		synctest.Wait()
		m.check()
	}
	if !m.over {
		m.end()
	}
	m.finish()
}

func (m *model) name() string { return fmt.Sprintf("%s/%d", m.serial, len(m.accepted)) }

func (m *model) step() {
	switch rapid.SampledFrom([]string{"deliver", "deliver", "deliver", "repeat", "resend", "read", "read", "ack", "break", "sweep", "end"}).Draw(m.t, "step") {
	case "deliver":
		m.deliver(m.draw(), m.name())
	case "repeat":
		if len(m.accepted) > 0 {
			m.deliver(m.draw(), rapid.SampledFrom(m.accepted).Draw(m.t, "again"))
		}
	case "resend":
		r := m.draw()
		for _, d := range m.sent[r] {
			before := m.copies[copyOf{r, d.id}] != ""
			if got := m.s.Deliver(d); before && got != accepted {
				m.t.Fatalf("resend of an accepted delivery: %v", got)
			} else if got == accepted && !before {
				m.take(r, d)
			}
		}
	case "read":
		m.c.Allow(rapid.IntRange(1, 5).Draw(m.t, "frames"))
	case "ack":
		if got := len(m.c.Delivered()); m.s.v2() && got > m.acked && !m.left && !m.s.Outcome().Ended {
			m.acked = rapid.IntRange(m.acked, got).Draw(m.t, "acked")
			m.c.Ack(uint64(m.acked))
		}
	case "break":
		r := m.draw()
		m.routers[r].Detach(m.routers[r].wake)
		m.routers[r].Attach(m.routers[r].wake)
		m.s.Reconfirm(m.routers[r].Router)
	case "sweep":
		m.w.pass(25 * time.Millisecond)
	case "end":
		if rapid.IntRange(0, 9).Draw(m.t, "really") == 0 && !m.over {
			m.end()
		}
	}
}

func (m *model) draw() int { return rapid.IntRange(0, 2).Draw(m.t, "router") }

func (m *model) deliver(r int, id string) {
	d := m.routers[r].delivery(id)
	m.routers[r].Processed(d.id)
	m.sent[r] = append(m.sent[r], d)
	if m.s.Deliver(d) == accepted {
		m.take(r, d)
	} else {
		m.refused = true
	}
}

// take notes an acceptance.
func (m *model) take(r int, d *Delivery) {
	if m.refused {
		m.t.Fatalf("accepted after a refusal")
	}
	id := idOf(m.w.t, d.message)
	m.copies[copyOf{r, d.id}] = id
	if !slices.Contains(m.accepted, id) {
		m.accepted = append(m.accepted, id)
	}
}

// open admits the session with a backlog, before which nothing else is shown.
func (m *model) open() {
	m.opened = true
	a := Admission{Identity: Identity{"t", "ann", "phone"}, Home: m.routers[0].Ref}
	var first []string
	for i := range rapid.IntRange(0, 4).Draw(m.t, "backlog") {
		id := fmt.Sprintf("%s/old-%d", m.serial, i)
		if len(m.accepted) > 0 && rapid.IntRange(0, 3).Draw(m.t, "held too") == 0 {
			id = rapid.SampledFrom(m.accepted).Draw(m.t, "which")
		}
		u := &gatewayv1.Undelivered{Id: backlogIDs + 1 + uint64(i), Message: message(id), Key: keyOf(id)}
		a.Backlog = append(a.Backlog, u)
		m.copies[copyOf{0, u.Id}] = id
		if !slices.Contains(first, id) {
			first = append(first, id)
		}
	}
	for _, id := range m.accepted {
		if !slices.Contains(first, id) {
			first = append(first, id)
		}
	}
	m.accepted = first
	m.s.Open(a)
}

func (m *model) end() {
	m.over = true
	switch rapid.SampledFrom([]string{"close", "abort", "drop", "leave", "handover", "handover in vain", "kick"}).Draw(m.t, "end") {
	case "close":
		m.s.CloseAnswered(CodeDraining, "server draining", time.Second)
	case "abort":
		m.s.Abort()
	case "drop":
		_ = m.c.Conn.Close()
	case "leave":
		m.left = true
		m.c.Echo(false)
		go m.c.Write(ws.Close, []byte{1001 >> 8, 1001 & 0xff})
	case "handover":
		if m.opened {
			m.freeze(context.Background())
		}
	case "handover in vain":
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		m.freeze(ctx)
	case "kick":
		m.s.Kick("kicked")
	}
}

func (m *model) freeze(ctx context.Context) {
	m.handover = make(chan handover, 1)
	go func() {
		var h handover
		h.Handed, h.ok = m.s.Freeze(ctx, replaced)
		m.handover <- h
	}()
}

// safe is how many of the accepted messages routers may forget now.
func (m *model) safe() int {
	switch {
	case m.s.Outcome().Echoed || !m.s.v2():
		return max(m.acked, len(m.c.Delivered()))
	}
	return m.acked
}

// check is what must be true at any time.
func (m *model) check() {
	m.collect()
	shown := m.c.Delivered()
	if len(shown) > len(m.accepted) || !slices.Equal(shown, m.accepted[:len(shown)]) {
		m.t.Fatalf("shown %v, accepted %v", shown, m.accepted)
	}
	safe := m.accepted[:m.safe()]
	for at, id := range m.copies {
		if m.confirmed(at) && !slices.Contains(safe, id) && !slices.Contains(m.handed, id) {
			m.t.Fatalf("router %d was told to forget %d (%s); safe are %v, handed back %v", at.router, at.id, id, safe, m.handed)
		}
	}
}

func (m *model) confirmed(at copyOf) bool {
	r := m.routers[at.router]
	r.read()
	return r.through[sequence{m.s.id, at.id >= backlogIDs}] >= at.id
}

// collect takes what was handed over or back and, for that, counts as safe.
func (m *model) collect() {
	select {
	case h := <-m.handover:
		if h.ok {
			m.handed = append(m.handed, idsOf(m.w.t, h.Undelivered)...)
		}
	default:
	}
	m.w.up.mu.Lock()
	defer m.w.up.mu.Unlock()
	if !m.w.up.hold {
		for _, f := range m.w.up.finals {
			// A Handover after the end, before a router has taken the window, gives
			// it too: the next session knows the keys.
			if ids := idsOf(m.w.t, f.Undelivered); !slices.Equal(ids, m.handed) {
				m.handed = append(m.handed, ids...)
			}
		}
		m.w.up.finals = nil
	}
}

// finish lets everything end, and checks the sum.
func (m *model) finish() {
	m.c.Allow(200)
	m.w.pass(flushTimeout + closeTimeout)
	if !m.s.Outcome().Ended {
		m.s.Abort()
		synctest.Wait()
	}
	m.w.up.mu.Lock()
	m.w.up.hold = false
	taken := m.w.up.taken
	m.w.up.taken = nil
	m.w.up.mu.Unlock()
	m.check()
	for _, f := range taken {
		f()
	}
	synctest.Wait()
	m.check()
	if !m.w.owner.isGone(m.s) {
		m.t.Fatalf("the session is not gone")
	}
	kept := len(m.accepted) - len(m.handed)
	if kept < 0 || !slices.Equal(m.handed, m.accepted[kept:]) {
		m.t.Fatalf("handed back %v of %v", m.handed, m.accepted)
	}
	// A V1 session on a pipe knows of whole writes only.
	if kept > m.safe() || m.s.v2() && kept != m.safe() {
		m.t.Fatalf("handed back %v of %v, of which the device has %d", m.handed, m.accepted, m.safe())
	}
	for at := range m.copies {
		if !m.confirmed(at) {
			m.t.Fatalf("router %d keeps %d for ever", at.router, at.id)
		}
	}
}
