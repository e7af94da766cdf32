package drain

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/schollz/progressbar/v3"

	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/ctl/internal/view"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
)

// retry is the pause before a broken stream is tried again, and patience how long
// that is worth it without a word: a control plane is restarted, another leads.
const (
	retry    = time.Second
	patience = 2 * time.Minute
)

// follower shows how one operation goes until it ends. It is for one goroutine.
type follower struct {
	app    *cli.App
	client controlv1connect.ControlServiceClient
	id     string
	last   *controlv1.DrainOperation

	bar  *progressbar.ProgressBar // on a terminal
	line string                   // the last plain one
}

// run returns the operation as it is at its end.
func (f *follower) run(ctx context.Context) (*controlv1.DrainOperation, error) {
	defer f.clear()
	silent := time.Now()
	for {
		heard, err := f.stream(ctx)
		switch {
		case err == nil && view.NewDrain(f.last).Final():
			return f.last, nil
		case ctx.Err() != nil:
			return nil, fmt.Errorf("not waited for: drain %s goes on; see 'micsctl drains --watch', end it with 'micsctl undrain %s'", f.id, f.last.GetNodeId())
		case err != nil && !passes(err):
			return nil, err
		}
		if heard {
			silent = time.Now()
		}
		if time.Since(silent) > patience {
			return nil, fmt.Errorf("no word of drain %s for %v: %w", f.id, patience, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
	}
}

// passes tells whether a stream that ended with err is worth another try.
func passes(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeCanceled, connect.CodeAborted:
		return true
	}
	return false
}

func (f *follower) stream(ctx context.Context) (heard bool, err error) {
	st, err := f.client.WatchDrains(ctx, connect.NewRequest(&controlv1.WatchDrainsRequest{OperationId: f.id}))
	if err != nil {
		return false, err
	}
	defer st.Close() //nolint:errcheck // what went wrong is in st.Err
	for st.Receive() {
		for _, op := range st.Msg().GetDrains() {
			if op.GetOperationId() != f.id {
				continue
			}
			heard, f.last = true, op
			if err := f.show(); err != nil {
				return heard, errors.Join(err)
			}
		}
	}
	return heard, st.Err()
}

// show tells how far it is: a bar for a person, a line for whatever reads the error
// stream otherwise, when something has changed.
func (f *follower) show() error {
	d := view.NewDrain(f.last)
	if !f.app.OutTTY {
		if line := progressLine(d); line != f.line {
			f.line = line
			_, err := fmt.Fprintf(f.app.Err, "%s\n", line)
			return err
		}
		return nil
	}
	if f.bar == nil {
		f.bar = progressbar.NewOptions64(max(int64(d.Sessions), 1),
			progressbar.OptionSetWriter(f.app.Err), progressbar.OptionSetWidth(30), progressbar.OptionThrottle(0),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false), progressbar.OptionShowCount(),
			progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth())
	}
	f.bar.ChangeMax64(max(int64(d.Sessions), 1))
	f.bar.Describe(summary(d))
	return f.bar.Set64(int64(d.Sessions) - int64(min(d.Left, d.Sessions)))
}

func (f *follower) clear() {
	if f.bar != nil {
		_ = f.bar.Clear() // nowhere left to report it
	}
}

// summary is what a person wants to know at a glance.
func summary(d view.Drain) string {
	s := output.Clean(d.Node) + " " + d.State
	if d.State == "draining" && d.Pace > 0 {
		s += fmt.Sprintf(" %s/s", output.Rate(d.Pace))
	}
	return s
}

func progressLine(d view.Drain) string {
	line := summary(d)
	if d.StartedAt != "" {
		line += fmt.Sprintf(": %d of %d left", d.Left, d.Sessions)
	}
	switch {
	case d.Reason != "":
		line += " (" + output.Clean(d.Reason) + ")"
	case d.State == "draining" && d.PaceReason != "":
		line += " (" + output.Clean(d.PaceReason) + ")"
	}
	return line
}
