// Package lifecycle holds what every process does at its start and its end:
// teardown registered beside set-up, signals, exit codes.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/mics-im/mics/internal/config"
)

// Stack is a teardown stack: last in, first out, each step named and bounded.
// It is for one goroutine. The zero value is empty.
type Stack struct {
	steps []step
}

type step struct {
	name   string
	budget time.Duration
	f      func(context.Context) error
}

// afterDeadline is what a step gets, once its time is over, to close by force
// and to return its own error.
const afterDeadline = 250 * time.Millisecond

// Push adds a step that Unwind gives at most budget.
func (s *Stack) Push(name string, budget time.Duration, f func(context.Context) error) {
	s.steps = append(s.steps, step{name, budget, f})
}

// Unwind runs all steps, also after one failed or ctx has ended, and joins their
// errors. A step that ignores the end of its context is left behind, running,
// and reported: it must not keep the others from their turn. The stack is empty
// afterwards.
func (s *Stack) Unwind(ctx context.Context) error {
	var errs []error
	for len(s.steps) > 0 {
		last := s.steps[len(s.steps)-1]
		s.steps = s.steps[:len(s.steps)-1]
		if err := last.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", last.name, err))
		}
	}
	return errors.Join(errs...)
}

func (st step) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, st.budget)
	defer cancel()
	done := make(chan error, 1) // buffered: a step left behind must be able to end
	go func() { done <- st.f(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(afterDeadline):
		return fmt.Errorf("still running: %w", ctx.Err())
	}
}

// Exit codes of a service.
const (
	ExitOK     = 0
	ExitFailed = 1
	// ExitConfig is for a configuration that was refused (CONTRACT section 4).
	ExitConfig = 2
)

// Main runs a service until SIGTERM or SIGINT cancels its context; a second
// signal ends the process at once. It returns the exit code.
func Main(run func(ctx context.Context, args []string) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	// After the first signal the default handling is back, so a second one kills.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return ExitCode(err)
}

// ExitCode is the exit code that an error of run means.
func ExitCode(err error) int {
	switch {
	case err == nil, errors.Is(err, config.ErrHelp):
		return ExitOK
	case errors.Is(err, config.ErrInvalid):
		return ExitConfig
	default:
		return ExitFailed
	}
}
