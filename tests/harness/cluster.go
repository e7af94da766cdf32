package harness

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/tests/internal/port"
)

// Options of a cluster. The zero value is one gateway, one router and a Redis.
type Options struct {
	Gateways, Routers int
	// NoRedis keeps the routes in the memory of the only router.
	NoRedis bool
	// ControlPlane starts one, cp; ControlPlanes that many: cp, cp2, …
	ControlPlane  bool
	ControlPlanes int
	// Kafka starts a broker, to which routers publish events.
	Kafka bool
	// Proxied puts a proxy in front of every router, gateway (for its peers, not
	// for clients) and Redis: see Cluster.Net.
	Proxied bool
	// Quiet shows no logs when the test fails.
	Quiet bool
	// Scheme of calls between processes; empty: http. What https needs is in Env.
	Scheme string
	// Tenants by name; none: one called acme.
	Tenants []string
	// Env are further settings, NAME=VALUE, of the processes with that name (gw1)
	// or of that kind (gateway, router, controlplane).
	Env map[string][]string
	// Programs are binaries of processes, by name, in the place of the usual ones.
	Programs map[string]string
}

// Cluster is running processes. They end with the test.
type Cluster struct {
	// Net is the links between the processes; nil unless they are proxied.
	Net *Network

	t        testing.TB
	dir      string
	opts     Options
	tenants  []*Tenant
	procs    []*Process           // in the order of their start
	kafka    *testkit.KafkaServer // nil: none
	ports    []port.Port
	registry []*Device
	mu       sync.Mutex // guards registry, and the growth of procs against the proxies
	later    sync.WaitGroup
}

// New starts a cluster and waits until all of it is ready.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	o.Gateways, o.Routers = max(o.Gateways, 1), max(o.Routers, 1)
	o.Scheme = cmp.Or(o.Scheme, "http")
	if o.ControlPlane {
		o.ControlPlanes = max(o.ControlPlanes, 1)
	}
	if len(o.Tenants) == 0 {
		o.Tenants = []string{"acme"}
	}
	c := &Cluster{t: t, opts: o, dir: t.TempDir()}
	for _, name := range o.Tenants {
		c.tenants = append(c.tenants, startTenant(t, name))
	}
	if o.Proxied {
		c.Net = newNetwork(c.source)
	}
	if o.Kafka {
		c.kafka = testkit.StartKafka(t, testkit.KafkaOptions{Via: c.viaProxy})
	}
	t.Cleanup(c.end)
	if err := c.wire(); err != nil {
		t.Fatal(err)
	}
	for _, p := range c.procs {
		if err := p.launch(); err != nil {
			t.Fatalf("start %s: %v", p.Name, err)
		}
		if p.Name == "redis" && !p.awaitReady() { // the others retry, at their own pace
			t.Fatal("redis does not become ready")
		}
	}
	for _, p := range c.procs {
		if !p.awaitReady() {
			t.Fatalf("%s does not become ready", p.Name)
		}
	}
	c.AwaitSettled()
	return c
}

// wire lays out addresses and settings.
func (c *Cluster) wire() error {
	maps := [2]map[string]string{{}, {}}
	for _, t := range c.tenants {
		maps[0][t.Name], maps[1][t.Name] = t.URL, t.Secret
	}
	auth, _ := json.Marshal(maps[0]) // maps of strings
	secrets, _ := json.Marshal(maps[1])
	store := "memory"
	if !c.opts.NoRedis {
		at, reach, err := c.listener("redis")
		if err != nil {
			return err
		}
		if err := c.redis(at); err != nil {
			return err
		}
		store = "redis://" + reach
	}
	var routers []string
	for i := range c.opts.Routers {
		name := fmt.Sprintf("r%d", i+1)
		at, reach, err := c.listener(name)
		if err != nil {
			return err
		}
		routers = append(routers, c.opts.Scheme+"://"+reach)
		c.service("router", &Process{Name: name, Internal: at, path: Binary(c.t, routerBin), env: []string{
			"PUBLIC_ENDPOINT=" + c.opts.Scheme + "://" + reach, "REDIS__CONNECTION=" + store,
			"TENANT_AUTH_MAP=" + string(auth), "TENANT_HOOK_SECRETS=" + string(secrets), "KAFKA__BOOTSTRAP_SERVERS=" + c.brokers(),
		}})
	}
	all := "ROUTER_ENDPOINTS=" + strings.Join(routers, ",")
	var planes []*Process
	var planeURLs []string
	for i := range c.opts.ControlPlanes {
		at, err := c.reserve()
		if err != nil {
			return err
		}
		public, err := c.reserve()
		if err != nil {
			return err
		}
		name := "cp"
		if i > 0 {
			name = fmt.Sprintf("cp%d", i+1)
		}
		planeURLs = append(planeURLs, c.opts.Scheme+"://"+at)
		planes = append(planes, &Process{Name: name, Internal: at, Public: public, path: Binary(c.t, controlplaneBin), env: []string{
			"LISTEN=" + public, all, "POLL_INTERVAL_MS=200", "REDIS__CONNECTION=" + store,
		}})
	}
	for i := range c.opts.Gateways {
		name := fmt.Sprintf("gw%d", i+1)
		at, reach, err := c.listener(name)
		if err != nil {
			return err
		}
		public, err := c.reserve()
		if err != nil {
			return err
		}
		c.service("gateway", &Process{Name: name, Internal: at, Public: public, path: Binary(c.t, gatewayBin), env: []string{
			"PUBLIC_ENDPOINT=" + c.opts.Scheme + "://" + reach, "LISTEN=" + public, all, "ACCEPT_RATE_PER_ADDRESS=0", "DRAIN_TIMEOUT_SECONDS=3",
			"CLIENT_URL=ws://" + public + "/ws", "CONTROLPLANE_ENDPOINTS=" + strings.Join(planeURLs, ","),
		}})
	}
	for _, p := range planes {
		c.service("controlplane", p)
	}
	return nil
}

