package load

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// Fanout sends group messages in a closed loop, Window per group, with as many
// groups of each size as there are clients for, and measures what one delivery
// costs.
func Fanout(ctx context.Context, t Target, p Params) ([]Metric, error) {
	var out []Metric
	for _, size := range p.Sizes {
		if size < 1 || size > p.Clients {
			return nil, fmt.Errorf("group size: %d is not between 1 and the number of clients, %d", size, p.Clients)
		}
		m, err := fanout(ctx, t, p, size)
		if err != nil {
			return nil, fmt.Errorf("groups of %d: %w", size, err)
		}
		for i := range m {
			m[i].Name = fmt.Sprintf("groups of %d: %s", size, m[i].Name)
		}
		out = append(out, m...)
	}
	return out, nil
}

func fanout(ctx context.Context, t Target, p Params, size int) ([]Metric, error) {
	var n tally
	var running atomic.Bool
	send := func(c *Client) {
		n.sent.Add(1)
		_ = c.Send(0)
	}
	groups := p.Clients / size
	s, err := OpenSwarm(ctx, t, p, 0, groups*size, Events{
		Delivery: func(*Client, []byte) { n.delivered.Add(1) },
		Ack: func(c *Client, sent bool, reason string) {
			n.ack(sent, reason)
			if running.Load() {
				send(c)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	running.Store(true)
	for k := range groups {
		c := s.Clients[k*size]
		c.prepare("", GroupID(size, k), s.prefix+uint32(c.N), p.Body)
		for range p.Window {
			send(c)
		}
	}
	u, units, err := measure(ctx, t, p, &n.delivered)
	running.Store(false)
	if err != nil {
		return nil, err
	}
	n.settle(ctx, int64(size))
	if err := s.whole(); err != nil {
		return nil, err
	}
	return append(u.costs(t.Procs, "delivery", units, 14), n.outcome(int64(size))...), nil
}

const (
	// roundTimeout is for one message to reach all members.
	roundTimeout = 30 * time.Second
	// roundPause lets the processes come to rest.
	roundPause = 500 * time.Millisecond
)

// BigGroup sends Rounds messages, one after the other, to a group that all
// Clients are in, and measures the time until the last member has it.
func BigGroup(ctx context.Context, t Target, p Params) ([]Metric, error) {
	c, err := openCrowd(ctx, t, p)
	if err != nil {
		return nil, err
	}
	defer c.close()
	clk, err := newClock()
	if err != nil {
		return nil, err
	}
	var n tally
	var acked atomic.Int64
	// The sender is somebody else, so that it need not be in any agent.
	s, err := OpenSwarm(ctx, t, p, p.Clients, 1, Events{
		Ack: func(_ *Client, sent bool, reason string) {
			acked.Store(clk.now())
			n.ack(sent, reason)
		},
	})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	s.Clients[0].prepare("", GroupID(p.Clients, 0), s.prefix, p.Body)

	last, ack := &Histogram{}, &Histogram{}
	if err := sleep(ctx, p.Warmup); err != nil {
		return nil, err
	}
	m, err := startMeter(t.Procs, p)
	if err != nil {
		return nil, err
	}
	var lost int64
	for r := range p.Rounds {
		start := clk.now()
		n.sent.Add(1)
		if err := s.Clients[0].Send(start); err != nil {
			return nil, err
		}
		var seen crowdState
		var serr error
		want := int64(r+1) * int64(p.Clients)
		waitFor(ctx, roundTimeout, func() bool {
			seen, serr = c.state()
			return serr != nil || n.failed.Load() > 0 || seen.Deliveries >= want && n.acked.Load() == n.sent.Load()
		})
		if serr != nil {
			return nil, serr
		}
		if seen.Deliveries < want || n.acked.Load() < n.sent.Load() {
			return nil, fmt.Errorf("message %d: %d of %d deliveries in time, %d answers (%s)", r+1,
				seen.Deliveries-want+int64(p.Clients), p.Clients, n.acked.Load()+n.failed.Load(), n.outcome(1)[0].Note)
		}
		last.Add(time.Duration(seen.Last - start))
		ack.Add(time.Duration(acked.Load() - start))
		n.delivered.Store(seen.Deliveries)
		lost = seen.Lost
		if err := sleep(ctx, roundPause); err != nil {
			return nil, err
		}
	}
	u, err := m.stop()
	if err != nil {
		return nil, err
	}
	if lost+s.Lost() > 0 {
		return nil, fmt.Errorf("%d %w", lost+s.Lost(), errLost)
	}
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	out := []Metric{
		{Name: "last delivery p50", Unit: "ms", Value: ms(last.Quantile(0.5)), LimitBare: 0.65},
		{Name: "last delivery max", Unit: "ms", Value: ms(last.Largest())},
		{Name: "ack p50", Unit: "ms", Value: ms(ack.Quantile(0.5))},
	}
	return append(append(out, u.costs(t.Procs, "delivery", n.delivered.Load(), 14)...), n.outcome(int64(p.Clients))...), nil
}
