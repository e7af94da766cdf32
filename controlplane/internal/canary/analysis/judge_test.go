package analysis

import (
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// world makes streams whose truth is known. Probabilities are per event.
type world struct {
	rng            *rand.Rand
	stable, canary truth
	// n events of each kind in an interval, of either track.
	nStable, nCanary uint64
	// gateways that stable has; 0: nobody tells what each of them does. Bad events
	// come in groups of group; 0 is 1.
	gateways, group uint64
}

type truth struct {
	rate   map[Signal]float64
	scale  float64 // of latencies
	memory float64 // bytes per session
}

var bounds = []float64{1, 2, 5, 10, 25, 50, 100, 250, 1000}

// base has rates as a healthy cluster has them, some rare and some not.
func base() truth {
	return truth{scale: 8, memory: 12_000, rate: map[Signal]float64{
		HookFailures: 0.01, ForwardFailures: 0.001, HeartbeatTimeouts: 0.005, RateLimited: 0.05, AbnormalCloses: 0.02, ResumeFailures: 0.1,
	}}
}

func (w *world) bad(n uint64, p float64) (k uint64) {
	if p <= 0 {
		return 0
	}
	// From one bad event to the next: geometric.
	for at := 0.0; ; k++ {
		if at += math.Floor(math.Log(1-w.rng.Float64())/math.Log1p(-p)) + 1; at > float64(n) {
			return k
		}
	}
}

func (w *world) track(tr truth, n uint64) Track {
	t := Track{Rates: map[Signal]Rate{}, Latencies: map[Signal]Histogram{}, Nodes: 2, Sessions: n}
	for _, s := range []Signal{HookFailures, ForwardFailures, HeartbeatTimeouts, RateLimited, AbnormalCloses, ResumeFailures} {
		g := max(1, w.group)
		t.Rates[s] = Rate{min(g*w.bad(n/g, tr.rate[s]), n), n}
	}
	below := make([]float64, len(bounds)) // log-normal
	for i, x := range bounds {
		below[i] = math.Erfc(-math.Log(x/tr.scale)/math.Sqrt2) / 2
	}
	for _, s := range []Signal{AcceptLatency, AckLatency} {
		h := Histogram{Bounds: bounds, Counts: make([]uint64, len(bounds)+1)}
		for range n / 8 {
			x, i := w.rng.Float64(), 0
			for i < len(bounds) && x > below[i] {
				i++
			}
			h.Counts[i]++
		}
		t.Latencies[s] = h
	}
	t.Bytes = uint64(2*48<<20 + tr.memory*float64(n) + w.rng.Float64()*20e6)
	return t
}

func (w *world) sample() Sample {
	if w.gateways == 0 {
		return Sample{Stable: w.track(w.stable, w.nStable), Canary: w.track(w.canary, w.nCanary)}
	}
	s := Sample{Canary: w.track(w.canary, w.nCanary)}
	for range w.gateways {
		g := w.track(w.stable, w.nStable/w.gateways)
		s.Stable, s.Gateways = s.Stable.plus(g), append(s.Gateways, g)
	}
	// Of a whole track as without gateways.
	s.Stable.Nodes, s.Stable.Sessions, s.Stable.Bytes = 2, w.nStable, s.Gateways[0].Bytes*w.gateways
	return s
}

// run plays a canary of steps, in each of which sessions move for some looks before
// it bakes, and returns the first look that aborts, 0: none does.
func (w *world) run(c Config, steps, moving, baking int) (look int, v Verdict) {
	var h History
	for range steps {
		h = h.Restart(false)
		for k := range moving + baking {
			now := c
			if k < moving {
				now = c.WhileMoving()
			}
			if k == moving {
				h = h.Bake()
			}
			h = h.Add(now, w.sample())
			if v = Judge(now, h); v.Outcome == Degraded {
				return h.Looks, v
			}
		}
	}
	return 0, v
}

func testConfig() Config { return Default().For(4, 10*time.Minute) }

// canaries is how many are played where false aborts are counted:
// MICS_ANALYSIS_CANARIES, 120 without it.
func canaries(t *testing.T) int {
	text := os.Getenv("MICS_ANALYSIS_CANARIES")
	if text == "" {
		return 120
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 100 {
		t.Fatalf("MICS_ANALYSIS_CANARIES: %q is no number from 100", text)
	}
	return n
}

// TestIdenticalTracksAreSeldomAborted plays whole canaries as they are by default,
// four steps with 20 looks each and a few before, all signals, in which both tracks
// are the same; less than one in a hundred may be aborted, with the limits on what
// matters and by the tests alone. So it is with whichever numbers of events.
func TestIdenticalTracksAreSeldomAborted(t *testing.T) {
	alone := testConfig()
	for s, l := range alone.Signals {
		l.Ratio, l.Difference, l.Effect = 1, 0, 0.5
		l.Off = s == Memory // which has nothing but its limit
		alone.Signals[s] = l
	}
	for _, k := range []struct {
		name           string
		c              Config
		stable, canary uint64 // events per interval
		gateways       uint64 // of stable, whose noise is known
	}{
		{"even", testConfig(), 1000, 1000, 0},
		{"even, 4 gateways", testConfig(), 1000, 1000, 4},
		{"5 %", testConfig(), 4000, 210, 0},
		{"few", testConfig(), 200, 200, 0},
		{"even, tests alone", alone, 1000, 1000, 0},
		{"5 %, tests alone", alone, 4000, 210, 0},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			n, aborts := canaries(t), 0
			for i := range n {
				w := &world{rng: rand.New(rand.NewPCG(1, uint64(i))), stable: base(), canary: base(), nStable: k.stable, nCanary: k.canary, gateways: k.gateways}
				look, v := w.run(k.c, 4, 3, 20)
				if look > 0 {
					aborts++
					t.Logf("look %d: %s", look, v.Why)
				} else if v.Outcome != Pass {
					t.Fatalf("canary %d: %s: %s", i, v.Outcome, v.Why)
				}
			}
			t.Logf("%d of %d canaries without a difference were aborted", aborts, n)
			if float64(aborts) >= 0.01*float64(n) {
				t.Errorf("%d of %d is not less than one in a hundred", aborts, n)
			}
		})
	}
}

