package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/mics-im/mics/gateway/internal/drainer"
	"github.com/mics-im/mics/gateway/internal/session"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// Budgets of the steps of a stop besides the drain: of one at most, of one when
// the drain timeout is over, and of all of them.
const (
	stepBudget = 2 * time.Second
	lastChance = 200 * time.Millisecond
	stopBudget = 5 * time.Second
	// slotShare of the drain timeout is what a gateway waits for the control plane
	// to let it drain, at most.
	slotShare = 0.25
)

// drainShare is what of the drain timeout the sessions get: the process is to be
// gone within it.
func drainShare(timeout time.Duration) time.Duration {
	return timeout - min(max(timeout/10, 250*time.Millisecond), 2*time.Second)
}

// Stop drains: it ends every session in good order, gives the lease back and ends
// everything, within Config.DrainTimeout and a little. A second call does
// nothing. An error says what was cut short.
func (g *Gateway) Stop(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.teardown.Unwind(ctx)
}

// pushStop registers how what Start has started ends; read it from the bottom.
func (g *Gateway) pushStop() {
	push := func(name string, f func(context.Context) error) { g.teardown.Push(name, stepBudget, f) }
	push("lease", func(ctx context.Context) error {
		g.leaving.Store(true)
		g.setPhase(gatewayv1.Phase_PHASE_DRAINED)
		return g.inTime(g.uplink.Stop)(ctx)
	})
	push("orphans", func(context.Context) error { g.orphans.Stop(); return nil })
	// Its streams end before the server that carries them waits for them.
	push("downlink", func(context.Context) error { g.downlink.Close(); return nil })
	var drained *gatewayv1.DrainProgress // by an operation of the control plane
	push("receipt", g.inTime(func(ctx context.Context) error {
		if drained != nil {
			g.slots.Drained(ctx, &controlv1.TerminateRequest{NodeId: g.ref.GetNodeId(), Incarnation: g.ref.GetIncarnation(), Drained: drained})
		}
		return nil
	}))
	push("hand-back", g.inTime(g.uplink.Flush))
	push("sessions", g.inTime(g.sessions.Stop))
	push("handshakes", g.inTime(g.upgrades.Stop))
	push("evacuation", g.evacuation.wait) // the drain leaves it nothing to do
	g.teardown.Push("drain", g.cfg.DrainTimeout+stepBudget, func(ctx context.Context) error {
		g.stopBy = time.Now().Add(g.cfg.DrainTimeout)
		g.drainer.End()
		known := g.drainer.Progress().GetDone() // then the control plane has asked, and its operation is over
		order := g.awaitSlot(ctx)
		g.evacuation.forbid()
		g.drain(ctx, order)
		if p := g.drainer.Progress(); !known && p.GetOperationId() != drainer.OwnOperation {
			drained = p
		}
		return nil
	})
	push("steering", func(context.Context) error { g.steerer.Stop(); return nil })
}

// inTime gives a step what is left of the drain timeout, at least lastChance.
func (g *Gateway) inTime(f func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, max(time.Until(g.stopBy), lastChance))
		defer cancel()
		return f(ctx)
	}
}

func (g *Gateway) setPhase(p gatewayv1.Phase) {
	g.phase.Store(int32(p))
	g.uplink.Announce()
}

// awaitSlot waits, serving, for the control plane to say how this gateway is to
// drain. It does not wait when there is nothing to wait for.
func (g *Gateway) awaitSlot(ctx context.Context) (order drainer.Order) {
	if g.sessions.Len() == 0 || g.drainer.Progress() != nil || g.isSuperseded() || g.isFenced() {
		return drainer.Order{}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(slotShare*float64(g.cfg.DrainTimeout)))
	defer cancel()
	granted := g.slots.Await(ctx, g.drainer.Begun(), func() *controlv1.TerminateRequest {
		return &controlv1.TerminateRequest{
			NodeId: g.ref.GetNodeId(), Incarnation: g.ref.GetIncarnation(), Sessions: uint64(g.sessions.Len()),
			TimeoutMs: uint64(max(0, time.Until(g.stopBy).Milliseconds())),
		}
	})
	return drainer.Order{Operation: granted.GetOperationId(), Pace: granted.GetSessionsPerSecond(), Targets: granted.GetTargets()}
}

// drain ends the sessions, all of them: what it could not end is cut by the
// steps that follow.
func (g *Gateway) drain(ctx context.Context, order drainer.Order) {
	began := time.Now()
	total := time.Until(g.stopBy) - (g.cfg.DrainTimeout - drainShare(g.cfg.DrainTimeout))
	g.tel.Log.Info("shutdown_drain_begin", "sessions", g.sessions.Len(), "timeout", g.cfg.DrainTimeout.String())
	sum := g.drainer.Finish(ctx, total, order)
	g.drains.Inc()
	g.tel.Log.Info("shutdown_drain_done", summary(sum, time.Since(began))...)
}

func summary(s drainer.Summary, took time.Duration) []any {
	return []any{
		"sessions", s.Sessions, "moved", s.Moved, "told", s.Told, "echoed", s.Echoed, "forced", s.Forced,
		"handed_back", s.HandedBack, "left", s.Left, "took", took.Round(time.Millisecond).String(),
	}
}

// fence, unfence and supersede are called by the uplink's keeper and do not
// block.
func (g *Gateway) fence() {
	g.fenced.Store(true)
	g.uplink.Announce()
	g.evacuation.start(g.evacuate)
}

// unfence does not end an evacuation: its clients' routes may be gone by now. No
// connection is taken until it is over.
func (g *Gateway) unfence() {
	g.fenced.Store(false)
	g.uplink.Announce()
}

func (g *Gateway) supersede() {
	close(g.superseded)
	g.evacuation.start(g.evacuate)
}

// evacuate sends the clients elsewhere: nobody delivers here any more.
func (g *Gateway) evacuate(ctx context.Context) {
	began := time.Now()
	g.tel.Log.Warn("evacuation_begin", "sessions", g.sessions.Len())
	g.sessions.Walk(func(s *session.Session) bool { s.Shut(); return true })
	sum := drainer.Drain(ctx, g.sessions, g.uplink, drainShare(g.cfg.DrainTimeout), g.tel.Log)
	g.tel.Log.Warn("evacuation_done", summary(sum, time.Since(began))...)
}

// evacuating says why no session can be moved now.
func (g *Gateway) evacuating() string {
	if g.isSuperseded() {
		return "superseded"
	}
	if g.isFenced() {
		return "no router holds its lease, and it ends its sessions by itself"
	}
	return ""
}

// isFenced reports whether the gateway serves nobody because no router held its
// lease, lately or now.
func (g *Gateway) isFenced() bool { return g.fenced.Load() || g.evacuation.running() }

// evacuation runs at most one evacuation at a time; after is called when one is
// over.
type evacuation struct {
	after func()

	mu        sync.Mutex
	forbidden bool
	end       context.CancelFunc // of the one that runs; nil: none
	wg        sync.WaitGroup
}

func (e *evacuation) start(f func(context.Context)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.forbidden || e.end != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.end = cancel
	e.wg.Go(func() {
		f(ctx)
		cancel()
		e.mu.Lock()
		e.end = nil
		e.mu.Unlock()
		e.after()
	})
}

func (e *evacuation) running() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.end != nil
}

// forbid lets no other begin.
func (e *evacuation) forbid() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forbidden = true
}

// wait cuts the one that runs short and waits for it.
func (e *evacuation) wait(context.Context) error {
	e.mu.Lock()
	if e.end != nil {
		e.end()
	}
	e.mu.Unlock()
	e.wg.Wait()
	return nil
}
