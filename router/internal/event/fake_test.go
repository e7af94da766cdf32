package event

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// fake is a cluster at the level of the protocol, in memory and in fake time.
type fake struct {
	*kfake.Cluster
	net *kfake.VirtualNetwork
}

func newFake(t *testing.T, opts ...kfake.Opt) *fake {
	t.Helper()
	f := &fake{net: &kfake.VirtualNetwork{}}
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.ListenFn(f.net.Listen)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	f.Cluster = c
	t.Cleanup(c.Close)
	return f
}

func (f *fake) world(t *testing.T, with func(*Options)) *world {
	t.Helper()
	return newWorld(t, f.ListenAddrs(), func(o *Options) {
		o.Dial = f.net.DialContext
		if with != nil {
			with(o)
		}
	})
}

// topic is what is in a topic, of all partitions.
func (f *fake) topic(t *testing.T, name string) []record {
	t.Helper()
	want := int64(0)
	for _, p := range f.PartitionInfos(name) {
		want += p.HighWatermark
	}
	if want == 0 {
		return nil
	}
	c, err := kgo.NewClient(kgo.SeedBrokers(f.ListenAddrs()...), kgo.Dialer(f.net.DialContext), kgo.ConsumeTopics(name),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tenant := &tenantOf{t: t, client: c, secret: secret}
	return tenant.until(int(want))
}

const tenant = "acme"

// outcomes counts what Done was told.
type outcomes struct{ ok, dead, dropped atomic.Int64 }

func (o *outcomes) done(err error) {
	switch {
	case err == nil:
		o.ok.Add(1)
	case errors.Is(err, ErrDeadLettered):
		o.dead.Add(1)
	case errors.Is(err, ErrDropped):
		o.dropped.Add(1)
	default:
		panic(err)
	}
}

func TestEventsArriveSignedNumberedAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := f.world(t, nil)
		var got outcomes
		for i := range 3000 {
			e := chat(fmt.Sprint(i), "ann", fmt.Sprintf("user-%d", i%7))
			e.Done = got.done
			if !w.Publish(tenant, e) {
				t.Fatal("not taken")
			}
		}
		synctest.Wait()
		time.Sleep(time.Second)
		if got.ok.Load() != 3000 || w.published() != 3000 || w.dropped() != 0 {
			t.Fatalf("%d done, %d published, %d dropped", got.ok.Load(), w.published(), w.dropped())
		}
		rs := f.topic(t, Topic(tenant))
		order, seqs, parts := map[string]uint64{}, map[uint64]bool{}, map[int32]bool{}
		for _, r := range rs {
			if !r.Signed || r.Text[1] != tenant || r.Numbers[2] != 2 || r.Text[10] != "router-1@7" {
				t.Fatalf("%+v", r)
			}
			if r.seq() <= order[r.key] {
				t.Fatalf("key %s: %d after %d", r.key, r.seq(), order[r.key])
			}
			order[r.key], seqs[r.seq()], parts[r.part] = r.seq(), true, true
		}
		if len(seqs) != 3000 || !seqs[1] || !seqs[3000] {
			t.Errorf("%d numbers of 3000", len(seqs))
		}
		if len(parts) < 2 {
			t.Errorf("all in %d partition", len(parts))
		}
	})
}

