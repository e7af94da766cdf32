package ctl_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// audited is a control plane with a record of changes.
type audited struct {
	*control
	res *controlv1.ListAuditResponse
}

func (a audited) ListAudit(_ context.Context, r *connect.Request[controlv1.ListAuditRequest]) (*connect.Response[controlv1.ListAuditResponse], error) {
	a.saw(r.Msg)
	return reply(a.res, a.err)
}

func TestAudit(t *testing.T) {
	const service = "/mics.control.v1.ControlService/"
	full := &controlv1.ListAuditResponse{Truncated: true, Entries: []*controlv1.AuditEntry{
		{
			AtMs: now.Add(-time.Minute).UnixMilli(), Who: "ann", Role: "operator", From: "10.0.0.9:4711", NodeId: "cp-1", Procedure: service + "Drain",
			Arguments: `{"node_id":"gw-1"}`, Outcome: "ok", DurationMs: 12.5,
		},
		{
			AtMs: now.Add(-time.Hour).UnixMilli(), Who: "vic", Role: "viewer", From: "10.0.0.8:4711", NodeId: "cp-2", Procedure: service + "Kick",
			Arguments: "not JSON", Outcome: "permission_denied", Detail: "vic is a viewer\x1b[2J", DurationMs: 0.1,
		},
	}}
	for name, res := range map[string]*controlv1.ListAuditResponse{"audit": full, "audit-empty": {}} {
		c := audited{healthy(), res}
		endpoint := serveControl(t, c)
		for _, format := range []string{"table", "json", "yaml"} {
			got := run(t.Context(), term{}, "audit", "--since", "2h", "--limit", "2", "--endpoint", endpoint, "-o", format)
			if got.code != 0 || got.err != "" {
				t.Errorf("got %+v", got)
			}
			golden(t, name+"-"+format, endpoint, got.out)
		}
		want := &controlv1.ListAuditRequest{SinceMs: now.Add(-2 * time.Hour).UnixMilli(), Limit: 2}
		if asked := c.asked(); len(asked) != 3 || !proto.Equal(asked[0], want) {
			t.Errorf("asked %v", asked)
		}
	}
	for _, args := range [][]string{{"audit", "--limit", "0"}, {"audit", "--limit", "1001"}, {"audit", "--since", "-1h"}} {
		if got := run(t.Context(), term{}, args...); got.code != 2 {
			t.Errorf("%v: %+v", args, got)
		}
	}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	for code, says := range map[connect.Code]string{connect.CodeUnauthenticated: "--token-file", connect.CodePermissionDenied: "role operator"} {
		c := healthy()
		c.err = connect.NewError(code, &textError{"no"})
		if got := run(t.Context(), term{}, "nodes", "--endpoint", serve(t, c)); got.code != 1 || !strings.Contains(got.err, says) {
			t.Errorf("%v: %+v", code, got)
		}
	}
}
