package canary

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/ctl/internal/view"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
)

type statusOptions struct {
	*cli.App
	Watch bool
}

func newStatus(app *cli.App) *cobra.Command {
	o := &statusOptions{App: app}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the canary, both tracks side by side",
		Long: `Show the canary that runs, else the last one: where it is, what it waits for, and
what is compared, both tracks side by side. The small graphs show the last
intervals, on one scale for both tracks; a dot is an interval without events.

With --watch it goes on until the canary is over or Ctrl-C. The exit code is 1 when
the canary was aborted.`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return o.run(ctx) }),
	}
	cmd.Flags().BoolVarP(&o.Watch, "watch", "w", false, "show every change until the canary is over")
	return cmd
}

func (o *statusOptions) run(ctx context.Context) error {
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	client, err := o.Client()
	if err != nil {
		return err
	}
	var last *controlv1.Canary
	if o.Watch {
		if last, err = o.watch(ctx, client, printer); err != nil {
			return err
		}
	} else {
		ctx, cancel := context.WithTimeout(ctx, o.Timeout)
		defer cancel()
		res, err := client.GetCanary(ctx, connect.NewRequest(&controlv1.GetCanaryRequest{}))
		if err != nil {
			return err
		}
		last = res.Msg.GetCanary()
		if err := printer.Print(view.NewCanary(last), func(w io.Writer) error { return o.write(w, last) }); err != nil {
			return err
		}
	}
	if last.GetPhase() == controlv1.CanaryPhase_CANARY_PHASE_ABORTED {
		return fmt.Errorf("canary %s was aborted: %s", output.Clean(last.GetId()), output.Clean(last.GetReason()))
	}
	return nil
}

// retryAfter is how long a broken watch waits, and retries how often in a row it is
// tried again: the control plane may be restarting.
const (
	retryAfter = time.Second
	retries    = 30
)

// watch follows the canary until it is over or ctx ends.
func (o *statusOptions) watch(ctx context.Context, client controlv1connect.ControlServiceClient, printer *output.Printer) (last *controlv1.Canary, err error) {
	for failed := 0; ; failed++ {
		before := last
		over := false
		last, over, err = o.stream(ctx, client, printer, last)
		switch {
		case ctx.Err() != nil:
			return last, nil
		case over:
			return last, nil
		case last != before:
			failed = 0
		}
		var out writeError
		if code := connect.CodeOf(err); last == nil || errors.As(err, &out) || code == connect.CodeNotFound || code == connect.CodePermissionDenied ||
			code == connect.CodeUnauthenticated || failed >= retries {
			return last, err
		}
		_, _ = fmt.Fprintf(o.Err, "watch interrupted, trying again: %s\n", output.Clean(cli.Message(err)))
		select {
		case <-ctx.Done():
			return last, nil
		case <-time.After(retryAfter):
		}
	}
}

// writeError says that our own output is gone (a closed pipe).
type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

// errEnded stands for a stream that the server ended in good order.
var errEnded = errors.New("the control plane ended the watch")

// stream follows one stream to its end. The first answer must come within the
// timeout.
func (o *statusOptions) stream(ctx context.Context, client controlv1connect.ControlServiceClient, printer *output.Printer, last *controlv1.Canary) (_ *controlv1.Canary, over bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(o.Timeout, func() { cancel(context.DeadlineExceeded) })
	defer timer.Stop()
	st, err := client.WatchCanary(ctx, connect.NewRequest(&controlv1.WatchCanaryRequest{}))
	if err != nil {
		return last, false, err
	}
	defer st.Close() //nolint:errcheck // what went wrong is in st.Err
	for st.Receive() {
		timer.Stop()
		last = st.Msg().GetCanary()
		err := printer.PrintItem(view.NewCanary(last), func(w io.Writer) error {
			if o.OutTTY {
				return o.redraw(w, last)
			}
			return writeLine(w, last)
		})
		if err != nil {
			return last, false, writeError{err}
		}
		switch last.GetPhase() {
		case controlv1.CanaryPhase_CANARY_PHASE_ABORTED, controlv1.CanaryPhase_CANARY_PHASE_PROMOTED:
			return last, true, nil
		}
	}
	if err := st.Err(); err != nil {
		if c := context.Cause(ctx); c != nil {
			err = c
		}
		return last, false, err
	}
	return last, false, errEnded
}

