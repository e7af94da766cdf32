package chaos

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/mics-im/mics/tests/chaos/history"
	"github.com/mics-im/mics/tests/chaos/nemesis"
	"github.com/mics-im/mics/tests/harness"
)

// bounds of one run, which is about 12 s long.
const (
	joinWithin = 20 * time.Second
	// calm is at either end of the faults: talk, and nothing wrong.
	calm = time.Second
	// quiet is the longest time given to what is under way at the end; a run
	// that has nothing open ends sooner.
	quiet = 30 * time.Second
	// echo is for repeats that come when all has come.
	echo = time.Second
	// slack is for what comes after a drain's timeout, and for a machine that is busy with
	// everything else.
	slack = 5 * time.Second
	// lease is how long before its lease runs out a process may have renewed it last:
	// it lasts 3 s and is renewed every second.
	lease = 2 * time.Second
	// linkDelay is added each way by a nemesis.Delay.
	linkDelay = 100 * time.Millisecond
)

// result is what one run gave.
type result struct {
	seed     uint64
	plan     []nemesis.Fault
	began    time.Duration // of the plan, in the history's time
	events   []history.Event
	report   history.Report
	problems []string // beside the history: dead processes, exit codes, never quiet
	dropped  float64  // counted losses in the routers: full buffers
	took     time.Duration
}

func (r *result) clean() bool { return len(r.report.Violations) == 0 && len(r.problems) == 0 }

// setup of a run.
type setup struct {
	seed   uint64
	plan   []nemesis.Fault
	users  int // per tenant
	rate   float64
	length time.Duration // of the talk
	drain  time.Duration // the gateways' drain timeout
}

var tenants = []string{"acme", "other"}

// runOnce has users talk for a while with the plan's faults and judges what they
// saw. It leaves the cluster healed.
func runOnce(c *harness.Cluster, s setup) *result {
	r := &result{seed: s.seed, plan: s.plan}
	start := time.Now()
	defer func() { r.took = time.Since(start) }()
	before := dropped(c)
	w := newWorkload(c, tenants, s.seed, s.users, s.rate)
	defer w.close()
	if !w.join(joinWithin) {
		r.problems = append(r.problems, "not everybody could connect, before anything went wrong")
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.length)
	defer cancel()
	var talk, faults sync.WaitGroup
	talk.Go(func() { w.run(ctx) })
	n := &inflictor{cluster: c, history: w.history, drain: s.drain}
	pause(ctx, calm)
	began := time.Now()
	w.history.Add(history.Event{Kind: history.Fault, Reason: "plan"})
	r.began = last(w.history.Events()).At
	for _, f := range s.plan {
		faults.Go(func() { n.inflict(began, f) })
	}
	faults.Wait()
	talk.Wait()
	n.later.Wait()
	r.problems = append(r.problems, n.problems...)
	if !w.join(joinWithin) {
		r.problems = append(r.problems, "not everybody was connected again in the end")
	}
	r.settle(w)
	r.problems = append(r.problems, c.Problems()...)
	r.dropped = dropped(c) - before
	return r
}

func last(events []history.Event) history.Event { return events[len(events)-1] }

// settle waits until the history has nothing open.
func (r *result) settle(w *workload) {
	for deadline := time.Now().Add(quiet); ; time.Sleep(200 * time.Millisecond) {
		r.events = w.history.Events()
		r.report = history.Check(r.events)
		if !open(r.report) || time.Now().After(deadline) {
			break
		}
	}
	time.Sleep(echo) // a real second for what should not come
	r.events = w.history.Events()
	r.report = history.Check(r.events)
}

// open: there is a violation that time may heal.
func open(r history.Report) bool {
	for _, v := range r.Violations {
		switch v.Rule {
		case history.Lost, history.Unanswered, history.Ended:
			return true
		}
	}
	return false
}

// dropped is what the routers count as lost by a bound.
func dropped(c *harness.Cluster) float64 {
	return c.Sum("r", "mics_offline_dropped_total") + c.Sum("r", "mics_copies_lost_total")
}

// inflictor executes faults.
type inflictor struct {
	cluster *harness.Cluster
	history *history.History
	drain   time.Duration // the gateways' drain timeout

	later    sync.WaitGroup
	mu       sync.Mutex
	problems []string // guarded by mu
}

func (n *inflictor) inflict(began time.Time, f nemesis.Fault) {
	time.Sleep(time.Until(began.Add(f.At))) // the plan is in real time
	reason := f.Class()
	switch f.Kind {
	case nemesis.Kill:
		reason = history.Killed
	case nemesis.Pause:
		reason = history.Frozen
	default:
		if isolates(f) {
			reason = history.CutOff
		}
	}
	n.history.Add(history.Event{Kind: history.Fault, Node: f.Target, Reason: reason})
	heal := n.begin(f)
	time.Sleep(time.Until(began.Add(f.At + f.For)))
	heal()
	n.history.Add(history.Event{Kind: history.Heal, Node: f.Target, Reason: f.Class()})
}

// isolates tells whether nobody hears the target for so long that it counts as dead.
func isolates(f nemesis.Fault) bool {
	return (f.Kind == nemesis.Cut || f.Kind == nemesis.Blackhole) && f.From == nemesis.Any && f.For >= lease
}

// begin makes a fault happen and returns what makes it good.
func (n *inflictor) begin(f nemesis.Fault) (heal func()) {
	if f.From != "" {
		return n.link(f)
	}
	if f.Kind == nemesis.Flush {
		n.cluster.FlushRedis()
		return func() {}
	}
	p := n.cluster.Process(f.Target)
	switch f.Kind {
	case nemesis.Pause:
		p.Pause()
		return func() {
			p.Resume()
			n.supervise(p)
		}
	case nemesis.Terminate:
		p.Terminate()
		asked := time.Now()
		return func() {
			code, waited := p.Ended()
			if code != 0 {
				n.problem("%s ended with code %d after SIGTERM", p.Name, code)
			}
			// Where it had ended before, it was in time by all means.
			if took := time.Since(asked); waited > slack && took > n.drain+slack {
				n.problem("%s took %v to end", p.Name, took)
			}
			p.Start()
		}
	default:
		p.Kill()
		return p.Start
	}
}

// supervise starts a process anew that ends because it had been declared dead.
func (n *inflictor) supervise(p *harness.Process) {
	n.later.Go(func() { p.Supervise(n.drain + slack) })
}

func (n *inflictor) problem(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.problems = append(n.problems, fmt.Sprintf(format, args...))
}

func (n *inflictor) link(f nemesis.Fault) (heal func()) {
	c := harness.Condition{}
	switch f.Kind {
	case nemesis.Cut:
		c.Cut = true
	case nemesis.Blackhole:
		c.Blackhole = true
	default:
		c.Delay = linkDelay
	}
	set := func(c harness.Condition) {
		if f.From == nemesis.Any {
			n.cluster.Net.Isolate(f.Target, c)
		} else {
			n.cluster.Net.Set(f.From, f.Target, c)
		}
	}
	set(c)
	return func() {
		set(harness.Condition{})
		if isolates(f) {
			n.supervise(n.cluster.Process(f.Target))
		}
	}
}
