package drain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/ctl/internal/view"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
)

const maxLimit = 1000

// ListOptions are the inputs of `drains`.
type ListOptions struct {
	*cli.App
	Node  string
	Limit int
	Watch bool
}

// NewDrains returns `drains` and its subcommands.
func NewDrains(app *cli.App) *cobra.Command {
	o := &ListOptions{App: app}
	cmd := &cobra.Command{
		Use:   "drains",
		Short: "List drains, or follow them",
		Long: `List the drains that are under way, in their order, and those that have ended,
newest first (1,000 are kept). --watch follows those under way.`,
		Example: `  micsctl drains
  micsctl drains --watch
  micsctl drains --node gw-1 -o json
  micsctl drains pause d-k3v7q2xa`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              cli.Run(func(ctx context.Context, _ []string) error { return o.run(ctx) }),
	}
	f := cmd.Flags()
	f.StringVar(&o.Node, "node", "", "only of this gateway")
	f.IntVar(&o.Limit, "limit", 20, fmt.Sprintf("at most this many of those that have ended, 1 to %d", maxLimit))
	f.BoolVarP(&o.Watch, "watch", "w", false, "follow those under way until interrupted")
	cli.CompleteFlag(cmd, "node", app.CompleteGateways)
	cli.CompleteFlag(cmd, "limit", cobra.NoFileCompletions)
	cmd.AddCommand(
		newChange(app, "pause", "Pause a drain: nothing more is moved until it is resumed", controlv1.DrainChange_DRAIN_CHANGE_PAUSE),
		newChange(app, "resume", "Go on with a paused drain", controlv1.DrainChange_DRAIN_CHANGE_RESUME),
		newChange(app, "cancel", "Cancel a drain: the gateway serves again, what has moved stays away", controlv1.DrainChange_DRAIN_CHANGE_CANCEL),
	)
	return cmd
}

func (o *ListOptions) run(ctx context.Context) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	switch {
	case o.Limit < 1 || o.Limit > maxLimit:
		return cli.Usage(fmt.Errorf("--limit: %d: want 1 to %d", o.Limit, maxLimit))
	case o.Watch && o.Node != "":
		return cli.Usage(errors.New("--watch follows all drains: leave out --node"))
	}
	client, err := o.Client()
	if err != nil {
		return err
	}
	if o.Watch {
		return o.watch(ctx, client, printer)
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	res, err := client.ListDrains(ctx, connect.NewRequest(&controlv1.ListDrainsRequest{NodeId: o.Node, Limit: uint32(o.Limit)}))
	if err != nil {
		return err
	}
	doc := view.NewDrains(res.Msg.GetDrains())
	return printer.Print(doc, func(w io.Writer) error { return writeTable(w, o.Now(), doc.Drains) })
}