// redraw writes over the last picture, in one write, erasing line by line so that
// nothing flickers.
func (o *statusOptions) redraw(w io.Writer, c *controlv1.Canary) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s  %s  (Ctrl-C ends)\n\n", output.Clean(o.Endpoint), output.Time(c.GetObservedAtMs()))
	if err := o.write(&b, c); err != nil {
		return err
	}
	screen := append([]byte("\x1b[H"), bytes.ReplaceAll(b.Bytes(), []byte("\n"), []byte("\x1b[K\n"))...)
	_, err := w.Write(append(screen, "\x1b[J"...))
	return err
}

// writeLine is one line per change, for logs.
func writeLine(w io.Writer, c *controlv1.Canary) error {
	_, err := fmt.Fprintf(w, "%s canary %s phase=%s weight=%q share=\"%.1f %%\" stable=%d canary=%d misplaced=%d verdict=%s looks=%d waits=%q\n",
		output.Time(c.GetObservedAtMs()), output.Clean(c.GetId()), view.CanaryPhase(c.GetPhase()), weight(c.GetWeight()), 100*c.GetShare(),
		c.GetStable().GetSessions(), c.GetCanary().GetSessions(), c.GetStable().GetMisplaced()+c.GetCanary().GetMisplaced(),
		output.Clean(c.GetVerdict()), c.GetLooks(), output.Clean(c.GetReason()))
	return err
}

// shownEvents is how many of the latest events a picture has.
const shownEvents = 5

