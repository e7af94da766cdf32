package event

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	"context"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protowire"
)

// The consumer here is a tenant's, written by hand from the contract's tables:
// it shares no code with the publisher, not even the Kafka client.

// record is a record as a tenant sees it.
type record struct {
	key     string
	fields  map[protowire.Number]string // strings and bytes
	numbers map[protowire.Number]uint64
	headers map[string]string
	signed  bool // with the secret
	part    int32
	raw     []byte
}

func (r record) seq() uint64 { return r.numbers[14] }
func (r record) id() string  { return fmt.Sprintf("%s/%d", r.fields[10], r.seq()) }
func (r record) msg() string { return r.fields[3] }

// parse reads an MqEvent and checks its signature over its bytes without the
// field 11.
func parse(t testing.TB, value []byte, secret string) record {
	t.Helper()
	r := record{fields: map[protowire.Number]string{}, numbers: map[protowire.Number]uint64{}, raw: value}
	var plain []byte
	last := protowire.Number(0)
	for b := value; len(b) > 0; {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 || num < last {
			t.Fatalf("field %d after %d, or no field: % x", num, last, value)
		}
		last = num
		size := n
		switch kind {
		case protowire.BytesType:
			v, m := protowire.ConsumeBytes(b[n:])
			if m < 0 {
				t.Fatalf("field %d is cut off", num)
			}
			r.fields[num] = string(v)
			size += m
		case protowire.VarintType:
			v, m := protowire.ConsumeVarint(b[n:])
			if m < 0 {
				t.Fatalf("field %d is cut off", num)
			}
			r.numbers[num] = v
			size += m
		default:
			t.Fatalf("field %d is of wire type %d", num, kind)
		}
		if num != 11 {
			plain = append(plain, b[:size]...)
		}
		b = b[size:]
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(plain)
	r.signed = r.fields[11] == base64.StdEncoding.EncodeToString(mac.Sum(nil))
	return r
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
