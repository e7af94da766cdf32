package event

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestWhatIsTooLargeDoesNotTakeOthersAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		small := map[string]string{"max.message.bytes": "20000"}
		f := newFake(t)
		if err := errors.Join(f.CreateTopic(Topic(tenant), 1, small), f.CreateTopic(DeadLetters(tenant), 1, map[string]string{"max.message.bytes": "100000"})); err != nil {
			t.Fatal(err)
		}
		w := f.world(t, nil)
		var got outcomes
		sizes := map[int]int{3: 30_000, 5: 200_000}
		for i := range 400 { // of 100 bytes: together too large as well
			e := chat(fmt.Sprint(i), "ann", "bob")
			e.Done = got.done
			e.Data = make([]byte, max(100, sizes[i]))
			w.Publish(tenant, e)
		}
		time.Sleep(5 * time.Second)
		rs := f.topic(t, Topic(tenant))
		last := uint64(0)
		for _, r := range rs {
			if r.seq() <= last || r.msg() == "3" || r.msg() == "5" {
				t.Fatalf("%s, number %d, after %d", r.msg(), r.seq(), last)
			}
			last = r.seq()
		}
		if len(rs) != 398 || got.ok.Load() != 398 || got.dead.Load() != 1 || got.dropped.Load() != 1 || w.drops(DropTooLarge) != 1 {
			t.Errorf("%d records, %d dead, %d dropped", len(rs), got.dead.Load(), got.dropped.Load())
		}
		if dead := f.topic(t, DeadLetters(tenant)); len(dead) != 1 || dead[0].msg() != "3" {
			t.Errorf("dead letters: %+v", dead)
		}
	})
}

func TestTopicsAreCreatedForTheLargestMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := f.world(t, func(o *Options) { o.TopicPartitions = 4 })
		e := chat("m", "ann", "bob")
		e.Data = make([]byte, 1<<20)
		w.Publish(tenant, e)
		time.Sleep(time.Second)
		if n := len(f.PartitionInfos(Topic(tenant))); n != 4 {
			t.Errorf("%d partitions", n)
		}
		if n := len(f.PartitionInfos(DeadLetters(tenant))); n != 1 {
			t.Errorf("%d partitions of dead letters", n)
		}
		if w.published() != 1 {
			t.Error("a message of the largest size does not fit")
		}
	})
}

func TestWithoutTheTopicEventsAreKeptAndTheTroubleIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := f.world(t, func(o *Options) { o.CreateTopics = false })
		for i := range 20 {
			w.Publish(tenant, chat(fmt.Sprint(i), "ann", "bob"))
			time.Sleep(time.Second)
		}
		if n := w.log.count("mq_topic_unavailable"); n != 1 {
			t.Errorf("told %d times", n)
		}
		if n := w.total.Load(); n != 20 {
			t.Fatalf("%d are waiting", n)
		}
		if err := f.CreateTopic(Topic(tenant), 3, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		rs := f.topic(t, Topic(tenant))
		for i, r := range rs {
			if r.msg() != fmt.Sprint(i) {
				t.Fatalf("place %d has message %s", i, r.msg())
			}
		}
		if len(rs) != 20 {
			t.Errorf("%d records", len(rs))
		}
	})
}

func TestWithoutTheTopicTheDeadLettersServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, kfake.SeedTopics(1, DeadLetters(tenant)))
		w := f.world(t, func(o *Options) { o.CreateTopics = false })
		var got outcomes
		for i := range 20 {
			e := chat(fmt.Sprint(i), "ann", "bob")
			e.Done = got.done
			w.Publish(tenant, e)
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(time.Second)
		if got.dead.Load() != 20 || len(f.topic(t, DeadLetters(tenant))) != 20 {
			t.Errorf("%d dead-lettered", got.dead.Load())
		}
	})
}

func TestOneTenantsTroubleIsNobodyElses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, kfake.SleepOutOfOrder())
		f.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
			f.KeepControl()
			for _, tp := range req.(*kmsg.ProduceRequest).Topics {
				if tp.Topic == Topic("slow") || tp.Topic == DeadLetters("slow") {
					f.SleepControl(func() { time.Sleep(2 * time.Second) })
				}
			}
			return nil, nil, false
		})
		w := f.world(t, nil)
		w.Publish("slow", chat("0", "a", "b"))
		w.Publish("well", chat("0", "a", "b"))
		time.Sleep(5 * time.Second)
		before := w.published()
		worst := time.Duration(0)
		for i := range 200 {
			w.Publish("slow", chat(fmt.Sprint(i), "a", "b"))
			done := make(chan struct{})
			e := chat(fmt.Sprint(i), "a", "b")
			e.Done = func(error) { close(done) }
			start := time.Now()
			w.Publish("well", e)
			<-done
			worst = max(worst, time.Since(start))
		}
		if worst > 100*time.Millisecond {
			t.Errorf("a healthy tenant waited %v", worst)
		}
		if n := w.published() - before; n < 200 {
			t.Errorf("%d published", n)
		}
		time.Sleep(20 * time.Second)
	})
}

func TestExpiredEventsAreNotSentLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := f.world(t, func(o *Options) { o.CreateTopics = false })
		var got outcomes
		e := chat("late", "a", "b")
		e.Expires, e.Done = time.Now().Add(5*time.Second), got.done
		// Behind one that has been sent, in vain, so that it waits.
		w.Publish(tenant, chat("first", "a", "b"))
		w.Publish(tenant, e)
		time.Sleep(6 * time.Second)
		if err := f.CreateTopic(Topic(tenant), 1, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		rs := f.topic(t, Topic(tenant))
		if len(rs) == 0 || rs[0].msg() != "first" {
			t.Fatalf("%+v", rs)
		}
		if w.published()+w.drops(DropExpired) != 2 {
			t.Errorf("%d published, %d expired", w.published(), w.drops(DropExpired))
		}
	})
}

func TestAfterALostAnswerTheNextIsNoRepeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, kfake.SeedTopics(1, Topic(tenant), DeadLetters(tenant)))
		w := f.world(t, nil)
		w.Publish(tenant, chat("0", "ann", "bob"))
		time.Sleep(time.Second)
		// Applied each time, and never said to be: it is a dead letter too.
		f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Count: 3, Err: kerr.RequestTimedOut, Topic: Topic(tenant)})
		w.Publish(tenant, chat("1", "ann", "bob"))
		time.Sleep(time.Second)
		if n := w.metrics.dead.Value(); n != 1 {
			t.Fatalf("%d dead letters", n)
		}
		w.Publish(tenant, chat("2", "ann", "bob"))
		time.Sleep(time.Second)
		rs := f.topic(t, Topic(tenant))
		if len(rs) != 3 || rs[2].msg() != "2" {
			t.Errorf("the topic has %d records, the last is not the last event: it was taken for a repeat", len(rs))
		}
	})
}

func TestATopicThatIsMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := f.world(t, nil)
		send := func(from, to int) {
			for i := from; i < to; i++ {
				w.Publish(tenant, chat(fmt.Sprint(i), "ann", fmt.Sprint(i)))
			}
			time.Sleep(10 * time.Second)
		}
		send(0, 100)
		if err := errors.Join(f.DeleteTopic(Topic(tenant)), f.CreateTopic(Topic(tenant), 2, nil)); err != nil {
			t.Fatal(err)
		}
		send(100, 200)
		rs := f.topic(t, Topic(tenant))
		dead := f.topic(t, DeadLetters(tenant))
		if len(rs)+len(dead) != 100 || w.dropped() != 0 {
			t.Errorf("%d records, %d dead, %d dropped", len(rs), len(dead), w.dropped())
		}
		send(200, 300)
		if got := len(f.topic(t, Topic(tenant))); got != len(rs)+100 {
			t.Errorf("%d records, then %d: not all of the last hundred", len(rs), got)
		}
	})
}

func TestABrokerThatForgotUsMeetsANewProducer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, kfake.SeedTopics(1, Topic(tenant), DeadLetters(tenant)))
		w := f.world(t, nil)
		w.Publish(tenant, chat("0", "ann", "bob"))
		time.Sleep(time.Second)
		var first int64 = -1
		f.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
			f.KeepControl()
			p := req.(*kmsg.ProduceRequest).Topics[0].Partitions[0]
			b := kmsg.RecordBatch{}
			if err := b.ReadFrom(p.Records); err != nil {
				return nil, err, true
			}
			if first < 0 {
				first = b.ProducerID
			}
			if b.ProducerID != first {
				return nil, nil, false
			}
			res := req.ResponseKind().(*kmsg.ProduceResponse)
			rt := kmsg.NewProduceResponseTopic()
			rt.Topic = Topic(tenant)
			rp := kmsg.NewProduceResponseTopicPartition()
			rp.ErrorCode = kerr.OutOfOrderSequenceNumber.Code
			rt.Partitions = append(rt.Partitions, rp)
			res.Topics = append(res.Topics, rt)
			return res, nil, true
		})
		w.Publish(tenant, chat("1", "ann", "bob"))
		time.Sleep(time.Second)
		if n := w.published(); n != 2 {
			t.Errorf("%d published", n)
		}
	})
}

func TestStopSendsWhatThereIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := f.world(t, nil)
		for i := range 5000 {
			w.Publish(tenant, chat(fmt.Sprint(i), "ann", "bob"))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if w.Stop(ctx); w.published() != 5000 || w.dropped() != 0 {
			t.Errorf("%d published, %d dropped", w.published(), w.dropped())
		}
		if w.Publish(tenant, chat("x", "a", "b")) || w.drops(DropStopped) != 1 {
			t.Error("taken after the stop")
		}
	})
}

func TestStopCountsWhatItCannotSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			f.KeepControl()
			return nil, errors.New("cut off"), true
		})
		w := f.world(t, nil)
		var got outcomes
		for i := range 500 {
			e := chat(fmt.Sprint(i), "ann", fmt.Sprint(i))
			e.Done = got.done
			w.Publish(tenant, e)
		}
		time.Sleep(3 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		w.Stop(ctx)
		if d := time.Since(start); d > 4*time.Second {
			t.Errorf("the stop took %v", d)
		}
		if w.log.count("mq_not_flushed") != 1 {
			t.Error("not logged")
		}
		if w.drops(DropShutdown) != 500 || got.dropped.Load() != 500 {
			t.Errorf("%d counted, %d told", w.drops(DropShutdown), got.dropped.Load())
		}
	})
}

func TestWithoutKafkaNothingIsTaken(t *testing.T) {
	w := newWorld(t, nil, nil)
	if w.Enabled() || w.Publish(tenant, chat("m", "a", "b")) || w.dropped() != 0 {
		t.Error("something was done")
	}
}
