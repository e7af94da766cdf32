package main

import (
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mics-im/mics/tests/load"
	"github.com/spf13/pflag"
)

// options are a scenario's flags.
type options struct {
	params  load.Params
	cluster load.ClusterConfig
	urls    []string
	pids    map[string]int
	tenant  string
	runs    int
	bare    bool
	check   bool
	output  string
	timeout time.Duration
}

func (o *options) flags(name string, sc load.Scenario) *pflag.FlagSet {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SortFlags = false
	o.params = sc.Defaults
	p, c := &o.params, &o.cluster
	fs.StringVar(&c.Bin, "bin", "bin", "directory of mics-gateway and mics-router")
	fs.IntVar(&c.Gateways, "gateways", sc.Gateways, "gateways of the cluster to start")
	fs.IntVar(&c.Routers, "routers", 1, "its routers")
	fs.BoolVar(&c.Redis, "redis", true, "routes in a redis-server; else in the memory of the only router")
	fs.StringArrayVar(&c.Env, "env", nil, "NAME=VALUE: a setting of its services; may be repeated")
	fs.StringSliceVar(&o.urls, "url", nil, "WebSocket URLs of a running cluster, instead of starting one")
	fs.StringToIntVar(&o.pids, "pids", nil, "its processes on this machine: gateway-1=PID,router-1=PID,redis=PID,tenant=PID")
	fs.StringVar(&o.tenant, "tenant", load.TenantName, "its tenant, whose hooks the command tenant serves")
	fs.IntVar(&o.runs, "runs", 3, "runs, each with a new cluster; figures are medians")
	fs.BoolVar(&o.bare, "bare", false, "measure the yardstick too, in turn, and print ratios")
	fs.BoolVar(&o.check, "check", false, "exit with 3 if a target was missed")
	fs.StringVarP(&o.output, "output", "o", "table", "table or json")
	fs.DurationVar(&o.timeout, "timeout", 3*time.Minute, "bound of one run")
	fs.IntVar(&p.Clients, "clients", p.Clients, "connections")
	fs.IntVar(&p.Agents, "agents", p.Agents, "processes that hold them (idle, biggroup); 0: this one, which has one file per connection")
	fs.IntVar(&p.Parallel, "parallel", p.Parallel, "connects at once")
	fs.IntVar(&p.Window, "window", p.Window, "messages of one client or group under way at once (saturation, fanout)")
	fs.IntVar(&p.Rate, "rate", p.Rate, "messages per second (latency)")
	fs.IntVar(&p.Body, "body", p.Body, "bytes of a message's body")
	fs.IntSliceVar(&p.Sizes, "sizes", p.Sizes, "sizes of groups (fanout)")
	fs.IntVar(&p.Rounds, "rounds", p.Rounds, "messages to the group (biggroup)")
	fs.DurationVar(&p.Warmup, "warmup", p.Warmup, "not measured")
	fs.DurationVar(&p.Duration, "duration", p.Duration, "measured; for idle: time to come to rest")
	fs.StringVar(&p.Profile, "profile", "", "directory for perf records of gateways and routers (perf must be installed); do not compare the figures of such runs")
	return fs
}

// parse reads and checks the flags.
func (o *options) parse(sc load.Scenario, args []string, errOut io.Writer) error {
	fs := o.flags(sc.Name, sc)
	fs.SetOutput(errOut)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return err
		}
		return &usageError{err}
	}
	switch {
	case fs.NArg() > 0:
		return badUsage("unexpected argument %q", fs.Arg(0))
	case o.output != "table" && o.output != "json":
		return badUsage("--output: %q is neither table nor json", o.output)
	case o.runs < 1 || o.runs > 100:
		return badUsage("--runs: %d is not between 1 and 100", o.runs)
	case o.cluster.Gateways < 1 || o.cluster.Gateways > 64 || o.cluster.Routers < 1 || o.cluster.Routers > 64:
		return badUsage("--gateways, --routers: between 1 and 64")
	case o.cluster.Routers > 1 && !o.cluster.Redis:
		return badUsage("--redis=false is for one router")
	}
	if err := o.params.Check(); err != nil {
		return &usageError{err}
	}
	return nil
}

func (o *options) session(sc load.Scenario) (load.Session, error) {
	s := load.Session{
		Scenario: sc, Params: o.params, Cluster: o.cluster, Runs: o.runs, Bare: o.bare, Timeout: o.timeout,
		Target: load.Target{URLs: o.urls, Tenant: o.tenant},
	}
	for _, name := range slices.Sorted(maps.Keys(o.pids)) {
		p := load.Proc{Name: name, PID: o.pids[name]}
		if k := p.Kind(); k != load.Gateway && k != load.Router && k != load.Redis && k != load.Hooks {
			return s, badUsage("--pids: %q is none of gateway, router, redis, tenant, with a number or without", name)
		}
		s.Target.Procs = append(s.Target.Procs, p)
	}
	if (len(o.urls) == 0) != (len(o.pids) == 0) {
		return s, badUsage("--url and --pids belong together")
	}
	for _, u := range o.urls {
		if !strings.HasPrefix(u, "ws://") {
			return s, badUsage("--url: %q is no ws:// URL", u)
		}
	}
	return s, nil
}
