package event

import (
	"errors"
	"time"

	"github.com/IBM/sarama"
)

// found is the result of a look-up.
type found struct {
	topic, dead topic
	err         error // nobody answered
	created     error // why missing topics could not be created; nil also if none was missing
	denied      bool  // the cluster does not allow it
}

// wantsLookup tells whether the leaders must be looked up: the topic is not
// known, or somebody has met a broker that does not lead it, or it was long ago.
func (r *runner) wantsLookup(now time.Time) bool {
	stale := len(r.parts) == 0 || now.Sub(r.looked) > lookEvery
	waiting := false
	for _, pt := range r.active() {
		waiting = waiting || pt.head != nil || len(pt.queue) > 0
		stale = stale || pt.stale || pt.head != nil && pt.head.dying && len(r.dead) == 0
	}
	return stale && waiting
}

// lookup asks the cluster for the tenant's topics, and creates them if need be.
func (r *runner) lookup() {
	r.looking = true
	create := r.p.opts.CreateTopics && time.Now().After(r.noCreate)
	r.async(func() func() {
		f := r.p.find(r.tenant, create)
		return func() { r.take(f, time.Now()) }
	})
}

// find looks a tenant's topics up.
func (p *Publisher) find(tenant string, create bool) found {
	names := []string{Topic(tenant), DeadLetters(tenant)}
	topics, err := p.cluster.metadata(names...)
	if err != nil {
		return found{err: err}
	}
	f := found{}
	var missing []string
	for _, n := range names {
		if errors.Is(topics[n].err, sarama.ErrUnknownTopicOrPartition) {
			missing = append(missing, n)
		}
	}
	if create && len(missing) > 0 {
		f.created = p.cluster.create(p.topicDetails(missing...))
		f.denied = errors.Is(f.created, sarama.ErrTopicAuthorizationFailed) || errors.Is(f.created, sarama.ErrClusterAuthorizationFailed) ||
			errors.Is(f.created, sarama.ErrPolicyViolation)
		if again, err := p.cluster.metadata(names...); err == nil {
			topics = again
		}
	}
	f.topic, f.dead = topics[names[0]], topics[names[1]]
	return f
}

// take applies a look-up.
func (r *runner) take(f found, now time.Time) {
	r.looking = false
	for _, pt := range r.all() {
		pt.stale = false
	}
	if f.denied {
		r.noCreate = now.Add(denyPause)
	}
	if len(f.dead.leaders) > 0 {
		r.dead = f.dead.leaders
	}
	if len(f.topic.leaders) == 0 {
		r.lookFailed++
		r.lookAt = now.Add(r.lookPause())
		r.troubled = true
		switch {
		case f.err != nil:
			r.warn("mq_unavailable", now, "err", reasonOf(f.err))
		case f.created != nil:
			r.tell(f.created)
		default:
			r.tell(f.topic.err)
		}
		return
	}
	r.looked, r.lookFailed = now, 0
	r.lookAt = now.Add(r.p.opts.RetryBackoff) // leaders that are not elected yet come soon
	r.leader = f.topic.leaders
	for id := len(r.parts); id < len(r.leader); id++ {
		r.parts = append(r.parts, &part{id: int32(id)})
	}
	// A topic that was deleted and made anew may have fewer: what those had goes
	// through the others.
	if n := len(r.leader); n < len(r.parts) && !r.anyBusy() {
		gone := r.parts[n:]
		r.parts = r.parts[:n]
		for _, pt := range gone {
			r.sort(r.empty(pt))
		}
	} else if n < len(r.parts) {
		r.leader = append(r.leader, make([]string, len(r.parts)-n)...)
	}
	r.reunite()
}

func (r *runner) anyBusy() bool {
	for _, pt := range r.parts {
		if pt.busy {
			return true
		}
	}
	return false
}

// lookPause is the wait after a look-up in vain: the attempts first, then the
// pauses of the fallback.
func (r *runner) lookPause() time.Duration {
	if n := r.lookFailed; n < r.p.opts.MaxAttempts {
		return doubled(r.p.opts.RetryBackoff, n-1)
	}
	return r.pause(r.lookFailed - r.p.opts.MaxAttempts)
}

// reunite sorts what waited for the topic, once it is known and nothing of it is
// on its way to the dead letters.
func (r *runner) reunite() {
	if len(r.parts) == 0 || r.limbo.busy || r.limbo.head == nil && len(r.limbo.queue) == 0 {
		return
	}
	r.sort(r.empty(&r.limbo))
}

// empty takes everything out of a partition that is not busy.
func (r *runner) empty(pt *part) []*item {
	var items []*item
	if b := pt.head; b != nil {
		pt.main.abandon(&b.main)
		pt.dead.abandon(&b.dead)
		if b.kept {
			r.p.metrics.fallback.Add(-int64(len(b.items)))
		}
		items = b.items
	}
	items = append(items, pt.queue...)
	*pt = part{id: pt.id, dead: pt.dead}
	return items
}

// tell logs, once for each kind, trouble that somebody must do something about,
// and returns whether it is of that sort.
func (r *runner) tell(why error) bool {
	var k sarama.KError
	if !errors.As(why, &k) {
		return false
	}
	switch k {
	case sarama.ErrTopicAuthorizationFailed, sarama.ErrClusterAuthorizationFailed, sarama.ErrUnknownTopicOrPartition,
		sarama.ErrPolicyViolation, sarama.ErrInvalidTopic, sarama.ErrInvalidReplicationFactor, sarama.ErrInvalidConfig:
	default:
		return false
	}
	if text := why.Error(); text != r.told {
		r.told = text
		r.log.Error("mq_topic_unavailable", "topic", Topic(r.tenant), "dead_letters", DeadLetters(r.tenant), "err", reasonOf(why),
			"hint", "create both topics and let the router's user write to them, or let the router create them (KAFKA_CREATE_TOPICS and the permission to)")
	}
	return true
}
