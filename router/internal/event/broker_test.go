package event

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
)

// TestRealBroker is everything that is tried with a real Kafka: one broker for
// all of it, because it costs seconds to start.
func TestRealBroker(t *testing.T) {
	if testing.Short() {
		t.Skip("a real Kafka takes seconds")
	}
	s := testkit.StartKafka(t, testkit.KafkaOptions{})
	b := &broker{s}
	t.Run("all arrive", b.allArrive)
	t.Run("killed under traffic", func(t *testing.T) { b.outage(t, s.Kill, s.Restart) })
	t.Run("hanging under traffic", func(t *testing.T) { b.outage(t, func() { s.Pause(t) }, func(t testing.TB) { s.Resume(t) }) })
	t.Run("restarted in order", func(t *testing.T) { b.outage(t, func() { s.Stop(t) }, s.Restart) })
	t.Run("started before the broker", b.startedFirst)
	t.Run("too large", b.tooLarge)
}

type broker struct{ *testkit.KafkaServer }

func (b *broker) addrs() []string { return []string{b.Addr} }

// traffic publishes steadily for several conversations until stop is called, and
// returns what was taken by number.
type traffic struct {
	sent   atomic.Int64
	worst  atomic.Int64 // nanoseconds of the slowest Publish
	ended  chan struct{}
	ending context.CancelFunc
}

const conversations = 20

func start(w *world, tenant string, perSecond int) *traffic {
	ctx, cancel := context.WithCancel(context.Background())
	tr := &traffic{ended: make(chan struct{}), ending: cancel}
	go func() {
		defer close(tr.ended)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ctx.Err() == nil; <-tick.C {
			for range perSecond / 100 {
				e := chat(fmt.Sprint(i), "ann", fmt.Sprint("user-", i%conversations))
				i++
				began := time.Now()
				if w.Publish(tenant, e) {
					tr.sent.Add(1)
				}
				tr.worst.Store(max(tr.worst.Load(), int64(time.Since(began))))
			}
		}
	}()
	return tr
}

func (tr *traffic) stop() int64 {
	tr.ending()
	<-tr.ended
	return tr.sent.Load()
}

func (b *broker) allArrive(t *testing.T) {
	const tenant, n = "all", 20_000
	w := newWorld(t, b.addrs(), nil)
	for i := range n {
		for !w.Publish(tenant, chat(fmt.Sprint(i), "ann", fmt.Sprint("user-", i%conversations))) {
			t.Fatal("dropped")
		}
		if i%200 == 199 {
			time.Sleep(10 * time.Millisecond) // 20,000 a second at most, as the issue says
		}
	}
	c := consume(t, b.addrs(), Topic(tenant), secret)
	checkOrder(t, c.until(n))
	seen := ids(c.got)
	for i := 1; i <= n; i++ {
		if seen[fmt.Sprintf("router-1@7/%d", i)] != 1 {
			t.Fatalf("number %d came %d times", i, seen[fmt.Sprintf("router-1@7/%d", i)])
		}
	}
	if w.dropped() != 0 || w.published() != n {
		t.Errorf("%d dropped, %d published", w.dropped(), w.published())
	}
}

// checkOrder fails unless each key's events are in order, each signed.
func checkOrder(t *testing.T, rs []record) {
	t.Helper()
	last := map[string]uint64{}
	for _, r := range rs {
		if !r.signed {
			t.Fatalf("%s is not signed with the tenant's secret", r.id())
		}
		if r.seq() <= last[r.key] {
			t.Fatalf("key %s: number %d after %d", r.key, r.seq(), last[r.key])
		}
		last[r.key] = r.seq()
	}
}

