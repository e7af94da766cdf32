package event

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"google.golang.org/protobuf/proto"
)

// fetchBytes is how much of a topic is read at once; a batch that is larger
// comes whole.
const fetchBytes = 1 << 20

// letters reads a dead letter topic, from where it was redriven to up to its
// present end.
type letters struct {
	c       *cluster
	topic   string
	leaders []string
	parts   []span
}

// span is what there is to read of a partition: from, but not to.
type span struct {
	id       int32
	from, to int64
}

func (p *Publisher) openLetters(tenant string, filter LetterFilter) (*letters, error) {
	if p.cluster == nil {
		return nil, ErrDisabled
	}
	if !usable(tenant) {
		return nil, ErrNoDeadLetters
	}
	r := &letters{c: p.cluster, topic: DeadLetters(tenant)}
	topics, err := p.cluster.metadata(r.topic)
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka: %w", err)
	}
	switch t := topics[r.topic]; {
	case errors.Is(t.err, sarama.ErrUnknownTopicOrPartition):
		return nil, ErrNoDeadLetters
	case t.err != nil:
		return nil, fmt.Errorf("look %s up: %w", r.topic, t.err)
	default:
		r.leaders = t.leaders
	}
	after := map[int32]int64{}
	if !filter.All {
		if after, err = p.cluster.redriven(r.topic, len(r.leaders)); err != nil {
			return nil, err
		}
	}
	for id := range int32(len(r.leaders)) {
		s, err := r.span(id, after[id], filter.Since)
		if err != nil {
			return nil, fmt.Errorf("read the offsets of %s: %w", r.topic, err)
		}
		r.parts = append(r.parts, s)
	}
	return r, nil
}

// span is a partition from an offset and a time on, up to its present end.
func (r *letters) span(id int32, after int64, since time.Time) (s span, err error) {
	s.id = id
	if s.from, err = r.offset(id, sarama.OffsetOldest); err != nil {
		return s, err
	}
	if s.to, err = r.offset(id, sarama.OffsetNewest); err != nil {
		return s, err
	}
	s.from = max(s.from, after)
	if !since.IsZero() {
		first, err := r.offset(id, since.UnixMilli())
		if err != nil {
			return s, err
		}
		if first < 0 {
			first = s.to // all are older
		}
		s.from = max(s.from, first)
	}
	s.from = min(s.from, s.to)
	return s, nil
}

func (r *letters) total() (n int64) {
	for _, s := range r.parts {
		n += s.to - s.from
	}
	return n
}

// each calls f with every letter.
func (r *letters) each(ctx context.Context, f func(Letter) error) error {
	for _, s := range r.parts {
		for at := s.from; at < s.to; {
			if err := ctx.Err(); err != nil {
				return err
			}
			got, next, err := r.fetch(s.id, at)
			if err != nil {
				return fmt.Errorf("read %s: %w", r.topic, err)
			}
			if next <= at {
				return fmt.Errorf("read %s: partition %d ends at %d, not %d", r.topic, s.id, at, s.to)
			}
			for _, l := range got {
				if l.Offset >= s.to {
					break
				}
				if err := f(l); err != nil {
					return err
				}
			}
			at = next
		}
	}
	return nil
}

// with runs f on a partition's leader.
func (r *letters) with(id int32, f func(*sarama.Broker) error) error {
	if r.leaders[id] == "" {
		return sarama.ErrLeaderNotAvailable
	}
	return r.c.with(r.leaders[id], f)
}

// offset returns the first offset of a time (milliseconds, or one of sarama's
// marks), -1 if there is none.
func (r *letters) offset(id int32, at int64) (offset int64, err error) {
	err = r.with(id, func(b *sarama.Broker) error {
		req := &sarama.OffsetRequest{Version: 1}
		req.AddBlock(r.topic, id, at, 1)
		res, err := b.GetAvailableOffsets(req)
		if err != nil {
			return err
		}
		block := res.GetBlock(r.topic, id)
		if block == nil {
			return sarama.ErrIncompleteResponse
		}
		offset = block.Offset
		return faultOf(block.Err)
	})
	return offset, err
}

// faultOf makes an error of a code.
func faultOf(k sarama.KError) error {
	if k == sarama.ErrNoError {
		return nil
	}
	return k
}

// fetch reads what there is from an offset on, and returns where to go on.
func (r *letters) fetch(id int32, from int64) (got []Letter, next int64, err error) {
	next = from
	err = r.with(id, func(b *sarama.Broker) error {
		req := &sarama.FetchRequest{Version: 4, MinBytes: 1, MaxBytes: fetchBytes, MaxWaitTime: 500}
		req.AddBlock(r.topic, id, from, fetchBytes, -1)
		res, err := b.Fetch(req)
		if err != nil {
			return err
		}
		block := res.GetBlock(r.topic, id)
		if block == nil {
			return sarama.ErrIncompleteResponse
		}
		if block.Err != sarama.ErrNoError {
			return block.Err
		}
		for _, set := range block.RecordsSet {
			rb := set.RecordBatch
			if rb == nil {
				continue // of a format older than headers, and not ours
			}
			next = max(next, rb.LastOffset()+1)
			for _, rec := range rb.Records {
				if at := rb.FirstOffset + rec.OffsetDelta; at >= from && !rb.Control {
					got = append(got, letter(id, at, rb.FirstTimestamp.Add(rec.TimestampDelta), rec))
				}
			}
		}
		return nil
	})
	return got, next, err
}

func letter(id int32, offset int64, at time.Time, rec *sarama.Record) Letter {
	l := Letter{Partition: id, Offset: offset, Time: at, Key: string(rec.Key), Value: rec.Value}
	for _, h := range rec.Headers {
		switch string(h.Key) {
		case headerReason:
			l.Reason = string(h.Value)
		case headerNode:
			l.Node = string(h.Value)
		}
	}
	if e := (&hookv1.MqEvent{}); proto.Unmarshal(rec.Value, e) == nil {
		l.Event = e
	}
	return l
}
