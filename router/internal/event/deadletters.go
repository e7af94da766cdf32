package event

import (
	"context"
	"errors"
	"fmt"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

// Errors of dead letters; compare with errors.Is.
var (
	// ErrDisabled: there is no Kafka.
	ErrDisabled = errors.New("events are off: KAFKA__BOOTSTRAP_SERVERS is empty")
	// ErrNoDeadLetters: the tenant has no dead letter topic.
	ErrNoDeadLetters = errors.New("there is no dead letter topic")
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
