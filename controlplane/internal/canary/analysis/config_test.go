package analysis

import (
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	c, err := Parse([]byte(`
interval: 15s
false_aborts: 0.005
signals:
  hook_failures: {min_samples: 500, ratio: 2, difference: 0.01, required: true}
  ack_ms: {effect: 0.7}
  slow_acks: {bound_ms: 100}
  rate_limited: {off: true}
  memory: {base_mib: 30, slack_mib: 20, looks: 3}
  crashes: {max: 0}
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Interval != 15*time.Second || c.FalseAborts != 0.005 {
		t.Errorf("%+v", c)
	}
	for s, want := range map[Signal]Limit{
		HookFailures:   {MinSamples: 500, Ratio: 2, Difference: 0.01, Required: true},
		AckLatency:     {MinSamples: 100, Ratio: 1.25, Effect: 0.7},
		SlowAcks:       {MinSamples: 100, Ratio: 1.5, Difference: 0.01, BoundMS: 100},
		Memory:         {MinSamples: 20, Ratio: 1.5, BaseMiB: 30, SlackMiB: 20, Looks: 3},
		Crashes:        {},
		AbnormalCloses: Default().Signals[AbnormalCloses],
	} {
		if got := c.Signals[s]; got != want {
			t.Errorf("%s: %+v, want %+v", s, got, want)
		}
	}
	if !c.Signals[RateLimited].Off {
		t.Error("rate_limited is on")
	}
	if c, err := Parse(nil); err != nil || len(c.Signals) != len(order) {
		t.Errorf("no text: %v, %v", c, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"intervall: 3s":                                "intervall not found",
		"interval: 10ms":                               "interval: must be",
		"interval: fast":                               "cannot unmarshal",
		"false_aborts: 0":                              "false_aborts: must be",
		"false_aborts: .nan":                           "false_aborts: must be",
		"signals: {hooks: {off: true}}":                "hooks: unknown; there are [hook_failures",
		"signals: {memory: {effect: 0.7}}":             "memory: effect: says nothing",
		"signals: {ack_ms: {difference: 0.1}}":         "ack_ms: difference: says nothing",
		"signals: {ack_ms: {effect: 2}}":               "effect: must be from 0.501 to 1",
		"signals: {ack_ms: {rato: 2}}":                 "rato not found",
		"signals: {resume_failures: {min_samples: 1}}": "at least 10",
		"interval: 5s\n---\ninterval: 6s":              "one document",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestForFollowsThePlan(t *testing.T) {
	for _, k := range []struct {
		bake     time.Duration
		interval time.Duration
		horizon  int
	}{{10 * time.Minute, 30 * time.Second, 80}, {time.Minute, 6 * time.Second, 40}, {2 * time.Second, 2 * time.Second, 10}} {
		if c := Default().For(4, k.bake); c.Interval != k.interval || c.Horizon != k.horizon {
			t.Errorf("%v: %v, %d", k.bake, c.Interval, c.Horizon)
		}
	}
}
