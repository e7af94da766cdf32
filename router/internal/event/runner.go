package event

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/IBM/sarama"
	"github.com/mics-im/mics/internal/telemetry"
)

const (
	// pace is the least time between two looks into a lane for which nobody
	// waits: the first event goes at once, those behind it in company.
	pace = 20 * time.Millisecond
	// idleLane is how long a lane's goroutine stays with nothing to do; its
	// producer ids go with it.
	idleLane = 10 * time.Minute
	// The pause after both topics were tried in vain, and after a look-up that
	// failed, grows up to mostPause. A stopping lane waits stopPause at most.
	firstPause = 200 * time.Millisecond
	mostPause  = 5 * time.Second
	stopPause  = 250 * time.Millisecond
	// lookEvery is how often a topic is looked up anew, for partitions that were
	// added.
	lookEvery = 5 * time.Minute
	// denyPause is how long a topic is not tried to be created again after the
	// cluster did not allow it.
	denyPause = time.Minute
)

// runner sends a lane's events. Everything in it belongs to its goroutine; what
// waits for the network runs in goroutines of its own, which hand their results
// back through done.
type runner struct {
	*lane
	log  *slog.Logger
	enc  encoder
	done chan func()
	away int             // goroutines that will send to done
	busy map[string]bool // brokers with a request of this lane under way

	parts  []*part // of the tenant's topic; empty: not known
	leader []string
	limbo  part     // events while the topic is not known
	dead   []string // leaders of the dead letter topic

	looking    bool
	looked     time.Time // when a look-up last succeeded
	lookAt     time.Time // not before
	lookFailed int       // look-ups in a row that did not find the topic
	noCreate   time.Time // no attempt to create topics before
	told       string    // the trouble with the topics that was logged last
	troubled   bool      // neither topic took something, or nobody could be asked

	paced    time.Time // no hurry before
	stopping bool
	warned   time.Time // when trouble was logged last
}

func newRunner(l *lane) *runner {
	return &runner{
		lane: l, log: l.p.log.With(telemetry.TenantID, l.tenant),
		enc:  encoder{tenant: l.tenant, node: l.p.opts.Node},
		done: make(chan func()), busy: map[string]bool{}, limbo: part{id: -1},
	}
}

func (r *runner) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	stopping, abort := r.p.stopping, r.p.cluster.ctx.Done()
	for {
		if r.p.cluster.ctx.Err() != nil {
			r.abandonAll()
			return
		}
		next := r.step(time.Now())
		switch {
		case r.away > 0:
		case r.stopping && r.leave():
			return
		}
		wait := idleLane
		if !next.IsZero() {
			wait = max(0, time.Until(next))
		}
		if queued := r.sleep(); queued {
			wait = min(wait, max(0, time.Until(r.paced)))
		}
		timer.Reset(wait)
		select {
		case <-r.wake:
		case <-stopping:
			r.stopping, stopping = true, nil
			r.hasten(time.Now())
		case <-abort:
		case f := <-r.done:
			r.away--
			f()
		case <-timer.C:
			if wait == idleLane && r.away == 0 && r.leave() {
				return
			}
		}
	}
}

// async runs work in a goroutine and what it returns in the lane's.
func (r *runner) async(work func() func()) {
	r.away++
	r.p.wg.Go(func() { r.done <- work() })
}

// step starts whatever is due and returns when it must be called again, zero if
// only something new makes that necessary.
func (r *runner) step(now time.Time) (next time.Time) {
	// In trouble nobody is served sooner by hurry, and a look at every event would
	// cost the processor that messages need.
	if !now.Before(r.paced) || !r.troubled && r.hurry() {
		if items := r.drain(); len(items) > 0 {
			r.sort(items)
			r.paced = now.Add(pace)
		}
	}
	soonest := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	if r.wantsLookup(now) && !r.looking {
		if now.Before(r.lookAt) {
			soonest(r.lookAt)
		} else {
			r.lookup()
		}
	}
	loads := map[string]*load{}
	for _, pt := range r.active() {
		if at, due := r.due(pt, now); !due {
			if !at.IsZero() {
				soonest(at)
			}
			continue
		}
		addr, topic, partition := r.target(pt)
		if addr == "" {
			pt.stale = true
			r.failed(pt, fmt.Errorf("%w: %w", errNotSent, sarama.ErrLeaderNotAvailable), now)
			soonest(now)
			continue
		}
		if r.busy[addr] {
			continue // its answer comes through done
		}
		l := loads[addr]
		if l == nil {
			l = &load{addr: addr}
			loads[addr] = l
		}
		if !l.add(pt, topic, partition) {
			continue // likewise
		}
	}
	for _, l := range loads {
		r.send(l, now)
	}
	return next
}

// active are the partitions that may have something to send.
func (r *runner) active() []*part {
	if len(r.parts) == 0 {
		return []*part{&r.limbo}
	}
	return r.parts
}

// sort puts events into their partitions.
func (r *runner) sort(items []*item) {
	if len(r.parts) == 0 {
		r.limbo.queue = append(r.limbo.queue, items...)
		return
	}
	for _, it := range items {
		pt := r.parts[partition(it.Key, len(r.parts))]
		pt.queue = append(pt.queue, it)
	}
}