// outage takes the broker away under traffic and checks that the accounts of
// afterwards add up: what was taken has arrived, is a dead letter or was counted
// as dropped.
func (b *broker) outage(t *testing.T, away func(), back func(testing.TB)) {
	tenant := fmt.Sprintf("outage-%d", time.Now().UnixNano())
	w := newWorld(t, b.addrs(), func(o *Options) { o.MaxPendingPerTenant = 3000 }) // so that it overflows
	tr := start(w, tenant, 1000)
	testkit.Eventually(t, "events flow", func() bool { return w.published() > 500 })
	away()
	time.Sleep(6 * time.Second) // the outage itself
	if n := w.metrics.fallback.Load(); n == 0 && w.metrics.dead.Value() == 0 {
		t.Error("the outage was not noticed")
	}
	back(t)
	time.Sleep(time.Second)
	taken := tr.stop()
	testkit.Eventually(t, "everything is settled", func() bool { return w.total.Load() == 0 })
	lost := w.drops(DropTooLarge) + w.drops(DropRejected) + w.drops(DropExpired) + w.drops(DropShutdown)
	refused := w.dropped() - lost
	if refused == 0 {
		t.Error("nothing was refused at the entrance: the bound was not reached")
	}
	if got := w.published() + w.metrics.dead.Value() + lost; got != taken {
		t.Errorf("taken %d, accounted for %d", taken, got)
	}
	main := consume(t, b.addrs(), Topic(tenant), secret)
	rs := main.until(int(w.published()))
	checkOrder(t, rs)
	main.poll(time.Second)
	dead := consume(t, b.addrs(), DeadLetters(tenant), secret)
	dead.until(int(w.metrics.dead.Value()))
	all := ids(append(rs, dead.got...))
	for i := int64(1); i <= taken; i++ {
		if all[fmt.Sprintf("router-1@7/%d", i)] == 0 {
			lost--
		}
	}
	if lost != 0 || int64(len(main.got)) != w.published() {
		t.Errorf("%d more are missing than were counted as dropped; %d records of %d events", -lost, len(main.got), w.published())
	}
	if worst := time.Duration(tr.worst.Load()); worst > 500*time.Millisecond {
		t.Errorf("Publish blocked for %v", worst)
	}
	t.Logf("taken %d: published %d, dead letters %d, refused at the entrance %d; slowest Publish %v",
		taken, w.published(), w.metrics.dead.Value(), refused, time.Duration(tr.worst.Load()))
}

func (b *broker) startedFirst(t *testing.T) {
	b.Kill()
	w := newWorld(t, b.addrs(), nil)
	for i := range 100 {
		w.Publish("early", chat(fmt.Sprint(i), "ann", "bob"))
	}
	b.Restart(t)
	c := consume(t, b.addrs(), Topic("early"), secret)
	checkOrder(t, c.until(100))
}

func (b *broker) tooLarge(t *testing.T) {
	w := newWorld(t, b.addrs(), func(o *Options) { o.MaxMessageBytes = 1000 }) // of the topics that it creates
	for i := range 10 {
		e := chat(fmt.Sprint(i), "ann", "bob")
		if i == 4 {
			e.Data = make([]byte, 100_000)
		}
		w.Publish("large", e)
	}
	c := consume(t, b.addrs(), Topic("large"), secret)
	checkOrder(t, c.until(9))
	testkit.Eventually(t, "it is dropped", func() bool { return w.drops(DropTooLarge) == 1 })
}

// cpu is the processor time of this process.
func cpu(t testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPublish measures the processor time of this process for an event of
// a short message, at several rates; 0 is as fast as it goes.
func BenchmarkPublish(b *testing.B) {
	s := testkit.StartKafka(b, testkit.KafkaOptions{})
	w := newWorld(b, []string{s.Addr}, nil)
	for _, rate := range []int{100, 2000, 20_000, 0} {
		b.Run(fmt.Sprintf("rate=%d", rate), func(b *testing.B) {
			e := chat("0198f2a4-5b6c-7d8e-9f00-112233445566", "ann", "bob")
			e.Data = make([]byte, 200)
			keys := make([]string, 100)
			for i := range keys {
				keys[i] = fmt.Sprint("key-", i)
			}
			dropped := w.dropped()
			began, used := time.Now(), cpu(b)
			for i := range b.N {
				e.Key = keys[i%len(keys)]
				e.Time = time.Now()
				for !w.Publish("bench", e) {
					if rate > 0 {
						b.Fatal("dropped")
					}
					time.Sleep(time.Millisecond)
				}
				if rate > 0 && i%10 == 9 {
					time.Sleep(time.Until(began.Add(time.Duration(float64(i) / float64(rate) * float64(time.Second)))))
				}
			}
			for w.total.Load() > 0 {
				time.Sleep(time.Millisecond)
			}
			b.ReportMetric(float64(cpu(b)-used)/math.Max(1, float64(b.N))/1000, "µs-cpu/event")
			b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "events/s")
			b.ReportMetric(float64(w.dropped()-dropped), "refused")
		})
	}
}
