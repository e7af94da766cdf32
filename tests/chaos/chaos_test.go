package chaos

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/sdk/go/hook"
	"github.com/mics-im/mics/tests/chaos/history"
	"github.com/mics-im/mics/tests/chaos/nemesis"
	"github.com/mics-im/mics/tests/harness"
)

var (
	duration = flag.Duration("chaos.duration", 0, "how long to go on with runs; 0: one run, without faults")
	firstOf  = flag.Uint64("chaos.seed", 1, "seed of the first run; the next ones follow")
	atOnce   = flag.Int("chaos.faults", 1, "faults at one time")
	runs     = flag.Int("chaos.runs", 0, "at most this many runs; 0: as many as the duration allows")
	length   = flag.Duration("chaos.length", 11*time.Second, "of the talk in one run")
	rate     = flag.Float64("chaos.rate", 80, "messages per second")
	users    = flag.Int("chaos.users", 6, "per tenant")
	gateways = flag.Int("chaos.gateways", 3, "gateways of the cluster")
	routers  = flag.Int("chaos.routers", 2, "routers of the cluster")
	drain    = flag.Duration("chaos.drain", usualDrain, "gateways' DRAIN_TIMEOUT_SECONDS, whole seconds; below a router's lease of 3 s what they have at the end may find no home")
	only     = flag.String("chaos.only", "", "classes of faults, comma-separated, such as 'kill gateway'; empty: all")
	out      = flag.String("chaos.out", filepath.Join(os.TempDir(), "mics-chaos"), "folder for histories and logs of runs with violations")
)

// usualDrain keeps runs short.
const usualDrain = 2 * time.Second

func TestMain(m *testing.M) { harness.Main(m) }

func newCluster(t *testing.T, drain time.Duration) *harness.Cluster {
	c := harness.New(t, harness.Options{
		Gateways: *gateways, Routers: *routers, ControlPlane: true, Proxied: true, Tenants: tenants, Quiet: true, // complain keeps them
		Env: map[string][]string{"gateway": {fmt.Sprintf("DRAIN_TIMEOUT_SECONDS=%d", int(drain.Seconds()))}},
	})
	for _, name := range tenants {
		// Short, so that a run of seconds sees a dead connection noticed.
		c.Tenant(name).Configure(func(cfg *hook.RuntimeConfig) { cfg.HeartbeatTimeoutSeconds = 4 })
	}
	return c
}

// TestChaos makes runs from consecutive seeds. Without -chaos.duration it makes
// one, without faults, which proves the yardstick.
func TestChaos(t *testing.T) {
	deadline := time.Now().Add(*duration)
	tab := newTable()
	var cluster *harness.Cluster
	for seed, n := *firstOf, 0; n == 0 || time.Now().Before(deadline) && (*runs == 0 || n < *runs); seed, n = seed+1, n+1 {
		if cluster == nil {
			cluster = newCluster(t, *drain)
		}
		s := setup{seed: seed, users: *users, rate: *rate, length: *length, drain: *drain}
		if *duration == 0 {
			s.length = 4 * time.Second
		} else {
			s.plan = plan(cluster, seed)
		}
		r := runOnce(cluster, s)
		tab.add(r)
		t.Logf("seed %d: %d messages, %d deliveries, %d violations, %.0f s: %v",
			seed, r.report.Messages, r.report.Deliveries, len(r.report.Violations), r.took.Seconds(), r.plan)
		if !r.clean() {
			complain(t, cluster, r)
			cluster = nil // it may be spoiled; it ends with the test
		} else if !cluster.Healthy(30 * time.Second) {
			t.Errorf("seed %d: the cluster has not settled 30 s after the run", seed)
			cluster = nil
		}
	}
	t.Logf("\n%s", tab)
}