// watch follows until ctx ends. A stream that worked once and breaks is tried again.
func (o *ListOptions) watch(ctx context.Context, client controlv1connect.ControlServiceClient, printer *output.Printer) error {
	connected := false
	for {
		got, err := o.stream(ctx, client, printer)
		connected = connected || got
		switch {
		case ctx.Err() != nil:
			return nil
		case !connected || err != nil && !passes(err):
			return err
		}
		if err != nil {
			_, _ = fmt.Fprintf(o.Err, "watch interrupted, trying again: %s\n", output.Clean(cli.Message(err)))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
}

func (o *ListOptions) stream(ctx context.Context, client controlv1connect.ControlServiceClient, printer *output.Printer) (got bool, err error) {
	st, err := client.WatchDrains(ctx, connect.NewRequest(&controlv1.WatchDrainsRequest{}))
	if err != nil {
		return false, err
	}
	defer st.Close() //nolint:errcheck // what went wrong is in st.Err
	for st.Receive() {
		got = true
		doc := view.NewDrains(st.Msg().GetDrains())
		err := printer.PrintItem(doc, func(w io.Writer) error {
			var b bytes.Buffer
			if !o.OutTTY {
				for _, d := range doc.Drains {
					fmt.Fprintf(&b, "%s %s\n", output.Clean(d.ID), progressLine(d))
				}
				_, err := w.Write(b.Bytes())
				return err
			}
			fmt.Fprintf(&b, "%s  (Ctrl-C ends)\n\n", output.Clean(o.Endpoint))
			if err := writeTable(&b, o.Now(), doc.Drains); err != nil {
				return err
			}
			screen := append([]byte("\x1b[H"), bytes.ReplaceAll(b.Bytes(), []byte("\n"), []byte("\x1b[K\n"))...)
			_, err := w.Write(append(screen, "\x1b[J"...))
			return err
		})
		if err != nil {
			return got, err
		}
	}
	return got, st.Err()
}

// newChange returns `drains pause`, `resume` or `cancel`.
func newChange(app *cli.App, name, short string, change controlv1.DrainChange) *cobra.Command {
	return &cobra.Command{
		Use:               name + " OPERATION",
		Short:             short,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: operations(app),
		RunE: cli.Run(func(ctx context.Context, args []string) error {
			printer, err := app.Printer()
			if err != nil {
				return err
			}
			client, err := app.Client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, app.Timeout)
			defer cancel()
			res, err := client.ChangeDrain(ctx, connect.NewRequest(&controlv1.ChangeDrainRequest{OperationId: args[0], Change: change}))
			if err != nil {
				return err
			}
			doc := view.NewDrain(res.Msg.GetDrain())
			return printer.Print(doc, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "Drain %s of %s: %s.\n", output.Clean(doc.ID), output.Clean(doc.Node), doc.State)
				return err
			})
		}),
	}
}

// operations completes the ids of drains that are under way.
func operations(app *cli.App) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		const directive = cobra.ShellCompDirectiveNoFileComp
		client, err := app.Client()
		if err != nil || len(args) > 0 {
			return nil, directive
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second) // as long as a person waits after Tab
		defer cancel()
		res, err := client.ListDrains(ctx, connect.NewRequest(&controlv1.ListDrainsRequest{Limit: 1}))
		if err != nil {
			return nil, directive
		}
		var ids []string
		for _, op := range res.Msg.GetDrains() {
			if d := view.NewDrain(op); !d.Final() {
				ids = append(ids, d.ID+"\t"+d.Node+" "+d.State)
			}
		}
		return ids, directive
	}
}

// RehearseOptions are the inputs of `rehearse drain`.
type RehearseOptions struct {
	*cli.App
	speed
}

// NewRehearse returns `rehearse`.
func NewRehearse(app *cli.App) *cobra.Command {
	o := &RehearseOptions{App: app}
	parent := &cobra.Command{
		Use:   "rehearse",
		Short: "Tell what a change would do, without doing it",
		Args:  cobra.NoArgs,
		RunE: cli.Run(func(context.Context, []string) error {
			return cli.Usage(errors.New("what is to be rehearsed: drain"))
		}),
	}
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Tell how a drain would go",
		Long: `Tell how long a drain of the gateway would take, how many connects a second it
would mean on which gateways, what room there is, and whether it would be refused.
Nothing is changed. The exit code is 1 when it would be refused.`,
		Example:           `  micsctl rehearse drain gw-1 --timeout 2m`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: oneGateway(app),
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return o.run(ctx, args[0]) }),
	}
	o.addFlags(cmd)
	parent.AddCommand(cmd)
	return parent
}

func (o *RehearseOptions) run(ctx context.Context, node string) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	rate, err := o.parse()
	if err != nil {
		return cli.Usage(err)
	}
	client, err := o.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	res, err := client.RehearseDrain(ctx, connect.NewRequest(&controlv1.RehearseDrainRequest{
		NodeId: node, TimeoutMs: uint64(o.timeout.Milliseconds()), SessionsPerSecond: rate,
	}))
	if err != nil {
		return err
	}
	doc := view.NewRehearsal(node, res.Msg)
	if err := printer.Print(doc, func(w io.Writer) error { return writeRehearsal(w, doc) }); err != nil {
		return err
	}
	if err := cli.Warn(o.Err, doc.Warnings); err != nil {
		return err
	}
	if doc.Refusal != "" {
		return cli.ErrReported
	}
	return nil
}
