package load

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"time"
)

// Outage is an open loop of 1:1 messages in the middle of which something is
// taken away, and later given back. What messages must not notice is compared
// within the one run.
type Outage struct {
	// Steady is how long is measured before, and again after; Down how long it is
	// away; Settle what is not measured once it is back, and before all.
	Steady, Down, Settle time.Duration
	// Away takes it away and returns when it is gone; Back returns when it is there
	// again. What Back takes is not measured either.
	Away, Back func()
	// Ratio is how much slower the median may be while it is away.
	Ratio float64
}

// OutageResult is what became of the messages of an Outage.
type OutageResult struct {
	Metrics []Metric
	// Sent is how many were answered SENT.
	Sent int64
}

// period is an interval of an Outage, by the times at which messages were due.
type period struct {
	name        string
	from, until atomic.Int64
	took        Histogram
	usage       usage
	units       int64
}

func newPeriod(name string) *period {
	p := &period{name: name}
	p.from.Store(math.MaxInt64)
	p.until.Store(math.MaxInt64)
	return p
}

// Run runs it. Of p it looks at Clients, Rate, Body, Parallel and Device.
func (o Outage) Run(ctx context.Context, t Target, p Params) (OutageResult, error) {
	clk, err := newClock()
	if err != nil {
		return OutageResult{}, err
	}
	periods := []*period{newPeriod("before"), newPeriod("away"), newPeriod("after")}
	var n tally
	with := &Histogram{} // before and after together
	s, err := OpenSwarm(ctx, t, p, 0, p.Clients&^1, Events{
		Delivery: func(_ *Client, d []byte) {
			now := clk.now()
			n.delivered.Add(1)
			due, err := stampOf(d)
			if err != nil {
				return
			}
			for i, d := range periods {
				if due < d.from.Load() || due >= d.until.Load() {
					continue
				}
				d.took.Add(time.Duration(now - due))
				if i != 1 {
					with.Add(time.Duration(now - due))
				}
			}
		},
		Ack: func(_ *Client, sent bool, reason string) { n.ack(sent, reason) },
	})
	if err != nil {
		return OutageResult{}, err
	}
	defer s.Close()
	s.PrepareDirect(p.Body)
	traffic, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { // ends with traffic
		defer close(done)
		i := 0
		clk.pace(clk.now(), time.Second/time.Duration(p.Rate), math.MaxInt, func(due int64) bool {
			n.sent.Add(1)
			_ = s.Clients[i%len(s.Clients)].Send(due)
			i++
			return traffic.Err() == nil
		})
	}()
	err = o.periods(ctx, t, clk, periods, &n.delivered)
	stop()
	<-done
	if err != nil {
		return OutageResult{}, err
	}
	n.settle(ctx, 1)
	if err := s.whole(); err != nil {
		return OutageResult{}, err
	}
	return OutageResult{Metrics: append(o.metrics(t, periods, with), n.outcome(1)...), Sent: n.acked.Load()}, nil
}

// periods goes through them.
func (o Outage) periods(ctx context.Context, t Target, clk clock, periods []*period, done *atomic.Int64) error {
	if err := sleep(ctx, o.Settle); err != nil {
		return err
	}
	for i, p := range periods {
		d := o.Steady
		switch i {
		case 1:
			d = o.Down
			p.from.Store(clk.now()) // its end is part of it
			o.Away()
		case 2:
			o.Back()
			if err := sleep(ctx, o.Settle); err != nil {
				return err
			}
		}
		m, err := startMeter(t.Procs, Params{})
		if err != nil {
			return err
		}
		before := done.Load()
		if i != 1 {
			p.from.Store(clk.now())
		}
		err = sleep(ctx, d)
		p.until.Store(clk.now())
		p.units = done.Load() - before
		if p.usage, err = m.end(err); err != nil {
			return err
		}
	}
	return nil
}

// end is stop after work that may have failed.
func (m *meter) end(failed error) (usage, error) {
	u, err := m.stop()
	if failed != nil {
		err = failed
	}
	return u, err
}

func (o Outage) metrics(t Target, periods []*period, with *Histogram) []Metric {
	const p50, p99 = 0.5, 0.99
	var out []Metric
	for _, p := range periods {
		for _, q := range []float64{p50, p99} {
			out = append(out, Metric{Name: fmt.Sprintf("%s: end to end p%.0f", p.name, q*100), Unit: "ms", Value: float64(p.took.Quantile(q)) / float64(time.Millisecond)})
		}
		for _, m := range p.usage.costs(t.Procs, "message", p.units, 0) {
			if m.Name == "· "+Router || m.Name == "processors busy with other things" || m.Name == "rate" {
				m.Name = p.name + ": " + m.Name
				out = append(out, m)
			}
		}
	}
	ratio := func(q float64, to *Histogram) float64 {
		return float64(periods[1].took.Quantile(q)) / max(1, float64(to.Quantile(q)))
	}
	cpu := func(of ...*period) float64 {
		used, units := time.Duration(0), int64(0)
		for _, p := range of {
			for i, proc := range t.Procs {
				if proc.Kind() == Router {
					used += p.usage.cpu[i]
				}
			}
			units += p.units
		}
		return float64(used) / float64(max(units, 1))
	}
	return append(out,
		Metric{Name: "router's CPU per message, away / before and after", Unit: "×", Value: cpu(periods[1]) / max(1, cpu(periods[0], periods[2]))},
		Metric{Name: "p50 away / p50 before and after", Unit: "×", Value: ratio(p50, with), Limit: o.Ratio},
		Metric{Name: "· / before alone", Unit: "×", Value: ratio(p50, &periods[0].took)},
		Metric{Name: "· / after alone", Unit: "×", Value: ratio(p50, &periods[2].took)},
		Metric{Name: "p99 away / p99 before and after", Unit: "×", Value: ratio(p99, with)},
	)
}
