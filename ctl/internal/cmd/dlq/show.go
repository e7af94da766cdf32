package dlq

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/ctl/internal/view"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// ShowOptions are the inputs of `dlq show`.
type ShowOptions struct {
	*cli.App
	Tenant string
}

func newShow(app *cli.App) *cobra.Command {
	o := &ShowOptions{App: app}
	cmd := &cobra.Command{
		Use:               "show --tenant TENANT ID",
		Short:             "Show all about one dead letter",
		Long:              "Show all about one dead letter, by the ID that `dlq list` shows (PARTITION/OFFSET).",
		Example:           "  micsctl dlq show --tenant demo 0/42",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return o.run(ctx, args[0]) }),
	}
	cmd.Flags().StringVar(&o.Tenant, "tenant", "", "whose dead letter (required)")
	cli.CompleteFlag(cmd, "tenant", cobra.NoFileCompletions)
	return cmd
}

func (o *ShowOptions) run(ctx context.Context, place string) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	if o.Tenant == "" {
		return cli.Usage(errors.New("--tenant: required"))
	}
	ref, err := parseID(place)
	if err != nil {
		return cli.Usage(err)
	}
	letters, _, err := fetch(ctx, o.App, &routerv1.ListDLQRequest{TenantId: o.Tenant, Only: ref})
	if err != nil {
		return err
	}
	if len(letters) != 1 {
		return fmt.Errorf("the control plane answered with %d dead letters", len(letters))
	}
	doc := view.NewLetter(letters[0])
	return printer.Print(doc, func(w io.Writer) error { return writeLetter(w, doc) })
}

func parseID(s string) (*routerv1.DeadLetterRef, error) {
	p, o, ok := strings.Cut(s, "/")
	partition, err1 := strconv.ParseInt(p, 10, 32)
	offset, err2 := strconv.ParseInt(o, 10, 64)
	if !ok || err1 != nil || err2 != nil || partition < 0 || offset < 0 {
		return nil, fmt.Errorf("%q: want PARTITION/OFFSET, as `dlq list` shows it", s)
	}
	return &routerv1.DeadLetterRef{Partition: int32(partition), Offset: offset}, nil
}

func writeLetter(w io.Writer, l view.Letter) error {
	for _, f := range []struct{ name, value string }{
		{"ID", l.ID}, {"Given up at", l.GivenUpAt}, {"Given up by", l.GivenUpBy}, {"Reason", l.Reason}, {"Key", l.Key},
		{"Type", l.Type}, {"Happened at", l.HappenedAt}, {"Message", l.MsgID}, {"User", l.User}, {"Device", l.Device},
		{"To user", l.ToUser}, {"Group", l.Group}, {"Trace", l.TraceID}, {"Producer", l.NodeID}, {"Number", l.TenantSeq},
		{"Signed", strconv.FormatBool(l.Signed)}, {"Unmoderated", strconv.FormatBool(l.Unmoderated)}, {"Data bytes", strconv.FormatUint(uint64(l.DataBytes), 10)},
	} {
		if f.value == "" {
			f.value = "-"
		}
		if _, err := fmt.Fprintf(w, "%-13s%s\n", f.name+":", output.Clean(f.value)); err != nil {
			return err
		}
	}
	return nil
}
