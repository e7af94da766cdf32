package redisstore

import (
	"context"
	"sync"
	"time"
)

// patience is a context that ends at its deadline. Its timer starts only when
// somebody waits on it, which a look-up that is answered from memory never
// does: an ordinary context would cost it as much as the look-up.
type patience struct {
	deadline time.Time
	once     sync.Once
	ctx      context.Context    // set by once
	cancel   context.CancelFunc // set by once
}

var _ context.Context = (*patience)(nil)

func newPatience(d time.Duration) *patience { return &patience{deadline: time.Now().Add(d)} }

func (p *patience) start() context.Context {
	p.once.Do(func() { p.ctx, p.cancel = context.WithDeadline(context.Background(), p.deadline) })
	return p.ctx
}

// end stops the timer if there is one. Nobody may wait any more.
func (p *patience) end() {
	p.once.Do(func() { p.ctx, p.cancel = context.Background(), func() {} })
	p.cancel()
}

// Deadline implements context.Context.
func (p *patience) Deadline() (time.Time, bool) { return p.deadline, true }

// Done implements context.Context.
func (p *patience) Done() <-chan struct{} { return p.start().Done() }

// Err implements context.Context.
func (p *patience) Err() error { return p.start().Err() }

// Value implements context.Context.
func (p *patience) Value(any) any { return nil }