// due tells whether a partition has a batch to send now, else when to ask again,
// zero if something else must happen before.
func (r *runner) due(pt *part, now time.Time) (at time.Time, due bool) {
	switch {
	case pt.busy, pt.stale && r.looking:
		return at, false
	case pt.head == nil && len(pt.queue) == 0:
		return at, false
	case pt.id < 0 && r.lookFailed < r.p.opts.MaxAttempts:
		return at, false // the topic may still be found
	}
	if pt.head == nil {
		r.enc.use(r.p.opts.Secret(r.tenant))
		r.drop(pt.form(&r.enc, now), DropExpired)
		if pt.head == nil {
			return at, false
		}
		if pt.id < 0 {
			r.die(pt, sarama.ErrUnknownTopicOrPartition)
		}
	}
	if now.Before(pt.next) {
		return pt.next, false
	}
	return at, true
}

// target is where the head of a partition goes next; an empty address: nobody
// leads it at present.
func (r *runner) target(pt *part) (addr, topic string, partition int32) {
	f := pt.head.flight()
	switch {
	case !pt.head.dying:
		topic, partition = Topic(r.tenant), pt.id
		addr = r.leader[pt.id]
	case len(r.dead) == 0:
		return "", DeadLetters(r.tenant), 0
	default:
		topic, partition = DeadLetters(r.tenant), int32(int(max(pt.id, 0))%len(r.dead))
		if f.records != nil && int(f.partition) < len(r.dead) {
			partition = f.partition // where it may be already
		}
		addr = r.dead[partition]
	}
	if f.records == nil || f.topic != topic || f.partition != partition {
		pt.line().abandon(f)
		f.topic, f.partition = topic, partition
	}
	return addr, topic, partition
}

// line is the producer of the head's present topic.
func (pt *part) line() *producer {
	if pt.head.dying {
		return &pt.dead
	}
	return &pt.main
}

// load is one request.
type load struct {
	addr  string
	parts []*part
	to    map[string]map[int32]bool
}

// add tells whether the request has room for a batch: one for each partition.
func (l *load) add(pt *part, topic string, partition int32) bool {
	if l.to == nil {
		l.to = map[string]map[int32]bool{}
	}
	if l.to[topic] == nil {
		l.to[topic] = map[int32]bool{}
	}
	if l.to[topic][partition] {
		return false
	}
	l.to[topic][partition] = true
	l.parts = append(l.parts, pt)
	return true
}

// send sends a request.
func (r *runner) send(l *load, now time.Time) {
	r.busy[l.addr] = true
	r.paced = now.Add(pace)
	for _, pt := range l.parts {
		pt.busy = true
		if pt.attempts > 0 || pt.rounds > 0 {
			r.p.metrics.retried.Add(int64(len(pt.head.items)))
		}
		f := pt.head.flight()
		if f.records == nil {
			var headers []*sarama.RecordHeader
			if pt.head.dying {
				headers = deadHeaders(pt.head.reason, r.p.opts.Node)
			}
			f.records = records(pt.head.items, headers, now)
		}
	}
	r.async(func() func() {
		answers := r.p.cluster.produce(l)
		return func() {
			delete(r.busy, l.addr)
			now := time.Now()
			for i, pt := range l.parts {
				pt.busy = false
				r.settle(pt, answers[i], now)
			}
			r.reunite()
		}
	})
}

// produce sends a request and returns an answer for each of its batches.
func (c *cluster) produce(l *load) []error {
	answers := make([]error, len(l.parts))
	sent := false
	err := c.with(l.addr, func(b *sarama.Broker) error {
		req := &sarama.ProduceRequest{RequiredAcks: sarama.WaitForAll, Timeout: int32(ackTimeout / time.Millisecond), Version: 8}
		for _, pt := range l.parts {
			f, line := pt.head.flight(), pt.line()
			if !f.stamped {
				if !line.known {
					id, epoch, err := producerID(b)
					if err != nil {
						return err
					}
					*line = producer{known: true, id: id, epoch: epoch}
				}
				line.stamp(f)
			}
			req.AddBatch(f.topic, f.partition, f.records)
		}
		sent = true
		res, err := b.Produce(req)
		if err != nil {
			return err
		}
		for i, pt := range l.parts {
			f := pt.head.flight()
			switch block := res.GetBlock(f.topic, f.partition); {
			case block == nil:
				answers[i] = errors.New("the broker's answer lacks the partition")
			case block.Err != sarama.ErrNoError:
				answers[i] = block.Err
			}
		}
		return nil
	})
	if err != nil {
		if !sent && !errors.Is(err, errNotSent) {
			err = fmt.Errorf("%w: %w", errNotSent, err)
		}
		for i := range answers {
			answers[i] = err
		}
	}
	return answers
}

// hasten makes everything due: there is not much time left.
func (r *runner) hasten(now time.Time) {
	r.lookAt, r.paced = now, now
	for _, pt := range r.all() {
		pt.next = now
	}
}

// all are the partitions and what waits for them.
func (r *runner) all() []*part { return append(slices.Clone(r.parts), &r.limbo) }

// abandonAll ends the lane: the time of Stop is over.
func (r *runner) abandonAll() {
	for ; r.away > 0; r.away-- {
		f := <-r.done
		f()
	}
	for _, pt := range r.all() {
		if pt.head != nil {
			r.lose(pt, DropShutdown)
		}
		r.drop(pt.queue, DropShutdown)
		pt.queue = nil
	}
	for !r.leave() {
		r.drop(r.drain(), DropShutdown)
	}
}
