package ctl_test

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// canaries is what a control says of canaries and rebalancing.
type canaries struct {
	canary    *controlv1.Canary
	looks     []*controlv1.Canary // of WatchCanary, one a message
	rebalance *controlv1.RebalanceResponse
}

func (c *control) StartCanary(_ context.Context, r *connect.Request[controlv1.StartCanaryRequest]) (*connect.Response[controlv1.StartCanaryResponse], error) {
	c.saw(r.Msg)
	return reply(&controlv1.StartCanaryResponse{Canary: c.canary}, c.err)
}

func (c *control) GetCanary(context.Context, *connect.Request[controlv1.GetCanaryRequest]) (*connect.Response[controlv1.GetCanaryResponse], error) {
	return reply(&controlv1.GetCanaryResponse{Canary: c.canary}, c.err)
}

func (c *control) ChangeCanary(_ context.Context, r *connect.Request[controlv1.ChangeCanaryRequest]) (*connect.Response[controlv1.ChangeCanaryResponse], error) {
	c.saw(r.Msg)
	return reply(&controlv1.ChangeCanaryResponse{Canary: c.canary}, c.err)
}

func (c *control) WatchCanary(_ context.Context, _ *connect.Request[controlv1.WatchCanaryRequest], out *connect.ServerStream[controlv1.WatchCanaryResponse]) error {
	for _, l := range c.looks {
		if err := out.Send(&controlv1.WatchCanaryResponse{Canary: l}); err != nil {
			return err
		}
	}
	return c.err
}

func (c *control) Rebalance(_ context.Context, r *connect.Request[controlv1.RebalanceRequest]) (*connect.Response[controlv1.RebalanceResponse], error) {
	c.saw(r.Msg)
	return reply(c.rebalance, c.err)
}

// baking is a canary half way.
func baking() *controlv1.Canary {
	at := func(ago time.Duration) int64 { return now.Add(-ago).UnixMilli() }
	nan := math.NaN()
	return &controlv1.Canary{
		Id: "c-k3v7q2xa", Phase: controlv1.CanaryPhase_CANARY_PHASE_BAKING, Step: 1, Weight: 2500, Share: 0.2493,
		Spec:    &controlv1.CanarySpec{Steps: []uint32{500, 2500, 10000}, BakeMs: 600_000, Tenants: []string{"acme"}},
		Stable:  &controlv1.CanaryTrack{Versions: []string{"1.4.0"}, Nodes: 4, Sessions: 3754},
		Canary:  &controlv1.CanaryTrack{Versions: []string{"1.5.0"}, Nodes: 2, Sessions: 1246, Misplaced: 3, MisplacedV1: 2},
		Verdict: "pass", Looks: 14, BakedMs: 130_000, Reason: "resume_failures: 12 samples",
		StartedAtMs: at(10 * time.Minute), PhaseSinceMs: at(2 * time.Minute), ObservedAtMs: at(0), RuleGeneration: 9, RuleWeight: 2476,
		Actuator: "http", ActuatorError: "502 Bad Gateway",
		Signals: []*controlv1.CanarySignal{
			{
				Name: "hook_failures", Outcome: "pass", Stable: 0.011, Canary: 0.0123, StableSamples: 40_000, CanarySamples: 13_000, Confidence: 0.12345,
				StableTrend: []float64{0.01, 0.012, 0.011, 0.01}, CanaryTrend: []float64{nan, 0.002, 0.012, 0.006},
			},
			{Name: "resume_failures", Outcome: "pass", Detail: "12 samples of stable and 4 of canary, 50 are needed", StableSamples: 12, CanarySamples: 4},
			{Name: "ack_ms", Outcome: "pass", Stable: 1.25, Canary: 1.5, StableSamples: 9000, CanarySamples: 3000, StableTrend: []float64{1, 1}, CanaryTrend: []float64{1, 2}},
			{Name: "memory", Outcome: "pass", Stable: 12_345, Canary: 11_000, StableSamples: 3754, CanarySamples: 1246},
			{Name: "crashes", Outcome: "pass", StableSamples: 4, CanarySamples: 2},
		},
		Events: []*controlv1.CanaryEvent{
			{AtMs: at(10 * time.Minute), Text: "started: version 1.5.0", Actor: "ann\x1b[2J"}, {AtMs: at(2 * time.Minute), Text: "25 % reached"},
		},
	}
}

func abortedCanary() *controlv1.Canary {
	c := baking()
	c.Phase, c.Weight, c.Share, c.Verdict = controlv1.CanaryPhase_CANARY_PHASE_ABORTED, 0, 0, "degraded"
	c.Reason = "hook_failures: 5.1 % of 13000 on canary, 1.1 % of 40000 on stable, confidence 100 %"
	return c
}

