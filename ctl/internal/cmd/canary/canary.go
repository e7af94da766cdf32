// Package canary is `micsctl canary`.
package canary

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/ctl/internal/view"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// maxAnalysis bounds the file, in bytes; the control plane does too.
const maxAnalysis = 64 << 10

// NewCmd returns the command and those below it.
func NewCmd(app *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "canary",
		Short: "Try a new version with a share of the users",
		Long: `Try a new version of the gateways with a share of the users, who are moved to it
with their sockets, and back if it does worse.

The gateways of the new version run with TRACK=canary. See docs/runbook.md.`,
		Args: cobra.NoArgs,
		RunE: cli.Run(func(context.Context, []string) error {
			return cli.Usage(errors.New("want start, status, set-weight, pause, resume, promote or abort"))
		}),
	}
	cmd.AddCommand(newStart(app), newStatus(app), newSetWeight(app),
		newChange(app, change{
			use: "pause", short: "Move nobody and end no step; signals are still watched", what: controlv1.ChangeCanaryRequest_CHANGE_PAUSE,
		}),
		newChange(app, change{use: "resume", short: "Go on after a pause", what: controlv1.ChangeCanaryRequest_CHANGE_RESUME}),
		newChange(app, change{
			use: "promote", short: "Make the canary's version the stable one", what: controlv1.ChangeCanaryRequest_CHANGE_PROMOTE,
			long: `Make the canary's version the stable one: everybody is moved to the canary, the
stable gateways are replaced (on Kubernetes by themselves; else the status names
those that you have to replace), and everybody is moved back to them.`,
		}),
		newChange(app, change{
			use: "abort", short: "Move everybody back to stable", what: controlv1.ChangeCanaryRequest_CHANGE_ABORT, needsReason: true,
		}))
	return cmd
}

// startOptions are the inputs of start.
type startOptions struct {
	*cli.App
	Track, Steps, Analysis string
	Bake                   time.Duration
	Tenants, Denied        []string
	AutoPromote, MoveV1    bool
	Rate                   string
}

func newStart(app *cli.App) *cobra.Command {
	o := &startOptions{App: app}
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Begin a canary",
		Long: `Begin a canary on the gateways that run with TRACK=canary. Each step is a share
of the users, chosen by a hash, so that a higher one only adds users and all
devices of a user stay together. A step ends when the share has been reached and
nothing was worse than on stable for the bake time; something clearly worse moves
everybody back by itself.`,
		Example: `  micsctl canary start --steps 5,25,50,100 --bake 10m
  micsctl canary start --steps 1,10,50 --tenants demo,acme --analysis limits.yaml --auto-promote`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              cli.Run(func(ctx context.Context, _ []string) error { return o.run(ctx) }),
	}
	f := cmd.Flags()
	f.StringVar(&o.Track, "track", "canary", "track of the gateways with the new version")
	f.StringVar(&o.Steps, "steps", "5,25,50,100", "shares of the users, per cent, rising")
	f.DurationVar(&o.Bake, "bake", 10*time.Minute, "how long each step must go well")
	f.StringSliceVar(&o.Tenants, "tenants", nil, "only users of these tenants; default: of all")
	f.StringSliceVar(&o.Denied, "not-tenants", nil, "no users of these tenants")
	f.StringVar(&o.Analysis, "analysis", "", "YAML file with what the canary is judged by (docs/operations.md)")
	f.BoolVar(&o.AutoPromote, "auto-promote", false, "promote after the last step")
	f.BoolVar(&o.MoveV1, "move-v1", false, "move connections of V1 clients too, by closing them (4200)")
	f.StringVar(&o.Rate, "rate", "auto", "sessions moved per second: auto (as fast as they are taken), or a number")
	for _, name := range []string{"steps", "bake", "tenants", "not-tenants", "rate"} {
		cli.CompleteFlag(cmd, name, cobra.NoFileCompletions)
	}
	cli.CompleteFlag(cmd, "track", cobra.FixedCompletions([]string{"canary"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// spec reads the flags.
func (o *startOptions) spec() (*controlv1.CanarySpec, error) {
	if o.Track != "canary" {
		return nil, fmt.Errorf("--track: %q: want canary, the only track beside stable", o.Track)
	}
	s := &controlv1.CanarySpec{
		BakeMs: uint64(max(0, o.Bake.Milliseconds())), Tenants: o.Tenants, TenantsDenied: o.Denied, AutoPromote: o.AutoPromote, MoveV1: o.MoveV1,
	}
	for _, text := range strings.Split(o.Steps, ",") {
		w, err := parseWeight(text)
		if err != nil {
			return nil, fmt.Errorf("--steps: %w", err)
		}
		if n := len(s.Steps); w == 0 || n > 0 && w <= s.Steps[n-1] {
			return nil, fmt.Errorf("--steps: %s: want shares above 0 that rise", o.Steps)
		}
		s.Steps = append(s.Steps, w)
	}
	if o.Bake < time.Second {
		return nil, fmt.Errorf("--bake: %v: want at least 1s", o.Bake)
	}
	if o.Rate != "auto" {
		rate, err := strconv.ParseFloat(strings.TrimSuffix(o.Rate, "/s"), 64)
		if err != nil || !(rate > 0) || math.IsInf(rate, 0) {
			return nil, fmt.Errorf("--rate: %q: want auto, or sessions per second", o.Rate)
		}
		s.SessionsPerSecond = rate
	}
	if o.Analysis != "" {
		text, err := readFile(o.Analysis)
		if err != nil {
			return nil, fmt.Errorf("--analysis: %w", err)
		}
		s.Analysis = text
	}
	return s, nil
}

func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxAnalysis+1))
	if err == nil && len(text) > maxAnalysis {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxAnalysis)
	}
	return string(text), err
}

// parseWeight reads per cent, with at most two decimals.
func parseWeight(s string) (uint32, error) {
	p, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(s), "%"), 64)
	if err != nil || !(p >= 0 && p <= 100) {
		return 0, fmt.Errorf("%q: want per cent, from 0 to 100", strings.TrimSpace(s))
	}
	w := math.Round(p * 100)
	if math.Abs(w-p*100) > 1e-6 {
		return 0, fmt.Errorf("%q: at most two decimals", strings.TrimSpace(s))
	}
	return uint32(w), nil
}

func (o *startOptions) run(ctx context.Context) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	spec, err := o.spec()
	if err != nil {
		return cli.Usage(err)
	}
	client, err := o.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	res, err := client.StartCanary(ctx, connect.NewRequest(&controlv1.StartCanaryRequest{Spec: spec}))
	if err != nil {
		return err
	}
	c := res.Msg.GetCanary()
	return printer.Print(view.NewCanary(c), func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "Canary %s has begun with version %s, at %s of the users.\nFollow it: micsctl canary status --watch\n",
			output.Clean(c.GetId()), output.Clean(strings.Join(c.GetCanary().GetVersions(), ", ")), weight(c.GetWeight()))
		return err
	})
}

// weight prints a weight as per cent.
func weight(w uint32) string { return strconv.FormatFloat(float64(w)/100, 'f', -1, 64) + " %" }
