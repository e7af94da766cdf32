package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mics-im/mics/tests/internal/port"
)

// ClusterConfig is a cluster of processes on this machine.
type ClusterConfig struct {
	// Bin is the directory of mics-gateway and mics-router.
	Bin               string
	Gateways, Routers int
	// Redis keeps the routes in a redis-server of its own; without it they are in
	// the memory of the only router.
	Redis bool
	// Bare is the yardstick instead of a cluster.
	Bare bool
	// Dir gets the processes' logs; it must exist.
	Dir string
	// ControlPlanes is how many of them; they need Redis if there are several.
	ControlPlanes int
	// Env are further settings of the services, NAME=VALUE.
	Env []string
}

const (
	readyTimeout = 30 * time.Second
	// stopTimeout is for an orderly end, after which a process is killed.
	stopTimeout = 15 * time.Second
)

// Cluster is running processes. Stop ends them.
type Cluster struct {
	Target
	Planes []Plane
	dir    string
	procs  []*process
	ports  []port.Port
}

// Plane is a control plane.
type Plane struct {
	Name string
	// URL is where operators ask; Internal, host:port, where /metrics is.
	URL, Internal string
}

// program is what a process runs.
type program struct {
	name, path string
	args, env  []string
	// ready is host:port of /readyz; empty: there is none.
	ready string
}

type process struct {
	program
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has
	err   error         // how; to be read when it has
	told  bool          // to end
}

// StartCluster starts the processes and waits until all are ready. Their
// settings are the defaults but for those that guard against load.
func StartCluster(ctx context.Context, cfg ClusterConfig) (*Cluster, error) {
	c := &Cluster{Target: Target{Tenant: TenantName}, dir: cfg.Dir}
	start := c.startAll
	if cfg.Bare {
		start = c.startBare
	}
	if err := start(ctx, cfg); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Cluster) startBare(ctx context.Context, _ ClusterConfig) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	at, err := c.reserve()
	if err != nil {
		return err
	}
	c.URLs = []string{"ws://" + at + "/ws"}
	if err := c.start(program{name: Gateway, path: self, args: []string{"bare", "--listen", at}}); err != nil {
		return err
	}
	return c.wait(ctx, "bare accepts connections", func() bool { return accepts(at) })
}

func (c *Cluster) startAll(ctx context.Context, cfg ClusterConfig) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	hooks, err := c.reserve()
	if err != nil {
		return err
	}
	if err := c.start(program{name: Hooks, path: self, args: []string{"tenant", "--listen", hooks, "--secret", TenantSecret}}); err != nil {
		return err
	}
	store := "memory"
	if cfg.Redis {
		if store, err = c.startRedis(ctx); err != nil {
			return err
		}
	}
	auth, err := json.Marshal(map[string]string{TenantName: "http://" + hooks})
	if err != nil {
		return err
	}
	secrets, err := json.Marshal(map[string]string{TenantName: TenantSecret})
	if err != nil {
		return err
	}
	settings := []string{"REDIS__CONNECTION=" + store}
	routers, err := c.startRouters(cfg, append(settings,
		"TENANT_AUTH_MAP="+string(auth), "TENANT_HOOK_SECRETS="+string(secrets), "HOOK_MAX_CONCURRENCY=512", "HOOK_QUEUE_TIMEOUT_MS=150"))
	if err != nil {
		return err
	}
	planes, err := c.startPlanes(cfg, append(settings, "ROUTER_ENDPOINTS="+routers))
	if err != nil {
		return err
	}
	if err := c.startGateways(cfg, []string{
		"ROUTER_ENDPOINTS=" + routers, "CONTROLPLANE_ENDPOINTS=" + planes,
		"ACCEPT_RATE_PER_ADDRESS=0", "FLOOD_MESSAGES_PER_SECOND=0", "DRAIN_TIMEOUT_SECONDS=1",
	}); err != nil {
		return err
	}
	return c.wait(ctx, "all are ready", func() bool {
		for _, p := range c.procs {
			if p.ready != "" && !isReady(p.ready) {
				return false
			}
		}
		return accepts(hooks)
	})
}

// startRouters returns their base URLs, as a list.
func (c *Cluster) startRouters(cfg ClusterConfig, env []string) (string, error) {
	var urls []string
	for i := range cfg.Routers {
		at, err := c.reserve()
		if err != nil {
			return "", err
		}
		name := fmt.Sprintf("%s-%d", Router, i+1)
		urls = append(urls, "http://"+at)
		if err := c.start(program{name: name, path: filepath.Join(cfg.Bin, "mics-router"), ready: at, env: slices.Concat(
			[]string{"NODE_ID=" + name, "INTERNAL_LISTEN=" + at}, env, cfg.Env)}); err != nil {
			return "", err
		}
	}
	return strings.Join(urls, ","), nil
}

