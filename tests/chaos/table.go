package chaos

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mics-im/mics/tests/chaos/history"
)

// table adds up runs.
type table struct {
	runs, dirty                                int
	messages, sent, failed, partial, abandoned int
	deliveries, ambiguous, frozen, resequenced int
	connects                                   int
	dropped                                    float64
	reasons                                    map[string]int
	violations                                 map[history.Rule]int
	classes                                    map[string]*class
	seeds                                      []uint64 // of runs with violations
}

// class is the worst of one class of faults.
type class struct {
	faults int
	// answer is the longest wait for an answer, gap the longest time without a
	// connection, that began between the fault and the next.
	answer, gap time.Duration
}

func newTable() *table {
	return &table{reasons: map[string]int{}, violations: map[history.Rule]int{}, classes: map[string]*class{}}
}

func (t *table) add(r *result) {
	t.runs++
	if !r.clean() {
		t.dirty++
		t.seeds = append(t.seeds, r.seed)
	}
	t.messages += r.report.Messages
	t.sent += r.report.Sent
	t.failed += r.report.Failed
	t.partial += r.report.Partial
	t.abandoned += r.report.Abandoned
	t.deliveries += r.report.Deliveries
	t.ambiguous += r.report.V1Ambiguous
	t.frozen += r.report.V1Frozen
	t.resequenced += r.report.Resequenced
	t.connects += r.report.Connects
	t.dropped += r.dropped
	for reason, n := range r.report.FailedReasons {
		t.reasons[reason] += n
	}
	for _, v := range r.report.Violations {
		t.violations[v.Rule]++
	}
	waits, gaps := intervals(r.events)
	for i, f := range r.plan {
		c := t.classes[f.Class()]
		if c == nil {
			c = &class{}
			t.classes[f.Class()] = c
		}
		c.faults++
		from, to := r.began+f.At, time.Duration(1<<62)
		if i+1 < len(r.plan) {
			to = r.began + r.plan[i+1].At
		}
		c.answer = max(c.answer, longest(waits, from, to))
		c.gap = max(c.gap, longest(gaps, from, to))
	}
}

// interval is a wait that began at a time of the history.
type interval struct{ at, length time.Duration }

func longest(all []interval, from, to time.Duration) (d time.Duration) {
	for _, i := range all {
		if i.at+i.length >= from && i.at < to {
			d = max(d, i.length)
		}
	}
	return d
}

// intervals are the waits for answers, and for connections that were not given
// up by the device itself.
func intervals(events []history.Event) (answers, gaps []interval) {
	sent := map[string]time.Duration{}
	lost := map[history.Device]time.Duration{}
	for _, e := range events {
		switch e.Kind {
		case history.Send:
			sent[e.Msg] = e.At
		case history.Answer:
			if at, ok := sent[e.Msg]; ok && e.Status != history.Unknown {
				answers = append(answers, interval{at, e.At - at})
				delete(sent, e.Msg)
			}
		case history.Disconnect:
			if e.Code != 1000 {
				lost[e.Device] = e.At
			}
		case history.Connect:
			if at, ok := lost[e.Device]; ok {
				gaps = append(gaps, interval{at, e.At - at})
				delete(lost, e.Device)
			}
		}
	}
	return answers, gaps
}

func (t *table) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) } // into memory
	line("fault\ttimes\tworst wait for an answer\tworst time without a connection")
	for _, name := range slices.Sorted(maps.Keys(t.classes)) {
		c := t.classes[name]
		line("%s\t%d\t%.1f s\t%.1f s", name, c.faults, c.answer.Seconds(), c.gap.Seconds())
	}
	line("\t\t\t")
	line("runs\t%d, with violations %d", t.runs, t.dirty)
	line("messages\t%d: SENT %d (partial %d), FAILED %d %s, abandoned %d", t.messages, t.sent, t.partial, t.failed, counts(t.reasons), t.abandoned)
	line("deliveries\t%d, over %d connections", t.deliveries, t.connects)
	line("v1_ambiguous repeats\t%d after a kill, %d after a pause", t.ambiguous, t.frozen)
	line("other way round after a rewrite\t%d", t.resequenced)
	line("dropped by a bound\t%.0f", t.dropped)
	for _, rule := range history.Rules() {
		line("%s\t%d", rule, t.violations[rule])
	}
	_ = w.Flush() // into memory
	return b.String()
}

func counts(m map[string]int) string {
	var out []string
	for _, k := range slices.SortedFunc(maps.Keys(m), func(a, b string) int { return cmp.Or(m[b]-m[a], cmp.Compare(a, b)) }) {
		out = append(out, fmt.Sprintf("%s %d", k, m[k]))
	}
	if len(out) == 0 {
		return ""
	}
	return "(" + strings.Join(out, ", ") + ")"
}
