package drain

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/mics-im/mics/internal/fault"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/tests/load"
)

// Parts of the bench.
const (
	PartV2  = "v2"
	PartV1  = "v1"
	PartFar = "far"
)

// Config of a part.
type Config struct {
	Part string
	// Cluster: Bin and Env are looked at.
	Cluster load.ClusterConfig
	// Sessions are clients, an even number; Rate is messages per second of all of
	// them, Body bytes each. Agents are the processes that hold them.
	Sessions, Rate, Body, Agents int
	// Parallel is how many connect at once.
	Parallel int
	// Timeout of drains; Steady is how long is measured at rest; Over is about how
	// long the drains take that are cancelled or lose their leader, 0: as long as the
	// control plane thinks best, like the others.
	Timeout, Steady, Over time.Duration
	// RoundTrip is emulated, and Silence the share that falls silent, in part far.
	RoundTrip time.Duration
	// GapLimit is what the gap's p99 must stay below.
	GapLimit time.Duration
	// Progress is told what is being done; nil: nobody is.
	Progress func(string)
}

const (
	gateways = 3
	// sampleEvery: of so many pairs of V1 clients, one is none of the SDK's.
	sampleEvery = 50
	// silenceEvery: of so many pairs one falls silent: 5 %.
	silenceEvery = 20
	settleTime   = 30 * time.Second
)

const (
	phaseSteady    = "at rest"
	phaseDrain     = "drain"
	phaseUndrain   = "undrain"
	phaseRolling   = "rolling restart"
	phaseCancelled = "cancelled drain"
	phaseLeader    = "drain, leader killed"
	phaseAfter     = "afterwards"
)

// Check tells what is out of bounds.
func (c Config) Check() error {
	for _, b := range []struct {
		name          string
		v, least, top int
	}{
		{"sessions", c.Sessions, 2, 100_000}, {"rate", c.Rate, 1, 100_000}, {"body", c.Body, header, 1 << 20},
		{"agents", c.Agents, 1, 64}, {"parallel", c.Parallel, 1, 4096}, {"drain timeout in s", int(c.Timeout.Seconds()), 5, 600},
		{"steady in ms", int(c.Steady.Milliseconds()), 100, 600_000}, {"over in ms", int(c.Over.Milliseconds()), 0, 600_000},
		{"round trip in ms", int(c.RoundTrip.Milliseconds()), 0, 10_000},
	} {
		if b.v < b.least || b.v > b.top {
			return fmt.Errorf("%s: %d is not between %d and %d", b.name, b.v, b.least, b.top)
		}
	}
	if c.Sessions%2 != 0 || c.Sessions < 2*c.Agents {
		return errors.New("sessions: clients write to each other in pairs, and every agent needs one")
	}
	if c.Part != PartV2 && c.Part != PartV1 && c.Part != PartFar {
		return fmt.Errorf("there is no part %q", c.Part)
	}
	return nil
}

// bench is one run. It is for one goroutine.
type bench struct {
	cfg     Config
	dir     string // of the processes' logs
	cluster *load.Cluster
	op      *operator
	clients agents
	report  Report
	began   time.Time // of the phase
}

// Run runs a part on a cluster of its own.
func Run(ctx context.Context, cfg Config) (Report, error) {
	b := &bench{cfg: cfg, report: Report{Part: cfg.Part, Sessions: cfg.Sessions, Rate: cfg.Rate}}
	dir, err := os.MkdirTemp("", "mics-drain-")
	if err != nil {
		return b.report, err
	}
	b.dir = dir
	cluster := cfg.Cluster
	cluster.Dir, cluster.Gateways, cluster.Routers, cluster.ControlPlanes, cluster.Redis = dir, gateways, 2, 2, true
	cluster.Env = append(cluster.Env, "LOG_LEVEL=debug", fmt.Sprintf("DRAIN_TIMEOUT_SECONDS=%d", int(cfg.Timeout.Seconds())))
	b.report.Load = append(b.report.Load, loadAverage())
	b.cluster, err = load.StartCluster(ctx, cluster)
	if err != nil {
		return b.report, fmt.Errorf("%w (logs in %s)", err, dir)
	}
	err = b.run(ctx)
	b.clients.close()
	if dead := b.cluster.Dead(); dead != nil {
		err = errors.Join(dead, err)
	}
	if stop := b.cluster.Stop(); stop != nil { // what was measured is measured
		b.say(stop.Error())
	}
	b.report.Load = append(b.report.Load, loadAverage())
	if err != nil || b.report.Missed() {
		b.say("the processes' logs are in " + dir)
		return b.report, err
	}
	return b.report, os.RemoveAll(dir)
}

