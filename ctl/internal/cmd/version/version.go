// Package version is `micsctl version`.
package version

import (
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
	Client bool
}

// Document is what -o json prints.
type Document struct {
	Client Client `json:"client"`
	// Server is missing with --client and when the control plane did not answer.
	Server *Server `json:"server,omitempty"`
	// ServerError says why Server is missing.
	ServerError string `json:"serverError,omitempty"`
}

// Client is this program.
type Client struct {
	Version string `json:"version"`
}

// Server is the control plane that answered.
type Server struct {
	Version string `json:"version"`
	NodeID  string `json:"nodeId"`
}

// NewCmd returns the command.
func NewCmd(app *cli.App) *cobra.Command {
	o := &Options{App: app}
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of micsctl and of the control plane",
		Long: `Show the versions of micsctl and of the control plane.

A control plane that does not answer is not a failure here: the exit code is 0
all the same. 'micsctl check' is the command that fails.`,
		Example: `  micsctl version
  micsctl version --client -o json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              cli.Run(func(ctx context.Context, _ []string) error { return o.run(ctx) }),
	}
	cmd.Flags().BoolVar(&o.Client, "client", false, "only this micsctl's; ask nobody")
	return cmd
}

func (o *Options) run(ctx context.Context) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	doc := Document{Client: Client{Version: buildinfo.Version()}}
	if !o.Client {
		client, err := o.App.Client()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, o.Timeout)
		defer cancel()
		res, err := client.Version(ctx, connect.NewRequest(&controlv1.VersionRequest{}))
		if err != nil {
			doc.ServerError = cli.Message(err)
		} else {
			doc.Server = &Server{Version: res.Msg.GetVersion(), NodeID: res.Msg.GetNodeId()}
		}
	}
	return printer.Print(doc, func(w io.Writer) error {
		if _, err := fmt.Fprintf(w, "Client: %s\n", doc.Client.Version); err != nil || o.Client {
			return err
		}
		server := "unavailable: " + doc.ServerError
		if s := doc.Server; s != nil {
			server = fmt.Sprintf("%s (%s)", s.Version, s.NodeID)
		}
		_, err := fmt.Fprintf(w, "Server: %s\n", output.Clean(server))
		return err
	})
}
