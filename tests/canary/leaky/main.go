// Command leaky is a gateway that leaks memory: a bad canary for tests.
package main

import (
	"context"
	"os"
	"time"

	"github.com/mics-im/mics/gateway"
	"github.com/mics-im/mics/internal/lifecycle"
)

func main() { os.Exit(lifecycle.Main(run)) }

const (
	leak   = 8 << 20 // bytes per leakIn
	leakIn = 200 * time.Millisecond
	// limit keeps a forgotten process from taking the machine down.
	limit = 1 << 30
)

func run(ctx context.Context, args []string) error {
	cfg, err := gateway.LoadConfig(args, os.LookupEnv)
	if err != nil {
		return err
	}
	g, err := gateway.New(ctx, cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var lost [][]byte
		for len(lost)*leak < limit && ctx.Err() == nil {
			block := make([]byte, leak)
			for i := 0; i < len(block); i += 4096 {
				block[i] = 1 // resident
			}
			lost = append(lost, block)
			select {
			case <-ctx.Done():
			case <-time.After(leakIn):
			}
		}
		<-ctx.Done()
		_ = lost[0]
	}()
	err = g.Run(ctx)
	cancel()
	<-done
	return err
}
