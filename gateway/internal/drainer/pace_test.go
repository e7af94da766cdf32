package drainer

import (
	"fmt"
	"testing"
	"time"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

func TestPacer(t *testing.T) {
	var p Pacer
	n := p.Grant(100, 0, 1000)
	for range 20 {
		n += p.Grant(100, 50*time.Millisecond, 1000)
	}
	if n != 100 {
		t.Errorf("%d in a second, want 100", n)
	}
	if n = p.Grant(100, 5*time.Second, 1000); n != 500 {
		t.Errorf("%d in a step of five seconds, want 500", n)
	}
	// What nobody could use is not saved up.
	p.Grant(100, 5*time.Second, 3)
	if n = p.Grant(100, 0, 1000); n > 1 {
		t.Errorf("%d at once", n)
	}
	for range 100 {
		if n = p.Grant(0.1, 100*time.Millisecond, 1000); n > 1 {
			t.Errorf("%d at a tenth per second", n)
		}
	}
}

func TestTheOwnPlanSpreadsBothKinds(t *testing.T) {
	for _, c := range []struct{ movers, others int }{{10_000, 0}, {0, 10_000}, {3000, 5000}, {10, 0}, {0, 1}} {
		clk := clock{last: time.Hour}
		clk.finish(10 * time.Second)
		var p pacers
		movers, others := c.movers, c.others
		atHalf := 0
		for ; clk.elapsed < clk.last; clk.elapsed += clk.step() {
			m, o := p.grant(&clk, 0, clk.step(), movers, others)
			movers, others = movers-m, others-o
			if clk.elapsed < 2500*time.Millisecond {
				atHalf = movers
			}
			if clk.elapsed > clk.movesEnd()+clk.step() && movers > 0 {
				t.Fatalf("%+v: %d V2 clients are not asked after %v", c, movers, clk.elapsed)
			}
		}
		if others > c.others/100 || c.movers > 1000 && (atHalf < c.movers*4/10 || atHalf > c.movers*6/10) {
			t.Errorf("%+v: %d left, %d of V2 in the middle", c, others, atHalf)
		}
	}
}

func TestClock(t *testing.T) {
	s := func(f float64) time.Duration { return time.Duration(f * float64(time.Second)) }
	for name, c := range map[string]struct {
		clock                         clock
		total                         time.Duration
		movesEnd, moveBy, cut, end, l time.Duration
	}{
		"a stop":               {clock{last: s(10)}, s(10), s(5), s(7.5), s(9), s(10), s(8)},
		"a long stop":          {clock{last: s(100)}, s(100), s(56.25), s(84.375), s(95), s(100), s(90)},
		"directed":             {clock{last: s(10)}, 0, s(6.25), s(9.375), s(12), s(14), s(10)},
		"directed, then ended": {clock{last: s(3600), elapsed: s(60)}, s(10), s(65), s(67.5), s(69), s(70), s(68)},
		"ended when over":      {clock{last: s(50), elapsed: s(52)}, s(2), s(31.25), s(46.875), s(53), s(54), s(50)},
		"a hurried one":        {clock{last: s(1)}, 0, s(0.625), s(0.9375), s(3), s(5), s(1)},
		"a short stop":         {clock{last: s(1)}, s(1), s(0.5), s(0.75), s(0.9), s(1), s(0.8)},
	} {
		k := c.clock
		if c.total > 0 {
			k.finish(c.total)
			k.finish(c.total + time.Hour) // nobody can prolong it
		}
		got := []time.Duration{k.movesEnd(), k.moveBy(), k.last, k.cut(), k.end()}
		if want := []time.Duration{c.movesEnd, c.moveBy, c.l, c.cut, c.end}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestTargets(t *testing.T) {
	for name, c := range map[string]struct {
		list []*gatewayv1.Target
		want string
	}{
		"none":          {nil, "     "},
		"one":           {[]*gatewayv1.Target{{Url: "a"}}, "a a a a a a"},
		"alike":         {[]*gatewayv1.Target{{Url: "a"}, {Url: "b"}}, "a b a b a b"},
		"by weight":     {[]*gatewayv1.Target{{Url: "a", Weight: 4}, {Url: "b", Weight: 2}}, "a b a a b a"},
		"one with none": {[]*gatewayv1.Target{{Url: "a", Weight: 1}, {Url: "b"}}, "a a a a a a"},
	} {
		var ts Targets
		ts.Set(c.list)
		got := ""
		for i := range 6 {
			if i > 0 {
				got += " "
			}
			got += ts.Next()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
