package canary

import (
	"context"
	"fmt"
	"io"
	"math"
	"strconv"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/ctl/internal/view"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

type rebalanceOptions struct {
	*cli.App
	Preview, Cancel bool
	Rate            float64
}

// NewRebalance returns `micsctl rebalance`.
func NewRebalance(app *cli.App) *cobra.Command {
	o := &rebalanceOptions{App: app}
	cmd := &cobra.Command{
		Use:   "rebalance",
		Short: "Even out the sessions of the gateways",
		Long: `Even out the sessions of the gateways of each track, after some were added: V2
clients are asked to move from those that have more than the mean to those that
have less. Run it again to see how far it is; with --preview it only says what it
would do.`,
		Example: "  micsctl rebalance --preview\n  micsctl rebalance --rate 50",
		Args:    cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return o.run(ctx) }),
	}
	f := cmd.Flags()
	f.BoolVar(&o.Preview, "preview", false, "only say what would be moved, or how far it is")
	f.BoolVar(&o.Cancel, "cancel", false, "stop the one that runs")
	f.Float64Var(&o.Rate, "rate", 100, "sessions per second that each gateway gives away")
	cli.CompleteFlag(cmd, "rate", cobra.NoFileCompletions)
	return cmd
}

func (o *rebalanceOptions) run(ctx context.Context) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	switch {
	case o.Preview && o.Cancel:
		return cli.Usage(fmt.Errorf("--preview, --cancel: only one of them"))
	case !(o.Rate > 0) || math.IsInf(o.Rate, 0):
		return cli.Usage(fmt.Errorf("--rate: %v: must be above 0", o.Rate))
	}
	client, err := o.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	res, err := client.Rebalance(ctx, connect.NewRequest(&controlv1.RebalanceRequest{Preview: o.Preview, Cancel: o.Cancel, SessionsPerSecond: o.Rate}))
	if err != nil {
		return err
	}
	doc := view.NewRebalance(res.Msg)
	return printer.Print(doc, func(w io.Writer) error {
		var rows [][]string
		for _, n := range doc.Nodes {
			u := func(x uint64) string { return strconv.FormatUint(x, 10) }
			rows = append(rows, []string{n.Node, n.Track, u(n.Sessions), u(n.Gives), u(n.Gets), u(n.Moved), u(n.Stayed)})
		}
		if err := output.WriteTable(w, []string{"GATEWAY", "TRACK", "SESSIONS", "GIVES", "GETS", "MOVED", "STAYED"}, rows); err != nil {
			return err
		}
		text := "Nothing is being moved."
		if doc.Running {
			text = "Sessions are being moved."
		}
		if doc.Reason != "" {
			text = output.Clean(doc.Reason)
		}
		_, err := fmt.Fprintln(w, text)
		return err
	})
}