func TestCanaryGoldenOutputs(t *testing.T) {
	replacing := baking()
	replacing.Phase, replacing.NodesToReplace, replacing.ActuatorError = controlv1.CanaryPhase_CANARY_PHASE_REPLACING, []string{"gw-1", "gw-2"}, ""
	next := baking()
	next.Paused = true
	busy := &control{canaries: canaries{canary: baking(), looks: []*controlv1.Canary{baking(), next, abortedCanary()}, rebalance: &controlv1.RebalanceResponse{
		Id: "b-1", Running: true, Nodes: []*controlv1.RebalanceNode{
			{NodeId: "gw-1", Track: "stable", Sessions: 9000, Gives: 3000, Moved: 120, Stayed: 2}, {NodeId: "gw-2", Track: "stable", Sessions: 3000, Gets: 3000},
		},
	}}}
	for _, c := range []struct {
		name string
		on   *control
		args string
		code int
	}{
		{"canary-status", busy, "canary status", 0},
		{"canary-replacing", &control{canaries: canaries{canary: replacing}}, "canary status", 0},
		{"canary-aborted", &control{canaries: canaries{canary: abortedCanary()}}, "canary status", 1},
		{"canary-watch", busy, "canary status --watch", 1},
		{"canary-start", busy, "canary start --steps 5,25,100", 0},
		{"canary-set-weight", busy, "canary set-weight 12.5", 0},
		{"canary-abort", &control{canaries: canaries{canary: abortedCanary()}}, "canary abort --reason drill", 0},
		{"rebalance", busy, "rebalance", 0},
	} {
		endpoint := serve(t, c.on)
		for _, format := range []string{"table", "json", "yaml"} {
			got := run(t.Context(), term{}, append([]string{"--endpoint", endpoint, "-o", format}, strings.Fields(c.args)...)...)
			if got.code != c.code {
				t.Errorf("%s: code %d, %s", c.args, got.code, got.err)
			}
			golden(t, c.name+"-"+format, endpoint, got.out)
		}
	}
}

func TestCanaryRequests(t *testing.T) {
	file := filepath.Join(t.TempDir(), "limits.yaml")
	if err := os.WriteFile(file, []byte("interval: 5s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]proto.Message{
		"canary start --steps 1,2.5,100% --bake 90s --tenants a,b --not-tenants c --auto-promote --move-v1 --rate 50/s --analysis " + file: &controlv1.StartCanaryRequest{
			Spec: &controlv1.CanarySpec{
				Steps: []uint32{100, 250, 10000}, BakeMs: 90_000, Tenants: []string{"a", "b"}, TenantsDenied: []string{"c"}, AutoPromote: true,
				MoveV1: true, SessionsPerSecond: 50, Analysis: "interval: 5s\n",
			},
		},
		"canary set-weight 0":                  &controlv1.ChangeCanaryRequest{Change: controlv1.ChangeCanaryRequest_CHANGE_SET_WEIGHT},
		"canary pause --reason lunch --id c-1": &controlv1.ChangeCanaryRequest{Change: controlv1.ChangeCanaryRequest_CHANGE_PAUSE, Reason: "lunch", Id: "c-1"},
		"canary resume":                        &controlv1.ChangeCanaryRequest{Change: controlv1.ChangeCanaryRequest_CHANGE_RESUME},
		"canary promote":                       &controlv1.ChangeCanaryRequest{Change: controlv1.ChangeCanaryRequest_CHANGE_PROMOTE},
		"canary abort --reason smells":         &controlv1.ChangeCanaryRequest{Change: controlv1.ChangeCanaryRequest_CHANGE_ABORT, Reason: "smells"},
		"rebalance --preview --rate 7":         &controlv1.RebalanceRequest{Preview: true, SessionsPerSecond: 7},
		"rebalance --cancel":                   &controlv1.RebalanceRequest{Cancel: true, SessionsPerSecond: 100},
	} {
		c := &control{canaries: canaries{canary: baking(), rebalance: &controlv1.RebalanceResponse{}}}
		got := run(t.Context(), term{}, append([]string{"--endpoint", serve(t, c)}, strings.Fields(args)...)...)
		if asked := c.asked(); got.code != 0 || len(asked) != 1 || !proto.Equal(asked[0], want) {
			t.Errorf("%s: code %d %s, asked %v, want %v", args, got.code, got.err, asked, want)
		}
	}
}

func TestWrongCanaryCommandLines(t *testing.T) {
	for args, want := range map[string]string{
		"canary":                               "want start, status",
		"canary start --steps 5,5":             "want shares above 0 that rise",
		"canary start --steps 0,5":             "want shares above 0 that rise",
		"canary start --steps 5,101":           "from 0 to 100",
		"canary start --steps 0.001":           "at most two decimals",
		"canary start --bake 1ms":              "--bake: 1ms",
		"canary start --rate fast":             "--rate: \"fast\"",
		"canary start --track blue":            "--track: \"blue\"",
		"canary start --analysis /nonexistent": "--analysis: ",
		"canary set-weight":                    "accepts 1 arg",
		"canary set-weight many":               "PERCENT: \"many\"",
		"canary abort":                         "--reason: required",
		"rebalance --preview --cancel":         "only one of them",
		"rebalance --rate 0":                   "--rate: 0",
	} {
		c := &control{}
		got := run(t.Context(), term{}, append([]string{"--endpoint", serve(t, c)}, strings.Fields(args)...)...)
		if got.code != 2 || !strings.Contains(got.err, want) || len(c.asked()) != 0 {
			t.Errorf("%s: code %d, says %q, want %q", args, got.code, got.err, want)
		}
	}
}
