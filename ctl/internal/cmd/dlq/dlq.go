// Package dlq is `micsctl dlq`: the events that tenants' topics did not take.
package dlq

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/cli"
)

// NewCmd returns the command with its subcommands.
func NewCmd(app *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dlq",
		Short: "List, show and redrive a tenant's dead letters",
		Long: `Dead letters are events that a tenant's Kafka topic did not take: they are in
its dead letter topic. Everything goes through a router; micsctl needs no access
to Kafka. The messages themselves are not shown: they are the tenant's.`,
		Args: cobra.NoArgs,
		RunE: cli.Run(func(context.Context, []string) error {
			return cli.Usage(errors.New("dlq: a command is missing: list, show or redrive"))
		}),
	}
	cmd.AddCommand(newList(app), newShow(app), newRedrive(app))
	return cmd
}

// selection is what list and redrive have in common.
type selection struct {
	tenant, since string
	all           bool
}

func (s *selection) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.tenant, "tenant", "", "whose dead letters (required)")
	f.StringVar(&s.since, "since", "", "given up since: a time (RFC 3339) or how long ago (90m, 24h)")
	f.BoolVar(&s.all, "all", false, "those too that have been redriven")
	for _, name := range []string{"tenant", "since"} {
		cli.CompleteFlag(cmd, name, cobra.NoFileCompletions)
	}
}

// sinceMS checks the flags and returns the time of --since, 0 without.
func (s *selection) sinceMS(now time.Time) (int64, error) {
	if s.tenant == "" {
		return 0, errors.New("--tenant: required")
	}
	if s.since == "" {
		return 0, nil
	}
	if d, err := time.ParseDuration(s.since); err == nil && d > 0 {
		return now.Add(-d).UnixMilli(), nil
	}
	if t, err := time.Parse(time.RFC3339, s.since); err == nil && t.UnixMilli() > 0 {
		return t.UnixMilli(), nil
	}
	return 0, fmt.Errorf("--since: %q: want a time like 2030-05-01T12:00:00Z or a duration like 24h", s.since)
}

// patient returns a context that ends when alive has not been called for the
// App's timeout.
func patient(ctx context.Context, app *cli.App) (_ context.Context, alive, end func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(app.Timeout, func() { cancel(context.DeadlineExceeded) })
	return ctx, func() { timer.Reset(app.Timeout) }, func() { timer.Stop(); cancel(nil) }
}

// cause prefers our own reason for ending a stream to the transport's.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && err != nil {
		return c
	}
	return err
}
