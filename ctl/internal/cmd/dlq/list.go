package dlq

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/ctl/internal/view"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

const (
	defaultLimit = 100
	maxLimit     = 10_000
)

// ListOptions are the inputs of `dlq list`.
type ListOptions struct {
	*cli.App
	selection
	Limit uint32
}

func newList(app *cli.App) *cobra.Command {
	o := &ListOptions{App: app}
	cmd := &cobra.Command{
		Use:   "list --tenant TENANT",
		Short: "List dead letters that have not been redriven",
		Example: `  micsctl dlq list --tenant demo --since 24h
  micsctl dlq list --tenant demo --all -o json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              cli.Run(func(ctx context.Context, _ []string) error { return o.run(ctx) }),
	}
	o.addFlags(cmd)
	cmd.Flags().Uint32Var(&o.Limit, "limit", defaultLimit, fmt.Sprintf("list at most this many, 1 to %d", maxLimit))
	cli.CompleteFlag(cmd, "limit", cobra.NoFileCompletions)
	return cmd
}

func (o *ListOptions) run(ctx context.Context) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	since, err := o.sinceMS(o.Now())
	if err != nil {
		return cli.Usage(err)
	}
	if o.Limit < 1 || o.Limit > maxLimit {
		return cli.Usage(fmt.Errorf("--limit: %d: want 1 to %d", o.Limit, maxLimit))
	}
	letters, truncated, err := fetch(ctx, o.App, &routerv1.ListDLQRequest{TenantId: o.tenant, SinceMs: since, All: o.all, Limit: o.Limit})
	if err != nil {
		return err
	}
	doc := view.NewLetters(letters, truncated)
	if err := printer.Print(doc, func(w io.Writer) error { return o.writeTable(w, letters) }); err != nil {
		return err
	}
	if truncated {
		_, _ = fmt.Fprintf(o.Err, "There are more than %d: narrow the search with --since, or raise --limit (at most %d).\n", o.Limit, maxLimit)
	}
	return nil
}

// fetch asks for dead letters.
func fetch(ctx context.Context, app *cli.App, ask *routerv1.ListDLQRequest) (letters []*routerv1.DeadLetter, truncated bool, err error) {
	client, err := app.Client()
	if err != nil {
		return nil, false, err
	}
	ctx, alive, end := patient(ctx, app)
	defer end()
	st, err := client.ListDLQ(ctx, connect.NewRequest(&controlv1.ListDLQRequest{Request: ask}))
	if err != nil {
		return nil, false, cause(ctx, err)
	}
	defer st.Close() //nolint:errcheck // what went wrong is in st.Err
	for st.Receive() {
		alive()
		res := st.Msg().GetResponse()
		letters = append(letters, res.GetLetters()...)
		truncated = truncated || res.GetTruncated()
	}
	return letters, truncated, cause(ctx, st.Err())
}

var header = []string{"ID", "GIVEN UP", "TYPE", "MESSAGE", "FROM", "TO", "SIZE", "NUMBER", "REASON"}

func (o *ListOptions) writeTable(w io.Writer, letters []*routerv1.DeadLetter) error {
	if len(letters) == 0 {
		_, err := fmt.Fprintln(w, "No dead letters.")
		return err
	}
	rows := make([][]string, 0, len(letters))
	for _, l := range letters {
		e := l.GetEvent()
		to := e.GetToUserId()
		if e.GetGroupId() != "" {
			to = strings.TrimPrefix(to+"@"+e.GetGroupId(), "@")
		}
		rows = append(rows, []string{
			id(l), output.AgeSince(o.Now(), l.GetTimeMs()), view.EventType(e), e.GetMsgId(), e.GetUserId(), to,
			strconv.FormatUint(uint64(l.GetDataBytes()), 10), strconv.FormatUint(e.GetTenantSeq(), 10), l.GetReason(),
		})
	}
	return output.WriteTable(w, header, rows)
}

func id(l *routerv1.DeadLetter) string { return fmt.Sprintf("%d/%d", l.GetPartition(), l.GetOffset()) }
