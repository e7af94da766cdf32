package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/mics-im/mics/tests/load/drain"
	"github.com/spf13/pflag"
)

// fullSize of the parts, in sessions.
var fullSize = map[string]int{drain.PartV2: 10_000, drain.PartV1: 10_000, drain.PartFar: 15_000}

// drains runs the drain bench.
func drains(ctx context.Context, args []string, out, errOut io.Writer) error {
	var cfg drain.Config
	fs := pflag.NewFlagSet("drain", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetOutput(errOut)
	fs.Usage = func() {
		_, _ = fmt.Fprintf(errOut, "mics-load drain: three gateways, two routers, two control planes and a Redis, drained and\n"+
			"restarted while messages run through; 0 lost, 0 repeated, in order, or exit code 3.\n\n"+
			"  v2   clients that move before their connection ends: nobody is disconnected\n"+
			"  v1   clients that know nothing of that: all are told 4200\n"+
			"  far  V1 clients with a round trip, all on one gateway, of which 5 %% fall silent\n\nFlags:\n%s", fs.FlagUsages())
	}
	parts := fs.StringSlice("parts", []string{drain.PartV2, drain.PartV1, drain.PartFar}, "what is run, in this order")
	fs.StringVar(&cfg.Cluster.Bin, "bin", "bin", "directory of the services' binaries")
	fs.StringArrayVar(&cfg.Cluster.Env, "env", nil, "NAME=VALUE: a setting of the services; may be repeated")
	fs.IntVar(&cfg.Sessions, "sessions", 0, "clients; 0: 10,000, in far 15,000")
	fs.IntVar(&cfg.Rate, "rate", 1000, "messages per second")
	fs.IntVar(&cfg.Body, "body", 128, "bytes of a message's body")
	fs.IntVar(&cfg.Agents, "agents", 4, "processes that hold the clients")
	fs.IntVar(&cfg.Parallel, "parallel", 64, "connects at once")
	fs.DurationVar(&cfg.Timeout, "drain-timeout", 3*time.Minute, "of drains and of SIGTERM")
	fs.DurationVar(&cfg.Steady, "steady", 10*time.Second, "measured at rest, before and afterwards")
	fs.DurationVar(&cfg.Over, "over", 0, "about how long drains take that are cancelled or lose their leader, at a fixed rate; 0: the control plane paces them")
	fs.DurationVar(&cfg.RoundTrip, "round-trip", 100*time.Millisecond, "emulated in far")
	fs.DurationVar(&cfg.GapLimit, "gap-limit", 50*time.Millisecond, "what the gap's p99 must stay below")
	output := fs.StringP("output", "o", "table", "table or json")
	timeout := fs.Duration("timeout", 30*time.Minute, "bound of one part")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return err
		}
		return &usageError{err}
	}
	if fs.NArg() > 0 || len(*parts) == 0 || *output != "table" && *output != "json" {
		return badUsage("drain: %q, --parts %v, --output %q", fs.Args(), *parts, *output)
	}
	cfg.Progress = func(text string) { _, _ = fmt.Fprintln(errOut, text) }
	var runs []drain.Config
	for _, part := range *parts {
		c := cfg
		if c.Part = part; c.Sessions == 0 {
			c.Sessions = fullSize[part]
		}
		if err := c.Check(); err != nil {
			return &usageError{err}
		}
		runs = append(runs, c)
	}
	return runDrains(ctx, runs, *timeout, *output == "json", out)
}

func runDrains(ctx context.Context, runs []drain.Config, timeout time.Duration, asJSON bool, out io.Writer) error {
	var all []drain.Report
	missed := false
	for _, c := range runs {
		one, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done after %v", timeout))
		r, err := drain.Run(one, c)
		cancel()
		missed = missed || r.Missed()
		if all = append(all, r); !asJSON && len(r.Phases) > 0 {
			if err := drain.WriteText(out, r); err != nil {
				return err
			}
		}
		if err != nil {
			return fmt.Errorf("drain, %s: %w", c.Part, err)
		}
	}
	if asJSON {
		if err := drain.WriteJSON(out, all); err != nil {
			return err
		}
	}
	if missed {
		return errMissed
	}
	return nil
}