// finds plays a step in which, after some looks, the canary has twice stable's rate of
// failing hooks, and tells whether that is found within three.
func (w *world) finds(c Config, rate float64, others bool, trial, begin int) bool {
	w.stable.rate[HookFailures], w.canary.rate[HookFailures] = rate, rate
	h := History{Trial: trial}
	for k := range begin + 3 {
		if k == begin {
			w.canary.rate[HookFailures] = 2 * rate
		}
		s := w.sample()
		if !others {
			only := func(t Track) Track { return Track{Rates: map[Signal]Rate{HookFailures: t.Rates[HookFailures]}} }
			s = Sample{Stable: only(s.Stable), Canary: only(s.Canary)} // of no gateways
		}
		h = h.Add(c, s)
		if v := Judge(c, h); v.Outcome == Degraded {
			return k >= begin && strings.HasPrefix(v.Why, "hook_failures: ") && strings.Contains(v.Why, "confidence")
		}
	}
	return false
}

// TestTwiceTheErrorRateIsFound: 1,000 events of each track per interval, the
// canary's rate doubled; it is to be found within three intervals. How often it is
// depends on the rate, on what other signals have to say, and on the step: that
// table is what DESIGN.md quotes.
func TestTwiceTheErrorRateIsFound(t *testing.T) {
	c := testConfig()
	const trials = 200
	for _, k := range []struct {
		name     string
		others   bool   // signals have events, as both tracks have them
		trial    int    // step
		begin    int    // looks of the step before it goes wrong
		gateways uint64 // whose noise is known
		least    map[float64]float64
	}{
		{"first step, no other signal", false, 1, 0, 0, map[float64]float64{0.1: 0.999, 0.05: 0.999, 0.02: 0.95, 0.01: 0.57, 0.005: 0.2}},
		{"first step, all signals", true, 1, 0, 0, map[float64]float64{0.1: 0.999, 0.05: 0.999, 0.02: 0.85, 0.01: 0.43, 0.005: 0.1}},
		{"first step, all signals, 4 gateways", true, 1, 0, 4, map[float64]float64{0.1: 0.999, 0.05: 0.999, 0.02: 0.82, 0.01: 0.4, 0.005: 0.08}},
		{"third step, all signals", true, 3, 0, 0, map[float64]float64{0.1: 0.999, 0.05: 0.999, 0.02: 0.7, 0.01: 0.18}},
		{"after 30 good looks", true, 1, 30, 0, map[float64]float64{0.1: 0.98, 0.05: 0.95, 0.02: 0.2}},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			for _, rate := range []float64{0.005, 0.01, 0.02, 0.05, 0.1} {
				if k.least[rate] == 0 {
					continue
				}
				found := 0
				for i := range trials {
					w := &world{rng: rand.New(rand.NewPCG(3, uint64(i))), stable: base(), canary: base(), nStable: 1000, nCanary: 1000, gateways: k.gateways}
					if w.finds(c, rate, k.others, k.trial, k.begin) {
						found++
					}
				}
				share := float64(found) / trials
				t.Logf("%4.1f %% to %4.1f %%: %5.1f %%", 100*rate, 200*rate, 100*share)
				if share < k.least[rate] {
					t.Errorf("at a rate of %g: %.3f, want %.3f", rate, share, k.least[rate])
				}
			}
		})
	}
}

