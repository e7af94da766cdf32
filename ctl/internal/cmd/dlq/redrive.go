package dlq

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
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// RedriveOptions are the inputs of `dlq redrive`.
type RedriveOptions struct {
	*cli.App
	selection
	DryRun bool
}

func newRedrive(app *cli.App) *cobra.Command {
	o := &RedriveOptions{App: app}
	cmd := &cobra.Command{
		Use:   "redrive --tenant TENANT",
		Short: "Publish dead letters to their tenant's topic again",
		Long: `Publish dead letters to their tenant's topic again, with the numbers that they
had. What has been redriven is not redriven again unless --all is given; what
is older than --since is passed over for good.

Progress goes to standard error. Interrupted, the next redrive goes on from there.
The exit code is 1 when something was refused again: see 'micsctl dlq list'.`,
		Example: `  micsctl dlq redrive --tenant demo --dry-run
  micsctl dlq redrive --tenant demo --since 2030-05-01T12:00:00Z`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              cli.Run(func(ctx context.Context, _ []string) error { return o.run(ctx) }),
	}
	o.addFlags(cmd)
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "count only, publish nothing")
	return cmd
}

func (o *RedriveOptions) run(ctx context.Context) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	since, err := o.sinceMS(o.Now())
	if err != nil {
		return cli.Usage(err)
	}
	last, err := o.follow(ctx, &routerv1.RedriveDLQRequest{TenantId: o.tenant, SinceMs: since, All: o.all, DryRun: o.DryRun})
	if err != nil {
		return err
	}
	doc := view.NewRedrive(last, o.DryRun)
	if err := printer.Print(doc, func(w io.Writer) error { return writeRedrive(w, o.tenant, doc) }); err != nil {
		return err
	}
	switch {
	case !doc.Done:
		return errors.New("the redrive ended early: run it again to go on")
	case doc.Dead+doc.Failed > 0:
		return errors.New("not everything was taken: see 'micsctl dlq list' for why, then redrive again")
	}
	return nil
}

// follow starts a redrive and shows its progress until it ends.
func (o *RedriveOptions) follow(ctx context.Context, ask *routerv1.RedriveDLQRequest) (last *routerv1.RedriveProgress, err error) {
	client, err := o.Client()
	if err != nil {
		return nil, err
	}
	ctx, alive, end := patient(ctx, o.App)
	defer end()
	st, err := client.RedriveDLQ(ctx, connect.NewRequest(&controlv1.RedriveDLQRequest{Request: ask}))
	if err != nil {
		return nil, cause(ctx, err)
	}
	defer st.Close() //nolint:errcheck // what went wrong is in st.Err
	for st.Receive() {
		alive()
		last = st.Msg().GetProgress()
		if last.GetDone() {
			continue
		}
		if _, err := fmt.Fprintf(o.Err, "%d of %d: %d published, %d refused again\n", last.GetRead(), last.GetTotal(), last.GetSent(), last.GetDead()+last.GetFailed()); err != nil {
			return nil, err
		}
	}
	return last, cause(ctx, st.Err())
}

func writeRedrive(w io.Writer, tenant string, r view.Redrive) error {
	if r.DryRun {
		_, err := fmt.Fprintf(w, "%s of tenant %s would be redriven.\n", output.Count(r.Total, "dead letter"), output.Clean(tenant))
		return err
	}
	_, err := fmt.Fprintf(w, "Redriven %d of %s of tenant %s: %d published, %d dead letters again, %d failed.\n",
		r.Read, output.Count(r.Total, "dead letter"), output.Clean(tenant), r.Sent, r.Dead, r.Failed)
	return err
}
