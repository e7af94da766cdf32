// Command mics-dev runs a whole MICS cluster in one process and talks to it.
package main

import (
	"context"
	"os"

	"github.com/mics-im/mics/allinone/internal/cli"
	"github.com/mics-im/mics/internal/lifecycle"
)

func main() {
	os.Exit(lifecycle.Main(func(ctx context.Context, args []string) error {
		return cli.Run(ctx, args, cli.Process{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Lookup: os.LookupEnv})
	}))
}
