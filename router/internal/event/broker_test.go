package event

import (
	"context"
	"fmt"
	"math"
	"net"
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
	pki := newPKI(t)
	s := testkit.StartKafka(t, testkit.KafkaOptions{Disks: 2, Secure: "SASL_SSL", Properties: map[string]string{
		// An index is made in its full size, and must be below what diskFull leaves.
		"log.index.size.max.bytes":                            "65536",
		"authorizer.class.name":                               "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users":                                         "User:ANONYMOUS",
		"sasl.enabled.mechanisms":                             "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
		"listener.name.secure.plain.sasl.jaas.config":         `org.apache.kafka.common.security.plain.PlainLoginModule required user_mics="` + saslPassword + `";`,
		"listener.name.secure.scram-sha-256.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
		"listener.name.secure.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
		"ssl.keystore.type":                                   "PEM",
		"ssl.keystore.location":                               pki.server,
		"ssl.truststore.type":                                 "PEM",
		"ssl.truststore.location":                             pki.ca,
		"ssl.client.auth":                                     "required",
	}})
	b := &broker{s}
	t.Run("all arrive", b.allArrive)
	t.Run("secured", func(t *testing.T) { b.secured(t, pki) })
	t.Run("dead letters", b.deadLetters)
	t.Run("hanging under traffic", func(t *testing.T) { b.outage(t, func() { s.Pause(t) }, func(t testing.TB) { s.Resume(t) }) })
	t.Run("killed under traffic", func(t *testing.T) { b.outage(t, s.Kill, s.Restart) })
	t.Run("too large", b.tooLarge)
	t.Run("disk full", b.diskFull) // the last one: it needs the broker's end
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
		for !w.Room(tenant) {
			time.Sleep(time.Millisecond) // how many a second that are is the benchmark's to tell
		}
		if !w.Publish(tenant, chat(fmt.Sprint(i), "ann", fmt.Sprint("user-", i%conversations))) {
			t.Fatal("dropped although there was room")
		}
	}
	c := consume(t, b.addrs(), Topic(tenant))
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
		if !r.Signed {
			t.Fatalf("%s is not signed with the tenant's secret", r.id())
		}
		if r.seq() <= last[r.key] {
			t.Fatalf("key %s: number %d after %d", r.key, r.seq(), last[r.key])
		}
		last[r.key] = r.seq()
	}
}

// outageTime is how long the broker is away, at least.
const outageTime = 6 * time.Second

// outage takes the broker away under traffic and checks that the accounts of
// afterwards add up: what was taken has arrived, is a dead letter or was counted
// as dropped.
func (b *broker) outage(t *testing.T, away func(), back func(testing.TB)) {
	tenant := fmt.Sprintf("outage-%d", time.Now().UnixNano())
	w := newWorld(t, b.addrs(), func(o *Options) { o.MaxPendingPerTenant = 3000 }) // so that it overflows
	tr := start(w, tenant, 1000)
	testkit.Eventually(t, "events flow", func() bool { return w.published() > 500 })
	away()
	time.Sleep(outageTime)
	testkit.Eventually(t, "the outage is noticed", func() bool { return w.metrics.retried.Value() > 0 })
	early := newWorld(t, b.addrs(), nil) // starts while there is no broker
	early.Publish(tenant+"-early", chat("early", "ann", "bob"))
	back(t)
	time.Sleep(time.Second)
	taken := tr.stop()
	testkit.Eventually(t, "everything is settled", func() bool { return w.total.Load() == 0 && early.published() == 1 })
	lost := w.drops(DropTooLarge) + w.drops(DropRejected) + w.drops(DropExpired) + w.drops(DropShutdown)
	refused := w.dropped() - lost
	if refused == 0 {
		t.Error("nothing was refused at the entrance: the bound was not reached")
	}
	if got := w.published() + w.metrics.dead.Value() + lost; got != taken {
		t.Errorf("taken %d, accounted for %d", taken, got)
	}
	main := consume(t, b.addrs(), Topic(tenant))
	rs := main.until(int(w.published()))
	checkOrder(t, rs)
	main.poll(time.Second)
	dead := consume(t, b.addrs(), DeadLetters(tenant))
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
	// It waits for no broker: whatever this machine does, not for as long as that.
	if worst := time.Duration(tr.worst.Load()); worst > outageTime/2 {
		t.Errorf("Publish blocked for %v", worst)
	}
	t.Logf("taken %d: published %d, dead letters %d, refused at the entrance %d; slowest Publish %v",
		taken, w.published(), w.metrics.dead.Value(), refused, time.Duration(tr.worst.Load()))
}

// deadLetters go round: given up, listed, redriven.
func (b *broker) deadLetters(t *testing.T) {
	w := newWorld(t, b.addrs(), func(o *Options) { o.MaxMessageBytes = 1000 })
	w.Publish("letters", chat("first", "ann", "bob")) // makes the topics
	testkit.Eventually(t, "the topics are there", func() bool { return w.published() == 1 })
	b.alter(t, DeadLetters("letters"), "max.message.bytes", "1000000")
	for i := range 20 {
		e := chat(fmt.Sprint(i), "ann", "bob")
		e.Data = make([]byte, 30_000)
		w.Publish("letters", e)
	}
	testkit.Eventually(t, "all are dead letters", func() bool { return w.metrics.dead.Value() == 20 })
	n := 0
	if err := w.Letters(t.Context(), "letters", LetterFilter{}, func(l Letter) error {
		if l.Event.GetMsgId() != fmt.Sprint(n) || l.Reason == "" {
			t.Errorf("letter %d: %+v", n, l.Event.GetMsgId())
		}
		n++
		return nil
	}); err != nil || n != 20 {
		t.Fatalf("%d letters, %v", n, err)
	}
	b.alter(t, Topic("letters"), "max.message.bytes", "1000000")
	for _, want := range []int64{20, 0} {
		var last Redriven
		if err := w.Redrive(t.Context(), "letters", LetterFilter{}, false, func(r Redriven) error { last = r; return nil }); err != nil || last.Sent != want || last.Total != want {
			t.Errorf("redriven: %+v, %v", last, err)
		}
	}
	c := consume(t, b.addrs(), Topic("letters"))
	checkOrder(t, c.until(21))
}

