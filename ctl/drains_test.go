package ctl_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// drains is what a control says of drains.
type drains struct {
	list     []*controlv1.DrainOperation
	steps    []*controlv1.DrainOperation // of WatchDrains, one a message
	warnings []string
	rehearse *controlv1.RehearseDrainResponse
	watched  []int // requests that had been made when each watch began; guarded by control.mu
}

func (c *control) Drain(_ context.Context, r *connect.Request[controlv1.DrainRequest]) (*connect.Response[controlv1.DrainResponse], error) {
	c.saw(r.Msg)
	return reply(&controlv1.DrainResponse{Drain: operation(controlv1.DrainState_DRAIN_STATE_WAITING), Warnings: c.warnings}, c.err)
}

func (c *control) Undrain(_ context.Context, r *connect.Request[controlv1.UndrainRequest]) (*connect.Response[controlv1.UndrainResponse], error) {
	c.saw(r.Msg)
	res := &controlv1.UndrainResponse{}
	if len(c.list) > 0 {
		res.Drain = operation(controlv1.DrainState_DRAIN_STATE_CANCELLING)
	}
	return reply(res, c.err)
}

func (c *control) ChangeDrain(_ context.Context, r *connect.Request[controlv1.ChangeDrainRequest]) (*connect.Response[controlv1.ChangeDrainResponse], error) {
	c.saw(r.Msg)
	return reply(&controlv1.ChangeDrainResponse{Drain: operation(controlv1.DrainState_DRAIN_STATE_PAUSED)}, c.err)
}

func (c *control) ListDrains(_ context.Context, r *connect.Request[controlv1.ListDrainsRequest]) (*connect.Response[controlv1.ListDrainsResponse], error) {
	c.saw(r.Msg)
	return reply(&controlv1.ListDrainsResponse{Drains: c.list}, c.err)
}

func (c *control) WatchDrains(_ context.Context, _ *connect.Request[controlv1.WatchDrainsRequest], out *connect.ServerStream[controlv1.WatchDrainsResponse]) error {
	c.mu.Lock()
	c.watched = append(c.watched, len(c.requests))
	c.mu.Unlock()
	for _, op := range c.steps {
		if err := out.Send(&controlv1.WatchDrainsResponse{Drains: []*controlv1.DrainOperation{op}}); err != nil {
			return err
		}
	}
	return c.err
}

func (c *control) RehearseDrain(_ context.Context, r *connect.Request[controlv1.RehearseDrainRequest]) (*connect.Response[controlv1.RehearseDrainResponse], error) {
	c.saw(r.Msg)
	return reply(c.rehearse, c.err)
}

func operation(state controlv1.DrainState) *controlv1.DrainOperation {
	return &controlv1.DrainOperation{
		OperationId: "d-k3v7q2xa", NodeId: "gw-1", Incarnation: 7, State: state, TimeoutMs: 300_000,
		CreatedAtMs: now.Add(-2 * time.Minute).UnixMilli(), RequestedBy: "ann",
	}
}

func under(left uint64) *controlv1.DrainOperation {
	op := operation(controlv1.DrainState_DRAIN_STATE_DRAINING)
	op.StartedAtMs, op.Pace, op.PaceReason = op.GetCreatedAtMs()+1500, 250, "faster: the others take it"
	op.Progress = &gatewayv1.DrainProgress{Sessions: 1000, Left: left, Moved: 1000 - left}
	op.Targets = []*gatewayv1.Target{{NodeId: "gw-2", Url: "ws://gw-2/ws", Weight: 1000}}
	return op
}

func finished(state controlv1.DrainState) *controlv1.DrainOperation {
	op := under(0)
	op.State, op.EndedAtMs = state, op.GetStartedAtMs()+12_345
	op.Receipt = &controlv1.DrainReceipt{
		Sessions: 1000, Moved: 900, Reconnected: 3, Closed: 100, Echoed: 97, GaveUp: 1, HandedOver: 42, ConnectsElsewhere: 1005,
		GapP50Ms: 2, GapP99Ms: 10, GapMaxMs: 17.25, Gaps: 903, DurationMs: 12_345,
	}
	if state == controlv1.DrainState_DRAIN_STATE_FAILED {
		op.Reason = "it is gone with 100 of 1000 sessions left\x1b[2J"
		op.Receipt.Unaccounted, op.Receipt.Lost, op.Receipt.Incomplete = 100, 2, []string{"gw-2"}
	}
	return op
}

