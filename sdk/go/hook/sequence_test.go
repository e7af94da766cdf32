package hook

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

func numbered(tenant, node string, seq uint64) *Event {
	return &Event{MqEvent: &hookv1.MqEvent{TenantId: tenant, NodeId: node, TenantSeq: seq}}
}

// step is an event of node n and what its arrival tells.
type step struct {
	seq  uint64
	want Arrival
	gaps []Gap
}

func lost(from, to uint64) []Gap { return []Gap{{Tenant: "t", Node: "n", From: from, To: to}} }

func TestSequence(t *testing.T) {
	for name, c := range map[string]struct {
		o       SequenceOptions
		steps   []step
		missing []Gap
	}{
		"in order":               {steps: []step{{1, Fresh, nil}, {2, Fresh, nil}, {3, Fresh, nil}}},
		"repeats":                {steps: []step{{1, Fresh, nil}, {1, Repeated, nil}, {2, Fresh, nil}, {1, Repeated, nil}}},
		"unnumbered":             {steps: []step{{0, Unnumbered, nil}, {0, Unnumbered, nil}}},
		"out of order":           {steps: []step{{1, Fresh, nil}, {3, Fresh, nil}, {2, Fresh, nil}, {2, Repeated, nil}}},
		"one is still to come":   {steps: []step{{1, Fresh, nil}, {4, Fresh, nil}}, missing: lost(2, 3)},
		"from the middle":        {steps: []step{{100, Fresh, nil}, {101, Fresh, nil}, {98, Fresh, nil}, {98, Repeated, nil}}},
		"from the first":         {o: SequenceOptions{FromFirst: true}, steps: []step{{3, Fresh, nil}, {1, Fresh, nil}}, missing: lost(2, 2)},
		"from the first, far":    {o: SequenceOptions{FromFirst: true}, steps: []step{{100, Fresh, lost(1, 36)}}, missing: lost(37, 99)},
		"fell out of the window": {steps: []step{{1, Fresh, nil}, {3, Fresh, nil}, {66, Fresh, lost(2, 2)}, {2, Late, nil}}, missing: lost(4, 65)},
		"just inside the window": {steps: []step{{1, Fresh, nil}, {65, Fresh, nil}, {2, Fresh, nil}, {1, Late, nil}}, missing: lost(3, 64)},
		"window moved by all":    {steps: []step{{1, Fresh, nil}, {129, Fresh, lost(2, 65)}, {65, Late, nil}, {66, Fresh, nil}}, missing: lost(67, 128)},
		"the largest there is": {steps: []step{{5, Fresh, nil}, {math.MaxUint64, Fresh, lost(6, math.MaxUint64-64)},
			{math.MaxUint64, Repeated, nil}}, missing: lost(math.MaxUint64-63, math.MaxUint64-1)},
	} {
		t.Run(name, func(t *testing.T) {
			c.o.Window = 64
			s := NewSequence(c.o)
			for i, st := range c.steps {
				got, gaps := s.Observe(numbered("t", "n", st.seq))
				if got != st.want || !slices.Equal(gaps, st.gaps) {
					t.Errorf("step %d, %d: %s, gaps %v, want %s, %v", i, st.seq, got, gaps, st.want, st.gaps)
				}
			}
			if got := s.Missing(); !slices.Equal(got, c.missing) {
				t.Errorf("missing %v, want %v", got, c.missing)
			}
		})
	}
}

func TestSequencesAreApart(t *testing.T) {
	s := NewSequence(SequenceOptions{})
	for _, who := range [][2]string{{"a", "n"}, {"b", "n"}, {"a", "m"}, {"an", ""}} {
		if got, _ := s.Observe(numbered(who[0], who[1], 1)); got != Fresh {
			t.Errorf("%v: %s", who, got)
		}
	}
}

func TestSequenceIsBounded(t *testing.T) {
	s := NewSequence(SequenceOptions{Window: 64, MaxNodes: 2})
	s.Observe(numbered("t", "a", 1))
	s.Observe(numbered("t", "a", 3))
	s.Observe(numbered("t", "b", 1))
	s.Observe(numbered("t", "a", 4)) // now b was quiet for longer
	if _, gaps := s.Observe(numbered("t", "c", 1)); gaps != nil {
		t.Errorf("b lacked %v", gaps)
	}
	_, gaps := s.Observe(numbered("t", "d", 1))
	if want := []Gap{{Tenant: "t", Node: "a", From: 2, To: 2}}; !slices.Equal(gaps, want) {
		t.Errorf("a lacked %v, want %v", gaps, want)
	}
	for i := range 100 {
		s.Observe(numbered("t", fmt.Sprint(i), 1))
	}
	if len(s.nodes) != 2 || s.order.Len() != 2 {
		t.Errorf("%d nodes kept", len(s.nodes))
	}
}

// TestSequenceAgreesWithAModel shuffles, repeats and drops within the window:
// what is reported lost or missing is exactly what never came.
func TestSequenceAgreesWithAModel(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := NewSequence(SequenceOptions{Window: 128, FromFirst: true})
		const n = 600
		type arrival struct{ at, seq uint64 }
		var arrivals []arrival
		never := map[uint64]bool{}
		for seq := uint64(1); seq <= n; seq++ {
			if r.IntN(10) == 0 && seq < n {
				never[seq] = true
				continue
			}
			for range 1 + r.IntN(2) {
				arrivals = append(arrivals, arrival{seq + r.Uint64N(100), seq}) // displaced, but within the window
			}
		}
		slices.SortStableFunc(arrivals, func(a, b arrival) int { return int(a.at) - int(b.at) })
		seen, gone := map[uint64]bool{}, map[uint64]bool{}
		note := func(gaps []Gap) {
			for _, g := range gaps {
				for seq := g.From; seq <= g.To; seq++ {
					if gone[seq] {
						t.Fatalf("seed %d: %d reported twice", seed, seq)
					}
					gone[seq] = true
				}
			}
		}
		for _, a := range arrivals {
			got, gaps := s.Observe(numbered("t", "n", a.seq))
			note(gaps)
			if (got == Fresh) == seen[a.seq] || got == Unnumbered || got == Late && !seen[a.seq] {
				t.Fatalf("seed %d: %d is %s, seen before: %t", seed, a.seq, got, seen[a.seq])
			}
			seen[a.seq] = true
		}
		note(s.Missing())
		for seq := uint64(1); seq <= n; seq++ {
			if gone[seq] != never[seq] {
				t.Fatalf("seed %d: %d lost %t, reported %t", seed, seq, never[seq], gone[seq])
			}
		}
	}
}

func TestGapLen(t *testing.T) {
	for g, want := range map[Gap]uint64{{From: 2, To: 2}: 1, {From: 1, To: 10}: 10, {From: 0, To: math.MaxUint64}: math.MaxUint64} {
		if g.Len() != want {
			t.Errorf("%v: %d, want %d", g, g.Len(), want)
		}
	}
	for a, want := range map[Arrival]string{Fresh: "fresh", Late: "late", Repeated: "repeated", Unnumbered: "unnumbered", 9: "Arrival(9)"} {
		if a.String() != want {
			t.Errorf("%s, want %s", a, want)
		}
	}
}
