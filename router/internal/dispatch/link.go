package dispatch

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/router/internal/route"
)

// Stream is one Deliver stream to a gateway.
type Stream interface {
	Send(*gatewayv1.DeliverRequest) error
	Receive() (*gatewayv1.DeliverResponse, error)
	// CloseRequest and CloseResponse end it.
	CloseRequest() error
	CloseResponse() error
}

// Dialer opens a stream; it ends with ctx.
type Dialer func(ctx context.Context, node route.Node) Stream

const (
	// maxCopies and maxBytes bound what is kept for one gateway: deliveries that
	// it has not answered and copies that it has not confirmed. Beyond them a
	// delivery is refused (link_full), looked up again and, if that goes on, not
	// acknowledged.
	maxCopies = 200_000
	maxBytes  = 256 << 20
	// copyOverhead is what a copy costs besides its share of the message.
	copyOverhead = 160
	// maxBatch bounds one stream message.
	maxBatch      = 1024
	maxAbandoned  = 1024
	maxBatchBytes = 4 << 20
	redialFirst   = 20 * time.Millisecond
	redialMax     = time.Second
)

// link is the stream to one gateway incarnation. Deliveries are numbered in the
// order of push and kept until answered; a new stream sends them again, and the
// gateway knows by the numbers which it had. What the gateway accepted is held
// until it is confirmed.
type link struct {
	d      *Dispatcher
	node   route.Node
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // capacity 1

	mu          sync.Mutex
	queue       []queued            // guarded by mu: unanswered, ids rising
	sent        int                 // guarded by mu: how many of queue went out on this stream
	heard       bool                // guarded by mu: this stream has brought an answer
	ask         []uint64            // guarded by mu: sessions whose confirms may have met no stream
	nextID      uint64              // guarded by mu
	nextBacklog uint64              // guarded by mu
	held        map[sequence][]held // guarded by mu: accepted and not confirmed, ids rising
	copies      int                 // guarded by mu: in queue and held
	bytes       int                 // guarded by mu: what they cost
	closed      bool                // guarded by mu
	// abandoned are sessions that never came to be, the latest maxAbandoned: what
	// they accept all the same, as an answer under way says, counts as refused.
	abandoned []uint64 // guarded by mu
}

// backlogIDs is where the ids of backlogs begin: a session gets its backlog by
// another way than the stream, so the two do not come in one order.
const backlogIDs = 1 << 63

// sequence is what a Confirm is cumulative over.
type sequence struct {
	session uint64
	backlog bool
}

type queued struct {
	*sending
	id    uint64
	since time.Time
}

// held is a copy of what a session has accepted.
type held struct {
	target
	id   uint64
	cost int
}

func newLink(d *Dispatcher, node route.Node) *link {
	// A gateway that was out of reach and is alive again knows the ids of the link
	// before: a new one must not give them a second time. Nobody delivers once a
	// nanosecond, so the time will do.
	first := uint64(time.Now().UnixNano())
	l := &link{d: d, node: node, wake: make(chan struct{}, 1), nextID: first, nextBacklog: backlogIDs + first, held: map[sequence][]held{}}
	l.ctx, l.cancel = context.WithCancel(d.ctx)
	return l
}

func (l *link) stop() { l.cancel() }

// size is how many copies are held.
func (l *link) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.copies - len(l.queue)
}

// cost of one of n copies of the message.
func cost(m *Message, n int) int { return copyOverhead + (len(m.Bytes)+n-1)/n }

// charge makes room for n copies of the message; false when there is none.
func (l *link) charge(m *Message, n int) bool {
	c := n * cost(m, n)
	if l.closed || l.copies+n > maxCopies || l.bytes+c > maxBytes {
		return false
	}
	l.copies += n
	l.bytes += c
	return true
}

// push queues a delivery; false when the link is full or has ended.
func (l *link) push(s *sending) bool {
	l.mu.Lock()
	if !l.charge(s.msg, len(s.targets)) {
		l.mu.Unlock()
		return false
	}
	l.queue = append(l.queue, queued{s, l.nextID, time.Now()})
	l.nextID++
	l.mu.Unlock()
	l.nudge()
	return true
}