func TestDrainGoldenOutputs(t *testing.T) {
	done, failed := finished(controlv1.DrainState_DRAIN_STATE_DONE), finished(controlv1.DrainState_DRAIN_STATE_FAILED)
	busy := &control{drains: drains{
		list:  []*controlv1.DrainOperation{under(400), operation(controlv1.DrainState_DRAIN_STATE_WAITING), done, failed},
		steps: []*controlv1.DrainOperation{operation(controlv1.DrainState_DRAIN_STATE_WAITING), under(1000), under(400), under(400), done},
		rehearse: &controlv1.RehearseDrainResponse{
			Sessions: 1000, SessionsV2: 900, DurationMs: 18_000, SessionsPerSecond: 55.5, Room: 3000, RoomKnown: true,
			Nodes: []*controlv1.RehearsedNode{
				{NodeId: "gw-2", Sessions: 10, SessionsMax: 2000, Share: 0.66, ConnectsPerSecond: 36.7, Directed: true},
				{NodeId: "gw-3", Sessions: 1000, Share: 0.34, ConnectsPerSecond: 18.8},
			},
		},
	}}
	trouble := &control{drains: drains{
		warnings: []string{"room not checked: it is not known what these take: gw-2"},
		steps:    []*controlv1.DrainOperation{under(100), failed},
		rehearse: &controlv1.RehearseDrainResponse{
			Sessions: 5, Refusal: "gw-1 is the last gateway that serves and stays: 5 sessions would have nowhere to go", Ahead: 1,
			Warnings: []string{"at the timeout 3 sessions are left and are closed at once"},
		},
	}}
	for name, tc := range map[string]struct {
		c    *control
		args []string
		code int
	}{
		"drain":            {busy, []string{"drain", "gw-1"}, 0},
		"drain-wait":       {busy, []string{"drain", "gw-1", "--wait", "--max-gap", "10ms", "--max-lost", "0"}, 0},
		"drain-limit":      {busy, []string{"drain", "gw-1", "--wait", "--max-gap", "9ms"}, 3},
		"drain-failed":     {trouble, []string{"drain", "gw-1", "--wait"}, 1},
		"undrain":          {busy, []string{"undrain", "gw-1"}, 0},
		"undrain-done":     {trouble, []string{"undrain", "gw-1"}, 0},
		"drains":           {busy, []string{"drains"}, 0},
		"drains-empty":     {trouble, []string{"drains"}, 0},
		"drains-pause":     {busy, []string{"drains", "pause", "d-k3v7q2xa"}, 0},
		"rehearse":         {busy, []string{"rehearse", "drain", "gw-1"}, 0},
		"rehearse-refused": {trouble, []string{"rehearse", "drain", "gw-1"}, 1},
	} {
		endpoint := serve(t, tc.c)
		for _, format := range []string{"table", "json", "yaml"} {
			t.Run(name+"-"+format, func(t *testing.T) {
				got := run(t.Context(), term{}, append(tc.args, "--endpoint", endpoint, "-o", format)...)
				if got.code != tc.code {
					t.Errorf("exit code %d, want %d", got.code, tc.code)
				}
				text := got.out
				if got.err != "" {
					text += "--- stderr\n" + got.err
				}
				golden(t, name+"-"+format, endpoint, text)
			})
		}
	}
}

func TestDrainAsksForWhatWasWritten(t *testing.T) {
	c := &control{}
	endpoint := serve(t, c)
	if got := run(t.Context(), term{}, "drain", "gw-1", "--timeout", "90s", "--rate", "12.5/s", "--force", "--endpoint", endpoint); got.code != 0 {
		t.Fatal(got.err)
	}
	m, ok := c.asked()[0].(*controlv1.DrainRequest)
	if !ok || m.GetNodeId() != "gw-1" || m.GetTimeoutMs() != 90_000 || m.GetSessionsPerSecond() != 12.5 || !m.GetForce() {
		t.Errorf("asked %v", c.asked())
	}
	for name, change := range map[string]controlv1.DrainChange{
		"pause": controlv1.DrainChange_DRAIN_CHANGE_PAUSE, "resume": controlv1.DrainChange_DRAIN_CHANGE_RESUME, "cancel": controlv1.DrainChange_DRAIN_CHANGE_CANCEL,
	} {
		c := &control{}
		if got := run(t.Context(), term{}, "drains", name, "d-1", "--endpoint", serve(t, c)); got.code != 0 {
			t.Fatal(got.err)
		}
		if m, ok := c.asked()[0].(*controlv1.ChangeDrainRequest); !ok || m.GetChange() != change || m.GetOperationId() != "d-1" {
			t.Errorf("%s: asked %v", name, c.asked())
		}
	}
}

