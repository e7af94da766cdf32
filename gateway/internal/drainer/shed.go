package drainer

import (
	"context"
	"sync"
	"time"

	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/internal/fault"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// shedStep is how far apart waves are.
const shedStep = 50 * time.Millisecond

// shed moves some sessions while the gateway serves. Each is asked once; one that
// does not move in time stays.
type shed struct {
	id      string
	goal    uint64
	mover   *Mover
	targets Targets
	stop    context.CancelFunc
	done    chan struct{} // closed when its goroutines have ended
	waves   sync.WaitGroup

	mu     sync.Mutex
	pace   float64 // guarded by mu, like what follows
	paused bool
	over   bool
	under  int       // batches that wait for routers
	moving []pending // in the order of their deadlines, about
	asked  uint64
	moved  uint64
	stayed uint64

	candidates []*session.Session // owned by loop: V2 first
}

// pending is a session that is to go by then.
type pending struct {
	s     *session.Session
	until time.Time
}

// Shed begins an operation, takes the place of another one's, or changes its pace,
// pause and targets.
func (d *Drainer) Shed(req *gatewayv1.ShedRequest) (*gatewayv1.ShedResponse, error) {
	order := Order{Operation: req.GetOperationId(), Pace: req.GetSessionsPerSecond(), Paused: req.GetPaused(), Targets: req.GetTargets()}
	if err := checkOrder(order); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.shed
	known := s != nil && s.id == order.Operation
	switch {
	case req.GetCancel():
		if !known {
			return &gatewayv1.ShedResponse{OperationId: order.Operation, Done: true}, nil
		}
		s.end()
		return s.progress(), nil
	case order.Pace == 0:
		return nil, fault.New(fault.Invalid, "sessions_per_second must be above 0")
	case known:
		s.direct(order)
		return s.progress(), nil
	case d.ending || d.closed:
		return nil, errEnding()
	case d.op != nil:
		return nil, fault.New(fault.FailedPrecondition, "an operation drains the gateway: "+d.op.run.id)
	}
	if why := d.o.Refuse(); why != "" {
		return nil, fault.New(fault.FailedPrecondition, "no session can be moved now: "+why)
	}
	d.endShed()
	ctx, stop := context.WithCancel(context.Background())
	s = &shed{
		id: order.Operation, goal: req.GetSessions(), mover: d.mover, stop: stop, done: make(chan struct{}),
		candidates: candidates(d.o.Registry, req.GetMoveV1()),
	}
	s.direct(order)
	d.shed = s
	d.o.Log.Info("shed_begin", "operation", s.id, "sessions", s.goal, "sessions_per_second", order.Pace, "candidates", len(s.candidates))
	go func() {
		defer close(s.done) // waited for by end
		s.loop(ctx)
		stop()
		p := s.progress()
		d.o.Log.Info("shed_done", "operation", s.id, "asked", p.GetAsked(), "moved", p.GetMoved(), "stayed", p.GetStayed())
	}()
	return s.progress(), nil
}

// endShed ends the last one. d.mu is held.
func (d *Drainer) endShed() {
	if d.shed != nil {
		d.shed.end()
	}
}

// end ends it, soon. It may be called again.
func (s *shed) end() {
	s.stop()
	<-s.done
}

// candidates are the open sessions of V2 clients, and behind them, if they are
// wanted, those of the others.
func candidates(reg *registry.Registry, v1 bool) []*session.Session {
	var first, then []*session.Session
	reg.Walk(func(s *session.Session) bool {
		switch {
		case s.Stage() != session.Open || s.Suspect():
		case s.Version() >= 2:
			first = append(first, s)
		case v1:
			then = append(then, s)
		}
		return true
	})
	return append(first, then...)
}

func (s *shed) direct(o Order) {
	s.targets.Set(o.Targets)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pace, s.paused = o.Pace, o.Paused
}

func (s *shed) progress() *gatewayv1.ShedResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &gatewayv1.ShedResponse{OperationId: s.id, Asked: s.asked, Moved: s.moved, Stayed: s.stayed, Done: s.over}
}

// loop runs it to its end, or until ctx ends.
func (s *shed) loop(ctx context.Context) {
	defer s.waves.Wait()
	tick := time.NewTicker(shedStep)
	defer tick.Stop()
	var pace Pacer
	last := time.Now()
	for {
		now := time.Now()
		batch, over := s.next(&pace, now.Sub(last), now)
		last = now
		if over {
			return
		}
		if len(batch) > 0 {
			s.waves.Go(func() { s.wave(ctx, batch) }) // ends with its calls, bounded
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.mu.Lock()
			s.over = true
			s.mu.Unlock()
			return
		}
	}
}

// next settles what has come of the last ones, and takes those whose turn it is.
func (s *shed) next(pace *Pacer, passed time.Duration, now time.Time) (batch []*session.Session, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle(now)
	for len(s.candidates) > 0 && s.candidates[0].Stage() != session.Open { // has gone by itself
		s.candidates = s.candidates[1:]
	}
	room := int(min(s.goal-s.asked, uint64(len(s.candidates))))
	if room == 0 && s.under == 0 && len(s.moving) == 0 {
		s.over = true
		return nil, true
	}
	if s.paused {
		return nil, false
	}
	n := pace.Grant(s.pace, passed, room)
	batch, s.candidates = s.candidates[:n:n], s.candidates[n:]
	if n > 0 {
		s.asked += uint64(n)
		s.under++
	}
	return batch, false
}

// settle counts what has gone or is late. mu is held.
func (s *shed) settle(now time.Time) {
	kept := s.moving[:0]
	for _, p := range s.moving {
		switch o := p.s.Outcome(); {
		case o.Moved, o.Told && p.s.Version() < 2:
			s.moved++
		case o.Ended: // by itself
		case !now.Before(p.until):
			s.stayed++
		default:
			kept = append(kept, p)
		}
	}
	clear(s.moving[len(kept):])
	s.moving = kept
}

// wave moves a batch.
func (s *shed) wave(ctx context.Context, batch []*session.Session) {
	var ask, tell []*session.Session
	for _, one := range batch {
		if one.Version() >= 2 {
			ask = append(ask, one)
		} else {
			tell = append(tell, one)
		}
	}
	until := time.Now().Add(MoveWithin)
	asked, unable := s.mover.Ask(ctx, ask, Ask{
		Reason: "rebalancing", Within: MoveWithin, Spread: shedStep, URL: func(*session.Session) string { return s.targets.Next() },
	})
	if len(tell) > 0 {
		s.mover.Tell(ctx, tell, MostPatience)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.under--
	s.stayed += uint64(len(unable))
	for _, one := range append(asked, tell...) {
		s.moving = append(s.moving, pending{one, until})
	}
}
