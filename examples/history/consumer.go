package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/mics-im/mics/sdk/go/hook"
	"github.com/twmb/franz-go/pkg/kgo"
)

// consumer stores the tenant's events. Its place in the topic is committed after
// they are in the database: what comes again after a crash is recognised there.
type consumer struct {
	db     *store
	client *kgo.Client
	seq    *hook.Sequence
	secret string
	log    *slog.Logger
}

// lookEvery is how soon a topic, or a partition, that is new is noticed.
const lookEvery = 5 * time.Second

// errorPause keeps a broker that refuses from being asked, and the log from being
// written to, all the time.
const errorPause = time.Second

func newConsumer(db *store, c config, log *slog.Logger) (*consumer, error) {
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(c.brokers...), kgo.ConsumeTopics("im-mics-" + c.tenant + "-event"), kgo.ConsumerGroup("history"), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		// The cluster makes the topic with the tenant's first event.
		kgo.UnknownTopicRetries(-1), kgo.MetadataMaxAge(lookEvery), kgo.MetadataMinAge(lookEvery / 10),
	}, c.kafka...)...)
	if err != nil {
		return nil, err
	}
	// A group of one: this process reads every partition, so that gaps are real.
	return &consumer{db: db, client: client, seq: hook.NewSequence(hook.SequenceOptions{}), secret: c.secret, log: log}, nil
}

// run consumes until ctx ends, or something fails that does not pass by itself.
func (c *consumer) run(ctx context.Context) error {
	defer c.client.CloseAllowingRebalance()
	for {
		fetches := c.client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			c.log.Warn("fetch failed", "err", err)
			select {
			case <-time.After(errorPause):
			case <-ctx.Done():
			}
		}
		var events []*hook.Event
		fetches.EachRecord(func(r *kgo.Record) {
			if e := c.parse(r); e != nil {
				events = append(events, e)
			}
		})
		if len(events) > 0 {
			if err := c.db.add(ctx, events); err != nil {
				return err
			}
		}
		if err := c.client.CommitUncommittedOffsets(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("commit failed", "err", err) // they come again, and are known then
		}
	}
}

// parse returns nil for what is not the cluster's.
func (c *consumer) parse(r *kgo.Record) *hook.Event {
	e, err := hook.ParseEvent(r.Value, c.secret)
	if err != nil {
		c.log.Error("event refused", "partition", r.Partition, "offset", r.Offset, "err", err)
		return nil
	}
	arrival, gaps := c.seq.Observe(e)
	for _, g := range gaps {
		c.log.Error("events are missing: ask the operators for the dead letters", "node", g.Node, "from", g.From, "to", g.To)
	}
	if arrival == hook.Repeated {
		c.log.Debug("event came again", "event", fmt.Sprintf("%s/%d", e.GetNodeId(), e.GetTenantSeq()))
	}
	return e
}
