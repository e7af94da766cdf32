package load

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// settleTime is what servers get after the last connect or close, for what they
// do about it behind the scenes; it is measured too.
const settleTime = time.Second

// Connect opens Clients connections, Parallel at once, and closes them, and
// measures what one of each costs. Hooks are part of it, the tenant's own CPU is
// told apart.
func Connect(ctx context.Context, t Target, p Params) ([]Metric, error) {
	if err := rehearse(ctx, t, p); err != nil {
		return nil, err
	}
	m, err := startMeter(t.Procs, p)
	if err != nil {
		return nil, err
	}
	s, err := OpenSwarm(ctx, t, p, 0, p.Clients, Events{})
	if err == nil {
		err = sleep(ctx, settleTime)
	}
	u, merr := m.stop()
	if err != nil {
		return nil, err
	}
	out := append(u.costs(t.Procs, "connect", int64(p.Clients), 200), Metric{Name: "connects tried again", Value: float64(s.Retries)})
	err = s.whole()
	if err == nil {
		err = merr
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	if m, err = startMeter(t.Procs, Params{}); err != nil {
		s.Close()
		return nil, err
	}
	s.Close()
	err = sleep(ctx, settleTime)
	if u, merr = m.stop(); err == nil {
		err = merr
	}
	return append(out, u.costs(t.Procs, "close", int64(p.Clients), 0)[0]), err
}

// rehearse opens and closes some connections, as another device, so that what
// is loaded and grown once is not counted.
func rehearse(ctx context.Context, t Target, p Params) error {
	p.Device = "rehearsal"
	s, err := OpenSwarm(ctx, t, p, 0, max(p.Clients/8, 1), Events{})
	if err != nil {
		return fmt.Errorf("warm-up: %w", err)
	}
	s.Close()
	return sleep(ctx, settleTime)
}

// Idle opens Clients connections that exchange one heartbeat and then nothing,
// and measures after Duration what the processes have resident more.
func Idle(ctx context.Context, t Target, p Params) ([]Metric, error) {
	if err := rehearse(ctx, t, p); err != nil {
		return nil, err
	}
	before, err := memories(t.Procs)
	if err != nil {
		return nil, err
	}
	c, err := openCrowd(ctx, t, p)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.ping(ctx); err != nil {
		return nil, err
	}
	if err := sleep(ctx, p.Duration); err != nil {
		return nil, err
	}
	after, err := memories(t.Procs)
	if err != nil {
		return nil, err
	}
	state, err := c.state()
	if err == nil && state.Lost > 0 {
		err = fmt.Errorf("%d %w", state.Lost, errLost)
	}
	if err != nil {
		return nil, err
	}
	each := func(kind string, of func(Memory) int64) (kib float64) {
		for i, proc := range t.Procs {
			if proc.Kind() == kind {
				kib += float64(of(after[i])-of(before[i])) / 1024 / float64(p.Clients)
			}
		}
		return kib
	}
	all := func(m Memory) int64 { return m.All }
	return []Metric{
		{Name: "resident per idle connection in the gateway", Unit: "KiB", Value: each(Gateway, all), Limit: 10},
		{Name: "· of it anonymous", Unit: "KiB", Value: each(Gateway, func(m Memory) int64 { return m.Anonymous })},
		{Name: "resident per idle connection in the routers", Unit: "KiB", Value: each(Router, all)},
		{Name: "resident per idle connection in Redis", Unit: "KiB", Value: each(Redis, all)},
	}, nil
}

func memories(procs []Proc) ([]Memory, error) {
	out := make([]Memory, len(procs))
	for i, p := range procs {
		var err error
		if out[i], err = p.Memory(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// crowd is many clients that only receive, in this process or in agents.
type crowd interface {
	state() (crowdState, error)
	// ping exchanges a heartbeat on every connection.
	ping(ctx context.Context) error
	close()
}

// crowdState is what a crowd has seen.
type crowdState struct {
	Deliveries int64 `json:"deliveries"`
	// Last is when the last delivery came, on the machine's monotonic clock.
	Last int64 `json:"last"`
	// Lost connections ended by themselves.
	Lost int64 `json:"lost"`
}

// openCrowd opens p.Clients connections.
func openCrowd(ctx context.Context, t Target, p Params) (crowd, error) {
	if p.Agents > 0 {
		return startAgents(ctx, t, p)
	}
	return openLocal(ctx, t, p, 0, p.Clients)
}

// localCrowd is a crowd in this process.
type localCrowd struct {
	swarm                   *Swarm
	deliveries, last, pongs atomic.Int64
}

func openLocal(ctx context.Context, t Target, p Params, first, n int) (*localCrowd, error) {
	clk, err := newClock()
	if err != nil {
		return nil, err
	}
	l := &localCrowd{}
	l.swarm, err = OpenSwarm(ctx, t, p, first, n, Events{
		Delivery: func(*Client, []byte) {
			now := clk.now()
			for last := l.last.Load(); now > last && !l.last.CompareAndSwap(last, now); last = l.last.Load() {
			}
			l.deliveries.Add(1)
		},
		Pong: func(*Client) { l.pongs.Add(1) },
	})
	return l, err
}

func (l *localCrowd) state() (crowdState, error) {
	// In this order Last is at least as new as the count.
	return crowdState{Deliveries: l.deliveries.Load(), Last: l.last.Load(), Lost: l.swarm.Lost()}, nil
}

func (l *localCrowd) ping(ctx context.Context) error {
	want := l.pongs.Load() + int64(len(l.swarm.Clients))
	for _, c := range l.swarm.Clients {
		if err := c.Ping(); err != nil {
			return err
		}
	}
	if !waitFor(ctx, roundTimeout, func() bool { return l.pongs.Load() >= want }) {
		return fmt.Errorf("%d heartbeats were not answered", want-l.pongs.Load())
	}
	return nil
}

func (l *localCrowd) close() { l.swarm.Close() }
