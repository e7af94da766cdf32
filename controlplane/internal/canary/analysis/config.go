package analysis

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"go.yaml.in/yaml/v3"
)

// Limit says when a signal counts as degraded. A difference has to be both
// significant and large enough to matter.
type Limit struct {
	// Off: the signal is not looked at.
	Off bool `json:"off,omitempty"`
	// MinSamples is what each track must have in a window before anything is said.
	MinSamples uint64 `json:"min_samples,omitempty"`
	// Required: without enough samples a step does not pass. Any other signal is
	// waited for only if stable has enough.
	Required bool `json:"required,omitempty"`
	// Ratio is the least canary's value by stable's (of a latency: of the
	// medians) that matters.
	Ratio float64 `json:"ratio,omitempty"`
	// Difference is the least difference of shares that matters.
	Difference float64 `json:"difference,omitempty"`
	// Effect is the least probability that a canary's latency is above a stable
	// one that matters.
	Effect float64 `json:"effect,omitempty"`
	// BoundMS is above which an accept or an ack is slow, in milliseconds.
	BoundMS float64 `json:"bound_ms,omitempty"`
	// BaseMiB is what a process needs without sessions, SlackMiB what a canary's
	// may need besides Ratio times stable's memory per session, both per gateway.
	BaseMiB  float64 `json:"base_mib,omitempty"`
	SlackMiB float64 `json:"slack_mib,omitempty"`
	// Looks is for how many in a row the canary must be over its limit.
	Looks int `json:"looks,omitempty"`
	// Max is how many gateways of the canary may crash without consequence.
	Max uint64 `json:"max,omitempty"`
}

// Config is what a canary is judged by.
type Config struct {
	// Interval is from look to look.
	Interval time.Duration `json:"interval"`
	// FalseAborts is the probability, over all signals and the whole canary, with
	// which one that is no worse may be aborted.
	FalseAborts float64 `json:"false_aborts"`
	// Horizon is for how many looks the canary is planned; more are possible.
	Horizon int              `json:"horizon"`
	Signals map[Signal]Limit `json:"signals"`
}

// maxInterval bounds how long a bad canary goes unseen.
const maxInterval = 10 * time.Minute

// Default returns the configuration of a canary without a file. Interval and
// Horizon follow from the plan (For).
func Default() Config {
	rate := func(min uint64, required bool) Limit {
		return Limit{MinSamples: min, Required: required, Ratio: 1.25, Difference: 0.002}
	}
	slow := func(bound float64) Limit {
		return Limit{MinSamples: 100, Ratio: 1.5, Difference: 0.01, BoundMS: bound}
	}
	latency := Limit{MinSamples: 100, Ratio: 1.25, Effect: 0.6}
	return Config{
		FalseAborts: 0.01,
		Signals: map[Signal]Limit{
			HookFailures: rate(100, false), ForwardFailures: rate(100, false),
			HeartbeatTimeouts: rate(50, true), AbnormalCloses: rate(50, true),
			RateLimited: rate(100, false), ResumeFailures: rate(50, false),
			SlowAccepts: slow(1000), SlowAcks: slow(250),
			AcceptLatency: latency, AckLatency: latency,
			Memory:  {MinSamples: 20, Ratio: 1.5, BaseMiB: 48, SlackMiB: 64, Looks: 5},
			Crashes: {Max: 1},
		},
	}
}

// For fills in what the plan of a canary says: an interval of a tenth of the bake
// time, 2 s at least and 30 s at most, and as many looks as there are in all bakes.
func (c Config) For(steps int, bake time.Duration) Config {
	if c.Interval == 0 {
		c.Interval = min(max(bake/10, 2*time.Second), 30*time.Second)
	}
	c.Horizon = max(10, steps*int((bake+c.Interval-1)/c.Interval))
	return c
}

// WhileMoving leaves out what moving sessions changes by itself: those that arrive
// are all on one track.
func (c Config) WhileMoving() Config {
	signals := maps.Clone(c.Signals)
	for _, s := range []Signal{AcceptLatency, SlowAccepts, ResumeFailures, Memory} {
		l := signals[s]
		l.Off = true
		signals[s] = l
	}
	c.Signals = signals
	return c
}

// file is the YAML form of a Config; pointers tell what was said.
type file struct {
	Interval    *time.Duration     `yaml:"interval"`
	FalseAborts *float64           `yaml:"false_aborts"`
	Signals     map[Signal]setting `yaml:"signals"`
}

