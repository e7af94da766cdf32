// Command mics-router routes the messages of a MICS cluster.
package main

import (
	"context"
	"os"

	"github.com/mics-im/mics/internal/lifecycle"
	"github.com/mics-im/mics/router"
)

func main() { os.Exit(lifecycle.Main(run)) }

func run(ctx context.Context, args []string) error {
	cfg, err := router.LoadConfig(args, os.LookupEnv)
	if err != nil {
		return err
	}
	r, err := router.New(ctx, cfg)
	if err != nil {
		return err
	}
	return r.Run(ctx)
}
