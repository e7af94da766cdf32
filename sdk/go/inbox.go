package mics

import (
	"context"
	"hash/maphash"
	"strconv"
	"sync/atomic"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// session is what survives a socket: the deliveries of every connection that
// the gateway calls resumed are numbered on in one row.
type session struct {
	last atomic.Uint64 // highest seq in the application's queue; written by whose turn it is in the inbox
}

// inbox takes deliveries into the application's queue, once each and in order,
// from however many connections. During a migration two of them are read at the
// same time.
type inbox struct {
	queue      chan *Delivery // written by whose turn it is
	overflow   Overflow
	live, hard context.Context // the client's

	deliveries, dropped, repeats atomic.Uint64

	// current is the session whose deliveries are taken. What an earlier one may
	// still have under way was not acknowledged, so the cluster gives it to the
	// current one too.
	current atomic.Pointer[session]

	// turn has room for one: the connection whose delivery is being queued. It
	// keeps its turn while it waits for room in the queue.
	turn   chan struct{}
	recent *recent // of whose turn it is; nil: repeats are not looked for
}

// take queues what l received, unless the application has it already. It blocks
// by the overflow policy. What it leaves out, because ctx ended with l, Close has
// begun or the session is over, stays unacknowledged and so with the cluster.
func (in *inbox) take(ctx context.Context, l *link, d *messagev1.MessageDelivery) {
	cut, closing := ctx.Done(), in.live.Done()
	if !l.v2 {
		// No acknowledgements: the gateway counts it as received.
		cut, closing = in.hard.Done(), nil
	}
	select {
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-cut:
		return
	}
	if in.current.Load() != l.session {
		return
	}
	seq := uint64(0)
	if l.v2 {
		seq = d.GetSeq()
	}
	repeated := seq > 0 && seq <= l.session.last.Load()
	if l.v2 && in.live.Err() != nil && !repeated {
		return
	}
	in.deliveries.Add(1)
	if repeated {
		in.repeats.Add(1)
		l.saw(seq)
		return
	}
	key := in.recent.key(d.GetMessage())
	if in.recent.repeated(l.session, key) {
		in.repeats.Add(1)
	} else if !in.push(newDelivery(d), cut, closing) {
		return
	}
	in.recent.add(l.session, key)
	if seq > 0 {
		l.session.last.Store(seq)
		l.saw(seq)
	}
}

// seal returns once nothing more of a V2 connection is taken: Close has begun,
// and what is acknowledged from now on is final.
func (in *inbox) seal() {
	select {
	case in.turn <- struct{}{}:
		<-in.turn
	case <-in.hard.Done():
	}
}

// push reports whether d is in the queue; it gives up when cut or closing is closed.
func (in *inbox) push(d *Delivery, cut, closing <-chan struct{}) bool {
	for {
		if in.overflow == Backpressure {
			select {
			case in.queue <- d:
				return true
			case <-cut:
				return false
			case <-closing:
				return false
			}
		}
		select {
		case in.queue <- d:
			return true
		default:
		}
		select {
		case <-in.queue:
			in.dropped.Add(1)
		default: // the application made room meanwhile
		}
	}
}

// recentKeys is how many messages are remembered: many times what a gateway may
// have unacknowledged in one session.
const recentKeys = 1024

// recent recognises what one session repeats of an earlier one. Within a
// session the gateway sees to it, so there the same key is another message.
type recent struct {
	seed  maphash.Seed
	known map[uint64]*session // key to the session that had it last
	ring  [recentKeys]uint64
	next  int // the oldest, once the ring is full
}

func newRecent() *recent {
	return &recent{seed: maphash.MakeSeed(), known: make(map[uint64]*session)}
}

// repeated reports whether a session before s had the message. Like the other
// methods it does nothing where r is nil.
func (r *recent) repeated(s *session, key uint64) bool {
	if r == nil {
		return false
	}
	had, ok := r.known[key]
	return ok && had != s
}

// add remembers that s had the message, instead of the oldest one.
func (r *recent) add(s *session, key uint64) {
	if r == nil {
		return
	}
	_, ok := r.known[key]
	r.known[key] = s
	if ok {
		return
	}
	if len(r.known) > recentKeys {
		delete(r.known, r.ring[r.next])
	}
	r.ring[r.next] = key
	r.next = (r.next + 1) % recentKeys
}

// key names a message as the cluster does when it deduplicates, and by its
// timestamp: senders of version 1 use their ids again, and what is only
// delivered a second time is the same to the byte.
func (r *recent) key(m *messagev1.MessageRequest) uint64 {
	if r == nil {
		return 0
	}
	var h maphash.Hash
	h.SetSeed(r.seed)
	var space [20]byte
	number := func(n int64) {
		_, _ = h.Write(strconv.AppendInt(space[:0], n, 10)) // never fails
		_ = h.WriteByte(0)
	}
	for _, s := range [...]string{m.GetTenantId(), m.GetUserId(), m.GetDeviceId(), m.GetMsgId(), m.GetToUserId(), m.GetGroupId()} {
		number(int64(len(s)))
		_, _ = h.WriteString(s)
	}
	number(int64(m.GetMsgType()))
	number(m.GetTimestampMs())
	_, _ = h.Write(m.GetMsgBody())
	return h.Sum64()
}
