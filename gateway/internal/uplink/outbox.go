package uplink

import (
	"slices"
	"sync"
	"time"

	"github.com/mics-im/mics/internal/frame"
	"github.com/mics-im/mics/internal/telemetry"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// place is a router as messages see it: where their stream goes. Its fields are
// guarded by the mu of the outbox it belongs to.
type place struct {
	// up says that a stream is open and takes messages.
	up bool
	// home says that some users have their home here. A stream is kept to other
	// places only until what they were sent has been answered.
	home bool
	// out is queued for the stream and not taken yet; what has been answered
	// meanwhile is still in it.
	out []*pending
	// unanswered counts what is in out or has been taken.
	unanswered int
	// wake has room for one token: there is something to do.
	wake chan struct{}
}

func newPlace() *place { return &place{wake: make(chan struct{}, 1)} }

// pending is a message without an outcome. Guarded by the outbox's mu, except
// that in belongs to the stream which has taken it.
type pending struct {
	in    routerv1.Inbound
	msgID string
	lane  *lane
	done  func(ack []byte)
	// at is whose out it is in, or who has taken it; nil while it waits.
	at *place
	// seen says that a stream has taken it: a router may know it.
	seen bool
	// answered: it is in no lane any more.
	answered bool
	// since, prev, next are for the list of messages that nobody has seen.
	since      time.Time
	prev, next *pending
}

// lane is a session with unanswered messages, in the order of its Publish
// calls. Those that are at a place come first, and all of them are at the same.
type lane struct {
	session      uint64
	tenant, user string
	version      uint32
	at           *place // of the first sent messages
	sent         int
	queue        []*pending
}

// outbox decides where every message goes and when. What it keeps to:
//
//   - a message stays until it has an outcome, and gets one outcome;
//   - what a client sends again meanwhile does not go out: its home might have
//     moved, and the new one cannot know what is with the old one;
//   - a session's messages go to one place at a time, so that its order is that
//     of one stream: when the user's home moves, newer messages wait until those
//     at the old home have been answered, or its stream has broken;
//   - when a stream breaks, what was at its place goes again, in order, to the
//     user's then home; what a stream had taken before is marked: a router may
//     have seen it.
//
// It is safe for concurrent use, does no I/O and calls nothing under its lock.
type outbox struct {
	maxBytes, maxMessages int

	mu      sync.Mutex
	homeOf  func(tenant, user string) *place // nil result: no router is known
	lanes   map[uint64]*lane
	byRef   map[uint64]*pending
	lastRef uint64
	bytes   int
	unseen  pending // head of a ring of messages that no stream has taken, oldest first
	closed  bool

	resent, repeats *telemetry.Counter
}

func newOutbox(maxMessages, maxBytes int) *outbox {
	o := &outbox{
		maxMessages: maxMessages, maxBytes: maxBytes,
		homeOf: func(string, string) *place { return nil },
		lanes:  map[uint64]*lane{}, byRef: map[uint64]*pending{}, resent: &telemetry.Counter{}, repeats: &telemetry.Counter{},
	}
	o.unseen.prev, o.unseen.next = &o.unseen, &o.unseen
	return o
}

// outgoing is what Publish is called with.
type outgoing struct {
	session      uint64
	tenant, user string
	version      uint32
	msgID        string
	message      []byte
	traceparent  string
	done         func(ack []byte)
}

// add takes a message. It is false when the bounds are reached or the outbox is
// closed: the message was not taken.
func (o *outbox) add(m outgoing, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	l := o.lanes[m.session]
	if p := l.repeated(m); p != nil {
		o.repeats.Inc()
		first := p.done
		p.done = func(ack []byte) { first(ack); m.done(ack) }
		return true
	}
	if len(o.byRef) >= o.maxMessages || o.bytes+len(m.message) > o.maxBytes {
		return false
	}
	if l == nil {
		l = &lane{session: m.session, tenant: m.tenant, user: m.user, version: m.version}
		o.lanes[m.session] = l
	}
	o.lastRef++
	p := &pending{msgID: m.msgID, lane: l, done: m.done, since: now}
	p.in.Ref, p.in.SessionId, p.in.Version = o.lastRef, m.session, l.version
	p.in.Message, p.in.Traceparent = m.message, m.traceparent
	p.prev, p.next = o.unseen.prev, &o.unseen
	p.prev.next, p.next.prev = p, p
	o.byRef[p.in.Ref] = p
	o.bytes += len(m.message)
	l.queue = append(l.queue, p)
	o.advance(l)
	return true
}

// repeated returns the message that m repeats (CONTRACT section 1.2), nil: none.
func (l *lane) repeated(m outgoing) *pending {
	if l == nil {
		return nil
	}
	for _, p := range l.queue {
		if p.msgID != m.msgID {
			continue
		}
		a, err := frame.ParseMessage(p.in.GetMessage())
		b, err2 := frame.ParseMessage(m.message)
		if err == nil && err2 == nil && frame.IsRepeat(a, b) {
			return p
		}
	}
	return nil
}

// advance queues what of the lane may go now.
func (o *outbox) advance(l *lane) {
	if l.sent == len(l.queue) {
		return
	}
	home := o.homeOf(l.tenant, l.user)
	if home == nil || !home.up || l.sent > 0 && l.at != home {
		return
	}
	if len(home.out) == 0 {
		signal(home.wake)
	}
	l.at = home
	for _, p := range l.queue[l.sent:] {
		p.at = home
		home.out = append(home.out, p)
		home.unanswered++
	}
	l.sent = len(l.queue)
}

// setHomes says where users have their homes from now on; homes are all places
// that homeOf may return.
func (o *outbox) setHomes(all, homes []*place, homeOf func(tenant, user string) *place) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range all {
		p.home = slices.Contains(homes, p)
		signal(p.wake)
	}
	o.homeOf = homeOf
	for _, l := range o.lanes {
		o.advance(l)
	}
}

