package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// An agent is a process that holds a part of a crowd. It reads its orders as
// JSON values from standard input, the first being a crowdOrder, and answers
// each with a crowdAnswer. It ends when its input does.

type crowdOrder struct {
	Target Target
	Params Params
	First  int
	Count  int
}

type crowdAnswer struct {
	crowdState
	Error string `json:"error,omitempty"`
}

const (
	askState = "state"
	askPing  = "ping"
)

// RunAgent is an agent's life.
func RunAgent(ctx context.Context, in io.Reader, out io.Writer) error {
	orders, answers := json.NewDecoder(in), json.NewEncoder(out)
	var o crowdOrder
	if err := orders.Decode(&o); err != nil {
		return fmt.Errorf("read order: %w", err)
	}
	l, err := openLocal(ctx, o.Target, o.Params, o.First, o.Count)
	if err != nil {
		return errors.Join(err, answers.Encode(crowdAnswer{Error: err.Error()}))
	}
	defer l.close()
	for {
		var a crowdAnswer
		if err != nil {
			a.Error = err.Error()
		}
		a.crowdState, _ = l.state()
		if err := answers.Encode(a); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		var ask string
		if derr := orders.Decode(&ask); derr != nil {
			return nil
		}
		if err = nil; ask == askPing {
			err = l.ping(ctx)
		}
	}
}

// agents is a crowd in other processes. It is for one goroutine.
type agents struct {
	all []*Child
}

// startAgents spreads the crowd over p.Agents processes of this program and
// waits until all connections are open.
func startAgents(ctx context.Context, t Target, p Params) (*agents, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	as := &agents{}
	for i := range p.Agents {
		first, end := p.Clients*i/p.Agents, p.Clients*(i+1)/p.Agents
		a, err := StartChild(ctx, self, "agent", crowdOrder{Target: t, Params: p, First: first, Count: end - first})
		if err != nil {
			as.close()
			return nil, fmt.Errorf("start agent %d: %w", i+1, err)
		}
		as.all = append(as.all, a)
	}
	if _, err := as.answered(); err != nil {
		as.close()
		return nil, err
	}
	return as, nil
}

// ask asks all, and then collects the answers.
func (as *agents) ask(what string) (crowdState, error) {
	for _, a := range as.all {
		if err := a.Orders.Encode(what); err != nil {
			return crowdState{}, fmt.Errorf("ask agent: %w", err)
		}
	}
	return as.answered()
}

func (as *agents) answered() (sum crowdState, err error) {
	for _, a := range as.all {
		var s crowdAnswer
		if err := a.Answers.Decode(&s); err != nil {
			return sum, fmt.Errorf("agent's answer: %w", err)
		}
		if s.Error != "" {
			return sum, fmt.Errorf("agent: %s", s.Error)
		}
		sum.Deliveries += s.Deliveries
		sum.Lost += s.Lost
		sum.Last = max(sum.Last, s.Last)
	}
	return sum, nil
}

func (as *agents) state() (crowdState, error) { return as.ask(askState) }

func (as *agents) ping(context.Context) error {
	_, err := as.ask(askPing)
	return err
}

func (as *agents) close() { End(as.all...) }
