package uplink

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/frame"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

const modelAge = 10 * time.Second

// wire is one stream as a router reads it: what was taken and the router has
// not read. It outlives the stream: what had arrived is still read.
type wire struct {
	unread []sighting
	read   []uint64 // refs without an outcome
}

type sighting struct {
	ref uint64
	msg int
}

// modelMessage is what happened to one message.
type modelMessage struct {
	session uint64
	bytes   []byte
	ref     uint64 // of the first Inbound with it
	sends   int    // of the client
	answers int
	failed  bool
	takenBy int // streams that took it
	seenBy  int // times a router read it
}

// model drives an outbox as streams do, and plays the routers.
type model struct {
	o        *outbox
	now      time.Time
	places   []*place
	homes    []int // of each user, an index of places; -1: none
	live     []*wire
	ghosts   []*wire
	messages []*modelMessage
	order    map[uint64]int // last message of a session that was read for the first time
}

func newModel(places, users int) *model {
	m := &model{o: newOutbox(1<<20, 1<<30), now: time.Unix(0, 0), homes: make([]int, users), live: make([]*wire, places), order: map[uint64]int{}}
	for range places {
		m.places = append(m.places, newPlace())
	}
	for i := range m.homes {
		m.homes[i] = -1
	}
	return m
}

func user(i int) string { return fmt.Sprint(i) }

func (m *model) setHome(u, place int) {
	m.homes[u] = place
	homes := slices.Clone(m.homes)
	var used []*place_
	for _, h := range homes {
		if h >= 0 {
			used = append(used, m.places[h])
		}
	}
	m.o.setHomes(m.places, used, func(_, name string) *place_ {
		var i int
		_, _ = fmt.Sscan(name, &i)
		if homes[i] < 0 {
			return nil
		}
		return m.places[homes[i]]
	})
}

// place_ is place, for helpers with a parameter of that name.
type place_ = place

func (m *model) publish(t failer, u int, session uint64) {
	i := len(m.messages)
	m.messages = append(m.messages, &modelMessage{session: session, bytes: text(i, 0)})
	m.send(t, u, i, m.messages[i].bytes)
}

// text is a message of at least 2 bytes.
func text(i int, at int64) []byte {
	b, err := proto.Marshal(&messagev1.MessageRequest{MsgId: fmt.Sprint(i), TimestampMs: at})
	if err != nil {
		panic(err) // never
	}
	return b
}

func (m *model) send(t failer, u, i int, b []byte) {
	msg := m.messages[i]
	msg.sends++
	ok := m.o.add(outgoing{session: msg.session, tenant: "t", user: user(u), msgID: fmt.Sprint(i), message: b, done: func(ack []byte) {
		msg.answers++
		if msg.seenBy == 0 && !msg.failed {
			t.Fatalf("message %d has an outcome that no router gave", i)
		}
	}}, m.now)
	if !ok {
		t.Fatalf("message %d was not taken", i)
	}
}

// repeat has a client send what has no answer again, at another time.
func (m *model) repeat(t failer, users, pick int) {
	var open []int
	for i, msg := range m.messages {
		if msg.answers == 0 {
			open = append(open, i)
		}
	}
	if len(open) > 0 {
		i := open[pick%len(open)]
		m.send(t, int(m.messages[i].session)%users, i, text(i, int64(m.messages[i].sends)))
	}
}

type failer interface{ Fatalf(string, ...any) }

func number(t failer, message []byte) (i int) {
	h, err := frame.ParseMessage(message)
	if err == nil {
		i, err = strconv.Atoi(h.MsgID)
	}
	if err != nil {
		t.Fatalf("not one of ours: %v", err)
	}
	return i
}

func (m *model) take(t failer, place, limit int) {
	w := m.live[place]
	if w == nil {
		return
	}
	batch, _ := m.o.take(m.places[place], nil, limit)
	for _, in := range batch {
		i := number(t, in.GetMessage())
		msg := m.messages[i]
		if msg.ref == 0 {
			msg.ref = in.GetRef()
		}
		if msg.ref != in.GetRef() || !bytes.Equal(in.GetMessage(), msg.bytes) {
			t.Fatalf("message %d goes out as it was sent again", i)
		}
		if msg.failed || msg.answers > 0 {
			t.Fatalf("message %d goes out after its outcome", i)
		}
		if in.GetPossibleRepeat() != (msg.takenBy > 0) {
			t.Fatalf("message %d: possible repeat %v, but taken %d times before", i, in.GetPossibleRepeat(), msg.takenBy)
		}
		msg.takenBy++
		w.unread = append(w.unread, sighting{in.GetRef(), i})
	}
}