// hold keeps copies for a session that gets them by another way; all or none.
func (l *link) hold(copies []target) (ids []uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, t := range copies {
		if !l.charge(t.item.msg, 1) {
			l.uncharge(copies[:i])
			return nil, false
		}
	}
	for _, t := range copies {
		at := sequence{t.session, true}
		ids = append(ids, l.nextBacklog)
		l.held[at] = append(l.held[at], held{t, l.nextBacklog, cost(t.item.msg, 1)})
		l.nextBacklog++
	}
	if !l.heard && len(copies) > 0 {
		// The gateway may not know this stream yet, and keeps no confirm for it. The
		// stream's first message may have been written without this session.
		l.ask = append(l.ask, copies[0].session)
		l.nudge()
	}
	return ids, true
}

// nudge has the stream look at what there is to send.
func (l *link) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *link) uncharge(copies []target) {
	for _, t := range copies {
		l.copies--
		l.bytes -= cost(t.item.msg, 1)
	}
}

// run keeps a stream until the link is stopped. Then everything unanswered is
// refused, and so looked up again, and what had been accepted is delivered
// again, before it.
func (l *link) run() {
	wait := redialFirst
	for l.ctx.Err() == nil {
		if l.stream() {
			wait = redialFirst
		}
		select {
		case <-time.After(wait):
		case <-l.ctx.Done():
		}
		wait = min(2*wait, redialMax)
	}
	l.mu.Lock()
	l.closed = true
	rest := l.queue
	l.queue = nil
	var copies []held
	for _, h := range l.held {
		copies = append(copies, h...)
	}
	clear(l.held)
	l.copies, l.bytes = 0, 0
	l.mu.Unlock()
	inOrder(copies)
	l.d.recover(l.node.NodeRef, copies)
	for _, q := range rest {
		l.d.opts.Hooks.ForwardFailed(l.node.NodeRef)
		for _, t := range q.targets {
			t.refuse(l.d, l.node.NodeRef)
		}
	}
}

// abandon gives up a session that never came to be and returns what is held for
// it.
func (l *link) abandon(session uint64) []held {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.abandoned) == maxAbandoned {
		l.abandoned = slices.Delete(l.abandoned, 0, maxAbandoned/2)
	}
	l.abandoned = append(l.abandoned, session)
	return l.take(session)
}

// reclaim gives up what is held for a session that is out of reach.
func (l *link) reclaim(session uint64) []held {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.take(session)
}

// take ends the holding of all of a session's copies and returns them, in order.
// The link is locked.
func (l *link) take(session uint64) []held {
	copies := append(l.confirm(session, 1<<64-1), l.confirm(session, backlogIDs-1)...)
	inOrder(copies)
	return copies
}

