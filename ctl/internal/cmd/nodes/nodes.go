// Package nodes is `micsctl nodes`.
package nodes

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/ctl/internal/view"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// Options are the inputs of the command.
type Options struct {
	*cli.App
	Watch bool
}

// NewCmd returns the command.
func NewCmd(app *cli.App) *cobra.Command {
	o := &Options{App: app}
	cmd := &cobra.Command{
		Use:   "nodes",
		Short: "List gateways and routers",
		Long: `List gateways and routers as the control plane sees them.

Figures of a node that does not answer are the last known; its STATUS says so.
With --watch the inventory comes again after every refresh, about once a
second: redrawn in place on a terminal, else appended, one line per node (table),
one JSON document per line (json) or one YAML document each (yaml). A watch
outlives a restart of the control plane and ends with Ctrl-C.`,
		Example: `  micsctl nodes
  micsctl nodes --watch
  micsctl nodes -o json | jq -r '.nodes[] | select(.unreachable) | .nodeId'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              cli.Run(func(ctx context.Context, _ []string) error { return o.run(ctx) }),
	}
	cmd.Flags().BoolVarP(&o.Watch, "watch", "w", false, "keep showing the inventory as it changes")
	return cmd
}

func (o *Options) run(ctx context.Context) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	client, err := o.Client()
	if err != nil {
		return err
	}
	if o.Watch {
		w := &watcher{app: o.App, client: client, printer: printer}
		return w.run(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	res, err := client.ListNodes(ctx, connect.NewRequest(&controlv1.ListNodesRequest{}))
	if err != nil {
		return err
	}
	m := res.Msg
	err = printer.Print(view.NewNodes(m.GetNodes(), m.GetObservedAtMs(), m.GetWarnings()), func(w io.Writer) error {
		return writeTable(w, o.App, m.GetNodes())
	})
	if err != nil {
		return err
	}
	return cli.Warn(o.Err, m.GetWarnings())
}

var header = []string{
	"KIND", "NODE", "STATUS", "TRACK", "SESSIONS", "V2", "CONN/S", "IN/S", "OUT/S", "ROUTERS", "VERSION", "UP",
}

func writeTable(w io.Writer, app *cli.App, nodes []*controlv1.Node) error {
	if len(nodes) == 0 {
		_, err := fmt.Fprintln(w, "No nodes.")
		return err
	}
	rows := make([][]string, 0, len(nodes))
	for _, n := range nodes {
		row := []string{view.Kind(n.GetKind()), n.GetNodeId(), status(n)}
		if n.GetKind() == controlv1.NodeKind_NODE_KIND_GATEWAY {
			row = append(row, n.GetTrack(),
				strconv.FormatUint(n.GetSessions(), 10), strconv.FormatUint(n.GetSessionsV2(), 10),
				output.Rate(n.GetConnectsPerSecond()), output.Rate(n.GetMessagesInPerSecond()), output.Rate(n.GetDeliveriesPerSecond()),
				strconv.FormatUint(uint64(n.GetRoutersLinked()), 10))
		} else {
			row = append(row, "", "", "", "", "", "", "")
		}
		rows = append(rows, append(row, n.GetVersion(), output.AgeSince(app.Now(), n.GetStartedAtMs())))
	}
	return output.WriteTable(w, header, rows)
}

// status is the one word (and, for a node that does not answer, the reason)
// that an operator looks for first.
func status(n *controlv1.Node) string {
	switch {
	case n.GetUnreachable() && n.GetUnreachableReason() != "":
		return "unreachable (" + n.GetUnreachableReason() + ")"
	case n.GetUnreachable():
		return "unreachable"
	case n.GetKind() == controlv1.NodeKind_NODE_KIND_GATEWAY:
		return view.Phase(n.GetPhase())
	}
	return "up"
}