// read lets a router read up to n messages of a wire.
func (m *model) read(t failer, w *wire, n int) {
	for _, s := range w.unread[:min(n, len(w.unread))] {
		msg := m.messages[s.msg]
		if msg.failed {
			t.Fatalf("message %d failed and yet a router got it", s.msg)
		}
		if msg.seenBy == 0 {
			if last, ok := m.order[msg.session]; ok && last > s.msg {
				t.Fatalf("session %d: message %d is read after %d", msg.session, s.msg, last)
			}
			m.order[msg.session] = s.msg
		}
		msg.seenBy++
		w.read = append(w.read, s.ref)
	}
	w.unread = w.unread[min(n, len(w.unread)):]
}

// answer gives outcomes for some of what a router has read.
func (m *model) answer(w *wire, picks []int) {
	var out []*routerv1.Outcome
	for _, k := range picks {
		if len(w.read) == 0 {
			break
		}
		k %= len(w.read)
		out = append(out, &routerv1.Outcome{Ref: w.read[k], Ack: []byte{1}})
		w.read = slices.Delete(w.read, k, k+1)
	}
	for _, f := range m.o.answer(out, nil) {
		f.done(f.ack)
	}
}

func (m *model) open(place int) {
	if m.live[place] == nil {
		m.live[place] = &wire{}
		m.o.open(m.places[place])
	}
}

func (m *model) breakStream(place int) {
	if w := m.live[place]; w != nil {
		m.live[place] = nil
		m.ghosts = append(m.ghosts, w)
		m.o.broken(m.places[place])
	}
}

func (m *model) expire(t failer) {
	for _, p := range m.o.expire(m.now, modelAge) {
		i := number(t, p.in.GetMessage())
		msg := m.messages[i]
		if msg.takenBy > 0 {
			t.Fatalf("message %d fails although a router may have it", i)
		}
		msg.failed = true
		p.done(nil)
	}
}

// settle heals everything; then every message must have its outcome.
func (m *model) settle(t failer) {
	for p := range m.places {
		m.open(p)
	}
	for u := range m.homes {
		m.setHome(u, 0)
	}
	for range 3 { // an old home's outcomes let newer messages go
		for p := range m.places {
			m.take(t, p, 1<<20)
			w := m.live[p]
			m.read(t, w, len(w.unread))
			m.answer(w, make([]int, len(w.read)))
		}
	}
	for _, w := range m.ghosts {
		m.read(t, w, len(w.unread))
	}
	for i, msg := range m.messages {
		if msg.answers != msg.sends {
			t.Fatalf("message %d was sent %d times and answered %d times", i, msg.sends, msg.answers)
		}
	}
	m.checkEmpty(t)
}

func (m *model) checkEmpty(t failer) {
	o := m.o
	if len(o.lanes) != 0 || len(o.byRef) != 0 || o.bytes != 0 || o.unseen.next != &o.unseen {
		t.Fatalf("left behind: %d lanes, %d refs, %d bytes", len(o.lanes), len(o.byRef), o.bytes)
	}
	for i, p := range m.places {
		if p.unanswered != 0 || len(p.out) != 0 {
			t.Fatalf("place %d: %d unanswered, %d queued", i, p.unanswered, len(p.out))
		}
		if _, idle := o.take(p, nil, 1); idle == p.home {
			t.Fatalf("place %d: idle %v, home %v", i, idle, p.home)
		}
	}
}