// service completes and registers a process of our own.
func (c *Cluster) service(kind string, p *Process) {
	p.t, p.log = c.t, filepath.Join(c.dir, p.Name+".log")
	p.env = append(p.env, "NODE_ID="+p.Name, "INTERNAL_LISTEN="+p.Internal)
	p.path = cmp.Or(c.opts.Programs[p.Name], p.path)
	p.env = append(append(p.env, c.opts.Env[kind]...), c.opts.Env[p.Name]...)
	p.ready = func() bool {
		_, status, err := get("http://" + p.Internal + "/readyz")
		return err == nil && status == http.StatusOK
	}
	c.register(p)
}

func (c *Cluster) register(p *Process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.procs = append(c.procs, p)
}

func (c *Cluster) redis(at string) error {
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("MICS_REQUIRE_REDIS") != "" {
			return err
		}
		c.t.Skip("SKIPPED: redis-server is not installed (Debian package redis-server)")
	}
	host, number, err := net.SplitHostPort(at)
	if err != nil {
		return err
	}
	c.register(&Process{
		Name: "redis", t: c.t, path: bin, log: filepath.Join(c.dir, "redis.log"),
		args:   []string{"--bind", host, "--port", number, "--save", "", "--appendonly", "no", "--dir", c.dir},
		ready:  func() bool { _, err := redisDo(at, "PING"); return err == nil },
		Public: at,
	})
	return nil
}

func redisDo(at string, args ...string) ([]string, error) {
	return (&testkit.RedisServer{Addr: at}).Do(args...)
}

// listener reserves an address and returns how others reach it.
func (c *Cluster) listener(name string) (at, reach string, err error) {
	if at, err = c.reserve(); err != nil || c.Net == nil {
		return at, at, err
	}
	reach, err = c.Net.proxy(name, at)
	return at, reach, err
}

func (c *Cluster) reserve() (string, error) {
	p, err := port.Reserve()
	if err == nil {
		c.ports = append(c.ports, p)
	}
	return p.Addr, err
}

// source names the process that a proxied connection comes from.
func (c *Cluster) source(conn net.Conn) string {
	names := map[int]string{}
	var pids []int
	c.mu.Lock()
	procs := c.procs
	c.mu.Unlock()
	for _, p := range procs {
		if pid := p.PID(); pid != 0 {
			names[pid] = p.Name
			pids = append(pids, pid)
		}
	}
	return names[peerPID(conn, pids)]
}

// end ends everything. A paused process is killed like any other.
func (c *Cluster) end() {
	c.later.Wait()
	c.mu.Lock()
	devices := c.registry
	c.mu.Unlock()
	var closing sync.WaitGroup
	for _, d := range devices {
		closing.Go(d.Leaves)
	}
	closing.Wait()
	for _, problem := range c.Problems() {
		c.t.Error(problem)
	}
	for _, p := range slices.Backward(c.procs) {
		p.Kill()
	}
	if c.Net != nil {
		c.Net.close()
	}
	for _, p := range c.ports {
		p.Release()
	}
	if c.t.Failed() && !c.opts.Quiet {
		c.report()
	}
}

