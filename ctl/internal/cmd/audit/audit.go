// Package audit is `micsctl audit`.
package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/cli"
	"github.com/mics-im/mics/ctl/internal/output"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// maxLimit is what the control plane gives at once.
const maxLimit = 1000

// Options are the inputs of the command.
type Options struct {
	*cli.App
	Since time.Duration
	Limit int
}

// Document is what -o json prints.
type Document struct {
	Entries   []Entry `json:"entries"`
	Truncated bool    `json:"truncated"`
}

// Entry is one change.
type Entry struct {
	At         string          `json:"at"`
	Who        string          `json:"who"`
	Role       string          `json:"role"`
	From       string          `json:"from"`
	Node       string          `json:"nodeId"`
	Procedure  string          `json:"procedure"`
	Arguments  json.RawMessage `json:"arguments,omitempty"`
	Outcome    string          `json:"outcome"`
	Detail     string          `json:"detail,omitempty"`
	DurationMS float64         `json:"durationMs"`
}

// NewCmd returns the command.
func NewCmd(app *cli.App) *cobra.Command {
	o := &Options{App: app}
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show who changed what",
		Long: `Show what operators have changed, or were refused to change, newest first.

The control planes keep the newest 5,000 entries; their logs (operator_change)
have all of them.`,
		Example: `  micsctl audit
  micsctl audit --since 24h
  micsctl audit -o json | jq -r '.entries[] | select(.outcome != "ok")'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              cli.Run(func(ctx context.Context, _ []string) error { return o.run(ctx) }),
	}
	cmd.Flags().DurationVar(&o.Since, "since", 0, "only what began so long ago at most, such as 90m or 24h; 0: all")
	cmd.Flags().IntVar(&o.Limit, "limit", 100, "at most so many entries")
	cli.CompleteFlag(cmd, "since", cobra.NoFileCompletions)
	cli.CompleteFlag(cmd, "limit", cobra.NoFileCompletions)
	return cmd
}

func (o *Options) run(ctx context.Context) error {
	if o.Since < 0 {
		return cli.Usage(fmt.Errorf("--since: %v: must not be negative", o.Since))
	}
	if o.Limit < 1 || o.Limit > maxLimit {
		return cli.Usage(fmt.Errorf("--limit: %d: must be from 1 to %d", o.Limit, maxLimit))
	}
	printer, err := o.Printer()
	if err != nil {
		return err
	}
	client, err := o.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	req := &controlv1.ListAuditRequest{Limit: uint32(o.Limit)}
	if o.Since > 0 {
		req.SinceMs = o.Now().Add(-o.Since).UnixMilli()
	}
	res, err := client.ListAudit(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	doc := Document{Entries: make([]Entry, 0, len(res.Msg.GetEntries())), Truncated: res.Msg.GetTruncated()}
	for _, e := range res.Msg.GetEntries() {
		entry := Entry{
			At: output.Time(e.GetAtMs()), Who: e.GetWho(), Role: e.GetRole(), From: e.GetFrom(), Node: e.GetNodeId(),
			Procedure: e.GetProcedure(), Outcome: e.GetOutcome(), Detail: e.GetDetail(), DurationMS: e.GetDurationMs(),
		}
		if json.Valid([]byte(e.GetArguments())) {
			entry.Arguments = json.RawMessage(e.GetArguments())
		}
		doc.Entries = append(doc.Entries, entry)
	}
	return printer.Print(doc, func(w io.Writer) error { return write(w, doc) })
}

func write(w io.Writer, doc Document) error {
	if len(doc.Entries) == 0 {
		_, err := fmt.Fprintln(w, "Nothing was changed.")
		return err
	}
	rows := make([][]string, 0, len(doc.Entries))
	for _, e := range doc.Entries {
		outcome := e.Outcome
		if e.Detail != "" {
			outcome += " (" + e.Detail + ")"
		}
		rows = append(rows, []string{e.At, e.Who, path.Base(e.Procedure), strings.TrimSpace(string(e.Arguments)), outcome})
	}
	if err := output.WriteTable(w, []string{"WHEN", "WHO", "WHAT", "ARGUMENTS", "OUTCOME"}, rows); err != nil {
		return err
	}
	if doc.Truncated {
		_, err := fmt.Fprintln(w, "There may be more: raise --limit.")
		return err
	}
	return nil
}
