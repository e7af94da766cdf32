// Package check is `micsctl check`.
package check

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/buildinfo"
	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// Options are the inputs of the command.
type Options struct {
	*cli.App
}

// Document is what -o json prints.
type Document struct {
	// Status is the worst of the results.
	Status  Status   `json:"status"`
	Results []Result `json:"results"`
}

// NewCmd returns the command.
func NewCmd(app *cli.App) *cobra.Command {
	o := &Options{App: app}
	return &cobra.Command{
		Use:   "check",
		Short: "Check that the cluster can do its work",
		Long: `Check that the cluster can do its work, and say what to do where it cannot.

Each check is ok (√), a warning (‼) or a failure (×). The exit code is 1 when
there is a failure; warnings alone leave it at 0.`,
		Example: `  micsctl check
  micsctl check -o json | jq -r '.results[] | select(.status == "fail") | .link'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              cli.Run(func(ctx context.Context, _ []string) error { return o.run(ctx) }),
	}
}

func (o *Options) run(ctx context.Context) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	f, err := o.gather(ctx)
	if err != nil {
		return err
	}
	doc := Document{Status: OK, Results: evaluate(f)}
	for _, r := range doc.Results {
		if r.Status == Fail || doc.Status == OK {
			doc.Status = r.Status
		}
	}
	if err := printer.Print(doc, func(w io.Writer) error { return o.write(w, doc) }); err != nil {
		return err
	}
	if doc.Status == Fail {
		return cli.ErrReported
	}
	return nil
}

// gather asks the control plane. What it does not answer is a fact as well; an
// error is only for a wrong command line.
func (o *Options) gather(ctx context.Context) (facts, error) {
	f := facts{endpoint: o.Endpoint, clientVersion: buildinfo.Version()}
	client, err := o.Client()
	if err != nil {
		return f, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	version, err := client.Version(ctx, connect.NewRequest(&controlv1.VersionRequest{}))
	if err != nil {
		f.serverErr = cli.Message(err)
		f.refused = connect.CodeOf(err) == connect.CodeUnauthenticated || connect.CodeOf(err) == connect.CodePermissionDenied
		return f, nil
	}
	f.server = version.Msg
	nodes, err := client.ListNodes(ctx, connect.NewRequest(&controlv1.ListNodesRequest{}))
	if err != nil {
		f.inventoryErr = cli.Message(err)
		return f, nil
	}
	f.inventory = nodes.Msg
	return f, nil
}

// style is how an outcome looks.
type style struct{ mark, colour string }

var styles = map[Status]style{OK: {"√", "32"}, Warn: {"‼", "33"}, Fail: {"×", "31"}}

// paint colours s when a person looks (https://no-color.org).
func (o *Options) paint(colour, s string) string {
	if !o.OutTTY || o.Getenv("NO_COLOR") != "" {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

func (o *Options) write(w io.Writer, doc Document) error {
	var b bytes.Buffer
	category := ""
	for _, r := range doc.Results {
		if r.Category != category {
			if category != "" {
				b.WriteByte('\n')
			}
			category = r.Category
			fmt.Fprintln(&b, category)
		}
		st := styles[r.Status]
		fmt.Fprintf(&b, "  %s %s", o.paint(st.colour, st.mark), output.Clean(r.Check))
		if r.Status == OK && r.Detail != "" {
			fmt.Fprintf(&b, " (%s)", output.Clean(r.Detail))
		}
		b.WriteByte('\n')
		if r.Status != OK {
			for _, line := range []string{r.Detail, "hint: " + r.Hint, "see " + r.Link} {
				fmt.Fprintf(&b, "      %s\n", output.Clean(line))
			}
		}
	}
	st := styles[doc.Status]
	fmt.Fprintf(&b, "\nStatus: %s %s\n", o.paint(st.colour, st.mark), doc.Status)
	_, err := w.Write(b.Bytes())
	return err
}