// startPlanes returns their base URLs for gateways, as a list.
func (c *Cluster) startPlanes(cfg ClusterConfig, env []string) (string, error) {
	var urls []string
	for i := range cfg.ControlPlanes {
		at, err := c.reserve()
		if err != nil {
			return "", err
		}
		internal, err := c.reserve()
		if err != nil {
			return "", err
		}
		p := Plane{Name: fmt.Sprintf("%s-%d", ControlPlane, i+1), URL: "http://" + at, Internal: internal}
		c.Planes, urls = append(c.Planes, p), append(urls, "http://"+internal)
		if err := c.start(program{name: p.Name, path: filepath.Join(cfg.Bin, "mics-controlplane"), ready: internal, env: slices.Concat(
			[]string{"NODE_ID=" + p.Name, "LISTEN=" + at, "INTERNAL_LISTEN=" + internal}, env, cfg.Env)}); err != nil {
			return "", err
		}
	}
	return strings.Join(urls, ","), nil
}

func (c *Cluster) startGateways(cfg ClusterConfig, env []string) error {
	for i := range cfg.Gateways {
		at, err := c.reserve()
		if err != nil {
			return err
		}
		internal, err := c.reserve()
		if err != nil {
			return err
		}
		name, url := fmt.Sprintf("%s-%d", Gateway, i+1), "ws://"+at+"/ws"
		c.URLs = append(c.URLs, url)
		if err := c.start(program{name: name, path: filepath.Join(cfg.Bin, "mics-gateway"), ready: internal, env: slices.Concat(
			[]string{"NODE_ID=" + name, "LISTEN=" + at, "INTERNAL_LISTEN=" + internal, "CLIENT_URL=" + url}, env, cfg.Env)}); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startRedis(ctx context.Context) (connection string, err error) {
	at, err := c.reserve()
	if err != nil {
		return "", err
	}
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		return "", err
	}
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		return "", fmt.Errorf("%w (with --redis=false the router keeps the routes)", err)
	}
	err = c.start(program{name: Redis, path: bin, args: []string{"--bind", host, "--port", port, "--save", "", "--appendonly", "no", "--dir", c.dir}})
	if err != nil {
		return "", err
	}
	return "redis://" + at, c.wait(ctx, "Redis accepts connections", func() bool { return accepts(at) })
}

// start starts a process that logs to a file named after it, in the place of one
// of that name that has ended.
func (c *Cluster) start(what program) error {
	log, err := os.OpenFile(filepath.Join(c.dir, what.name+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the process has its own
	cmd := exec.Command(what.path, what.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), what.env...)
	// Ctrl-C is for this process, which then stops the others in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", what.name, err)
	}
	p := &process{program: what, cmd: cmd, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		p.err = cmd.Wait()
	}()
	proc := Proc{Name: what.name, PID: cmd.Process.Pid}
	if i := c.index(what.name); i >= 0 {
		c.procs[i], c.Procs[i] = p, proc
		return nil
	}
	c.procs = append(c.procs, p)
	c.Procs = append(c.Procs, proc)
	return nil
}

func (c *Cluster) index(name string) int {
	return slices.IndexFunc(c.procs, func(p *process) bool { return p.name == name })
}

// wait waits until cond holds or a process has ended.
func (c *Cluster) wait(ctx context.Context, what string, cond func() bool) error {
	var dead error
	ok := waitFor(ctx, readyTimeout, func() bool {
		dead = c.Dead()
		return dead != nil || cond()
	})
	switch {
	case dead != nil:
		return dead
	case !ok:
		return fmt.Errorf("never came true: %s; logs in %s", what, c.dir)
	}
	return nil
}

// Dead is nil while all processes live that were not told to end.
func (c *Cluster) Dead() error {
	for _, p := range c.procs {
		if p.told {
			continue
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s has ended (%w); its log is in %s", p.name, p.err, c.dir)
		default:
		}
	}
	return nil
}

// Stop ends the processes, those started last first, and waits for each.
func (c *Cluster) Stop() error {
	var errs []error
	for i := len(c.procs) - 1; i >= 0; i-- {
		p := c.procs[i]
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-p.ended:
		case <-time.After(stopTimeout):
			errs = append(errs, fmt.Errorf("%s did not stop and was killed", p.name))
			_ = p.cmd.Process.Kill()
			<-p.ended
		}
	}
	c.procs = nil
	for _, p := range c.ports {
		p.Release()
	}
	c.ports = nil
	return errors.Join(errs...)
}

// reserve returns a loopback address that is kept for a process of this cluster.
func (c *Cluster) reserve() (string, error) {
	p, err := port.Reserve()
	if err == nil {
		c.ports = append(c.ports, p)
	}
	return p.Addr, err
}

func accepts(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

func isReady(addr string) bool {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + addr + "/readyz")
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}
