package drain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/mics-im/mics/tests/load"
)

// An agent is a process that holds a part of the clients. It reads its orders as
// JSON values from standard input, the first being an order, the others asks, and
// answers each. It ends when its input does.

type ask struct {
	Do doing
	// Name of the phase, of markPhase.
	Name string `json:",omitempty"`
}

type doing string

const (
	markPhase doing = "mark"
	begin     doing = "begin"
	finish    doing = "finish"
	silence   doing = "silence"
	isSettled doing = "settled"
	tell      doing = "tell"
)

type answer struct {
	Error   string   `json:",omitempty"`
	Settled bool     `json:",omitempty"`
	Outcome *outcome `json:",omitempty"`
}

// RunAgent is an agent's life.
func RunAgent(ctx context.Context, in io.Reader, out io.Writer) error {
	orders, answers := json.NewDecoder(in), json.NewEncoder(out)
	var o order
	if err := orders.Decode(&o); err != nil {
		return fmt.Errorf("read order: %w", err)
	}
	c, err := openCrowd(ctx, o)
	if err != nil {
		return errors.Join(err, answers.Encode(answer{Error: err.Error()}))
	}
	defer c.close()
	for a := (answer{}); ; {
		if err := answers.Encode(a); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		var q ask
		if orders.Decode(&q) != nil {
			return nil // the end
		}
		a = c.do(q)
	}
}

func (c *crowd) do(q ask) (a answer) {
	switch q.Do {
	case markPhase:
		c.mark(q.Name)
	case begin:
		c.begin()
	case finish:
		c.finish()
	case silence:
		c.silence()
	case isSettled:
		a.Settled = c.settled()
	case tell:
		o := c.outcome()
		a.Outcome = &o
	default:
		a.Error = fmt.Sprintf("unknown order %q", q.Do)
	}
	return a
}

// agents are all clients. It is for one goroutine.
type agents []*load.Child

// startAgents spreads the clients of o over n processes and waits until all are
// connected.
func startAgents(ctx context.Context, o order, n int) (as agents, err error) {
	defer func() {
		if err != nil {
			as.close()
			as = nil
		}
	}()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	pairs := o.Count / 2
	for i := range n {
		part := o
		first, end := pairs*i/n, pairs*(i+1)/n
		part.First, part.Count = o.First+2*first, 2*(end-first)
		part.Rate, part.Parallel = o.Rate*(end-first)/pairs, max(1, o.Parallel/n)
		a, err := load.StartChild(ctx, self, "drain-agent", part)
		if err != nil {
			return as, fmt.Errorf("start agent %d: %w", i+1, err)
		}
		as = append(as, a)
	}
	return as, as.answered(func(answer) {})
}

// ask asks all, and then takes the answers.
func (as agents) ask(q ask, take func(answer)) error {
	for _, a := range as {
		if err := a.Orders.Encode(q); err != nil {
			return fmt.Errorf("ask agent: %w", err)
		}
	}
	return as.answered(take)
}

func (as agents) tell(q ask) error { return as.ask(q, func(answer) {}) }

func (as agents) answered(take func(answer)) error {
	for _, a := range as {
		var got answer
		if err := a.Answers.Decode(&got); err != nil {
			return fmt.Errorf("agent's answer: %w", err)
		}
		if got.Error != "" {
			return fmt.Errorf("agent: %s", got.Error)
		}
		take(got)
	}
	return nil
}

// settle waits until nothing is under way any more, so long at most.
func (as agents) settle(ctx context.Context, within time.Duration) error {
	for deadline := time.Now().Add(within); ; {
		all := true
		err := as.ask(ask{Do: isSettled}, func(a answer) { all = all && a.Settled })
		if err != nil || all || time.Now().After(deadline) {
			return err
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// outcome adds up what all have seen.
func (as agents) outcome() (sum outcome, err error) {
	sum.Seen = map[string]*Seen{}
	err = as.ask(ask{Do: tell}, func(a answer) {
		o := a.Outcome
		if o == nil {
			return
		}
		for name, s := range o.Seen {
			if sum.Seen[name] == nil {
				sum.Seen[name] = &Seen{}
			}
			sum.Seen[name].merge(s)
		}
		sum.Audit.add(o.Audit)
		sum.Ended += o.Ended
		sum.Responsive += o.Responsive
		sum.Told += o.Told
		sum.ToldAfter = max(sum.ToldAfter, o.ToldAfter)
		if room := maxExamples - len(sum.Oddities); room > 0 {
			sum.Oddities = append(sum.Oddities, o.Oddities[:min(room, len(o.Oddities))]...)
		}
	})
	return sum, err
}

func (as agents) close() { load.End(as...) }

// sleep waits; ctx ends it early, with its error.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
