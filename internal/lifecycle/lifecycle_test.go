package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/config"
)

func TestUnwindIsLastInFirstOutBoundedAndJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		var s Stack
		s.Push("first", time.Second, func(context.Context) error { order = append(order, "first"); return nil })
		s.Push("stuck", time.Second, func(ctx context.Context) error {
			order = append(order, "stuck")
			<-ctx.Done()
			return ctx.Err()
		})
		s.Push("bad", time.Second, func(context.Context) error { order = append(order, "bad"); return errors.New("boom") })
		err := s.Unwind(t.Context())
		if !slices.Equal(order, []string{"bad", "stuck", "first"}) {
			t.Errorf("order %v", order)
		}
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "bad: boom") {
			t.Errorf("error %v", err)
		}
		if err := s.Unwind(t.Context()); err != nil {
			t.Errorf("second unwind ran something: %v", err)
		}
	})
}

func TestExitCodes(t *testing.T) {
	for want, err := range map[int]error{
		0: config.ErrHelp,
		1: errors.New("x"),
		2: fmt.Errorf("gateway: %w", config.ErrInvalid),
	} {
		if got := ExitCode(err); got != want {
			t.Errorf("%v: exit code %d, want %d", err, got, want)
		}
	}
}

func TestUnwindLeavesADeafStepBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		first := false
		var s Stack
		s.Push("first", time.Second, func(context.Context) error { first = true; return nil })
		s.Push("deaf", time.Second, func(context.Context) error { <-release; return nil })
		err := s.Unwind(t.Context())
		if !first || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "deaf: still running") {
			t.Errorf("first ran: %v, error %v", first, err)
		}
		close(release)
	})
}

func TestUnwindAfterTheEndStillRunsEveryStep(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ran := make(chan struct{})
	var s Stack
	s.Push("force", time.Second, func(context.Context) error { close(ran); return nil })
	if err := s.Unwind(ctx); err != nil {
		t.Error(err)
	}
	<-ran
}
