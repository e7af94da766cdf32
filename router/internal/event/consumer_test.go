package event

import (
	"context"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The consumer here is a tenant's, written by hand from the contract's tables:
// it shares no code with the publisher, not even the Kafka client.

// record is a record as a tenant sees it.
type record struct {
	testkit.MQEvent
	key     string
	headers map[string]string
	part    int32
}

func (r record) seq() uint64 { return r.Seq() }
func (r record) id() string  { return r.ID() }
func (r record) msg() string { return r.Text[testkit.MQMsgID] }

func parse(t testing.TB, value []byte, secret string) record {
	t.Helper()
	e, err := testkit.ReadMQEvent(value, secret)
	if err != nil {
		t.Fatal(err)
	}
	return record{MQEvent: e}
}

// tenantOf is a consumer of a whole topic, all partitions from their beginning.
type tenantOf struct {
	t      testing.TB
	client *kgo.Client
	secret string
	got    []record
}

func consume(t testing.TB, addrs []string, topic string) *tenantOf {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(addrs...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(100*time.Millisecond), kgo.MetadataMinAge(50*time.Millisecond), kgo.UnknownTopicRetries(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return &tenantOf{t: t, client: c, secret: secret}
}

// poll reads what comes within the time.
func (c *tenantOf) poll(d time.Duration) {
	ctx, cancel := context.WithTimeout(c.t.Context(), d)
	defer cancel()
	c.client.PollFetches(ctx).EachRecord(func(k *kgo.Record) {
		r := parse(c.t, k.Value, c.secret)
		r.key, r.part = string(k.Key), k.Partition
		r.headers = map[string]string{}
		for _, h := range k.Headers {
			r.headers[h.Key] = string(h.Value)
		}
		c.got = append(c.got, r)
	})
}

// until polls until there are n records at least.
func (c *tenantOf) until(n int) []record {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); len(c.got) < n; {
		if time.Now().After(deadline) {
			c.t.Fatalf("%d records came, not %d", len(c.got), n)
		}
		c.poll(time.Second)
	}
	return c.got
}

// ids are the events' identities; one that came twice is in twice.
func ids(rs []record) map[string]int {
	m := map[string]int{}
	for _, r := range rs {
		m[r.id()]++
	}
	return m
}
