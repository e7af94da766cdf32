package uplink

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = time.Second
)

// backoff is a growing wait, for one goroutine. The zero value starts at the
// minimum.
type backoff struct{ last time.Duration }

func (b *backoff) reset() { b.last = 0 }

// wait waits, between half and all of the step, so that many gateways do not
// come back together. It is false when ctx has ended.
func (b *backoff) wait(ctx context.Context) bool {
	b.last = min(max(2*b.last, minBackoff), maxBackoff)
	return sleep(ctx, b.last/2+rand.N(b.last/2+1))
}

// sleep is false when ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
