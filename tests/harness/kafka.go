package harness

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Kafka is the cluster's broker (Options.Kafka). Through the Network it is called
// kafka.
func (c *Cluster) Kafka() *testkit.KafkaServer { return c.kafka }

func (c *Cluster) viaProxy(addr string) (string, error) {
	if c.Net == nil {
		return addr, nil
	}
	return c.Net.proxy("kafka", addr)
}

func (c *Cluster) brokers() string {
	if c.kafka == nil {
		return ""
	}
	return c.kafka.Reach
}

// Record is an event in a topic, read without any of our code but ReadMQEvent.
type Record struct {
	testkit.MQEvent
	Key       string
	Partition int32
	Offset    int64
}

// readWithin bounds reading a topic.
const readWithin = 30 * time.Second

// Topic and DeadLetters are the names of a tenant's topics.
func (t *Tenant) Topic() string       { return "im-mics-" + t.Name + "-event" }
func (t *Tenant) DeadLetters() string { return t.Topic() + "-dlq" }

// Events reads a topic of a tenant from its beginning to its present end, in the
// order of partitions and offsets. Each must bear the tenant's signature.
func (c *Cluster) Events(tenant *Tenant, topic string) (out []Record) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), readWithin)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.kafka.Reach), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(100*time.Millisecond), kgo.MetadataMinAge(50*time.Millisecond), kgo.UnknownTopicRetries(-1))
	if err != nil {
		c.t.Fatal(err)
	}
	defer cl.Close()
	ends, err := ends(ctx, cl, topic)
	if err != nil {
		c.t.Fatalf("look %s up: %v", topic, err)
	}
	for len(ends) > 0 {
		f := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			c.t.Fatalf("%s was not read to its end: %v still to come after %d records", topic, ends, len(out))
		}
		f.EachRecord(func(k *kgo.Record) {
			e, err := testkit.ReadMQEvent(k.Value, tenant.Secret)
			if err != nil || !e.Signed {
				c.t.Errorf("%s %d/%d: signed %v, %v", topic, k.Partition, k.Offset, e.Signed, err)
			}
			out = append(out, Record{MQEvent: e, Key: string(k.Key), Partition: k.Partition, Offset: k.Offset})
			if k.Offset+1 >= ends[k.Partition] {
				delete(ends, k.Partition)
			}
		})
	}
	slices.SortFunc(out, func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	return out
}

// ends are where the partitions that are not empty end.
func ends(ctx context.Context, cl *kgo.Client, topic string) (map[int32]int64, error) {
	meta := kmsg.NewPtrMetadataRequest()
	t := kmsg.NewMetadataRequestTopic()
	t.Topic = &topic
	meta.Topics = append(meta.Topics, t)
	known, err := meta.RequestWith(ctx, cl)
	if err != nil {
		return nil, err
	}
	ask := kmsg.NewPtrListOffsetsRequest()
	of := kmsg.NewListOffsetsRequestTopic()
	of.Topic = topic
	for _, t := range known.Topics {
		for _, p := range t.Partitions {
			part := kmsg.NewListOffsetsRequestTopicPartition()
			part.Partition, part.Timestamp = p.Partition, -1 // the end
			of.Partitions = append(of.Partitions, part)
		}
	}
	ask.Topics = append(ask.Topics, of)
	res, err := ask.RequestWith(ctx, cl)
	if err != nil {
		return nil, err
	}
	out := map[int32]int64{}
	for _, t := range res.Topics {
		for _, p := range t.Partitions {
			if p.Offset > 0 {
				out[p.Partition] = p.Offset
			}
		}
	}
	return out, nil
}

// MakeTopic makes a topic with a bound on its records, or changes the bound.
func (c *Cluster) MakeTopic(topic string, maxBytes string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), readWithin)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.kafka.Reach))
	if err != nil {
		c.t.Fatal(err)
	}
	defer cl.Close()
	const bound = "max.message.bytes"
	create := kmsg.NewPtrCreateTopicsRequest()
	create.TimeoutMillis = int32(readWithin / time.Millisecond)
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = topic, 3, 1
	conf := kmsg.NewCreateTopicsRequestTopicConfig()
	conf.Name, conf.Value = bound, &maxBytes
	t.Configs = append(t.Configs, conf)
	create.Topics = append(create.Topics, t)
	if _, err := create.RequestWith(ctx, cl); err != nil {
		c.t.Fatal(err)
	}
	alter := kmsg.NewPtrIncrementalAlterConfigsRequest()
	r := kmsg.NewIncrementalAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	set := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	set.Name, set.Op, set.Value = bound, kmsg.IncrementalAlterConfigOpSet, &maxBytes
	r.Configs = append(r.Configs, set)
	alter.Resources = append(alter.Resources, r)
	if _, err := alter.RequestWith(ctx, cl); err != nil {
		c.t.Fatal(err)
	}
}
