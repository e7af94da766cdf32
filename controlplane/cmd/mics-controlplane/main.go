// Command mics-controlplane operates a MICS cluster.
package main

import (
	"context"
	"os"

	"github.com/mics-im/mics/controlplane"
	"github.com/mics-im/mics/internal/lifecycle"
)

func main() { os.Exit(lifecycle.Main(run)) }

func run(ctx context.Context, args []string) error {
	cfg, err := controlplane.LoadConfig(args, os.LookupEnv)
	if err != nil {
		return err
	}
	c, err := controlplane.New(ctx, cfg)
	if err != nil {
		return err
	}
	return c.Run(ctx)
}