func TestEachSignalIsCaught(t *testing.T) {
	c := testConfig()
	for s, worse := range map[Signal]func(*truth){
		HookFailures:      func(t *truth) { t.rate[HookFailures] = 0.05 },
		ForwardFailures:   func(t *truth) { t.rate[ForwardFailures] = 0.03 },
		HeartbeatTimeouts: func(t *truth) { t.rate[HeartbeatTimeouts] = 0.05 },
		RateLimited:       func(t *truth) { t.rate[RateLimited] = 0.15 },
		AbnormalCloses:    func(t *truth) { t.rate[AbnormalCloses] = 0.08 },
		ResumeFailures:    func(t *truth) { t.rate[ResumeFailures] = 0.25 },
		AcceptLatency:     func(t *truth) { t.scale = 20 },
		Memory:            func(t *truth) { t.memory = 250_000 },
	} {
		canary := base()
		worse(&canary)
		w := &world{rng: rand.New(rand.NewPCG(4, 4)), stable: base(), canary: canary, nStable: 2000, nCanary: 1000}
		look, v := w.run(c, 1, 0, 6)
		if look == 0 || !strings.HasPrefix(v.Why, string(s)) {
			t.Errorf("%s: look %d: %s %s", s, look, v.Outcome, v.Why)
		}
	}
}

// A canary that went well for long and then breaks is found by the short window,
// one that is a little worse all the time by the long one.
func TestBothWindowsCount(t *testing.T) {
	c := testConfig()
	add := func(h History, bad uint64) History {
		return h.Add(c, Sample{
			Stable: Track{Rates: map[Signal]Rate{AbnormalCloses: {10, 1000}}},
			Canary: Track{Rates: map[Signal]Rate{AbnormalCloses: {bad, 1000}}},
		})
	}
	h := History{}
	for range 200 {
		h = add(h, 10)
	}
	h = add(add(add(h, 60), 60), 60)
	if v := Judge(c, h); v.Outcome != Degraded {
		t.Errorf("late: %s", v.Why)
	}
	h = History{}
	for range 40 {
		h = add(h, 16)
	}
	if v := Judge(c, h); v.Outcome != Degraded {
		t.Errorf("slow: %s", v.Why)
	}
}

