// Package drain is `micsctl drain`, `undrain`, `drains` and `rehearse`.
package drain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/ctl/internal/view"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// The bounds of --timeout and --rate.
const (
	minTimeout, maxTimeout = time.Second, 24 * time.Hour
	maxRate                = 1_000_000
)

// speed are the flags that a drain and its rehearsal share.
type speed struct {
	timeout time.Duration
	rate    string
}

func (s *speed) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.DurationVar(&s.timeout, "timeout", 5*time.Minute, "of the drain: what is left after it is closed at once")
	f.StringVar(&s.rate, "rate", "auto", "sessions per second, N/s, or auto: as fast as the other gateways take them")
	cli.CompleteFlag(cmd, "timeout", cobra.NoFileCompletions)
	cli.CompleteFlag(cmd, "rate", cobra.FixedCompletions([]string{"auto"}, cobra.ShellCompDirectiveNoFileComp))
}

// parse returns the rate, 0 for auto.
func (s *speed) parse() (float64, error) {
	if s.timeout < minTimeout || s.timeout > maxTimeout {
		return 0, fmt.Errorf("--timeout: %v: want %v to %v", s.timeout, minTimeout, maxTimeout)
	}
	if s.rate == "auto" {
		return 0, nil
	}
	rate, err := strconv.ParseFloat(strings.TrimSuffix(s.rate, "/s"), 64)
	if err != nil || !(rate > 0 && rate <= maxRate) {
		return 0, fmt.Errorf("--rate: %q: want auto, or sessions per second up to %d, as in 200/s", s.rate, maxRate)
	}
	return rate, nil
}

// Options are the inputs of `drain`.
type Options struct {
	*cli.App
	speed
	Wait, Force bool
	// KubernetesNode: all gateways there are meant.
	KubernetesNode string
	MaxGap         time.Duration
	MaxLost        int
	limited        bool // a limit was given
}

// NewDrain returns `drain`.
func NewDrain(app *cli.App) *cobra.Command {
	o := &Options{App: app}
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Move a gateway's sessions to the others",
		Long: `Move a gateway's sessions to the others. It takes no new ones and stays drained
until 'micsctl undrain'. V2 clients move without a pause; V1 clients are told to
reconnect (4200). Drains wait for one another, see 'micsctl drains'.

It is refused where the other gateways have no room, with the numbers; --force
overrules that. See what would happen with 'micsctl rehearse drain NODE'.

With --wait the exit code tells how it went: 0 it is empty and within the limits,
1 it failed or was cancelled, 3 it is empty and a limit was missed. Interrupting the
wait does not end the drain.`,
		Example: `  micsctl drain gw-1 --wait
  micsctl drain gw-1 --wait --max-gap 50ms --max-lost 0 -o json
  micsctl drain gw-1 --rate 200/s --timeout 10m
  micsctl drain --k8s-node worker-3 --wait && kubectl drain worker-3 --ignore-daemonsets`,
		Args: func(c *cobra.Command, args []string) error {
			if o.KubernetesNode != "" {
				return cobra.NoArgs(c, args)
			}
			return cobra.ExactArgs(1)(c, args)
		},
		ValidArgsFunction: oneGateway(app),
	}
	cmd.RunE = func(c *cobra.Command, args []string) error {
		o.limited = c.Flags().Changed("max-gap") || c.Flags().Changed("max-lost")
		return cli.Run(o.runAll)(c, args)
	}
	o.addFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.KubernetesNode, "k8s-node", "", "all gateways on a Kubernetes node, one after the other")
	cli.CompleteFlag(cmd, "k8s-node", cobra.NoFileCompletions)
	f.BoolVar(&o.Wait, "wait", false, "wait for its end, show its progress, print its receipt")
	f.BoolVar(&o.Force, "force", false, "also where the others have no room, or there are none")
	f.DurationVar(&o.MaxGap, "max-gap", 0, "with --wait: longest time, for 99 % of the sessions that move, in which nothing can be delivered; 0: any")
	f.IntVar(&o.MaxLost, "max-lost", 0, "with --wait: most deliveries that may be lost; -1: any")
	cli.CompleteFlag(cmd, "max-gap", cobra.NoFileCompletions)
	cli.CompleteFlag(cmd, "max-lost", cobra.NoFileCompletions)
	return cmd
}

// oneGateway completes the first argument.
func oneGateway(app *cli.App) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return app.CompleteGateways(cmd, args, prefix)
	}
}

