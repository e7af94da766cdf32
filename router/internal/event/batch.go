package event

import (
	"errors"
	"strconv"
	"time"

	"github.com/IBM/sarama"
)

// Bounds of a batch, and so of what is lost or kept together. One event that is
// larger makes a batch of its own.
const (
	maxBatchEvents = 1000
	maxBatchBytes  = 512 << 10
)

// Headers of a record in the dead letter topic.
const (
	headerReason = "mics-reason"
	headerNode   = "mics-node"
)

// batch is events that are sent together, to one partition.
type batch struct {
	items []*item
	bytes int
	main  flight
	dead  flight
	// dying: it is for the dead letters now.
	dying bool
	// failed: counted in mics_mq_failed_total; kept: in mics_mq_fallback_events.
	failed, kept bool
	reason       string // of its going to the dead letters
}

func (b *batch) flight() *flight {
	if b.dying {
		return &b.dead
	}
	return &b.main
}

// flight is a batch on its way to one partition.
type flight struct {
	topic     string
	partition int32
	records   *sarama.RecordBatch // nil: not made yet
	stamped   bool                // it has its sequence number
	// unclear: it has been sent, and the broker may have it. Until that is known
	// it keeps its number.
	unclear bool
}

// producer is this process as one partition knows it. The next batch for the
// partition has the sequence number next.
type producer struct {
	known bool
	id    int64
	epoch int16
	next  int32
}

// stamp gives f its number.
func (p *producer) stamp(f *flight) {
	f.records.ProducerID, f.records.ProducerEpoch, f.records.FirstSequence = p.id, p.epoch, p.next
	p.next = following(p.next, len(f.records.Records))
	f.stamped = true
}

// following is the sequence number n after seq; they wrap at 2^31.
func following(seq int32, n int) int32 { return int32((int64(seq) + int64(n)) & (1<<31 - 1)) }

// abandon gives a flight up that has not succeeded: its number can be another's
// if the broker surely has it not, else this process must take a new id, because
// a number that the broker knows already means a repeat.
func (p *producer) abandon(f *flight) {
	switch {
	case !f.stamped:
	case f.unclear:
		*p = producer{}
	default:
		p.next = f.records.FirstSequence
	}
	*f = flight{}
}

// part is one partition of the tenant's topic. While busy it belongs to the
// goroutine that sends its batch, else to the lane's.
type part struct {
	id    int32 // -1: the topic is not known, and only the dead letters are open
	queue []*item
	head  *batch // nil: none
	busy  bool

	main, dead producer

	attempts int       // of head at its present topic, that failed
	rounds   int       // how often both topics were tried in vain
	next     time.Time // head is not sent before
	stale    bool      // the last failure says that its leader may be another one
}

// form makes the next batch. Events that have expired are returned instead.
func (pt *part) form(e *encoder, now time.Time) (expired []*item) {
	b := &batch{}
	for len(pt.queue) > 0 && len(b.items) < maxBatchEvents {
		it := pt.queue[0]
		if !it.Expires.IsZero() && now.After(it.Expires) {
			expired = append(expired, it)
		} else {
			if it.value == nil {
				it.value = e.encode(it)
				it.Data, it.raw = nil, nil
			}
			if len(b.items) > 0 && b.bytes+len(it.value) > maxBatchBytes {
				break
			}
			b.items = append(b.items, it)
			b.bytes += len(it.value)
		}
		pt.queue[0] = nil
		pt.queue = pt.queue[1:]
	}
	if len(b.items) > 0 {
		pt.head, pt.attempts, pt.rounds, pt.next = b, 0, 0, time.Time{}
	}
	if len(pt.queue) == 0 {
		pt.queue = nil
	}
	return expired
}

// split keeps half of the head; the other half goes back to the queue.
func (pt *part) split() {
	b := pt.head
	half := len(b.items) / 2
	pt.queue = append(append([]*item(nil), b.items[half:]...), pt.queue...)
	b.items = b.items[:half]
	b.bytes = 0
	for _, it := range b.items {
		b.bytes += len(it.value)
	}
}