func TestNoDataIsWaitedFor(t *testing.T) {
	c := testConfig()
	if v := Judge(c, History{}.Add(c, Sample{})); v.Outcome != Wait {
		t.Errorf("without any data: %s", v.Outcome)
	}
	quiet := func(n uint64) Track {
		return Track{Rates: map[Signal]Rate{HeartbeatTimeouts: {0, n}, AbnormalCloses: {0, n}}}
	}
	s := Sample{Stable: quiet(500), Canary: quiet(500)}
	if v := Judge(c, History{}.Add(c, s)); v.Outcome != Pass {
		t.Errorf("what is required is known and nothing else happens: %s %s", v.Outcome, v.Why)
	}
	s.Canary = quiet(49)
	if v := Judge(c, History{}.Add(c, s)); v.Outcome != Wait || !strings.Contains(v.Why, "49 of canary, 50 are needed") {
		t.Errorf("%s %s", v.Outcome, v.Why)
	}
	s.Canary = quiet(500)
	s.Stable.Rates[HookFailures] = Rate{0, 1000}
	if v := Judge(c, History{}.Add(c, s)); v.Outcome != Wait || !strings.HasPrefix(v.Why, "hook_failures") {
		t.Errorf("stable has hooks and canary has none: %s %s", v.Outcome, v.Why)
	}
	if v := Judge(c, History{}.Restart(true).Add(c, Sample{Canary: Track{Crashes: 2}})); v.Outcome != Degraded {
		t.Errorf("alone and crashing: %s", v.Why)
	}
	if v := Judge(c, History{}.Restart(true).Add(c, Sample{Canary: quiet(500)})); v.Outcome != Pass {
		t.Errorf("alone: %s", v.Why)
	}
}

// A significant difference that nobody would notice is none.
func TestSmallDifferencesDoNotMatter(t *testing.T) {
	c := testConfig()
	s := Sample{
		Stable: Track{Rates: map[Signal]Rate{HookFailures: {100_000, 10_000_000}}},
		Canary: Track{Rates: map[Signal]Rate{HookFailures: {110_000, 10_000_000}}},
	}
	v := Judge(c, History{}.Add(c, s))
	if v.Outcome == Degraded || v.Findings[0].Confidence < 0.99 {
		t.Errorf("%+v", v.Findings[0])
	}
}

func TestVersionsWithOtherBucketsAreCompared(t *testing.T) {
	a := Histogram{Bounds: []float64{1, 2, 5, 10}, Counts: []uint64{1, 2, 3, 4, 5}}
	b := Histogram{Bounds: []float64{2, 3, 10, 20}, Counts: []uint64{6, 7, 8, 9, 10}}
	x, y := Align(a, b)
	want := func(h Histogram, counts ...uint64) {
		t.Helper()
		if len(h.Bounds) != 2 || h.Bounds[0] != 2 || h.Bounds[1] != 10 {
			t.Fatalf("bounds %v", h.Bounds)
		}
		for i, c := range counts {
			if h.Counts[i] != c {
				t.Errorf("counts %v, want %v", h.Counts, counts)
				return
			}
		}
	}
	want(x, 3, 7, 5)
	want(y, 6, 15, 19)
	want(Merge(a, b), 9, 22, 24)
	if r := a.above(2); r != (Rate{12, 15}) {
		t.Errorf("above 2: %v", r)
	}
	if r := a.above(3); r != (Rate{9, 15}) {
		t.Errorf("above 3: %v, only what is certain counts", r)
	}
	if q := a.median(); q < 2 || q > 10 {
		t.Errorf("median %g", q)
	}
}

func TestHistoryIsAValue(t *testing.T) {
	c := testConfig()
	w := &world{rng: rand.New(rand.NewPCG(5, 5)), stable: base(), canary: base(), nStable: 100, nCanary: 100}
	h := History{}.Add(c, w.sample())
	before := h.Step.Stable.Rates[RateLimited]
	_ = h.Add(c, w.sample())
	if h.Looks != 1 || h.Step.Stable.Rates[RateLimited] != before || len(h.Recent) != 1 {
		t.Error("Add changed the history before it")
	}
}
