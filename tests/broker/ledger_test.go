package broker

import (
	"fmt"
	"testing"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/tests/harness"
)

// ledger is what the routers of a cluster say of their events, together.
type ledger struct{ published, dead, dropped float64 }

func read(c *harness.Cluster) ledger {
	return ledger{c.Sum("r", "mics_mq_published_total"), c.Sum("r", "mics_mq_dlq_total"), c.Sum("r", "mics_mq_dropped_total")}
}

func (l ledger) sum() int { return int(l.published + l.dead + l.dropped) }

// settled waits until so many events have come to an end, and no more is under
// way. A message is answered before its event is taken.
func settled(t *testing.T, c *harness.Cluster, events int) (l ledger) {
	t.Helper()
	testkit.Eventually(t, fmt.Sprintf("%d events come to an end", events), func() bool {
		l = read(c)
		return l.sum() >= events && c.Sum("r", "mics_mq_queue_events") == 0
	})
	return read(c)
}

// happened is what is known from outside.
type happened struct {
	produced int
	redriven int // dead letters that were published after all
	refused  int // dropped before they were numbered
}

// audit compares what happened with what a tenant finds in its topics: each event
// in its topic once at most, as many as the routers say, and numbered from 1 on
// without a gap. An event whose ack was lost may be a dead letter besides.
func (l ledger) audit(t *testing.T, c *harness.Cluster, h happened) (main []harness.Record) {
	t.Helper()
	if got := l.sum(); got != h.produced+h.redriven {
		t.Errorf("%+v; published %v, dead letters %v, dropped %v: %v", h, l.published, l.dead, l.dropped, got)
	}
	tenant := c.Tenant()
	main = c.Events(tenant, tenant.Topic())
	dead := c.Events(tenant, tenant.DeadLetters())
	both := 0
	ids, highest := map[string]bool{}, map[string]uint64{}
	for i, r := range append(main[:len(main):len(main)], dead...) {
		if i < len(main) && ids[r.ID()] {
			t.Errorf("%s came twice", r.ID())
		}
		if i >= len(main) && ids[r.ID()] {
			both++
		}
		ids[r.ID()] = true
		node := r.Text[testkit.MQNode]
		highest[node] = max(highest[node], r.Seq())
	}
	missing := -len(ids)
	for _, n := range highest {
		missing += int(n)
	}
	if dropped := int(l.dropped) - h.refused; missing != dropped {
		t.Errorf("%d numbers are missing, %d were dropped", missing, dropped)
	}
	if more := len(main) - int(l.published); more < 0 || more > both-h.redriven {
		t.Errorf("%d records of %v published events; %d are dead letters too, %d of these redriven", len(main), l.published, both, h.redriven)
	}
	return main
}
