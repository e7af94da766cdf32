package load

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

// End sends a process a signal and waits until it has ended. It is no accident
// then, for Dead.
func (c *Cluster) End(ctx context.Context, name string, how syscall.Signal, within time.Duration) error {
	i := c.index(name)
	if i < 0 {
		return fmt.Errorf("there is no process %q", name)
	}
	p := c.procs[i]
	p.told = true
	if err := p.cmd.Process.Signal(how); err != nil {
		return fmt.Errorf("signal %s: %w", name, err)
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(within):
		return fmt.Errorf("%s is still there %v after %v", name, within, how)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Again starts a process that End has ended, as it was, and waits until it is
// ready.
func (c *Cluster) Again(ctx context.Context, name string) error {
	i := c.index(name)
	if i < 0 {
		return fmt.Errorf("there is no process %q", name)
	}
	what := c.procs[i].program
	if err := c.start(what); err != nil {
		return err
	}
	return c.wait(ctx, name+" is ready again", func() bool { return what.ready == "" || isReady(what.ready) })
}
