package nodes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/ctl/internal/view"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
)

// Waits between attempts to get a broken watch back; the second is the cap.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// watcher prints every inventory that arrives. Used by one goroutine.
type watcher struct {
	app     *cli.App
	client  controlv1connect.ControlServiceClient
	printer *output.Printer
	// connected is set by the first inventory of all: from then on a broken
	// stream is worth waiting for.
	connected bool
}

// run ends with nil when ctx ends, and with an error when no inventory ever
// came or when the failure is not one that passes.
func (w *watcher) run(ctx context.Context) error {
	retry := firstRetry
	for {
		got, err := w.stream(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if !w.connected || !passes(err) {
			return err
		}
		if got {
			retry = firstRetry
		}
		_, _ = fmt.Fprintf(w.app.Err, "watch interrupted, trying again: %s\n", output.Clean(cli.Message(err)))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
		retry = min(2*retry, lastRetry)
	}
}

// passes tells whether a stream that ended with err is worth another try: the
// control plane may be restarting.
func passes(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnimplemented, connect.CodeUnauthenticated, connect.CodePermissionDenied,
		connect.CodeInvalidArgument, connect.CodeNotFound:
		return false
	}
	var out writeError
	return !errors.As(err, &out)
}

// writeError says that our own output is gone (a closed pipe).
type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

// errEnded stands for a stream that the server ended in good order, as it does
// when it stops.
var errEnded = errors.New("the control plane ended the watch")

// stream follows one stream to its end, which is always an error. got tells
// whether it delivered anything. The first inventory must come within the
// timeout.
func (w *watcher) stream(ctx context.Context) (got bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(w.app.Timeout, func() { cancel(context.DeadlineExceeded) })
	defer timer.Stop()
	st, err := w.client.WatchNodes(ctx, connect.NewRequest(&controlv1.WatchNodesRequest{}))
	if err != nil {
		return false, cause(ctx, err)
	}
	defer st.Close() //nolint:errcheck // what went wrong is in st.Err
	for st.Receive() {
		timer.Stop()
		got, w.connected = true, true
		if err := w.print(st.Msg()); err != nil {
			return got, writeError{err}
		}
	}
	if err := st.Err(); err != nil {
		return got, cause(ctx, err)
	}
	return got, errEnded
}

// cause prefers our own reason for ending the stream to the transport's.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}

func (w *watcher) print(m *controlv1.WatchNodesResponse) error {
	doc := view.NewNodes(m.GetNodes(), m.GetObservedAtMs(), m.GetWarnings())
	return w.printer.PrintItem(doc, func(out io.Writer) error {
		if w.app.OutTTY {
			return w.redraw(out, m)
		}
		return writeLines(out, m)
	})
}

// redraw writes one inventory over the last one, in one write, erasing line by
// line instead of the whole screen so that nothing flickers.
func (w *watcher) redraw(out io.Writer, m *controlv1.WatchNodesResponse) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s  %s  (Ctrl-C ends)\n\n", output.Clean(w.app.Endpoint), output.Time(m.GetObservedAtMs()))
	if err := writeTable(&b, w.app, m.GetNodes()); err != nil {
		return err
	}
	for _, warning := range m.GetWarnings() {
		fmt.Fprintf(&b, "Warning: %s\n", output.Clean(warning))
	}
	screen := append([]byte("\x1b[H"), bytes.ReplaceAll(b.Bytes(), []byte("\n"), []byte("\x1b[K\n"))...)
	_, err := out.Write(append(screen, "\x1b[J"...))
	return err
}

// writeLines writes one line per node, in one write.
func writeLines(out io.Writer, m *controlv1.WatchNodesResponse) error {
	var b bytes.Buffer
	at := output.Time(m.GetObservedAtMs())
	for _, n := range m.GetNodes() {
		fmt.Fprintf(&b, "%s %s %s status=%q", at, view.Kind(n.GetKind()), output.Clean(n.GetNodeId()), status(n))
		if n.GetKind() == controlv1.NodeKind_NODE_KIND_GATEWAY {
			fmt.Fprintf(&b, " track=%s sessions=%d v2=%d conn/s=%s in/s=%s out/s=%s routers=%d",
				output.Clean(n.GetTrack()), n.GetSessions(), n.GetSessionsV2(), output.Rate(n.GetConnectsPerSecond()),
				output.Rate(n.GetMessagesInPerSecond()), output.Rate(n.GetDeliveriesPerSecond()), n.GetRoutersLinked())
		}
		fmt.Fprintf(&b, " version=%s\n", output.Clean(n.GetVersion()))
	}
	for _, warning := range m.GetWarnings() {
		fmt.Fprintf(&b, "%s warning %s\n", at, output.Clean(warning))
	}
	_, err := out.Write(b.Bytes())
	return err
}
