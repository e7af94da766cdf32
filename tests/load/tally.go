package load

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// drainTime bounds the wait for what is still under way at the end of a run.
const drainTime = 10 * time.Second

// tally counts what became of messages. Safe for concurrent use.
type tally struct {
	sent, acked, failed, delivered atomic.Int64

	mu     sync.Mutex
	reason string // guarded by mu: of the first failure
}

func (t *tally) ack(sent bool, reason string) {
	if sent {
		t.acked.Add(1)
		return
	}
	if t.failed.Add(1) == 1 {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.reason = reason
	}
}

// settle waits until every message is answered and every one that was SENT has
// been delivered to each of its recipients.
func (t *tally) settle(ctx context.Context, recipients int64) {
	waitFor(ctx, drainTime, func() bool {
		return t.acked.Load()+t.failed.Load() == t.sent.Load() && t.delivered.Load() >= t.acked.Load()*recipients
	})
}

// outcome are the metrics that say whether all went well: then they are 0.
func (t *tally) outcome(recipients int64) []Metric {
	t.mu.Lock()
	defer t.mu.Unlock()
	sent, acked, failed := t.sent.Load(), t.acked.Load(), t.failed.Load()
	return []Metric{
		{Name: "messages failed", Value: float64(failed), Note: t.reason},
		{Name: "messages not answered", Value: float64(sent - acked - failed)},
		{Name: "deliveries missing (or, below 0, too many)", Value: float64(acked*recipients - t.delivered.Load())},
	}
}
