package canary

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/mics-im/mics/controlplane/internal/canary/actuate"
	"github.com/mics-im/mics/internal/telemetry"
)

// driver keeps an actuator at what is wanted, in a goroutine of its own: it may be
// slow. The newest wish counts.
type driver struct {
	actuator actuate.Actuator
	log      *slog.Logger
	failed   *telemetry.Counter

	mu      sync.Mutex
	wish    wish          // guarded by mu, like what follows
	wake    chan struct{} // capacity 1
	end     context.CancelFunc
	done    chan struct{}
	problem string // of the last call
}

type wish struct {
	weight  uint32
	version string // that stable is to have; empty: as it is
}

func newDriver(a actuate.Actuator, t *telemetry.Telemetry) *driver {
	if a == nil {
		a = actuate.None{}
	}
	return &driver{
		actuator: a, log: t.Log, wake: make(chan struct{}, 1),
		failed: t.Counter("mics_canary_actuations_failed_total", "Calls of what directs new connections that failed; they are made again."),
	}
}

// status is what it is called, and why it does not do as it should.
func (d *driver) status() (name, problem string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.actuator.Name(), d.problem
}

// want says what is to be; it begins to work with the first one.
func (d *driver) want(weight uint32, version string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := wish{weight, version}
	if d.end != nil && next == d.wish {
		return
	}
	d.wish = next
	if d.end == nil {
		ctx, cancel := context.WithCancel(context.Background())
		d.end, d.done = cancel, make(chan struct{})
		go func(done chan struct{}) { // ends with stop, which waits
			defer close(done)
			d.run(ctx)
		}(d.done)
		return
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// stop ends it; another leader goes on.
func (d *driver) stop() {
	d.mu.Lock()
	end, done := d.end, d.done
	d.end = nil
	d.mu.Unlock()
	if end != nil {
		end()
		<-done
	}
}

func (d *driver) run(ctx context.Context) {
	for {
		wait := actuate.Refresh
		if err := d.apply(ctx); err != nil && ctx.Err() == nil {
			d.failed.Inc()
			wait = actuate.Retry
			d.mu.Lock()
			if d.problem != err.Error() {
				d.log.Warn("canary_actuator_failed", "actuator", d.actuator.Name(), "error", err.Error())
			}
			d.problem = err.Error()
			d.mu.Unlock()
		} else {
			d.mu.Lock()
			d.problem = ""
			d.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-time.After(wait):
		}
	}
}

func (d *driver) apply(ctx context.Context) error {
	d.mu.Lock()
	w := d.wish
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, actuate.Timeout)
	defer cancel()
	err := d.actuator.Apply(ctx, actuate.Of(w.weight))
	if p, can := d.actuator.(actuate.Promoter); can && w.version != "" {
		err = errors.Join(err, p.Promote(ctx, w.version))
	}
	return err
}