// TestDrainsInterruptNobody is a rolling update under traffic.
func TestDrainsInterruptNobody(t *testing.T) {
	// Time enough for a machine that runs other tests beside this one: what is late is
	// cut off.
	const drain, rest = 6 * time.Second, time.Second
	cluster := newCluster(t, drain)
	var rolling []nemesis.Fault
	for i, name := range cluster.Names("gw") {
		rolling = append(rolling, nemesis.Fault{Kind: nemesis.Terminate, Target: name, At: time.Duration(i) * (drain + rest), For: drain + rest/2})
	}
	r := runOnce(cluster, setup{seed: 1, users: *users, rate: *rate, plan: rolling, length: time.Duration(len(rolling))*(drain+rest) + calm, drain: drain})
	if !r.clean() {
		complain(t, cluster, r)
	}
	if r.report.V1Ambiguous+r.report.V1Frozen > 0 {
		t.Errorf("%+v: nobody was killed", r.report)
	}
	for _, name := range cluster.Names("gw") {
		log := cluster.Gateway(name).Log()
		for _, event := range []string{"shutdown_drain_begin", "shutdown_drain_done"} {
			if n := strings.Count(log, `"msg":"`+event+`"`); n != 1 {
				t.Errorf("%s logged %s %d times", name, event, n)
			}
		}
	}
	if n := cluster.Sum("r", "mics_grpc_forward_failed_total"); n != 0 {
		t.Errorf("mics_grpc_forward_failed_total is %v", n)
	}
	moved := 0
	for _, e := range r.events {
		if e.Kind == history.Disconnect && e.Code != 1000 {
			if moved++; e.Code != 4200 {
				t.Errorf("%s was closed with %d %s, want 4200", e.Device, e.Code, e.Reason)
			}
		}
	}
	if moved == 0 {
		t.Error("nobody was asked to move")
	}
	t.Logf("%d messages, %d deliveries, %d moves, longest gap %v", r.report.Messages, r.report.Deliveries, moved, r.report.LongestGap)
}

func plan(c *harness.Cluster, seed uint64) []nemesis.Fault {
	b := nemesis.Bounds{
		Within: *length - 2*calm, AtOnce: *atOnce,
		Shortest: 300 * time.Millisecond, Longest: 5 * time.Second, Rest: 2 * time.Second,
	}
	if *only != "" {
		b.Only = strings.Split(*only, ",")
	}
	return nemesis.Plan(seed, nemesis.Topology{
		Gateways: c.Names("gw"), Routers: c.Names("r"), ControlPlane: true, Redis: true, Links: true,
	}, b)
}

// complain reports a run's violations and keeps what is needed to study them.
func complain(t *testing.T, c *harness.Cluster, r *result) {
	dir := filepath.Join(*out, fmt.Sprintf("seed-%d-faults-%d", r.seed, *atOnce))
	for i, v := range r.report.Violations {
		if i == 10 {
			t.Errorf("seed %d: and %d more", r.seed, len(r.report.Violations)-i)
			break
		}
		t.Errorf("seed %d: %v", r.seed, v)
	}
	for _, p := range r.problems {
		t.Errorf("seed %d: %s", r.seed, p)
	}
	err := c.SaveLogs(dir)
	if err == nil {
		err = save(dir, r)
	}
	if err != nil {
		t.Errorf("seed %d: not kept: %v", r.seed, err)
	}
	again := fmt.Sprintf("go test ./tests/chaos -run TestChaos -chaos.duration=1s -chaos.seed=%d -chaos.faults=%d -chaos.length=%v", r.seed, *atOnce, *length)
	if *drain != usualDrain {
		again += fmt.Sprint(" -chaos.drain=", *drain)
	}
	if *only != "" {
		again += fmt.Sprintf(" -chaos.only='%s'", *only)
	}
	t.Errorf("seed %d: history and logs are in %s; again with\n\t%s", r.seed, dir, again)
}

func save(dir string, r *result) error {
	f, err := os.Create(filepath.Join(dir, "history.jsonl"))
	if err != nil {
		return err
	}
	if err := history.Write(f, r.events); err != nil {
		_ = f.Close() // already failing
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	about := struct {
		Seed       uint64
		Plan       []nemesis.Fault
		Began      time.Duration
		Violations []history.Violation
		Problems   []string
	}{r.seed, r.plan, r.began, r.report.Violations, r.problems}
	b, err := json.MarshalIndent(about, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "run.json"), b, 0o600)
}
