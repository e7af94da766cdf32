package canary

import (
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/ctl/internal/view"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// change is a command that tells the canary something.
type change struct {
	use, short, long string
	what             controlv1.ChangeCanaryRequest_Change
	needsReason      bool
}

// changeOptions are its inputs.
type changeOptions struct {
	*cli.App
	change
	ID, Reason string
	Weight     uint32
}

func newChange(app *cli.App, c change) *cobra.Command {
	o := &changeOptions{App: app, change: c}
	cmd := &cobra.Command{
		Use: c.use, Short: c.short, Long: c.long, Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return o.run(ctx) }),
	}
	if c.long == "" {
		cmd.Long = c.short + "."
	}
	o.flags(cmd)
	return cmd
}

func (o *changeOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	reason := "why, for the record"
	if o.needsReason {
		reason += " (required)"
	}
	f.StringVar(&o.Reason, "reason", "", reason)
	f.StringVar(&o.ID, "id", "", "the canary that is meant; default: the one that runs")
	cli.CompleteFlag(cmd, "reason", cobra.NoFileCompletions)
	cli.CompleteFlag(cmd, "id", cobra.NoFileCompletions)
}

func newSetWeight(app *cli.App) *cobra.Command {
	o := &changeOptions{App: app, change: change{what: controlv1.ChangeCanaryRequest_CHANGE_SET_WEIGHT}}
	cmd := &cobra.Command{
		Use:   "set-weight PERCENT",
		Short: "Set the share of the users that are on the canary",
		Long: `Set the share of the users that are on the canary, up or down. The steps above it
follow as planned, unless the canary is paused.`,
		Example:           "  micsctl canary set-weight 10",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: cli.Run(func(ctx context.Context, args []string) error {
			var err error
			if o.Weight, err = parseWeight(args[0]); err != nil {
				return cli.Usage(fmt.Errorf("PERCENT: %w", err))
			}
			return o.run(ctx)
		}),
	}
	o.flags(cmd)
	return cmd
}

func (o *changeOptions) run(ctx context.Context) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	if o.needsReason && o.Reason == "" {
		return cli.Usage(errors.New("--reason: required"))
	}
	client, err := o.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	res, err := client.ChangeCanary(ctx, connect.NewRequest(&controlv1.ChangeCanaryRequest{
		Change: o.what, Weight: o.Weight, Reason: o.Reason, Id: o.ID,
	}))
	if err != nil {
		return err
	}
	c := res.Msg.GetCanary()
	return printer.Print(view.NewCanary(c), func(w io.Writer) error {
		paused := ""
		if c.GetPaused() {
			paused = ", paused"
		}
		_, err := fmt.Fprintf(w, "Canary %s is %s%s at %s.\n", output.Clean(c.GetId()), view.CanaryPhase(c.GetPhase()), paused, weight(c.GetWeight()))
		return err
	})
}
