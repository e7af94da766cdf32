package mics

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// Pending is a message under way.
type Pending struct {
	id    string
	frame []byte
	seq   uint64 // order of acceptance

	written bool // guarded by outbox.mu: on some connection at least once

	done chan struct{} // closed once ack and err are set
	ack  Ack
	err  error
	stop func() bool // ends the watch on the caller's context
}

// ID returns the message's id.
func (p *Pending) ID() string { return p.id }

// Done is closed when the outcome is known, or given up on.
func (p *Pending) Done() <-chan struct{} { return p.done }

// Wait blocks until the outcome is known and returns it; see [Client.Send].
func (p *Pending) Wait() (Ack, error) {
	<-p.done
	return p.ack, p.err
}

// outbox holds the unanswered messages, in order, across connections. It is
// bounded by its slots: whoever adds a message waits for one first.
type outbox struct {
	slots chan struct{}

	mu        sync.Mutex
	pending   map[string]*Pending
	unwritten []*Pending // what the present connection has still to write
	lane      *lane      // of the present connection; nil: there is none
	nextSeq   uint64
	ended     error
	resends   uint64
}

// lane leads from the outbox to one connection, until there is another one.
type lane struct {
	wake chan struct{} // capacity 1: there is something for the writer
}

func newOutbox(size int) *outbox {
	return &outbox{
		slots:   make(chan struct{}, size),
		pending: make(map[string]*Pending),
	}
}

// add takes p in, for as long as ctx lives. It blocks while the outbox is full,
// until done or ctx ends it.
func (o *outbox) add(ctx context.Context, p *Pending, done <-chan struct{}) error {
	select {
	case o.slots <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("mics: message %s was not sent: %w", p.id, ctx.Err())
	case <-done:
		return o.endedWith()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	err := o.ended
	if _, taken := o.pending[p.id]; taken && err == nil {
		err = ErrInFlight
	}
	if err != nil {
		<-o.slots
		return err
	}
	o.nextSeq++
	p.seq = o.nextSeq
	o.pending[p.id] = p
	p.stop = context.AfterFunc(ctx, func() {
		o.finish(p, Ack{ID: p.id}, fmt.Errorf("mics: message %s is unanswered: %w", p.id, ctx.Err()))
	})
	if o.lane != nil {
		o.unwritten = append(o.unwritten, p)
		o.lane.signal()
	}
	return nil
}

func (l *lane) signal() {
	select {
	case l.wake <- struct{}{}:
	default: // one is waiting to be seen
	}
}

// next returns the message to write now, marked as written; nil if there is
// none, or none any more for this lane.
func (o *outbox) next(l *lane) *Pending {
	o.mu.Lock()
	defer o.mu.Unlock()
	if l != o.lane || len(o.unwritten) == 0 {
		return nil
	}
	p := o.unwritten[0]
	o.unwritten = slices.Delete(o.unwritten, 0, 1)
	if p.written {
		o.resends++
	}
	p.written = true
	return p
}

// link begins a connection, instead of the one before: everything unanswered is
// to be written on it, in the order in which it was accepted.
func (o *outbox) link() *lane {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lane = &lane{wake: make(chan struct{}, 1)}
	o.unwritten = make([]*Pending, 0, len(o.pending))
	for _, p := range o.pending {
		o.unwritten = append(o.unwritten, p)
	}
	slices.SortFunc(o.unwritten, func(a, b *Pending) int { return cmp.Compare(a.seq, b.seq) })
	if len(o.unwritten) > 0 {
		o.lane.signal()
	}
	return o.lane
}

// unlink ends the present connection.
func (o *outbox) unlink() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lane = nil
	o.unwritten = nil
}

// answer settles the message that an ack names. An ack for an unknown one
// (given up on meanwhile) is ignored.
func (o *outbox) answer(a *messagev1.MessageAck) {
	o.mu.Lock()
	p := o.pending[a.GetMsgId()]
	o.mu.Unlock()
	if p != nil {
		ack, err := outcome(a)
		o.finish(p, ack, err)
	}
}

// failLargest settles a "frame too large", which names no message: if any of the
// written ones was too large, the largest is. It reports whether there was one.
func (o *outbox) failLargest() bool {
	o.mu.Lock()
	var largest *Pending
	for _, p := range o.pending {
		if p.written && (largest == nil || len(p.frame) > len(largest.frame)) {
			largest = p
		}
	}
	o.mu.Unlock()
	if largest == nil {
		return false
	}
	o.finish(largest, Ack{ID: largest.id}, &SendError{ID: largest.id, Reason: reasonTooLarge})
	return true
}

// finish settles p once; later calls do nothing.
func (o *outbox) finish(p *Pending, ack Ack, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.settle(p, ack, err)
}

// settle is finish with mu held.
func (o *outbox) settle(p *Pending, ack Ack, err error) {
	if o.pending[p.id] != p {
		return
	}
	delete(o.pending, p.id)
	if i := slices.Index(o.unwritten, p); i >= 0 {
		o.unwritten = slices.Delete(o.unwritten, i, i+1)
	}
	p.stop()
	p.ack, p.err = ack, err
	close(p.done)
	<-o.slots
}

// end settles everything with err, and every later add.
func (o *outbox) end(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = err
	for _, p := range o.pending {
		o.settle(p, Ack{ID: p.id}, fmt.Errorf("mics: message %s is unanswered: %w", p.id, err))
	}
}

func (o *outbox) endedWith() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ended
}

func (o *outbox) resent() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.resends
}