// Problems are processes that ended by themselves, and what in their logs can
// only be a mistake in a program: a panic, a data race.
func (c *Cluster) Problems() (out []string) {
	for _, p := range c.procs {
		if err := p.unexpected(); err != nil {
			out = append(out, err.Error())
		}
		if b := bug(p.Log()); b != "" {
			out = append(out, p.Name+": "+b)
		}
	}
	return out
}

// Sum adds up a metric over the living processes of a sort: gw, r.
func (c *Cluster) Sum(sort, metric string) (sum float64) {
	for _, name := range c.Names(sort) {
		if m, err := readMetrics("http://" + c.Process(name).Internal + "/metrics"); err == nil {
			sum += m.Sum(metric)
		}
	}
	return sum
}

// report shows the ends of the logs, and keeps them whole where MICS_TEST_LOGS
// says.
func (c *Cluster) report() {
	for _, p := range c.procs {
		c.t.Logf("the end of %s.log:\n%s", p.Name, p.tail(15))
	}
	if dir := os.Getenv("MICS_TEST_LOGS"); dir != "" {
		to := filepath.Join(dir, strings.ReplaceAll(c.t.Name(), "/", "_"))
		if err := c.SaveLogs(to); err != nil {
			c.t.Log(err)
		}
	}
}

// SaveLogs copies the processes' logs into a directory, which it makes.
func (c *Cluster) SaveLogs(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	for _, p := range c.procs {
		if err := os.WriteFile(filepath.Join(dir, p.Name+".log"), []byte(p.Log()), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Settled reports whether all processes are ready and know of each other.
func (c *Cluster) Settled() bool {
	routers, gateways := float64(c.opts.Routers), float64(c.opts.Gateways)
	for _, p := range c.procs {
		if !p.Ready() {
			return false
		}
	}
	return c.each("gw", "mics_uplink_routers_linked", routers) &&
		c.each("r", "mics_router_routers", routers) && c.each("r", "mics_router_gateways", gateways)
}

// each reports whether a metric has a value in every process of a sort.
func (c *Cluster) each(sort, metric string, want float64) bool {
	for _, name := range c.Names(sort) {
		m, err := readMetrics("http://" + c.Process(name).Internal + "/metrics")
		if err != nil || m.Sum(metric) != want {
			return false
		}
	}
	return true
}

// Process returns the process of that name: gw1, r1, cp, redis.
func (c *Cluster) Process(name string) *Process {
	c.t.Helper()
	i := slices.IndexFunc(c.procs, func(p *Process) bool { return p.Name == name })
	if i < 0 {
		c.t.Fatalf("there is no process %q", name)
	}
	return c.procs[i]
}

// Gateway, Router, ControlPlane and Redis are Process by other words.
func (c *Cluster) Gateway(name string) *Process { c.t.Helper(); return c.Process(name) }
func (c *Cluster) Router(name string) *Process  { c.t.Helper(); return c.Process(name) }
func (c *Cluster) ControlPlane() *Process       { c.t.Helper(); return c.Process("cp") }
func (c *Cluster) Redis() *Process              { c.t.Helper(); return c.Process("redis") }

// Names of the processes of a sort: gw, r.
func (c *Cluster) Names(sort string) []string {
	var out []string
	for _, p := range c.procs {
		if strings.TrimRight(p.Name, "0123456789") == sort {
			out = append(out, p.Name)
		}
	}
	return out
}

// FlushRedis empties Redis.
func (c *Cluster) FlushRedis() {
	c.t.Helper()
	if _, err := redisDo(c.Redis().Public, "FLUSHALL"); err != nil {
		c.t.Errorf("FLUSHALL: %v", err)
	}
}

// Tenant returns the first tenant, or the one of that name.
func (c *Cluster) Tenant(name ...string) *Tenant {
	c.t.Helper()
	if len(name) == 0 {
		return c.tenants[0]
	}
	i := slices.IndexFunc(c.tenants, func(t *Tenant) bool { return t.Name == name[0] })
	if i < 0 {
		c.t.Fatalf("there is no tenant %q", name[0])
	}
	return c.tenants[i]
}

// URLs are where clients connect: to the named gateways, or to all.
func (c *Cluster) URLs(gateways ...string) []string {
	if len(gateways) == 0 {
		gateways = c.Names("gw")
	}
	var out []string
	for _, g := range gateways {
		out = append(out, "ws://"+c.Gateway(g).Public+"/ws")
	}
	return out
}

// Healthy waits for Settled, at most so long.
func (c *Cluster) Healthy(within time.Duration) bool {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if c.Settled() {
			return true
		}
	}
	return false
}

// AwaitSettled waits for Settled.
func (c *Cluster) AwaitSettled() {
	c.t.Helper()
	testkit.Eventually(c.t, "the cluster has settled", c.Settled)
}
