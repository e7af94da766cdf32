package service

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/access"
	"github.com/mics-im/mics/internal/fault"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

const (
	defaultAudit = 100
	maxAudit     = 1000
)

// Audit is where changes are recorded.
type Audit interface {
	// List returns the newest entries that are not before since (zero: all), newest
	// first.
	List(ctx context.Context, since time.Time, limit int) ([]access.Entry, error)
}

// ListAudit returns what operators have changed.
func (s *Service) ListAudit(ctx context.Context, req *connect.Request[controlv1.ListAuditRequest]) (*connect.Response[controlv1.ListAuditResponse], error) {
	limit := int(req.Msg.GetLimit())
	if limit == 0 {
		limit = defaultAudit
	}
	if limit > maxAudit || req.Msg.GetSinceMs() < 0 {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("limit: at most %d; since_ms: not negative", maxAudit))
	}
	var since time.Time
	if ms := req.Msg.GetSinceMs(); ms > 0 {
		since = time.UnixMilli(ms)
	}
	entries, err := s.cfg.Audit.List(ctx, since, limit)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, "the store of the control planes does not answer", err)
	}
	out := &controlv1.ListAuditResponse{Truncated: len(entries) == limit}
	for _, e := range entries {
		out.Entries = append(out.Entries, &controlv1.AuditEntry{
			AtMs: e.At.UnixMilli(), Who: e.Who, Role: e.Role, From: e.From, NodeId: e.Node, Procedure: e.Procedure,
			Arguments: string(e.Arguments), Outcome: e.Outcome, Detail: e.Detail, DurationMs: float64(e.Duration.Microseconds()) / 1000,
		})
	}
	return connect.NewResponse(out), nil
}