func (b *bench) say(text string) {
	if b.cfg.Progress != nil {
		b.cfg.Progress(b.cfg.Part + ": " + text)
	}
}

func (b *bench) run(ctx context.Context) error {
	cfg := b.cfg
	b.op = newOperator(b.cluster.Planes)
	o := order{
		URLs: b.cluster.URLs, Count: cfg.Sessions, V1: cfg.Part != PartV2, Rate: cfg.Rate, Body: cfg.Body, Parallel: cfg.Parallel,
	}
	script := b.script
	switch cfg.Part {
	case PartV1:
		o.Sample = sampleEvery
	case PartFar:
		o.Silence, o.Delay, o.Place = silenceEvery, cfg.RoundTrip/2, b.cluster.URLs[:1]
		script = b.far
	}
	b.say(fmt.Sprintf("connecting %d clients", cfg.Sessions))
	var err error
	if b.clients, err = startAgents(ctx, o, cfg.Agents); err != nil {
		return err
	}
	if err := b.clients.tell(ask{Do: begin}); err != nil {
		return err
	}
	if err := sleep(ctx, time.Second); err != nil { // to get going
		return err
	}
	broken := script(ctx)
	b.endPhase()
	if err := b.clients.tell(ask{Do: finish}); err != nil {
		return err
	}
	if err := b.clients.settle(ctx, settleTime); err != nil {
		return err
	}
	seen, err := b.clients.outcome()
	if err != nil {
		return err
	}
	j, err := readJournal(b.dir)
	if err != nil {
		return err
	}
	b.report.take(seen, j)
	b.report.judge(cfg, seen)
	return broken // what was seen until then is in the report
}

// phase begins one.
func (b *bench) phase(name string) error {
	b.endPhase()
	b.say(name)
	b.began = time.Now()
	b.report.Phases = append(b.report.Phases, Phase{Name: name})
	return b.clients.tell(ask{Do: markPhase, Name: name})
}

func (b *bench) endPhase() {
	if n := len(b.report.Phases); n > 0 {
		b.report.Phases[n-1].Seconds = time.Since(b.began).Seconds()
	}
}

func (b *bench) rest(ctx context.Context, name string) error {
	if err := b.phase(name); err != nil {
		return err
	}
	return sleep(ctx, b.cfg.Steady)
}