func TestAFailedRequestIsTriedAgainLaterAndLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, kfake.SeedTopics(1, Topic(tenant), DeadLetters(tenant)))
		var at []time.Time
		f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: Topic(tenant), Count: -1, Err: kerr.NotEnoughReplicas, When: func(kmsg.Request) bool {
			at = append(at, time.Now())
			return true
		}})
		w := f.world(t, nil)
		var got outcomes
		e := chat("m", "a", "b")
		e.Done = got.done
		w.Publish(tenant, e)
		time.Sleep(time.Second)
		if got.dead.Load() != 1 || w.metrics.failed.Value() != 1 || w.metrics.retried.Value() != 2 || w.metrics.dead.Value() != 1 {
			t.Fatalf("dead %d, failed %d, retried %d", got.dead.Load(), w.metrics.failed.Value(), w.metrics.retried.Value())
		}
		if len(at) != 3 || at[1].Sub(at[0]) != 50*time.Millisecond || at[2].Sub(at[1]) != 100*time.Millisecond {
			t.Errorf("attempts at %v", at)
		}
		rs := f.topic(t, DeadLetters(tenant))
		if len(rs) != 1 || !rs[0].Signed || rs[0].msg() != "m" || !strings.Contains(rs[0].headers[headerReason], "replicas") || rs[0].headers[headerNode] != "router-1@7" {
			t.Errorf("%+v", rs)
		}
		if n := len(f.topic(t, Topic(tenant))); n != 0 {
			t.Errorf("%d in the topic", n)
		}
	})
}

// errors of one produce request, and what must come of them.
func TestSingleFaults(t *testing.T) {
	for _, err := range []*kerr.Error{
		kerr.NotLeaderForPartition, kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend, kerr.KafkaStorageError, kerr.UnknownServerError,
		kerr.OutOfOrderSequenceNumber, kerr.UnknownProducerID, kerr.InvalidProducerEpoch, kerr.LeaderNotAvailable, kerr.CorruptMessage,
		kerr.ThrottlingQuotaExceeded, kerr.TopicAuthorizationFailed,
	} {
		t.Run(err.Message, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				w := f.world(t, nil)
				var got outcomes
				for i := range 10 { // before, at and after the fault
					if i == 3 {
						f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: Topic(tenant), Count: 2, Err: err})
					}
					e := chat(fmt.Sprint(i), "ann", "bob")
					e.Done = got.done
					w.Publish(tenant, e)
					time.Sleep(10 * time.Millisecond)
				}
				time.Sleep(10 * time.Second)
				rs := f.topic(t, Topic(tenant))
				for i, r := range rs {
					if r.msg() != fmt.Sprint(i) || r.seq() != uint64(i+1) {
						t.Fatalf("place %d has message %s, number %d", i, r.msg(), r.seq())
					}
				}
				if len(rs) != 10 || got.ok.Load() != 10 {
					t.Errorf("%d records, %d done", len(rs), got.ok.Load())
				}
				if w.metrics.retried.Value() == 0 {
					t.Error("nothing was tried again: the fault did not happen")
				}
			})
		})
	}
}

func TestAnAnswerThatWasLostDoublesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, kfake.SeedTopics(1, Topic(tenant), DeadLetters(tenant)))
		w := f.world(t, nil)
		w.Publish(tenant, chat("0", "ann", "bob"))
		time.Sleep(time.Second)
		// All attempts are answered with an error after they were applied, and the
		// dead letters take nothing.
		lost := f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Count: -1, Err: kerr.RequestTimedOut, Topic: Topic(tenant)})
		shut := f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Count: -1, Err: kerr.NotEnoughReplicas, Topic: DeadLetters(tenant)})
		for i := 1; i < 50; i++ {
			w.Publish(tenant, chat(fmt.Sprint(i), "ann", "bob"))
		}
		time.Sleep(time.Second)
		if n := w.metrics.fallback.Load(); n == 0 {
			t.Fatal("nothing is kept")
		}
		time.Sleep(20 * time.Second)
		lost.Remove()
		shut.Remove()
		time.Sleep(10 * time.Second)
		rs := f.topic(t, Topic(tenant))
		if len(rs) != 50 {
			t.Fatalf("%d records of 50 events", len(rs))
		}
		for i, r := range rs {
			if r.msg() != fmt.Sprint(i) {
				t.Fatalf("place %d has message %s", i, r.msg())
			}
		}
		if w.published() != 50 || w.metrics.dead.Value()+w.dropped()+w.metrics.fallback.Load() != 0 {
			t.Errorf("published %d, dead %d, dropped %d", w.published(), w.metrics.dead.Value(), w.dropped())
		}
		if w.log.count("mq_recovered") != 1 {
			t.Error("not said to have recovered")
		}
	})
}
