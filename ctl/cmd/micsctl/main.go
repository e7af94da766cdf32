// Command micsctl operates a MICS cluster.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/mics-im/mics/ctl"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the default handling is back, so a second one kills.
	context.AfterFunc(ctx, stop)
	code := ctl.Run(ctx, ctl.IO{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		InTTY:  term.IsTerminal(int(os.Stdin.Fd())),
		OutTTY: term.IsTerminal(int(os.Stdout.Fd())),
		Getenv: os.Getenv,
		Now:    time.Now,
	}, os.Args[1:])
	stop()
	os.Exit(code)
}