// script is what happens to clients that are near.
func (b *bench) script(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		func(ctx context.Context) error { return b.rest(ctx, phaseSteady) },
		b.drain, b.undrain, b.rolling, b.cancelled, b.leaderless,
		func(ctx context.Context) error { return b.rest(ctx, phaseAfter) },
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

const drainedFirst = load.Gateway + "-1"

func (b *bench) drain(ctx context.Context) error {
	if err := b.phase(phaseDrain); err != nil {
		return err
	}
	if _, err := b.op.serving(ctx, gateways); err != nil {
		return err
	}
	op, err := b.op.drain(ctx, drainedFirst, b.cfg.Timeout, 0)
	if err != nil {
		return err
	}
	return b.await(ctx, phaseDrain, op)
}

// await waits for a drain's end and keeps its receipt.
func (b *bench) await(ctx context.Context, phase string, op *controlv1.DrainOperation) error {
	op, err := b.op.await(ctx, op.GetOperationId(), final)
	if err == nil {
		b.report.Receipts = append(b.report.Receipts, receiptOf(phase, op))
	}
	return err
}

func (b *bench) undrain(ctx context.Context) error {
	if err := b.phase(phaseUndrain); err != nil {
		return err
	}
	if err := b.op.undrain(ctx, drainedFirst); err != nil {
		return err
	}
	_, err := b.op.serving(ctx, gateways)
	return err
}

// rolling restarts every gateway, as a deploy does: the next one when the one
// before is ready again.
func (b *bench) rolling(ctx context.Context) error {
	if err := b.phase(phaseRolling); err != nil {
		return err
	}
	since := time.Now().UnixMilli()
	for i := range gateways {
		name := fmt.Sprintf("%s-%d", load.Gateway, i+1)
		// Above it: there is the wait for the slot's answer, and finals to flush.
		if err := b.cluster.End(ctx, name, syscall.SIGTERM, b.cfg.Timeout+10*time.Second); err != nil {
			return err
		}
		if err := b.cluster.Again(ctx, name); err != nil {
			return err
		}
	}
	all, err := b.op.list(ctx, &controlv1.ListDrainsRequest{})
	if err != nil {
		return err
	}
	for _, op := range all {
		if op.GetCreatedAtMs() >= since {
			if err := b.await(ctx, phaseRolling, op); err != nil {
				return err
			}
		}
	}
	return nil
}

// begun begins a drain of the fullest gateway that takes about over, and waits until
// so much of it is done.
func (b *bench) begun(ctx context.Context, over time.Duration, share float64) (*controlv1.DrainOperation, error) {
	node, n, err := b.op.fullest(ctx, gateways)
	if err != nil {
		return nil, err
	}
	rate := 0.0
	if over > 0 {
		rate = float64(n) / over.Seconds()
	}
	op, err := b.op.drain(ctx, node, b.cfg.Timeout, rate)
	if err != nil {
		return nil, err
	}
	return b.op.await(ctx, op.GetOperationId(), func(op *controlv1.DrainOperation) bool {
		return final(op) || op.GetState() == controlv1.DrainState_DRAIN_STATE_DRAINING &&
			op.GetProgress().GetOperationId() == op.GetOperationId() && float64(op.GetProgress().GetLeft()) <= (1-share)*float64(n)
	})
}

func (b *bench) cancelled(ctx context.Context) error {
	if err := b.phase(phaseCancelled); err != nil {
		return err
	}
	// A drain may end before it is cancelled: the next one gets more time.
	for over := b.cfg.Over; ; over = max(5*time.Second, 3*over) {
		op, err := b.begun(ctx, over, 0.5)
		if err != nil {
			return err
		}
		switch err := b.op.cancel(ctx, op.GetOperationId()); {
		case fault.KindOf(err) == fault.FailedPrecondition && over < b.cfg.Timeout/2:
			b.say(fmt.Sprintf("once more, since %v", err))
			if err := b.await(ctx, phaseDrain, op); err != nil {
				return err
			}
			if err := b.op.undrain(ctx, op.GetNodeId()); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		if err := b.await(ctx, phaseCancelled, op); err != nil {
			return err
		}
		_, err = b.op.serving(ctx, gateways)
		return err
	}
}

// leaderless kills the control plane that leads, somewhere in a drain.
func (b *bench) leaderless(ctx context.Context) error {
	if err := b.phase(phaseLeader); err != nil {
		return err
	}
	op, err := b.begun(ctx, b.cfg.Over, 0.1+0.5*rand.Float64())
	if err != nil {
		return err
	}
	name, err := b.op.leader(ctx)
	if err != nil {
		return err
	}
	b.say(fmt.Sprintf("killing %s with %d sessions left", name, op.GetProgress().GetLeft()))
	if err := b.cluster.End(ctx, name, syscall.SIGKILL, 5*time.Second); err != nil {
		return err
	}
	if err := b.await(ctx, phaseLeader, op); err != nil {
		return err
	}
	return b.cluster.Again(ctx, name)
}

// far drains a gateway whose clients are all far away, and some of them silent.
func (b *bench) far(ctx context.Context) error {
	if err := b.rest(ctx, phaseSteady); err != nil {
		return err
	}
	if err := b.clients.tell(ask{Do: silence}); err != nil {
		return err
	}
	if err := b.drain(ctx); err != nil {
		return err
	}
	return b.rest(ctx, phaseAfter)
}

// loadAverage is of the last minute.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
