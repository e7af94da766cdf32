// Command mics-gateway holds clients' connections of a MICS cluster.
package main

import (
	"context"
	"os"

	"github.com/mics-im/mics/gateway"
	"github.com/mics-im/mics/internal/lifecycle"
)

func main() { os.Exit(lifecycle.Main(run)) }

func run(ctx context.Context, args []string) error {
	cfg, err := gateway.LoadConfig(args, os.LookupEnv)
	if err != nil {
		return err
	}
	g, err := gateway.New(ctx, cfg)
	if err != nil {
		return err
	}
	return g.Run(ctx)
}
