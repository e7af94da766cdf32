package load

import (
	"context"
	"sync/atomic"
	"time"
)

// Saturation sends 1:1 messages in a closed loop: every client has Window
// messages under way, and sends the next one when one is answered. With two
// gateways every message crosses from one to the other.
func Saturation(ctx context.Context, t Target, p Params) ([]Metric, error) {
	var n tally
	var running atomic.Bool
	send := func(c *Client) {
		n.sent.Add(1)
		_ = c.Send(0) // a broken connection is counted when its reading ends
	}
	s, err := OpenSwarm(ctx, t, p, 0, p.Clients&^1, Events{
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
	s.PrepareDirect(p.Body)
	running.Store(true)
	for range p.Window {
		for _, c := range s.Clients {
			send(c)
		}
	}
	u, units, err := measure(ctx, t, p, &n.delivered)
	running.Store(false)
	if err != nil {
		return nil, err
	}
	n.settle(ctx, 1)
	if err := s.whole(); err != nil {
		return nil, err
	}
	return append(u.costs(t.Procs, "message", units, 45), n.outcome(1)...), nil
}

// measure is the usage of the time Duration after Warmup, and how much counter
// rose meanwhile.
func measure(ctx context.Context, t Target, p Params, counter *atomic.Int64) (u usage, units int64, err error) {
	if err := sleep(ctx, p.Warmup); err != nil {
		return usage{}, 0, err
	}
	m, err := startMeter(t.Procs, p)
	if err != nil {
		return usage{}, 0, err
	}
	before := counter.Load()
	err = sleep(ctx, p.Duration)
	u, merr := m.stop()
	if err == nil {
		err = merr
	}
	return u, counter.Load() - before, err
}

// OpenLoop sends 1:1 messages at Rate, whatever becomes of them, and measures
// from the time at which each was due: what waits behind a slow one is slow too,
// and is counted so.
func OpenLoop(ctx context.Context, t Target, p Params) ([]Metric, error) {
	clk, err := newClock()
	if err != nil {
		return nil, err
	}
	var n tally
	var from, until atomic.Int64 // messages that are due in between are measured
	end := &Histogram{}
	s, err := OpenSwarm(ctx, t, p, 0, p.Clients&^1, Events{
		Delivery: func(_ *Client, d []byte) {
			now := clk.now()
			n.delivered.Add(1)
			if due, err := stampOf(d); err == nil && due >= from.Load() && due < until.Load() {
				end.Add(time.Duration(now - due))
			}
		},
		Ack: func(_ *Client, sent bool, reason string) { n.ack(sent, reason) },
	})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	s.PrepareDirect(p.Body)

	start := clk.now() + int64(10*time.Millisecond)
	from.Store(start + int64(p.Warmup))
	until.Store(start + int64(p.Warmup+p.Duration))
	interval := time.Second / time.Duration(p.Rate)
	late := &Histogram{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		i := 0
		clk.pace(start, interval, int((p.Warmup+p.Duration)/interval), func(due int64) bool {
			if due >= from.Load() {
				late.Add(time.Duration(clk.now() - due))
			}
			n.sent.Add(1)
			_ = s.Clients[i%len(s.Clients)].Send(due)
			i++
			return ctx.Err() == nil
		})
	}()
	u, units, err := measure(ctx, t, p, &n.delivered)
	<-done // it ends soon after Duration or with ctx
	if err != nil {
		return nil, err
	}
	n.settle(ctx, 1)
	if err := s.whole(); err != nil {
		return nil, err
	}
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	out := []Metric{
		{Name: "end to end p50", Unit: "ms", Value: ms(end.Quantile(0.5)), Limit: 0.7},
		{Name: "end to end p99", Unit: "ms", Value: ms(end.Quantile(0.99)), Limit: 5},
		{Name: "end to end max", Unit: "ms", Value: ms(end.Largest())},
		{Name: "· of it the generator's own lateness p50", Unit: "ms", Value: ms(late.Quantile(0.5))},
		{Name: "· of it the generator's own lateness p99", Unit: "ms", Value: ms(late.Quantile(0.99))},
	}
	return append(append(out, u.costs(t.Procs, "message", units, 150)...), n.outcome(1)...), nil
}
