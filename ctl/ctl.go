// Package ctl is micsctl, the operator's command line, as a function: tests and
// other programs can run it inside their own process.
package ctl

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/buildinfo"
	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/cmd/audit"
	"github.com/mics-im/mics/ctl/internal/cmd/canary"
	"github.com/mics-im/mics/ctl/internal/cmd/check"
	"github.com/mics-im/mics/ctl/internal/cmd/dlq"
	"github.com/mics-im/mics/ctl/internal/cmd/drain"
	"github.com/mics-im/mics/ctl/internal/cmd/kick"
	"github.com/mics-im/mics/ctl/internal/cmd/nodes"
	"github.com/mics-im/mics/ctl/internal/cmd/sessions"
	"github.com/mics-im/mics/ctl/internal/cmd/version"
)

// IO is the process around a run: streams, environment, clock. All fields but
// the two TTY ones are required.
type IO = cli.IO

// Run runs micsctl with the arguments (without the program's name) and returns
// its exit code: 0 for success, 1 for a failure, 2 for a wrong command line, 3 for
// a limit that was missed.
// Errors have been written to io.Err.
func Run(ctx context.Context, io IO, args []string) int {
	app := cli.NewApp(io)
	defer app.Close()
	root := newRoot(app)
	root.SetArgs(append([]string{}, args...)) // of nil, cobra makes this process's own arguments
	err := root.ExecuteContext(ctx)
	if text := app.Explain(err); text != "" {
		_, _ = fmt.Fprint(io.Err, text) // nowhere left to report it
	}
	return cli.ExitCode(err)
}

func newRoot(app *cli.App) *cobra.Command {
	root := &cobra.Command{
		Use:   "micsctl",
		Short: "Operate a MICS cluster",
		Long: `micsctl operates a MICS cluster through its control plane.

Exit codes: 0 success; 1 failure (no answer, a refusal, a failed check);
2 wrong command line, nothing was asked of the cluster; 3 done, and a limit given
on the command line was missed (drain --wait).

JSON and YAML (-o) hold the same document: lowerCamel names, RFC 3339 times in
UTC, lists that are never null; incarnations are strings. Fields are only added.`,
		Version:       buildinfo.Version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: cli.Run(func(context.Context, []string) error {
			return cli.Usage(fmt.Errorf("a command is missing"))
		}),
	}
	root.SetIn(app.In)
	root.SetOut(app.Out)
	root.SetErr(app.Err)
	app.AddFlags(root)
	root.AddCommand(nodes.NewCmd(app), sessions.NewCmd(app), kick.NewCmd(app), dlq.NewCmd(app), check.NewCmd(app),
		drain.NewDrain(app), drain.NewUndrain(app), drain.NewDrains(app), drain.NewRehearse(app), canary.NewCmd(app), canary.NewRebalance(app),
		audit.NewCmd(app), version.NewCmd(app))
	return root
}