// records makes the record batch for a topic; headers is nil for the tenant's
// own.
func records(items []*item, headers []*sarama.RecordHeader, now time.Time) *sarama.RecordBatch {
	rb := &sarama.RecordBatch{Version: 2, LastOffsetDelta: int32(len(items) - 1), Records: make([]*sarama.Record, len(items))}
	at := func(it *item) time.Time {
		if headers != nil || it.Time.IsZero() {
			return now // when it was given up; events from there come anew
		}
		return it.Time
	}
	rb.FirstTimestamp = at(items[0]).Truncate(time.Millisecond)
	rb.MaxTimestamp = rb.FirstTimestamp
	all := make([]sarama.Record, len(items))
	for i, it := range items {
		t := at(it).Truncate(time.Millisecond)
		if t.After(rb.MaxTimestamp) {
			rb.MaxTimestamp = t
		}
		all[i] = sarama.Record{
			Key: []byte(it.Key), Value: it.value, Headers: headers, OffsetDelta: int64(i), TimestampDelta: t.Sub(rb.FirstTimestamp),
		}
		rb.Records[i] = &all[i]
	}
	return rb
}

// deadHeaders say why and by whom events were given up.
func deadHeaders(reason, node string) []*sarama.RecordHeader {
	return []*sarama.RecordHeader{
		{Key: []byte(headerReason), Value: []byte(reason)},
		{Key: []byte(headerNode), Value: []byte(node)},
	}
}

// verdict is what an answer means for a batch.
type verdict uint8

const (
	stored verdict = iota
	// again: it may succeed later.
	again
	// moved: as again, somewhere else.
	moved
	// large, refused: it never will as it is.
	large
	refused
	// lostCount: the broker's count of our batches and ours differ.
	lostCount
)

// judge says what an answer means; unclear: the broker may have the batch all
// the same.
func judge(err error) (v verdict, unclear bool) {
	var k sarama.KError
	switch {
	case err == nil:
		return stored, false
	case errors.Is(err, errNotSent):
		return moved, false
	case !errors.As(err, &k):
		return moved, true // the connection broke, or nothing came in time
	}
	switch k {
	case sarama.ErrNoError, sarama.ErrDuplicateSequenceNumber:
		return stored, false
	case sarama.ErrMessageSizeTooLarge, sarama.ErrMessageSetSizeTooLarge:
		return large, false
	case sarama.ErrInvalidRecord, sarama.ErrInvalidTimestamp, sarama.ErrPolicyViolation:
		return refused, false
	case sarama.ErrOutOfOrderSequenceNumber, sarama.ErrUnknownProducerID, sarama.ErrInvalidProducerEpoch,
		sarama.ErrInvalidProducerIDMapping, sarama.ErrProducerFenced:
		return lostCount, false
	case sarama.ErrNotLeaderForPartition, sarama.ErrUnknownTopicOrPartition, sarama.ErrLeaderNotAvailable,
		sarama.ErrReplicaNotAvailable, sarama.ErrFencedLeaderEpoch, sarama.ErrUnknownLeaderEpoch,
		sarama.ErrBrokerNotAvailable:
		return moved, false
	case sarama.ErrKafkaStorageError:
		return moved, true // written, perhaps, before the disk failed
	case sarama.ErrRequestTimedOut, sarama.ErrNotEnoughReplicasAfterAppend, sarama.ErrNetworkException, sarama.ErrUnknown:
		return again, true
	default:
		return again, false
	}
}

// reasonOf is a failure in few words, for people.
func reasonOf(err error) string {
	const most = 200
	s := err.Error()
	if len(s) > most {
		s = s[:most] + "… (" + strconv.Itoa(len(s)) + " bytes)"
	}
	return s
}
