package event

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/IBM/sarama"
	"github.com/mics-im/mics/internal/telemetry"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

// Options configure a Publisher; all but Dial are required.
type Options struct {
	Config
	// MaxMessageBytes bounds a message's body: topics that are created take
	// events that large.
	MaxMessageBytes int
	// Node names this router's incarnation in its events.
	Node string
	// Secret returns what signs a tenant's events; empty: they are not signed.
	Secret    func(tenant string) string
	Telemetry *telemetry.Telemetry
	// Locks keep two routers from redriving a tenant's dead letters at once.
	Locks Locks
	// Dial opens connections; nil: TCP.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// eventOverhead is room for an event's ids, names and signature beside its
// data, in bytes.
const eventOverhead = 16 << 10

// Publisher sends events. Safe for concurrent use.
type Publisher struct {
	opts    Options
	cluster *cluster // nil: no Kafka
	log     *slog.Logger
	metrics *metricSet

	total atomic.Int64 // events in lanes
	bytes atomic.Int64 // of these

	lanes sync.Map // tenant → *lane; as many as tenants were configured

	stopping chan struct{} // closed by Stop
	wg       sync.WaitGroup

	mu     sync.Mutex
	closed atomic.Bool // changed under mu
}

// New returns a publisher; without brokers in its configuration it takes no
// events. It does not wait for a broker. Stop ends it. An error is one of the
// configuration.
func New(opts Options) (*Publisher, error) {
	p := &Publisher{opts: opts, log: opts.Telemetry.Log, stopping: make(chan struct{})}
	p.metrics = newMetricSet(opts.Telemetry, p)
	if len(opts.Brokers) == 0 {
		return p, nil
	}
	conf, err := opts.saramaConfig()
	if err != nil {
		return nil, err
	}
	var dial dialFunc
	if opts.Dial != nil {
		dial = dialFunc(opts.Dial)
	}
	p.cluster = newCluster(conf, opts.Brokers, dial)
	return p, nil
}

// Enabled tells whether there is a Kafka to publish to.
func (p *Publisher) Enabled() bool { return p.cluster != nil }

// Publish takes an event of a tenant, which must be one that operators
// configured, or drops it, counted, if there is no room. It never blocks.
func (p *Publisher) Publish(tenant string, e Event) bool {
	if p.cluster == nil {
		return false
	}
	it := &item{Event: e}
	it.size = len(e.Data) + len(e.MsgID) + len(e.User) + len(e.Device) + len(e.ToUser) + len(e.Group) + len(tenant) + len(p.opts.Node) + 128
	return p.take(tenant, it) == ""
}

// Room tells whether Publish would take one more event of the tenant at this
// moment; also true where it would not for another reason than a queue that is
// full. For those who can wait, within bounds of their own.
func (p *Publisher) Room(tenant string) bool {
	return p.cluster == nil || p.closed.Load() || p.lane(tenant).room()
}

// take puts an event into its lane, or counts why not.
func (p *Publisher) take(tenant string, it *item) Drop {
	why := p.lane(tenant).put(it)
	if why != "" {
		p.metrics.drop(why, 1)
	}
	return why
}

func (p *Publisher) lane(tenant string) *lane {
	if l, ok := p.lanes.Load(tenant); ok {
		return l.(*lane)
	}
	l, _ := p.lanes.LoadOrStore(strings.Clone(tenant), &lane{
		p: p, tenant: tenant, usable: usable(tenant), wake: make(chan struct{}, 1),
	})
	return l.(*lane)
}

// enter counts a lane's goroutine, unless the publisher has been stopped.
func (p *Publisher) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed.Load() {
		return false
	}
	p.wg.Add(1)
	return true
}

// Stop takes no more events and sends what there is until ctx ends. What is left
// then is dropped, counted and logged.
func (p *Publisher) Stop(ctx context.Context) {
	p.mu.Lock()
	if p.closed.Swap(true) {
		p.mu.Unlock()
		return
	}
	close(p.stopping)
	p.mu.Unlock()
	if p.cluster == nil {
		return
	}
	flushed := make(chan struct{})
	go func() {
		defer close(flushed)
		p.wg.Wait()
	}()
	select {
	case <-flushed:
	case <-ctx.Done():
	}
	p.cluster.close()
	<-flushed
	if n := p.metrics.dropped[DropShutdown].Value(); n > 0 {
		p.log.Warn("mq_not_flushed", "events", n)
	}
}

// metricSet are the counters (CONTRACT section 5).
type metricSet struct {
	published             map[hookv1.EventType]*telemetry.Counter // never modified
	dropped               map[Drop]*telemetry.Counter             // never modified
	failed, retried, dead *telemetry.Counter
	fallback              atomic.Int64 // events that neither topic took and that are tried again
}

func newMetricSet(tel *telemetry.Telemetry, p *Publisher) *metricSet {
	m := &metricSet{
		published: map[hookv1.EventType]*telemetry.Counter{}, dropped: map[Drop]*telemetry.Counter{},
		failed:  tel.Counter("mics_mq_failed_total", "Events that used up their attempts at their tenant's topic."),
		retried: tel.Counter("mics_mq_retried_total", "Events sent again, counted each time."),
		dead:    tel.Counter("mics_mq_dlq_total", "Events that their tenant's dead letter topic took."),
	}
	published := tel.CounterVec("mics_mq_published_total", "Events that their tenant's topic took.", "event_type")
	for n, name := range hookv1.EventType_name {
		m.published[hookv1.EventType(n)] = published.With(name)
	}
	dropped := tel.CounterVec("mics_mq_dropped_total", "Events that no broker took, by reason.", "reason")
	for _, why := range drops {
		m.dropped[why] = dropped.With(string(why))
	}
	tel.Gauge("mics_mq_queue_events", "Events that wait for Kafka.", p.total.Load)
	tel.Gauge("mics_mq_queue_bytes", "Bytes of the events that wait for Kafka.", p.bytes.Load)
	tel.Gauge("mics_mq_fallback_events", "Events that neither topic took and that are kept to be tried again.", m.fallback.Load)
	return m
}

func (m *metricSet) drop(why Drop, n int) { m.dropped[why].Add(int64(n)) }

// topicDetails describe the topics to create.
func (p *Publisher) topicDetails(names ...string) map[string]*sarama.TopicDetail {
	largest := fmt.Sprint(p.opts.MaxMessageBytes + eventOverhead)
	replication := int16(p.opts.TopicReplication)
	if replication == 0 {
		replication = -1
	}
	out := map[string]*sarama.TopicDetail{}
	for _, n := range names {
		partitions := int32(p.opts.TopicPartitions)
		if strings.HasSuffix(n, "-dlq") {
			partitions = 1 // read in the order in which they were given up
		}
		out[n] = &sarama.TopicDetail{
			NumPartitions: partitions, ReplicationFactor: replication,
			ConfigEntries: map[string]*string{"max.message.bytes": &largest},
		}
	}
	return out
}