// inOrder sorts what is held for sessions into the order in which their devices
// would have got it: the backlog first.
func inOrder(copies []held) {
	slices.SortFunc(copies, func(a, b held) int {
		if a, b := a.id >= backlogIDs, b.id >= backlogIDs; a != b {
			if a {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.id, b.id)
	})
}

// stream runs one stream to its end and reports whether it got any answer.
func (l *link) stream() bool {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	s := l.d.opts.Dial(ctx, l.node)
	// The end of ctx alone does not end a stream whose request is still open.
	defer context.AfterFunc(ctx, func() { _ = s.CloseRequest() })()
	l.mu.Lock()
	l.sent, l.heard, l.ask = 0, false, nil
	var unconfirmed []uint64
	for at := range l.held {
		if !at.backlog || l.held[sequence{at.session, false}] == nil {
			unconfirmed = append(unconfirmed, at.session)
		}
	}
	l.mu.Unlock()
	var received sync.WaitGroup
	received.Go(func() {
		defer cancel()
		for {
			res, err := s.Receive()
			if err != nil {
				return
			}
			l.answer(res)
		}
	})
	err := s.Send(&gatewayv1.DeliverRequest{
		RouterId: l.d.opts.Router.ID, RouterIncarnation: l.d.opts.Router.Incarnation, GatewayIncarnation: l.node.Incarnation,
		ConfirmSessions: unconfirmed,
	})
	for err == nil {
		batch, ask := l.batch()
		if len(batch)+len(ask) == 0 {
			select {
			case <-l.wake:
				continue
			case <-ctx.Done():
				err = ctx.Err()
				continue
			}
		}
		err = s.Send(&gatewayv1.DeliverRequest{Deliveries: batch, ConfirmSessions: ask})
	}
	cancel()
	_ = s.CloseRequest()
	_ = s.CloseResponse()
	received.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard
}

// batch is what has not gone out on this stream, bounded, and the sessions to ask for.
func (l *link) batch() (out []*gatewayv1.Delivery, ask []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ask, l.ask = l.ask, nil
	bytes := 0
	for l.sent < len(l.queue) && len(out) < maxBatch && bytes < maxBatchBytes {
		q := l.queue[l.sent]
		sessions := make([]uint64, len(q.targets))
		for i, t := range q.targets {
			sessions[i] = t.session
		}
		out = append(out, &gatewayv1.Delivery{
			Id: q.id, Message: q.msg.Bytes, Unmoderated: q.msg.Unmoderated, SessionIds: sessions, Traceparent: q.msg.TraceParent,
			Key: q.msg.key(), TakenAt: q.msg.At,
		})
		bytes += len(q.msg.Bytes)
		l.sent++
	}
	return out, ask
}

// answer takes one response: all up to its id are answered, the refusals are
// the exceptions; then come the confirms.
func (l *link) answer(res *gatewayv1.DeliverResponse) {
	type session struct{ id, session uint64 }
	var refused map[session]gatewayv1.Refusal_Reason
	if len(res.Refusals) > 0 {
		refused = make(map[session]gatewayv1.Refusal_Reason, len(res.Refusals))
		for _, r := range res.Refusals {
			refused[session{r.Id, r.SessionId}] = r.Reason
		}
	}

	l.mu.Lock()
	l.heard = true
	n := 0
	for n < len(l.queue) && l.queue[n].id <= res.AnsweredThrough {
		n++
	}
	done := append([]queued(nil), l.queue[:n]...)
	clear(l.queue[:n])
	l.queue = l.queue[n:]
	l.sent = max(0, l.sent-n)
	for _, q := range done {
		for _, t := range q.targets {
			if slices.Contains(l.abandoned, t.session) {
				if refused == nil {
					refused = map[session]gatewayv1.Refusal_Reason{}
				}
				refused[session{q.id, t.session}] = gatewayv1.Refusal_REASON_UNKNOWN
			}
		}
		c := cost(q.msg, len(q.targets))
		for _, t := range q.targets {
			if _, no := refused[session{q.id, t.session}]; no {
				l.copies--
				l.bytes -= c
				continue
			}
			again := t
			again.item.tracker = nil
			at := sequence{t.session, false}
			l.held[at] = append(l.held[at], held{again, q.id, c})
		}
	}
	var confirmed []held
	var settled []route.DeviceKey
	for _, c := range res.Confirms {
		got := l.confirm(c.SessionId, c.ThroughId)
		confirmed = append(confirmed, got...)
		if at := (sequence{c.SessionId, true}); len(got) > 0 && c.ThroughId >= backlogIDs && l.held[at] == nil {
			settled = append(settled, route.DeviceKey{UserKey: got[0].flow.key, Device: got[0].item.device})
		}
	}
	l.mu.Unlock()

	now := time.Now()
	for _, q := range done {
		l.d.opts.Hooks.Forwarded(l.node.NodeRef, now.Sub(q.since))
		for _, t := range q.targets {
			if why, no := refused[session{q.id, t.session}]; no {
				l.d.opts.Hooks.Refused(why.String())
				t.refuse(l.d, l.node.NodeRef)
			} else {
				t.accept(l.d, l.node.NodeRef)
			}
		}
	}
	for _, h := range confirmed {
		l.d.confirmed(h.target, l.node.NodeRef)
	}
	for _, key := range settled {
		l.d.opts.Hooks.Settled(key)
	}
}

// confirm ends the holding of a session's copies up to an id and returns them.
// The link is locked.
func (l *link) confirm(session, through uint64) []held {
	at := sequence{session, through >= backlogIDs}
	copies := l.held[at]
	n := 0
	for n < len(copies) && copies[n].id <= through {
		l.copies--
		l.bytes -= copies[n].cost
		n++
	}
	if n == len(copies) {
		delete(l.held, at)
	} else {
		l.held[at] = copies[n:]
	}
	return copies[:n]
}

// key is the message's name on the wire; nil when it has none.
func (m *Message) key() []byte {
	if m.Key == [16]byte{} {
		return nil
	}
	return m.Key[:]
}
