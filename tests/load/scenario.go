package load

import (
	"context"
	"fmt"
	"os"
	"time"
)

// Scenario is a kind of work that is measured.
type Scenario struct {
	Name, Short string
	// Gateways is how many of them it is for.
	Gateways int
	// Defaults are its parameters.
	Defaults Params
	Run      func(context.Context, Target, Params) ([]Metric, error)
}

// Scenarios are all there are, in the order in which they are best run.
func Scenarios() []Scenario {
	base := Params{
		Clients: 1000, Window: 2, Rate: 2000, Body: 128, Sizes: []int{10, 100, 1000}, Rounds: 5,
		Warmup: 2 * time.Second, Duration: 5 * time.Second, Parallel: 16,
	}
	with := func(change func(*Params)) Params {
		p := base
		change(&p)
		return p
	}
	return []Scenario{
		{"idle", "memory of a connection that does nothing", 1, with(func(p *Params) { p.Clients = 8000 }), Idle},
		{"connect", "CPU of a connect, auth hook included", 2, with(func(p *Params) { p.Clients, p.Parallel = 4000, 64 }), Connect},
		{"saturation", "CPU of a 1:1 message when there are as many as can be", 2, base, Saturation},
		{"latency", "time and CPU of 1:1 messages at a given rate (open loop)", 2, base, OpenLoop},
		{"fanout", "CPU of a delivery to a group's members", 2, with(func(p *Params) { p.Duration = 3 * time.Second }), Fanout},
		{"biggroup", "time until the last member of a big group has a message", 2, with(func(p *Params) { p.Clients = 10_000 }), BigGroup},
	}
}

// Session is several runs of a scenario.
type Session struct {
	Scenario Scenario
	Params   Params
	// Cluster is started anew for every run unless Target has URLs.
	Cluster ClusterConfig
	Target  Target
	Runs    int
	// Bare runs the yardstick in turn with the cluster.
	Bare bool
	// Timeout bounds one run, start and stop of the cluster included.
	Timeout time.Duration
	// Progress is told what is being done; nil: nobody is.
	Progress func(string)
}

// Run runs them all, and reports also if the last one failed, on the others.
func (s Session) Run(ctx context.Context) (Report, error) {
	var runs, bare [][]Metric
	report := func() Report {
		if len(runs) == 0 {
			return Report{Scenario: s.Scenario.Name}
		}
		return Summarize(s.Scenario.Name, runs, bare)
	}
	for i := range s.Runs {
		if s.Progress != nil {
			s.Progress(fmt.Sprintf("%s, run %d of %d", s.Scenario.Name, i+1, s.Runs))
		}
		m, err := s.run(ctx, s.Cluster)
		if err != nil {
			return report(), fmt.Errorf("%s, run %d: %w", s.Scenario.Name, i+1, err)
		}
		runs = append(runs, m)
		if !s.Bare {
			continue
		}
		if m, err = s.run(ctx, ClusterConfig{Bare: true}); err != nil {
			return report(), fmt.Errorf("%s, run %d of the yardstick: %w", s.Scenario.Name, i+1, err)
		}
		bare = append(bare, m)
	}
	return report(), nil
}

func (s Session) run(ctx context.Context, cfg ClusterConfig) (m []Metric, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.Timeout, fmt.Errorf("not done after %v", s.Timeout))
	defer cancel()
	if len(s.Target.URLs) > 0 && !cfg.Bare {
		return s.Scenario.Run(ctx, s.Target, s.Params)
	}
	keep := false
	cfg.Dir, err = os.MkdirTemp("", "mics-load-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if !keep {
			_ = os.RemoveAll(cfg.Dir)
		}
	}()
	c, err := StartCluster(ctx, cfg)
	if err != nil {
		keep = true
		return nil, err
	}
	p := s.Params
	if cfg.Bare {
		p.Profile = ""
	}
	m, err = s.Scenario.Run(ctx, c.Target, p)
	if dead := c.Dead(); dead != nil {
		err = dead
	}
	if err != nil {
		keep = true
		err = fmt.Errorf("%w (the processes' logs are in %s)", err, cfg.Dir)
	}
	if serr := c.Stop(); serr != nil && s.Progress != nil {
		s.Progress(serr.Error())
	}
	return m, err
}