// open says that p has a stream now.
func (o *outbox) open(p *place) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p.up = true
	for _, l := range o.lanes {
		o.advance(l)
	}
}

// broken says that p's stream has ended and that nobody uses what it had taken.
func (o *outbox) broken(p *place) {
	o.mu.Lock()
	defer o.mu.Unlock()
	p.up = false
	p.out, p.unanswered = nil, 0
	for _, l := range o.lanes {
		if l.sent > 0 && l.at == p {
			for _, m := range l.queue[:l.sent] {
				m.at = nil
				m.in.PossibleRepeat = m.seen
			}
			l.at, l.sent = nil, 0
		}
		o.advance(l)
	}
}

// take returns what is queued for p's stream, at most about maxBytes of it; from
// then on a router may have seen it. idle says that p is nobody's home and has
// nothing unanswered: its stream can end.
func (o *outbox) take(p *place, dst []*routerv1.Inbound, maxBytes int) (batch []*routerv1.Inbound, idle bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, m := range p.out {
		if maxBytes <= 0 {
			break
		}
		n++
		if m.answered {
			continue
		}
		if m.seen {
			o.resent.Inc()
		} else {
			o.markSeen(m)
		}
		maxBytes -= len(m.in.Message)
		dst = append(dst, &m.in)
	}
	if n == len(p.out) {
		clear(p.out)
		p.out = p.out[:0]
	} else {
		p.out = slices.Delete(p.out, 0, n)
		signal(p.wake)
	}
	return dst, !p.home && p.unanswered == 0
}

func (o *outbox) markSeen(m *pending) {
	m.seen = true
	m.prev.next, m.next.prev = m.next, m.prev
	m.prev, m.next = nil, nil
}

// finished is a message that has its outcome: done is to be called with ack.
type finished struct {
	done  func(ack []byte)
	ack   []byte
	since time.Time // when it was added
}

// answer takes outcomes from any stream. An unknown ref has been answered before.
func (o *outbox) answer(outcomes []*routerv1.Outcome, dst []finished) []finished {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, out := range outcomes {
		p := o.byRef[out.GetRef()]
		if p == nil {
			continue
		}
		dst = append(dst, finished{p.done, out.GetAck(), p.since})
		o.remove(p)
	}
	return dst
}

// remove takes p out of everything and lets its lane go on.
func (o *outbox) remove(p *pending) {
	p.answered = true
	if !p.seen {
		o.markSeen(p)
	}
	delete(o.byRef, p.in.Ref)
	o.bytes -= len(p.in.Message)
	l := p.lane
	i := slices.Index(l.queue, p)
	l.queue = slices.Delete(l.queue, i, i+1)
	if p.at != nil {
		p.at.unanswered--
		if p.at.unanswered == 0 && !p.at.home {
			signal(p.at.wake)
		}
		l.sent--
	}
	if len(l.queue) == 0 {
		delete(o.lanes, l.session)
		return
	}
	o.advance(l)
}

// expire takes out the messages that nobody can have seen and that are older
// than maxAge: of them alone it is certain that they will not be delivered.
func (o *outbox) expire(now time.Time, maxAge time.Duration) []*pending {
	o.mu.Lock()
	defer o.mu.Unlock()
	var old []*pending
	for p := o.unseen.next; p != &o.unseen && now.Sub(p.since) >= maxAge; p = o.unseen.next {
		o.remove(p)
		old = append(old, p)
	}
	return old
}

// close lets add fail from now on.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
}

// len returns how many messages are unanswered.
func (o *outbox) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.byRef)
}

// isHome reports whether p is some users' home, and isUp whether it has a stream.
func (o *outbox) isHome(p *place) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return p.home
}

func (o *outbox) isUp(p *place) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return p.up
}
