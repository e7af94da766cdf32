package broker

import (
	"flag"
	"os"
	"testing"
	"time"

	"github.com/mics-im/mics/sdk/go/hook"
	"github.com/mics-im/mics/tests/harness"
	"github.com/mics-im/mics/tests/load"
	"google.golang.org/protobuf/proto"
)

var (
	outage = flag.Duration("broker.outage", 0, "how long the broker is away in TestMessagesDoNotNoticeAnOutage; 0: it is skipped")
	rate   = flag.Int("broker.rate", 2000, "messages a second in it")
)

// TestMessagesDoNotNoticeAnOutage compares what messages take with and without a
// broker, in one run, and fails beyond 1.1 times the median. It measures time, and
// wants a machine for itself: `make bench-events`.
func TestMessagesDoNotNoticeAnOutage(t *testing.T) {
	if *outage == 0 {
		t.Skip("a measurement: make bench-events")
	}
	const clients = 200
	c := harness.New(t, harness.Options{Gateways: 2, Kafka: true, Quiet: true, Env: map[string][]string{
		"gateway": {"FLOOD_MESSAGES_PER_SECOND=0"},
	}})
	c.Tenant().Configure(func(cfg *hook.RuntimeConfig) {
		cfg.CheckMessageEnabled, cfg.HeartbeatTimeoutSeconds = proto.Bool(false), 600
	})
	var procs []load.Proc
	for name, as := range map[string]string{"gw1": "gateway-1", "gw2": "gateway-2", "r1": "router-1", "redis": "redis"} {
		procs = append(procs, load.Proc{Name: as, PID: c.Process(name).PID()})
	}
	target := load.Target{URLs: []string{c.URLs("gw1")[0], c.URLs("gw2")[0]}, Tenant: c.Tenant().Name, Token: "user:", Procs: procs}
	res, err := load.Outage{
		Steady: *outage / 2, Down: *outage, Settle: 5 * time.Second, Ratio: 1.1,
		Away: c.Kafka().Kill, Back: func() { c.Kafka().Restart(t) },
	}.Run(t.Context(), target, load.Params{Clients: clients, Rate: *rate, Body: 128, Parallel: 16})
	if err != nil {
		t.Fatal(err)
	}
	report := load.Summarize("broker killed under traffic", [][]load.Metric{res.Metrics}, nil)
	if err := load.WriteTable(os.Stdout, report); err != nil {
		t.Error(err)
	}
	// Each message is an event, and each connection two.
	produced := int(res.Sent) + 2*clients
	l := settled(t, c, produced)
	refused := c.Router("r1").Metrics().With("mics_mq_dropped_total", "reason", "tenant_queue_full")
	t.Logf("%d messages SENT, %d connections: %v events published, %v dead letters, %v dropped, %v of them because the tenant's queue was full",
		res.Sent, clients, l.published, l.dead, l.dropped, refused)
	l.audit(t, c, happened{produced: produced, refused: int(refused)})
	if report.Failed() {
		t.Error("the median of messages was moved by more than a tenth")
	}
}
