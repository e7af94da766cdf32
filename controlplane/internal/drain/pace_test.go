package drain

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestThePaceFollowsTheOthers(t *testing.T) {
	rules := Rules{MaxRate: 500}
	now := time.Unix(1000, 0)
	op := Operation{Sessions: 10_000, Timeout: 5 * time.Minute}
	op.Pace = rules.begin(op, Load{})
	if first := op.Pace.Rate; first < 41 || first > 43 { // over 80 % of the timeout
		t.Errorf("begins at %v", first)
	}
	run := func(seconds int, l Load) {
		for range seconds {
			now = now.Add(time.Second)
			op.Pace = rules.next(op, l, now)
		}
	}
	run(100, Load{Accepts: 100, AcceptP95: 10, Node: "b"})
	if op.Pace.Rate != 500 {
		t.Errorf("at most 500: %v", op.Pace.Rate)
	}
	run(1, Load{Accepts: 100, AcceptP95: 500, Node: "b"})
	if op.Pace.Rate != 250 || !strings.Contains(op.Pace.Why, "500 ms at b") {
		t.Errorf("after slow connects: %+v", op.Pace)
	}
	run(1, Load{Refused: 3})
	if op.Pace.Rate != 250 {
		t.Errorf("a decrease had no time to show: %v", op.Pace.Rate)
	}
	run(1, Load{Refused: 3})
	if op.Pace.Rate != 125 || !strings.Contains(op.Pace.Why, "refused 3") {
		t.Errorf("after refusals: %+v", op.Pace)
	}
	run(2, Load{Accepts: 50, AuthP95: 140})
	if op.Pace.Rate != 62.5 || !strings.Contains(op.Pace.Why, "auth hooks") {
		t.Errorf("after slow hooks: %+v", op.Pace)
	}
	run(100, Load{AcceptP95: math.Inf(1), Node: "b"})
	if op.Pace.Rate < 1 || op.Pace.Rate > 10 || !strings.Contains(op.Pace.Why, "at its least") || !strings.Contains(op.Pace.Why, "timeout comes first") {
		t.Errorf("all the while: %+v", op.Pace)
	}
	low := op.Pace.Rate
	run(1, Load{})
	if op.Pace.Rate != low || !strings.Contains(op.Pace.Why, "steady") {
		t.Errorf("without evidence: %+v", op.Pace)
	}
	run(1, Load{Accepts: 5})
	if op.Pace.Rate <= low {
		t.Errorf("it does not recover: %+v", op.Pace)
	}
}

func TestWhatIsUsualIsNotSlow(t *testing.T) {
	rules := Rules{MaxRate: 500}
	op := Operation{Sessions: 1000, Timeout: time.Minute}
	op.Pace = rules.begin(op, Load{Accepts: 100, AcceptP95: 120})
	if p := rules.next(op, Load{Accepts: 100, AcceptP95: 300}, time.Now()); p.Rate <= op.Pace.Rate {
		t.Errorf("%+v", p)
	}
	if p := rules.next(op, Load{Accepts: 100, AcceptP95: 400}, time.Now()); p.Rate >= op.Pace.Rate {
		t.Errorf("%+v", p)
	}
}

func TestAFixedRateIsKept(t *testing.T) {
	rules := Rules{MaxRate: 500}
	op := Operation{Sessions: 1000, Timeout: time.Minute, Rate: 900}
	op.Pace = rules.begin(op, Load{})
	if p := rules.next(op, Load{Refused: 100}, time.Now()); p.Rate != 900 {
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

func TestHistograms(t *testing.T) {
	a := histogram{[]float64{1, 10}, []uint64{1, 2, 3}}
	b := histogram{[]float64{1, 10}, []uint64{2, 5, 3}}
	if d := difference(a, b); d.total() != 4 || d.quantile(0.5) != 10 || d.quantile(0) != 1 {
		t.Errorf("%+v", d)
	}
	if d := difference(b, a); d.total() != 6 { // another process
		t.Errorf("%+v", d)
	}
	if q := b.quantile(1); !math.IsInf(q, 1) {
		t.Errorf("above all bounds: %v", q)
	}
	if s := a.plus(histogram{[]float64{5}, []uint64{7, 1}}); s.total() != 14 || s.quantile(0.5) != 5 {
		t.Errorf("%+v", s)
	}
	if (histogram{}).quantile(0.5) != 0 || difference(histogram{}, histogram{bounds: []float64{1}}).total() != 0 {
		t.Error("nothing is something")
	}
}
