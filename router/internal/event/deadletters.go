package event

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

// redriveWindow is how many dead letters are on their way back at once.
const redriveWindow = 200

// Errors of dead letters; compare with errors.Is.
var (
	// ErrDisabled: there is no Kafka.
	ErrDisabled = errors.New("events are off: KAFKA__BOOTSTRAP_SERVERS is empty")
	// ErrNoDeadLetters: the tenant has no dead letter topic.
	ErrNoDeadLetters = errors.New("there is no dead letter topic")
	// ErrRedriving: another redrive of the tenant is under way in this process.
	ErrRedriving = errors.New("the tenant's dead letters are being redriven already")
)

// Letter is a record of a dead letter topic.
type Letter struct {
	Partition int32
	Offset    int64
	Time      time.Time // when it was given up
	Reason    string
	Node      string // who gave it up
	Key       string
	Value     []byte
	// Event is nil where the value is none.
	Event *hookv1.MqEvent
}

// LetterFilter selects dead letters.
type LetterFilter struct {
	// Since: given up at or after it; zero: all.
	Since time.Time
	// All: those too that have been redriven.
	All bool
}

// Letters calls f with the tenant's dead letters that there are now, oldest
// first in each partition, until f returns an error, which it returns.
func (p *Publisher) Letters(ctx context.Context, tenant string, filter LetterFilter, f func(Letter) error) error {
	r, err := p.openLetters(tenant, filter)
	if err != nil {
		return err
	}
	return r.each(ctx, f)
}

// ErrNoLetter: there is no dead letter at that place.
var ErrNoLetter = errors.New("there is no such dead letter")

// Letter returns the dead letter at a place.
func (p *Publisher) Letter(tenant string, partition int32, offset int64) (Letter, error) {
	r, err := p.openLetters(tenant, LetterFilter{All: true})
	if err != nil {
		return Letter{}, err
	}
	for _, s := range r.parts {
		if s.id != partition || offset < s.from || offset >= s.to {
			continue
		}
		got, _, err := r.fetch(partition, offset)
		if err != nil {
			return Letter{}, fmt.Errorf("read %s: %w", r.topic, err)
		}
		if len(got) > 0 && got[0].Offset == offset {
			return got[0], nil
		}
	}
	return Letter{}, ErrNoLetter
}

// Redriven is the progress of a redrive.
type Redriven struct {
	Total  int64 // dead letters at the start
	Read   int64
	Sent   int64 // taken by the tenant's topic
	Dead   int64 // dead letters again
	Failed int64 // not taken by either: they will be redriven the next time
}

// Redrive publishes the tenant's dead letters anew, with the number they had and
// a signature of now, and remembers how far it has come, so that the next redrive
// goes on from there. What lies before filter.Since is passed over for good. dry:
// it only counts. progress is called now and then and at the end; an error of it
// ends the redrive. What is redriven twice, because this process died or two
// routers did it, has the same number twice.
func (p *Publisher) Redrive(ctx context.Context, tenant string, filter LetterFilter, dry bool, progress func(Redriven) error) error {
	if _, busy := p.redriving.LoadOrStore(tenant, true); busy {
		return ErrRedriving
	}
	defer p.redriving.Delete(tenant)
	r, err := p.openLetters(tenant, filter)
	if err != nil {
		return err
	}
	rd := &redrive{p: p, tenant: tenant, places: make(chan struct{}, redriveWindow), progress: progress, next: map[int32]int64{}, failed: map[int32]int64{}}
	rd.count.Total = r.total()
	if dry {
		err := r.each(ctx, func(Letter) error { rd.count.Read++; return nil })
		return errors.Join(err, progress(rd.count))
	}
	err = r.each(ctx, func(l Letter) error { return rd.send(ctx, l) })
	// What is under way is waited for, whatever happened: its outcome counts.
	for range redriveWindow {
		rd.places <- struct{}{}
	}
	return errors.Join(err, p.cluster.remember(r.topic, rd.come()), progress(rd.counted()))
}

// redrive is one redrive. send is for one goroutine.
type redrive struct {
	p        *Publisher
	tenant   string
	places   chan struct{}
	progress func(Redriven) error
	told     time.Time

	mu     sync.Mutex
	count  Redriven        // guarded by mu
	next   map[int32]int64 // guarded by mu: the offset after the last letter that was sent, by partition
	failed map[int32]int64 // guarded by mu: the offset of the first one that failed
}

// come tells how far each partition is done.
func (r *redrive) come() map[int32]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := maps.Clone(r.next)
	maps.Copy(out, r.failed)
	return out
}

func (r *redrive) counted() Redriven {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

// send publishes one letter, waiting for room.
func (r *redrive) send(ctx context.Context, l Letter) error {
	select {
	case r.places <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	it := &item{raw: l.Value, size: len(l.Value) + 128}
	it.Key, it.Type, it.Time = l.Key, l.Event.GetEventType(), time.UnixMilli(l.Event.GetTimestamp())
	it.Done = func(err error) { r.settled(l, err) }
	for {
		why := r.p.lane(r.tenant).put(it) // not counted as a drop: it is a dead letter already
		if why == "" {
			break
		}
		if why == DropTopic || why == DropStopped {
			<-r.places
			return fmt.Errorf("%w: %s", ErrDropped, why)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			<-r.places
			return ctx.Err()
		}
	}
	r.mu.Lock()
	r.count.Read++
	r.next[l.Partition] = l.Offset + 1
	c := r.count
	r.mu.Unlock()
	if time.Since(r.told) < time.Second {
		return nil
	}
	r.told = time.Now()
	return r.progress(c)
}

func (r *redrive) settled(l Letter, err error) {
	r.mu.Lock()
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
