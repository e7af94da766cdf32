package drain

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/controlplane/internal/pace"
)

func TestThePaceFollowsTheOthers(t *testing.T) {
	rules := Rules{MaxRate: 500}
	now := time.Unix(1000, 0)
	op := Operation{Sessions: 10_000, Timeout: 5 * time.Minute}
	op.Pace = rules.begin(op, pace.Load{})
	if first := op.Pace.Rate; first < 41 || first > 43 { // over 80 % of the timeout
		t.Errorf("begins at %v", first)
	}
	run := func(seconds int, l pace.Load) {
		for range seconds {
			now = now.Add(time.Second)
			op.Pace = rules.next(op, l, now)
		}
	}
	run(100, pace.Load{Accepts: 100, AcceptP95: 10, Node: "b"})
	if op.Pace.Rate != 500 {
		t.Errorf("at most 500: %v", op.Pace.Rate)
	}
	run(1, pace.Load{Accepts: 100, AcceptP95: 500, Node: "b"})
	if op.Pace.Rate != 250 || !strings.Contains(op.Pace.Why, "500 ms at b") {
		t.Errorf("after slow connects: %+v", op.Pace)
	}
	run(1, pace.Load{Refused: 3})
	if op.Pace.Rate != 250 {
		t.Errorf("a decrease had no time to show: %v", op.Pace.Rate)
	}
	run(1, pace.Load{Refused: 3})
	if op.Pace.Rate != 125 || !strings.Contains(op.Pace.Why, "refused 3") {
		t.Errorf("after refusals: %+v", op.Pace)
	}
	run(2, pace.Load{Accepts: 50, AuthP95: 140})
	if op.Pace.Rate != 62.5 || !strings.Contains(op.Pace.Why, "auth hooks") {
		t.Errorf("after slow hooks: %+v", op.Pace)
	}
	run(100, pace.Load{AcceptP95: math.Inf(1), Node: "b"})
	if op.Pace.Rate < 1 || op.Pace.Rate > 10 || !strings.Contains(op.Pace.Why, "at its least") || !strings.Contains(op.Pace.Why, "timeout comes first") {
		t.Errorf("all the while: %+v", op.Pace)
	}
	low := op.Pace.Rate
	run(1, pace.Load{})
	if op.Pace.Rate != low || !strings.Contains(op.Pace.Why, "steady") {
		t.Errorf("without evidence: %+v", op.Pace)
	}
	run(1, pace.Load{Accepts: 5})
	if op.Pace.Rate <= low {
		t.Errorf("it does not recover: %+v", op.Pace)
	}
}

func TestWhatIsUsualIsNotSlow(t *testing.T) {
	rules := Rules{MaxRate: 500}
	op := Operation{Sessions: 1000, Timeout: time.Minute}
	op.Pace = rules.begin(op, pace.Load{Accepts: 100, AcceptP95: 120})
	if p := rules.next(op, pace.Load{Accepts: 100, AcceptP95: 300}, time.Now()); p.Rate <= op.Pace.Rate {
		t.Errorf("%+v", p)
	}
	if p := rules.next(op, pace.Load{Accepts: 100, AcceptP95: 400}, time.Now()); p.Rate >= op.Pace.Rate {
		t.Errorf("%+v", p)
	}
}