// diskFull: one of the broker's two disks takes no more, then the other one, and
// with it the broker ends. Later there is room again. What was taken meanwhile is
// in the topic or among the dead letters, or both if the broker had written it
// before it failed.
func (b *broker) diskFull(t *testing.T) {
	const tenant = "full"
	w := newWorld(t, b.addrs(), func(o *Options) { o.TopicPartitions = 1 })
	big := func(i int) Event {
		e := chat(fmt.Sprint(i), "ann", "bob")
		e.Data = make([]byte, 20_000)
		return e
	}
	taken := int64(0)
	publish := func(n int) {
		for range n {
			if !w.Publish(tenant, big(int(taken))) {
				t.Fatal("dropped")
			}
			taken++
		}
	}
	publish(1)
	testkit.Eventually(t, "the topics are there", func() bool { return w.published() == 1 })
	b.LimitFiles(t, 1<<20)
	publish(40)
	testkit.Eventually(t, "half of it is stored", func() bool { return w.total.Load() == 0 })
	publish(200)
	testkit.Eventually(t, "nothing takes it any more", func() bool { return w.metrics.fallback.Load() > 0 })
	t.Logf("full: of %d taken %d published, %d dead letters", taken, w.published(), w.metrics.dead.Value())
	b.Kill()
	b.Restart(t)
	publish(10)
	testkit.Eventually(t, "everything is settled", func() bool { return w.total.Load() == 0 })
	if got := w.published() + w.metrics.dead.Value(); got != taken || w.dropped() != 0 {
		t.Errorf("taken %d, accounted for %d, dropped %d", taken, got, w.dropped())
	}
	main, dead := consume(t, b.addrs(), Topic(tenant)), consume(t, b.addrs(), DeadLetters(tenant))
	checkOrder(t, main.until(int(w.published())))
	dead.until(int(w.metrics.dead.Value()))
	main.poll(time.Second)
	all := ids(append(main.got[:len(main.got):len(main.got)], dead.got...))
	if int64(len(all)) != taken {
		t.Errorf("%d events of %d are there", len(all), taken)
	}
	t.Logf("taken %d: published %d, dead letters %d; %d and %d records", taken, w.published(), w.metrics.dead.Value(), len(main.got), len(dead.got))
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
	c := consume(t, b.addrs(), Topic("large"))
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

// BenchmarkWithoutABroker measures the processor time of this process for an
// event at 2,000 a second while nobody listens at the brokers' addresses, and
// while a broker takes connections and never answers.
func BenchmarkWithoutABroker(b *testing.B) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = silent.Close() }() // its backlog takes connections
	for name, addr := range map[string]string{"refused": fmt.Sprintf("127.0.0.1:%d", testkit.FreePort(b)), "silent": silent.Addr().String()} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, []string{addr}, func(o *Options) { o.MaxPendingPerTenant, o.QueueCapacity = 1_000_000, 10_000_000 })
			w.patience = time.Millisecond
			paced(b, w, 2000)
		})
	}
}

// BenchmarkPublish measures the processor time of this process for an event of
// a short message, at several rates; 0 is as fast as it goes.
func BenchmarkPublish(b *testing.B) {
	s := testkit.StartKafka(b, testkit.KafkaOptions{})
	w := newWorld(b, []string{s.Addr}, nil)
	for _, rate := range []int{100, 2000, 20_000, 0} {
		b.Run(fmt.Sprintf("rate=%d", rate), func(b *testing.B) {
			dropped := w.dropped()
			began, used := time.Now(), cpu(b)
			paced(b, w, rate)
			for w.total.Load() > 0 {
				time.Sleep(time.Millisecond)
			}
			b.ReportMetric(float64(cpu(b)-used)/math.Max(1, float64(b.N))/1000, "µs-cpu/event")
			b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "events/s")
			b.ReportMetric(float64(w.dropped()-dropped), "refused")
		})
	}
}

// paced publishes b.N events at a rate, 0: as fast as it goes, and reports the
// processor time of each.
func paced(b *testing.B, w *world, rate int) {
	e := chat("0198f2a4-5b6c-7d8e-9f00-112233445566", "ann", "bob")
	e.Data = make([]byte, 200)
	keys := make([]string, 100)
	for i := range keys {
		keys[i] = fmt.Sprint("key-", i)
	}
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
		if rate > 0 && (rate <= 2000 || i%10 == 9) {
			time.Sleep(time.Until(began.Add(time.Duration(float64(i) / float64(rate) * float64(time.Second)))))
		}
	}
	b.ReportMetric(float64(cpu(b)-used)/math.Max(1, float64(b.N))/1000, "µs-cpu/event")
}