func TestWrongDrainsAskNobody(t *testing.T) {
	c := &control{}
	endpoint := serve(t, c)
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no node":          {[]string{"drain"}, "accepts 1 arg"},
		"timeout":          {[]string{"drain", "a", "--timeout", "0s"}, "--timeout: 0s: want 1s to 24h"},
		"rate":             {[]string{"drain", "a", "--rate", "fast"}, "--rate: \"fast\": want auto"},
		"rate zero":        {[]string{"drain", "a", "--rate", "0"}, "--rate"},
		"rate NaN":         {[]string{"drain", "a", "--rate", "NaN"}, "--rate"},
		"limit, no wait":   {[]string{"drain", "a", "--max-gap", "1s"}, "want --wait"},
		"negative":         {[]string{"drain", "a", "--wait", "--max-lost", "-2"}, "must not be negative"},
		"limit":            {[]string{"drains", "--limit", "0"}, "--limit: 0: want 1 to 1000"},
		"watch of one":     {[]string{"drains", "--watch", "--node", "a"}, "--watch follows all"},
		"rehearse nothing": {[]string{"rehearse"}, "drain"},
		"change of none":   {[]string{"drains", "cancel"}, "accepts 1 arg"},
	} {
		got := run(t.Context(), term{}, append(tc.args, "--endpoint", endpoint)...)
		if got.code != 2 || !strings.Contains(got.err, tc.want) || got.out != "" {
			t.Errorf("%s: exit code %d, stderr %q, stdout %q; want 2 and %q", name, got.code, got.err, got.out, tc.want)
		}
	}
	if asked := c.asked(); len(asked) > 0 {
		t.Errorf("the control plane was asked: %v", asked)
	}
}

func TestATerminalGetsABar(t *testing.T) {
	c := &control{drains: drains{steps: []*controlv1.DrainOperation{under(1000), under(250), finished(controlv1.DrainState_DRAIN_STATE_DONE)}}}
	got := run(t.Context(), term{outTTY: true}, "drain", "gw-1", "--wait", "--endpoint", serve(t, c))
	if got.code != 0 || !strings.Contains(got.err, "750/1000") || !strings.Contains(got.out, "12.345s") {
		t.Errorf("exit code %d\n%q\n%s", got.code, got.err, got.out)
	}
}

func TestAnInterruptedWaitLeavesTheDrain(t *testing.T) {
	c := &control{drains: drains{steps: []*controlv1.DrainOperation{under(1000)}}}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	got := run(ctx, term{}, "drain", "gw-1", "--wait", "--endpoint", serve(t, c))
	if got.code != 1 || !strings.Contains(got.err, "goes on") || !strings.Contains(got.err, "micsctl undrain gw-1") {
		t.Errorf("exit code %d, %q", got.code, got.err)
	}
	if n := len(c.asked()); n != 1 {
		t.Errorf("%d requests: an interrupt changes nothing", n)
	}
}

func TestNamesAreCompleted(t *testing.T) {
	c := healthy()
	c.list = []*controlv1.DrainOperation{under(3), finished(controlv1.DrainState_DRAIN_STATE_DONE)}
	endpoint := serve(t, c)
	for want, args := range map[string][]string{
		"gw-1\n":                       {"drain", ""},
		"gw-1\n:":                      {"undrain", "gw"},
		"d-k3v7q2xa\tgw-1 draining\n:": {"drains", "cancel", ""},
	} {
		got := run(t.Context(), term{env: map[string]string{"MICS_ENDPOINT": endpoint}}, append([]string{"__complete"}, args...)...)
		if !strings.Contains(got.out, want) || strings.Contains(got.out, "r-1") {
			t.Errorf("%q completes to %q, want %q", args, got.out, want)
		}
	}
}