// write is the picture for people.
func (o *statusOptions) write(w io.Writer, c *controlv1.Canary) error {
	var b bytes.Buffer
	phase := view.CanaryPhase(c.GetPhase())
	if c.GetPaused() {
		phase += ", paused"
	}
	fmt.Fprintf(&b, "Canary %s   %s   weight %s of %s   share %.1f %%\n", output.Clean(c.GetId()), phase, weight(c.GetWeight()), steps(c), 100*c.GetShare())
	if bake := c.GetSpec().GetBakeMs(); c.GetPhase() == controlv1.CanaryPhase_CANARY_PHASE_BAKING && bake > 0 {
		fmt.Fprintf(&b, "Baked %s of %s   ", span(c.GetBakedMs()), span(bake))
	}
	fmt.Fprintf(&b, "%d looks", c.GetLooks())
	if c.GetVerdict() != "" {
		fmt.Fprintf(&b, ", the last says %s", output.Clean(c.GetVerdict()))
	}
	b.WriteByte('\n')
	if c.GetReason() != "" {
		fmt.Fprintf(&b, "%s\n", output.Clean(c.GetReason()))
	}
	if n := c.GetStable().GetMisplaced() + c.GetCanary().GetMisplaced(); n > 0 && c.GetPaceReason() != "" {
		fmt.Fprintf(&b, "Moving %.0f a second (%s)\n", c.GetPace(), output.Clean(c.GetPaceReason()))
	}
	if n := c.GetNodesToReplace(); len(n) > 0 {
		fmt.Fprintf(&b, "To be replaced: %s\n", output.Clean(strings.Join(n, ", ")))
	}
	if c.GetActuatorError() != "" {
		fmt.Fprintf(&b, "New connections are not directed (%s): %s\n", output.Clean(c.GetActuator()), output.Clean(c.GetActuatorError()))
	}
	b.WriteByte('\n')
	if err := output.WriteTable(&b, []string{"SIGNAL", "STABLE", "CANARY", "STABLE, LATELY", "CANARY, LATELY", "CONFIDENCE", "VERDICT"}, rows(c)); err != nil {
		return err
	}
	if events := c.GetEvents(); len(events) > 0 {
		b.WriteByte('\n')
		for _, e := range events[max(0, len(events)-shownEvents):] {
			by := ""
			if e.GetActor() != "" {
				by = " (" + output.Clean(e.GetActor()) + ")"
			}
			fmt.Fprintf(&b, "%s ago  %s%s\n", output.AgeSince(o.Now(), e.GetAtMs()), output.Clean(e.GetText()), by)
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

func steps(c *controlv1.Canary) string {
	var out []string
	for _, s := range c.GetSpec().GetSteps() {
		out = append(out, strconv.FormatFloat(float64(s)/100, 'f', -1, 64))
	}
	return strings.Join(out, ", ")
}

func span(ms uint64) string {
	return output.Age(time.Duration(min(ms, math.MaxInt64/uint64(time.Millisecond))) * time.Millisecond)
}

// rows are both tracks side by side.
func rows(c *controlv1.Canary) [][]string {
	a, b := c.GetStable(), c.GetCanary()
	count := func(n uint64) string { return strconv.FormatUint(n, 10) }
	out := [][]string{
		{"version", strings.Join(a.GetVersions(), ", "), strings.Join(b.GetVersions(), ", "), "", "", "", ""},
		{"gateways", count(uint64(a.GetNodes())), count(uint64(b.GetNodes())), "", "", "", ""},
		{"sessions", count(a.GetSessions()), count(b.GetSessions()), "", "", "", ""},
		{"to move", count(a.GetMisplaced()), count(b.GetMisplaced()), "", "", "", ""},
	}
	for _, s := range c.GetSignals() {
		high := highest(s.GetStableTrend(), s.GetCanaryTrend())
		verdict := s.GetOutcome()
		if verdict == "pass" && s.GetDetail() != "" {
			verdict = "no data"
		}
		confidence := ""
		if s.GetConfidence() > 0 {
			confidence = fmt.Sprintf("%.1f %%", 100*math.Floor(1000*s.GetConfidence())/1000)
		}
		out = append(out, []string{
			s.GetName(), value(s, s.GetStable(), s.GetStableSamples()), value(s, s.GetCanary(), s.GetCanarySamples()),
			Sparkline(s.GetStableTrend(), high), Sparkline(s.GetCanaryTrend(), high), confidence, verdict,
		})
	}
	return out
}

// value prints a signal's value in its unit.
func value(s *controlv1.CanarySignal, v float64, samples uint64) string {
	switch name := s.GetName(); {
	case name == "crashes":
		return strconv.FormatFloat(v, 'f', 0, 64)
	case samples == 0:
		return ""
	case name == "memory":
		return fmt.Sprintf("%.1f KiB", v/1024)
	case strings.HasSuffix(name, "_ms"):
		return fmt.Sprintf("%.2f ms", v)
	}
	return fmt.Sprintf("%.2f %%", 100*v)
}

func highest(trends ...[]float64) (high float64) {
	for _, t := range trends {
		for _, x := range t {
			if !math.IsNaN(x) && !math.IsInf(x, 0) {
				high = max(high, x)
			}
		}
	}
	return high
}

// shownTrend is how many of the last intervals a sparkline has.
const shownTrend = 20

var blocks = []rune("▁▂▃▄▅▆▇█")

// Sparkline draws the last values on a scale from 0 to high; a dot is no value.
func Sparkline(values []float64, high float64) string {
	var b strings.Builder
	for _, v := range values[max(0, len(values)-shownTrend):] {
		switch {
		case math.IsNaN(v):
			b.WriteRune('·')
		case !(high > 0):
			b.WriteRune(blocks[0])
		default:
			i := int(v / high * float64(len(blocks)))
			b.WriteRune(blocks[min(max(i, 0), len(blocks)-1)])
		}
	}
	return b.String()
}
