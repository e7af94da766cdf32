// Command mics-load measures what a MICS cluster's work costs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	// exitMissed: --check was given, and a target was missed.
	exitMissed = 3
)

func main() { os.Exit(main1()) }

func main1() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	var usage *usageError
	switch {
	case err == nil, errors.Is(err, pflag.ErrHelp):
		return exitOK
	case errors.Is(err, errMissed):
		fmt.Fprintln(os.Stderr, "mics-load:", err)
		return exitMissed
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "mics-load:", err)
		return exitUsage
	default:
		fmt.Fprintln(os.Stderr, "mics-load:", err)
		return exitFailed
	}
}
