// Package sessions is `micsctl sessions`.
package sessions

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

// Limits of --limit, as in the control plane's contract.
const (
	defaultLimit = 100
	maxLimit     = 10_000
)

// Options are the inputs of the command.
type Options struct {
	*cli.App
	Tenant, User, Node string
	Limit              uint32
}

// NewCmd returns the command.
func NewCmd(app *cli.App) *cobra.Command {
	o := &Options{App: app}
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "List client connections",
		Long: `List client connections, asked from the gateways that hold them.

Without --tenant, --user or --node it lists any. A gateway that does not answer
is named in a warning; what the others hold is listed all the same.`,
		Example: `  micsctl sessions --tenant demo --user alice
  micsctl sessions --node gateway-1 --limit 1000 -o json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              cli.Run(func(ctx context.Context, _ []string) error { return o.run(ctx) }),
	}
	f := cmd.Flags()
	f.StringVar(&o.Tenant, "tenant", "", "only this tenant's")
	f.StringVar(&o.User, "user", "", "only this user's")
	f.StringVar(&o.Node, "node", "", "only on this gateway")
	f.Uint32Var(&o.Limit, "limit", defaultLimit, fmt.Sprintf("list at most this many, 1 to %d", maxLimit))
	cli.CompleteFlag(cmd, "node", app.CompleteGateways)
	for _, name := range []string{"tenant", "user", "limit"} {
		cli.CompleteFlag(cmd, name, cobra.NoFileCompletions)
	}
	return cmd
}

func (o *Options) run(ctx context.Context) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	if o.Limit < 1 || o.Limit > maxLimit {
		return cli.Usage(fmt.Errorf("--limit: %d: want 1 to %d", o.Limit, maxLimit))
	}
	client, err := o.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	res, err := client.ListSessions(ctx, connect.NewRequest(&controlv1.ListSessionsRequest{
		TenantId: o.Tenant, UserId: o.User, NodeId: o.Node, Limit: o.Limit,
	}))
	if err != nil {
		return err
	}
	doc := view.NewSessions(res.Msg)
	if err := printer.Print(doc, func(w io.Writer) error { return o.writeTable(w, res.Msg) }); err != nil {
		return err
	}
	if doc.Truncated {
		_, _ = fmt.Fprintf(o.Err, "There are more than %d: narrow the search, or raise --limit (at most %d).\n", o.Limit, maxLimit)
	}
	return cli.Warn(o.Err, doc.Warnings)
}

var header = []string{"TENANT", "USER", "DEVICE", "NODE", "SESSION", "EPOCH", "V", "CONNECTED", "QUEUED", "ADDRESS"}

func (o *Options) writeTable(w io.Writer, m *controlv1.ListSessionsResponse) error {
	if len(m.GetSessions()) == 0 {
		_, err := fmt.Fprintln(w, "No sessions.")
		return err
	}
	rows := make([][]string, 0, len(m.GetSessions()))
	for _, s := range m.GetSessions() {
		i := s.GetInfo()
		rows = append(rows, []string{
			i.GetTenantId(), i.GetUserId(), i.GetDeviceId(), s.GetNodeId(),
			strconv.FormatUint(i.GetSessionId(), 10), strconv.FormatUint(i.GetEpoch(), 10),
			strconv.FormatUint(uint64(i.GetVersion()), 10), output.AgeSince(o.Now(), i.GetConnectedAtMs()),
			strconv.FormatUint(uint64(i.GetQueued()), 10), i.GetRemoteAddr(),
		})
	}
	return output.WriteTable(w, header, rows)
}
