package access

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/internal/telemetry"
)

const (
	auditLog = "audit"
	// Keep is how many entries are kept.
	Keep = 5000
)

// Entry is one change, done or refused.
type Entry struct {
	At time.Time `json:"at"`
	// Who and Role are the operator's; From is the address the request came from.
	Who  string `json:"who"`
	Role string `json:"role"`
	From string `json:"from"`
	// Node is the control plane that was asked.
	Node      string `json:"node"`
	Procedure string `json:"procedure"`
	// Arguments are the request's, without bodies and secrets.
	Arguments json.RawMessage `json:"arguments,omitempty"`
	// Outcome is ok, or the kind of failure by its name in RPC; Detail says more.
	Outcome  string        `json:"outcome"`
	Detail   string        `json:"detail,omitempty"`
	Duration time.Duration `json:"duration"` // nanoseconds
}

// Audit is the record of changes: a line in the process's log for each, and the
// newest Keep in the store, for all control planes. Safe for concurrent use.
type Audit struct {
	node   string
	store  Log
	tel    *telemetry.Telemetry
	failed *telemetry.Counter
}

// Log is where entries are kept.
type Log interface {
	Append(ctx context.Context, e store.Entry) error
	Tail(ctx context.Context, log string, since time.Time, limit int) ([]store.Record, error)
}

// NewAudit returns an Audit of the control plane called node.
func NewAudit(node string, s Log, tel *telemetry.Telemetry) *Audit {
	return &Audit{
		node: node, store: s, tel: tel,
		failed: tel.Counter("mics_audit_store_failed_total", "Audit entries that are in the process's log only."),
	}
}

// Record records e. It takes as long as the store, which bounds itself. A store that
// does not answer undoes nothing: the log line is there.
func (a *Audit) Record(ctx context.Context, e Entry) {
	e.Node, e.At = a.node, e.At.UTC().Round(0)
	a.tel.Log.InfoContext(ctx, "operator_change", "who", e.Who, "role", e.Role, "from", e.From, "procedure", e.Procedure,
		"arguments", e.Arguments, "outcome", e.Outcome, "detail", e.Detail, "duration_ms", float64(e.Duration.Microseconds())/1000)
	value, err := json.Marshal(e)
	if err == nil {
		// Also when the caller has hung up meanwhile.
		err = a.store.Append(context.WithoutCancel(ctx), store.Entry{Log: auditLog, Value: value, Keep: Keep})
	}
	if err != nil {
		a.failed.Inc()
		a.tel.Log.WarnContext(ctx, "audit_not_kept", "err", err)
	}
}

// List returns the newest entries that are not before since (zero: all), newest
// first.
func (a *Audit) List(ctx context.Context, since time.Time, limit int) ([]Entry, error) {
	records, err := a.store.Tail(ctx, auditLog, since, limit)
	if err != nil {
		return nil, err
	}
	out := make([]Entry, 0, len(records))
	for _, r := range records {
		var e Entry
		if err := json.Unmarshal(r.Value, &e); err != nil {
			return nil, fmt.Errorf("audit entry %s: %w", r.ID, err)
		}
		out = append(out, e)
	}
	return out, nil
}