// TestOutboxProperty: whatever breaks, moves, is answered or lost, in any order,
// every message is answered once, routers read each session's messages in order
// the first time, what may have been read before is marked (and only that), and what
// a client sends again while it has no answer goes out as it did the first time.
func TestOutboxProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const places, users = 3, 2
		m := newModel(places, users)
		place := rapid.IntRange(0, places-1)
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) {
				s := rapid.Uint64Range(0, 3).Draw(t, "session")
				for range rapid.IntRange(1, 4).Draw(t, "n") {
					m.publish(t, int(s)%users, s)
				}
			},
			"repeat": func(t *rapid.T) { m.repeat(t, users, rapid.IntRange(0, 9).Draw(t, "pick")) },
			"take": func(t *rapid.T) {
				m.take(t, place.Draw(t, "place"), rapid.SampledFrom([]int{1, 9, 1000}).Draw(t, "bytes"))
			},
			"read": func(t *rapid.T) {
				if w := m.live[place.Draw(t, "place")]; w != nil {
					m.read(t, w, rapid.IntRange(1, 5).Draw(t, "n"))
				}
			},
			"readLate": func(t *rapid.T) {
				if len(m.ghosts) > 0 {
					m.read(t, rapid.SampledFrom(m.ghosts).Draw(t, "ghost"), rapid.IntRange(1, 5).Draw(t, "n"))
				}
			},
			"answer": func(t *rapid.T) {
				if w := m.live[place.Draw(t, "place")]; w != nil {
					m.answer(w, rapid.SliceOfN(rapid.IntRange(0, 9), 1, 4).Draw(t, "picks"))
				}
			},
			"open":  func(t *rapid.T) { m.open(place.Draw(t, "place")) },
			"break": func(t *rapid.T) { m.breakStream(place.Draw(t, "place")) },
			"home": func(t *rapid.T) {
				m.setHome(rapid.IntRange(0, users-1).Draw(t, "user"), rapid.IntRange(-1, places-1).Draw(t, "place"))
			},
			"time": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 6).Draw(t, "s")) * time.Second)
				m.expire(t)
			},
			"": func(t *rapid.T) { checkLanes(t, m.o) },
		})
		m.settle(t)
	})
}

// checkLanes checks what outbox says of lane.
func checkLanes(t failer, o *outbox) {
	n := 0
	for _, l := range o.lanes {
		if len(l.queue) == 0 {
			t.Fatalf("empty lane")
		}
		n += len(l.queue)
		for i, p := range l.queue {
			want := l.at
			if i >= l.sent {
				want = nil
			}
			if p.at != want {
				t.Fatalf("message %d of a lane with %d sent is elsewhere", i, l.sent)
			}
		}
		if home := o.homeOf(l.tenant, l.user); home != nil && home.up && l.sent < len(l.queue) && (l.sent == 0 || l.at == home) {
			t.Fatalf("a message waits for nothing")
		}
	}
	if n != len(o.byRef) {
		t.Fatalf("%d messages in lanes, %d refs", n, len(o.byRef))
	}
}

func TestOutboxBounds(t *testing.T) {
	o := newOutbox(2, 10)
	add := func(size int) bool {
		return o.add(outgoing{session: 1, message: make([]byte, size), done: func([]byte) {}}, time.Time{})
	}
	if !add(6) || add(5) || !add(4) || add(0) {
		t.Fatal("want room for 2 messages and 10 bytes")
	}
	o.expire(time.Unix(100, 0), time.Second)
	if !add(10) {
		t.Fatal("the room of what expired is not given back")
	}
}

func TestOutboxTakesInBatches(t *testing.T) {
	m := newModel(1, 1)
	m.setHome(0, 0)
	m.open(0)
	for range 5 {
		m.publish(t, 0, 1)
	}
	p := m.places[0]
	sizes := []int{}
	for range 4 {
		batch, _ := m.o.take(p, nil, 2*len(text(0, 0)))
		sizes = append(sizes, len(batch))
	}
	if !slices.Equal(sizes, []int{2, 2, 1, 0}) {
		t.Fatalf("took %v", sizes)
	}
}

func BenchmarkOutbox(b *testing.B) {
	m := newModel(1, 1)
	m.setHome(0, 0)
	m.open(0)
	msg, now := make([]byte, 100), time.Now()
	done := func([]byte) {}
	var batch []*routerv1.Inbound
	var out []finished
	b.ReportAllocs()
	for i := range b.N {
		m.o.add(outgoing{session: uint64(i % 1000), user: "0", message: msg, done: done}, now)
		batch, _ = m.o.take(m.places[0], batch[:0], 1<<20)
		out = m.o.answer([]*routerv1.Outcome{{Ref: batch[0].GetRef()}}, out[:0])
	}
}