// ask has a gateway drained, at rate.
func (o *Options) ask(ctx context.Context, node string, rate float64) (*controlv1.DrainOperation, error) {
	client, err := o.Client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	res, err := client.Drain(ctx, connect.NewRequest(&controlv1.DrainRequest{
		NodeId: node, TimeoutMs: uint64(o.timeout.Milliseconds()), SessionsPerSecond: rate, Force: o.Force,
	}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetDrain(), cli.Warn(o.Err, res.Msg.GetWarnings())
}

// report says that a drain has been asked for or, with --wait, how it went.
func (o *Options) report(ctx context.Context, op *controlv1.DrainOperation) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	if !o.Wait {
		doc := view.NewDrain(op)
		return printer.Print(doc, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "Drain %s of %s: %s. Follow it with 'micsctl drains --watch'.\n", output.Clean(doc.ID), output.Clean(doc.Node), doc.State)
			return err
		})
	}
	client, err := o.Client()
	if err != nil {
		return err
	}
	op, err = (&follower{app: o.App, client: client, id: op.GetOperationId(), last: op}).run(ctx)
	if err != nil {
		return err
	}
	doc := view.NewDrain(op)
	if err := printer.Print(doc, func(w io.Writer) error { return writeReceipt(w, doc) }); err != nil {
		return err
	}
	return o.judge(doc)
}

// check reads the flags.
func (o *Options) check() (rate float64, err error) {
	rate, err = o.parse()
	switch {
	case err != nil:
		return 0, cli.Usage(err)
	case o.limited && !o.Wait:
		return 0, cli.Usage(errors.New("--max-gap, --max-lost: want --wait"))
	case o.MaxGap < 0 || o.MaxLost < -1:
		return 0, cli.Usage(errors.New("--max-gap, --max-lost: must not be negative"))
	}
	_, err = o.Printer()
	return rate, err
}

// judge turns an end into an exit code.
func (o *Options) judge(d view.Drain) error {
	if d.State != "done" {
		return fmt.Errorf("the drain of %s is %s: %s", d.Node, d.State, d.Reason)
	}
	if d.Receipt == nil {
		return errors.New("the drain has no receipt")
	}
	var missed []string
	if lost := d.Receipt.Lost + d.Receipt.NotTakenBack; o.MaxLost >= 0 && lost > uint64(o.MaxLost) {
		missed = append(missed, fmt.Sprintf("%d lost or not taken back, at most %d allowed", lost, o.MaxLost))
	}
	if gap := time.Duration(d.Receipt.GapP99MS * float64(time.Millisecond)); o.MaxGap > 0 && gap > o.MaxGap {
		missed = append(missed, fmt.Sprintf("gap p99 %v, at most %v allowed", gap, o.MaxGap))
	}
	if len(missed) > 0 {
		return cli.Missed(errors.New("limit missed: " + strings.Join(missed, "; ")))
	}
	return nil
}

// UndrainOptions are the inputs of `undrain`.
type UndrainOptions struct{ *cli.App }

// NewUndrain returns `undrain`.
func NewUndrain(app *cli.App) *cobra.Command {
	o := &UndrainOptions{app}
	return &cobra.Command{
		Use:   "undrain NODE",
		Short: "End a gateway's drain and have it serve again",
		Long: `End a gateway's drain, whether it is under way or done, and have the gateway serve
again. Sessions that have moved stay where they are.`,
		Example:           `  micsctl undrain gw-1`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: oneGateway(app),
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return o.run(ctx, args[0]) }),
	}
}

func (o *UndrainOptions) run(ctx context.Context, node string) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	client, err := o.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	res, err := client.Undrain(ctx, connect.NewRequest(&controlv1.UndrainRequest{NodeId: node}))
	if err != nil {
		return err
	}
	doc := struct {
		Node  string      `json:"nodeId"`
		Drain *view.Drain `json:"drain,omitempty"`
	}{Node: node}
	if op := res.Msg.GetDrain(); op != nil {
		d := view.NewDrain(op)
		doc.Drain = &d
	}
	return printer.Print(doc, func(w io.Writer) error {
		if doc.Drain == nil {
			_, err := fmt.Fprintf(w, "%s serves again.\n", output.Clean(node))
			return err
		}
		_, err := fmt.Fprintf(w, "Drain %s of %s is ended: %s.\n", output.Clean(doc.Drain.ID), output.Clean(node), doc.Drain.State)
		return err
	})
}