func TestGapsSlowAndNeverBelowWhatIsNeeded(t *testing.T) {
	rules := Rules{MaxRate: 500}
	base := Operation{Sessions: 2000, Timeout: 100 * time.Second} // needs 25/s
	now := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		rate     float64
		slowed   time.Duration // ago
		gap      float64
		gaps     uint64
		accept   float64
		want     float64
		whyHas   string
		slowsNow bool
	}{
		"short gaps":                     {rate: 200, gap: 10, gaps: 100, want: 220, whyHas: "faster"},
		"nearly too long":                {rate: 200, gap: 20, gaps: 100, want: 200, whyHas: "steady: moving takes 20 ms"},
		"too long":                       {rate: 200, gap: 25, gaps: 100, want: 100, whyHas: "slowed: moving takes 25 ms", slowsNow: true},
		"longer than what is measured":   {rate: 200, gap: math.Inf(1), gaps: 100, want: 100, whyHas: "slowed", slowsNow: true},
		"slowed a moment ago":            {rate: 200, slowed: time.Second, gap: 35, gaps: 100, want: 200, whyHas: "slowed"},
		"slowed two seconds ago":         {rate: 200, slowed: 2 * time.Second, gap: 35, gaps: 100, want: 100, whyHas: "slowed", slowsNow: true},
		"too few to tell":                {rate: 200, gap: 500, gaps: 39, want: 220, whyHas: "faster"},
		"near what is needed":            {rate: 30, gap: 500, gaps: 100, want: 25, whyHas: "slowed", slowsNow: true},
		"what is needed":                 {rate: 25, gap: 500, gaps: 100, want: 45, whyHas: "faster"},
		"below what is needed":           {rate: 10, gap: 500, gaps: 100, want: 30, whyHas: "faster"},
		"connects are slow as well":      {rate: 30, gap: 500, gaps: 100, accept: 500, want: 15, whyHas: "connects take", slowsNow: true},
		"as fast as may be, gaps short":  {rate: 500, gap: 5, gaps: 100, want: 500, whyHas: "as fast as"},
		"as fast as may be, not so good": {rate: 500, gap: 20, gaps: 100, want: 500, whyHas: "steady: moving"},
	} {
		op := base
		op.Pace = pace.Pace{Rate: c.rate}
		if c.slowed > 0 {
			op.Pace.Slowed = now.Add(-c.slowed)
		}
		p := rules.next(op, pace.Load{Accepts: 100, AcceptP95: c.accept, Node: "b", Gaps: c.gaps, GapP95: c.gap}, now)
		if p.Rate != c.want || !strings.Contains(p.Why, c.whyHas) || p.Slowed.Equal(now) != c.slowsNow {
			t.Errorf("%s: %+v, want %v, %q", name, p, c.want, c.whyHas)
		}
	}
}

// A gateway whose moves take longer the more there are: the drain finds its share and
// is done in time all the same.
func TestADrainThatMakesGapsFindsItsPace(t *testing.T) {
	w := newWorld(t, newGate("a", 20_000), newGate("b", 0))
	w.gate("b").crowded = 150
	w.add(Operation{Node: "a", Timeout: 10 * time.Minute}) // needs about 42/s
	var most, sum float64
	n := 0.0
	w.until("has ended", func() bool {
		if op, ok := w.find("a"); ok && op.State == Draining {
			most, sum, n = max(most, op.Pace.Rate), sum+op.Pace.Rate, n+1
		}
		return w.ended("a")()
	})
	op, _ := w.result("a")
	if op.State != Done || op.Receipt.Duration > op.Timeout {
		t.Errorf("%s after %v", op.State, op.Receipt.Duration)
	}
	if mean := sum / n; most > 260 || mean < 75 || mean > 200 {
		t.Errorf("at most %.0f/s, %.0f/s on average", most, mean)
	}
}

func TestAFixedRateIsKept(t *testing.T) {
	rules := Rules{MaxRate: 500}
	op := Operation{Sessions: 1000, Timeout: time.Minute, Rate: 900}
	op.Pace = rules.begin(op, pace.Load{})
	if p := rules.next(op, pace.Load{Refused: 100}, time.Now()); p.Rate != 900 {
		t.Errorf("%+v", p)
	}
}

func TestSlowGatewaysSlowTheDrain(t *testing.T) {
	fast, slow := newWorld(t, newGate("a", 20_000), newGate("b", 0)), newWorld(t, newGate("a", 20_000), newGate("b", 0))
	slow.gate("b").slow = true
	var ends []time.Duration
	for _, w := range []*world{fast, slow} {
		w.add(Operation{Node: "a", Timeout: time.Hour})
		w.until("has ended", w.ended("a"))
		op, _ := w.result("a")
		ends = append(ends, op.Receipt.Duration)
	}
	if ends[1] < 2*ends[0] {
		t.Errorf("%v beside %v", ends[1], ends[0])
	}
}