type setting struct {
	Off        *bool    `yaml:"off"`
	Required   *bool    `yaml:"required"`
	MinSamples *uint64  `yaml:"min_samples"`
	Ratio      *float64 `yaml:"ratio"`
	Difference *float64 `yaml:"difference"`
	Effect     *float64 `yaml:"effect"`
	BoundMS    *float64 `yaml:"bound_ms"`
	BaseMiB    *float64 `yaml:"base_mib"`
	SlackMiB   *float64 `yaml:"slack_mib"`
	Looks      *int     `yaml:"looks"`
	Max        *uint64  `yaml:"max"`
}

// Parse reads a configuration over the defaults. Empty text is the defaults; a key
// that is not known, or says nothing for its signal, is an error.
func Parse(text []byte) (Config, error) {
	c := Default()
	var f file
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	switch err := d.Decode(&f); {
	case errors.Is(err, io.EOF):
		return c, nil
	case err != nil:
		return Config{}, fmt.Errorf("analysis: %w", err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("analysis: one document is expected")
	}
	if f.Interval != nil {
		if c.Interval = *f.Interval; c.Interval < time.Second || c.Interval > maxInterval {
			return Config{}, fmt.Errorf("analysis: interval: must be from 1s to %v", maxInterval)
		}
	}
	if f.FalseAborts != nil {
		if c.FalseAborts = *f.FalseAborts; !(c.FalseAborts > 0 && c.FalseAborts <= 0.2) {
			return Config{}, errors.New("analysis: false_aborts: must be above 0 and at most 0.2")
		}
	}
	for s, v := range f.Signals {
		l, err := v.over(s, c.Signals)
		if err != nil {
			return Config{}, fmt.Errorf("analysis: signals: %s: %w", s, err)
		}
		c.Signals[s] = l
	}
	return c, nil
}

// over applies a setting to a signal's default.
func (v setting) over(s Signal, defaults map[Signal]Limit) (Limit, error) {
	l, ok := defaults[s]
	if !ok {
		return l, fmt.Errorf("unknown; there are %v", names())
	}
	rate, latency, memory, crash := l.Difference > 0, l.Effect > 0, s == Memory, s == Crashes
	bad := func(key string, said, fits, within bool, rule string) error {
		switch {
		case !said || fits && within:
			return nil
		case !fits:
			return fmt.Errorf("%s: says nothing for this signal", key)
		}
		return fmt.Errorf("%s: must be %s", key, rule)
	}
	between := func(x *float64, low, high float64) bool { return x == nil || *x >= low && *x <= high }
	if err := errors.Join(
		bad("required", v.Required != nil, rate || latency, true, ""),
		bad("min_samples", v.MinSamples != nil, !crash, v.MinSamples == nil || *v.MinSamples >= 10, "at least 10"),
		bad("ratio", v.Ratio != nil, !crash, between(v.Ratio, 1, 100), "from 1 to 100"),
		bad("difference", v.Difference != nil, rate, between(v.Difference, 1e-6, 1), "from 0.000001 to 1"),
		bad("effect", v.Effect != nil, latency, between(v.Effect, 0.501, 1), "from 0.501 to 1"),
		bad("bound_ms", v.BoundMS != nil, l.BoundMS > 0, between(v.BoundMS, 0.1, 60_000), "from 0.1 to 60000"),
		bad("base_mib", v.BaseMiB != nil, memory, between(v.BaseMiB, 0, 1<<20), "from 0 to 1048576"),
		bad("slack_mib", v.SlackMiB != nil, memory, between(v.SlackMiB, 0, 1<<20), "from 0 to 1048576"),
		bad("looks", v.Looks != nil, memory, v.Looks == nil || *v.Looks >= 1 && *v.Looks <= 1000, "from 1 to 1000"),
		bad("max", v.Max != nil, crash, true, ""),
	); err != nil {
		return l, err
	}
	put(&l.Off, v.Off)
	put(&l.Required, v.Required)
	put(&l.MinSamples, v.MinSamples)
	put(&l.Ratio, v.Ratio)
	put(&l.Difference, v.Difference)
	put(&l.Effect, v.Effect)
	put(&l.BoundMS, v.BoundMS)
	put(&l.BaseMiB, v.BaseMiB)
	put(&l.SlackMiB, v.SlackMiB)
	put(&l.Looks, v.Looks)
	put(&l.Max, v.Max)
	return l, nil
}

func put[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func names() []Signal {
	out := make([]Signal, len(order))
	for i, o := range order {
		out[i] = o.signal
	}
	return out
}
