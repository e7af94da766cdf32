package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/mics-im/mics/tests/load"
	"github.com/mics-im/mics/tests/load/drain"
	"github.com/spf13/pflag"
)

var errMissed = errors.New("a target was missed")

// usageError is a command line that cannot be meant.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() + " (mics-load help tells what there is)" }
func (e *usageError) Unwrap() error { return e.err }

func badUsage(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// run is the program.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) error {
	if len(args) == 0 {
		return badUsage("what is to be measured?")
	}
	name, args := args[0], args[1:]
	switch name {
	case "help", "-h", "--help":
		return help(out)
	case "agent":
		return load.RunAgent(ctx, in, out)
	case "drain":
		return drains(ctx, args, out, errOut)
	case "drain-agent":
		return drain.RunAgent(ctx, in, out)
	case "bare":
		return serve(ctx, args, false)
	case "tenant":
		return serve(ctx, args, true)
	case "up":
		return up(ctx, args, out, errOut)
	case "all":
		return measure(ctx, load.Scenarios(), args, out, errOut)
	}
	for _, s := range load.Scenarios() {
		if s.Name == name {
			return measure(ctx, []load.Scenario{s}, args, out, errOut)
		}
	}
	return badUsage("unknown command %q", name)
}

func help(out io.Writer) error {
	var b strings.Builder
	b.WriteString("mics-load measures what a MICS cluster's work costs.\n\n" +
		"  mics-load SCENARIO [flags]   start a cluster, run the scenario, print the figures\n\nScenarios:\n")
	for _, s := range load.Scenarios() {
		fmt.Fprintf(&b, "  %-11s %s\n", s.Name, s.Short)
	}
	b.WriteString("  all         one after the other\n\nOther commands:\n" +
		"  drain       drain and restart gateways under traffic: mics-load drain --help\n" +
		"  up          start a cluster and leave it running until Ctrl-C\n" +
		"  tenant      serve the hooks of the load tests' tenant, for a cluster elsewhere\n" +
		"  bare        serve the yardstick\n\n" +
		"Examples:\n" +
		"  mics-load saturation --bin bin --runs 5 --bare\n" +
		"  mics-load fanout --sizes 100 --profile /tmp/prof\n" +
		"  mics-load connect --url ws://127.0.0.1:8080/ws --pids gateway-1=4711,router-1=4712,redis=4713\n\n" +
		"Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a target was missed (--check; drain: always).\n\nFlags of scenarios:\n")
	var o options
	b.WriteString(o.flags("help", load.Scenarios()[0]).FlagUsages())
	_, err := io.WriteString(out, b.String())
	return err
}

// measure runs scenarios and prints their reports.
func measure(ctx context.Context, scenarios []load.Scenario, args []string, out, errOut io.Writer) error {
	var reports []load.Report
	var failed []error
	missed, asJSON, check := false, false, false
	for _, sc := range scenarios {
		var o options
		if err := o.parse(sc, args, errOut); err != nil {
			return err
		}
		asJSON, check = o.output == "json", o.check
		s, err := o.session(sc)
		if err != nil {
			return err
		}
		s.Progress = func(text string) { _, _ = fmt.Fprintln(errOut, text) }
		r, err := s.Run(ctx)
		if err != nil {
			failed = append(failed, err)
		}
		if len(r.Figures) > 0 {
			reports = append(reports, r)
			missed = missed || r.Failed()
			if !asJSON {
				if err := load.WriteTable(out, r); err != nil {
					return err
				}
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	if asJSON {
		if err := load.WriteJSON(out, reports); err != nil {
			return err
		}
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	if check && missed {
		return errMissed
	}
	return nil
}

// up starts a cluster and waits.
func up(ctx context.Context, args []string, out, errOut io.Writer) error {
	var o options
	if err := o.parse(load.Scenario{Name: "up", Gateways: 2, Defaults: load.Scenarios()[1].Defaults}, args, errOut); err != nil {
		return err
	}
	cfg := o.cluster
	dir, err := os.MkdirTemp("", "mics-load-")
	if err != nil {
		return err
	}
	cfg.Dir = dir
	c, err := load.StartCluster(ctx, cfg)
	if err != nil {
		return err
	}
	var pids []string
	for _, p := range c.Procs {
		pids = append(pids, fmt.Sprintf("%s=%d", p.Name, p.PID))
	}
	_, err = fmt.Fprintf(out, "--url %s --pids %s\nlogs in %s until Ctrl-C ends it all\n", strings.Join(c.URLs, ","), strings.Join(pids, ","), dir)
	if err == nil {
		<-ctx.Done()
	}
	return errors.Join(err, c.Stop(), os.RemoveAll(dir))
}

// serve serves the tenant's hooks or the yardstick.
func serve(ctx context.Context, args []string, tenant bool) error {
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	listen := fs.String("listen", "127.0.0.1:8090", "address to listen at")
	secret := fs.String("secret", load.TenantSecret, "what hooks are signed with")
	if err := fs.Parse(args); err != nil {
		return &usageError{err}
	}
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	if !tenant {
		return new(load.Bare).Serve(ctx, ln)
	}
	h, err := load.TenantHandler(*secret)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	return load.Serve(ctx, ln, h)
}
