package event

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// redriveWindow is how many dead letters are on their way back at once.
	redriveWindow = 200
	// rememberEvery is how often a redrive has the cluster remember how far it has
	// come, and so how much is sent twice if its router dies.
	rememberEvery = time.Second
	tellEvery     = time.Second
)

// Redriven is the progress of a redrive.
type Redriven struct {
	Total  int64 // dead letters at the start
	Read   int64
	Sent   int64 // taken by the tenant's topic
	Dead   int64 // dead letters again
	Failed int64 // not taken by either: they will be redriven the next time
}

// Redrive publishes the tenant's dead letters anew, with the number they had and
// a signature of now, and has the cluster remember how far it has come, so that
// the next redrive goes on from there. What lies before filter.Since is passed
// over for good. dry: it only counts. progress is called now and then and at the
// end; an error of it ends the redrive.
//
// One redrive of a tenant is under way at a time, over all routers, by a lock with
// a lease. If its holder dies, or stands still for longer than that, what it sent
// in its last seconds may be sent again by the next one, under the same numbers.
func (p *Publisher) Redrive(ctx context.Context, tenant string, filter LetterFilter, dry bool, progress func(Redriven) error) error {
	if dry {
		return p.redriveDry(ctx, tenant, filter, progress)
	}
	if p.cluster == nil {
		return ErrDisabled
	}
	h, err := p.hold(ctx, tenant)
	if err != nil {
		return err
	}
	defer h.release()
	// Only now: whoever held the lock before has had remembered how far it came.
	r, err := p.openLetters(tenant, filter)
	if err != nil {
		return err
	}
	rd := &redrive{
		p: p, tenant: tenant, topic: r.topic, hold: h, places: make(chan struct{}, redriveWindow), progress: progress,
		next: map[int32]int64{}, failed: map[int32]int64{}, under: map[int32]map[int64]struct{}{},
	}
	rd.count.Total = r.total()
	err = r.each(h.ctx, rd.send)
	// What is under way is waited for, whatever happened: its outcome counts.
	for range redriveWindow {
		rd.places <- struct{}{}
	}
	if h.lost() {
		return errors.Join(ErrLeaseLost, progress(rd.counted()))
	}
	return errors.Join(err, p.cluster.remember(r.topic, rd.come()), progress(rd.counted()))
}

// redriveDry counts what a redrive would send.
func (p *Publisher) redriveDry(ctx context.Context, tenant string, filter LetterFilter, progress func(Redriven) error) error {
	r, err := p.openLetters(tenant, filter)
	if err != nil {
		return err
	}
	c := Redriven{Total: r.total()}
	err = r.each(ctx, func(Letter) error { c.Read++; return nil })
	return errors.Join(err, progress(c))
}

// redrive is one redrive. send is for one goroutine.
type redrive struct {
	p                *Publisher
	tenant, topic    string
	hold             *hold
	places           chan struct{}
	progress         func(Redriven) error
	told, remembered time.Time

	mu     sync.Mutex
	count  Redriven                     // guarded by mu
	next   map[int32]int64              // guarded by mu: the offset after the last letter that was sent, by partition
	failed map[int32]int64              // guarded by mu: the offset of the first one that failed
	under  map[int32]map[int64]struct{} // guarded by mu: offsets of letters under way; at most redriveWindow
}

// come tells how far each partition is done: everything before is settled, and
// did not fail.
func (r *redrive) come() map[int32]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[int32]int64, len(r.next))
	for id, at := range r.next {
		if first, some := r.failed[id]; some {
			at = min(at, first)
		}
		for offset := range r.under[id] {
			at = min(at, offset)
		}
		out[id] = at
	}
	return out
}

func (r *redrive) counted() Redriven {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

// send publishes one letter, waiting for room.
func (r *redrive) send(l Letter) error {
	ctx := r.hold.ctx
	select {
	case r.places <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	it := &item{raw: l.Value, size: len(l.Value) + 128}
	it.Key, it.Type, it.Time = l.Key, l.Event.GetEventType(), time.UnixMilli(l.Event.GetTimestamp())
	it.Done = func(err error) { r.settled(l, err) }
	r.begin(l)
	if err := r.enter(it); err != nil {
		r.forget(l)
		return err
	}
	c := r.counted()
	now := time.Now()
	if now.Sub(r.remembered) >= rememberEvery {
		r.remembered = now
		// A failure is told at the end, if it lasts.
		_ = r.p.cluster.remember(r.topic, r.come())
	}
	if now.Sub(r.told) < tellEvery {
		return nil
	}
	r.told = now
	return r.progress(c)
}

// enter puts a letter into its lane once there is room, if the lock is still held
// then.
func (r *redrive) enter(it *item) error {
	ctx := r.hold.ctx
	for {
		if r.hold.lost() {
			return ErrLeaseLost
		}
		why := r.p.lane(r.tenant).put(it) // not counted as a drop: it is a dead letter already
		if why == "" {
			return nil
		}
		if why == DropTopic || why == DropStopped {
			return fmt.Errorf("%w: %s", ErrDropped, why)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// begin notes a letter as under way, before it can be settled.
func (r *redrive) begin(l Letter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count.Read++
	r.next[l.Partition] = l.Offset + 1
	if r.under[l.Partition] == nil {
		r.under[l.Partition] = map[int64]struct{}{}
	}
	r.under[l.Partition][l.Offset] = struct{}{}
}

// forget takes begin back.
func (r *redrive) forget(l Letter) {
	r.mu.Lock()
	r.count.Read--
	r.next[l.Partition] = l.Offset
	delete(r.under[l.Partition], l.Offset)
	r.mu.Unlock()
	<-r.places
}

func (r *redrive) settled(l Letter, err error) {
	r.mu.Lock()
	delete(r.under[l.Partition], l.Offset)
	switch {
	case err == nil:
		r.count.Sent++
	case errors.Is(err, ErrDeadLettered):
		r.count.Dead++
	default:
		r.count.Failed++
		if first, some := r.failed[l.Partition]; !some || l.Offset < first {
			r.failed[l.Partition] = l.Offset
		}
	}
	r.mu.Unlock()
	<-r.places
}
