// Package stall notices that the process stood still: stopped by a signal, or by a
// machine that had no time for it.
//
// What others sent meanwhile waits in the kernel and is read at once afterwards,
// whatever its senders have decided since. A connection that such a request is for
// may be one that its client has long given up for another.
package stall

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	every = 100 * time.Millisecond
	// long is how long it must have stood still: clients do not give up in less.
	long = time.Second
	// after is how long what had waited in the kernel may take to be read.
	after = time.Second
)

// Detector is safe for concurrent use.
type Detector struct {
	start time.Time
	tick  atomic.Int64 // of the last tick, since start
	over  atomic.Int64 // when it last was noticed, since start; 0: never
}

// New returns a Detector that notices nothing until Run.
func New() *Detector { return &Detector{start: time.Now()} }

// Run keeps watch until ctx ends.
func (d *Detector) Run(ctx context.Context) {
	d.tick.Store(int64(time.Since(d.start)))
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			now := int64(time.Since(d.start))
			if now-d.tick.Swap(now) > int64(long) {
				d.over.Store(now)
			}
		case <-ctx.Done():
			d.tick.Store(0)
			return
		}
	}
}

// Lately tells whether the process stands at the end of a stall, or it was over a
// moment ago.
func (d *Detector) Lately() bool {
	now := int64(time.Since(d.start))
	tick, over := d.tick.Load(), d.over.Load()
	return tick > 0 && now-tick > int64(long) || over > 0 && now-over < int64(after)
}
