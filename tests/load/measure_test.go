package load

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestHistogramQuantiles(t *testing.T) {
	var h Histogram
	if h.Quantile(0.5) != 0 || h.Largest() != 0 {
		t.Error("an empty histogram knows something")
	}
	const n = 10_000
	for i := 1; i <= n; i++ {
		h.Add(time.Duration(i) * time.Microsecond)
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: n / 2, 0.99: n * 99 / 100, 1: n} {
		want *= time.Microsecond
		got := h.Quantile(q)
		// The bucket's top: at most 1/64 and the next value more.
		if got < want || got > want+want/64+2*time.Microsecond {
			t.Errorf("quantile %v: %v, want about %v", q, got, want)
		}
	}
	if h.Largest() != n*time.Microsecond || h.Quantile(1) > h.Largest() {
		t.Errorf("largest %v, quantile 1 %v", h.Largest(), h.Quantile(1))
	}
	h.Add(-time.Second)
	if h.Count() != n+1 || h.Quantile(0) != 0 {
		t.Errorf("a negative duration: %d, %v", h.Count(), h.Quantile(0))
	}
}

func TestHistogramsAddUpAcrossProcesses(t *testing.T) {
	var a, b, sum Histogram
	a.Add(time.Millisecond)
	b.Add(time.Second)
	b.Add(time.Second)
	text, err := json.Marshal(&b)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &sum); err != nil {
		t.Fatal(err)
	}
	sum.Merge(&a)
	if sum.Count() != 3 || sum.Largest() != time.Second || sum.Quantile(0.9) != time.Second || sum.Quantile(0) > 2*time.Millisecond {
		t.Errorf("%d, up to %v", sum.Count(), sum.Largest())
	}
	if err := json.Unmarshal([]byte(`{"counts":{"999999":1}}`), &sum); err == nil {
		t.Error("a bucket that there is not is taken")
	}
}

func TestBucketsAreInOrderAndCoverEverything(t *testing.T) {
	for b := range buckets - 1 {
		if got := bucketOf(top(b)); got != b {
			t.Fatalf("top of bucket %d is in %d", b, got)
		}
		if got := bucketOf(top(b) + 1); got != b+1 {
			t.Fatalf("the value after bucket %d is in %d", b, got)
		}
	}
	if got := bucketOf(^uint64(0)); got != buckets-1 {
		t.Errorf("the largest value is in %d of %d", got, buckets)
	}
}

func TestProcMeasuresThisProcess(t *testing.T) {
	self := Proc{Name: "gateway-12", PID: os.Getpid()}
	if self.Kind() != Gateway || (Proc{Name: Redis}).Kind() != Redis {
		t.Error("kinds")
	}
	m, err := self.Memory()
	if err != nil || m.Anonymous <= 0 || m.All < m.Anonymous {
		t.Errorf("%+v, %v", m, err)
	}
	first, err := self.CPU()
	if err != nil || first <= 0 {
		t.Fatalf("%v, %v", first, err)
	}
	for {
		now, err := self.CPU()
		if err != nil || now < first {
			t.Fatalf("%v after %v, %v", now, first, err)
		}
		if now > first {
			break
		}
	}
	if _, err := (Proc{Name: "none", PID: 1 << 22}).CPU(); err == nil {
		t.Error("a process that is not there has CPU time")
	}
	if _, err := (Proc{Name: "none", PID: 1 << 22}).Memory(); err == nil {
		t.Error("a process that is not there has memory")
	}
}

func TestCostsAreSummedByKindWithoutTheTenant(t *testing.T) {
	procs := []Proc{{"tenant", 1}, {"gateway-1", 2}, {"gateway-2", 3}, {"router-1", 4}}
	u := usage{cpu: []time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second}, wall: 2 * time.Second, self: time.Second}
	got := map[string]Metric{}
	for _, m := range u.costs(procs, "message", 1_000_000, 10) {
		got[m.Name] = m
	}
	for name, want := range map[string]float64{
		"CPU per message": 9, "· gateway": 5, "· router": 4, "· tenant (not in the sum)": 1,
		"· load generator (not in the sum)": 1, "rate": 500_000,
	} {
		if got[name].Value != want {
			t.Errorf("%s: %v, want %v", name, got[name].Value, want)
		}
	}
	if m := u.costs(procs, "message", 0, 10); len(m) != 1 || m[0].Limit != 0 {
		t.Errorf("nothing done: %v", m)
	}
}

func TestSummary(t *testing.T) {
	run := func(v, last float64) []Metric {
		return []Metric{{Name: "cpu", Unit: "µs", Value: v, Limit: 10}, {Name: "last", Value: last, LimitBare: 0.5, Note: map[float64]string{4: "seen"}[last]}}
	}
	r := Summarize("x", [][]Metric{run(30, 1), run(9, 4), run(10, 2)}, [][]Metric{run(5, 5)})
	cpu, last := r.Figures[0], r.Figures[1]
	if cpu.Median != 10 || cpu.Min != 9 || cpu.Max != 30 || *cpu.Ratio != 2 || *cpu.Target != 10 || !*cpu.Met {
		t.Errorf("%+v", cpu)
	}
	if *last.Target != 2.5 || last.Note != "seen" || !*last.Met || r.Failed() {
		t.Errorf("%+v", last)
	}
	r = Summarize("x", [][]Metric{run(30, 1), run(9, 4)}, nil)
	if r.Figures[0].Median != 19.5 || r.Figures[0].Ratio != nil || r.Figures[1].Target != nil || !r.Failed() {
		t.Errorf("%+v", r)
	}
	var table, doc strings.Builder
	if err := WriteTable(&table, r); err != nil || !strings.Contains(table.String(), "≤ 10.0 missed") {
		t.Errorf("%v\n%s", err, table.String())
	}
	if err := WriteJSON(&doc, []Report{r}); err != nil || !strings.Contains(doc.String(), `"met": false`) {
		t.Errorf("%v\n%s", err, doc.String())
	}
}

func TestSettleWaitsForAnswersAndDeliveries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n tally
		n.sent.Store(3)
		n.ack(true, "")
		n.ack(true, "")
		n.ack(false, "no")
		n.ack(false, "other")
		n.failed.Add(-1)
		n.delivered.Store(3)
		start := time.Now()
		go func() {
			time.Sleep(time.Second)
			n.delivered.Add(1)
		}()
		n.settle(t.Context(), 2)
		if waited := time.Since(start); waited < time.Second || waited > 2*time.Second {
			t.Errorf("settled after %v", waited)
		}
		m := n.outcome(2)
		if m[0].Note != "no" || m[0].Value != 1 || m[1].Value != 0 || m[2].Value != 0 {
			t.Errorf("%v", m)
		}
		n.sent.Add(1) // never answered
		start = time.Now()
		n.settle(t.Context(), 2)
		if waited := time.Since(start); waited != drainTime || n.outcome(2)[1].Value != 1 {
			t.Errorf("gave up after %v: %v", waited, n.outcome(2))
		}
	})
}

func TestPaceKeepsTheTimesThatWereDue(t *testing.T) {
	clk, err := newClock()
	if err != nil {
		t.Fatal(err)
	}
	// All are due in the past: they must follow at once, with their own times.
	start := clk.now() - int64(time.Hour)
	var due []int64
	clk.pace(start, time.Millisecond, 5, func(d int64) bool {
		due = append(due, d-start)
		return len(due) < 3
	})
	if len(due) != 3 || due[0] != 0 || due[1] != int64(time.Millisecond) || due[2] != 2*int64(time.Millisecond) {
		t.Errorf("%v", due)
	}
	early := false
	clk.pace(clk.now(), 100*time.Microsecond, 3, func(d int64) bool {
		early = early || clk.now() < d
		return true
	})
	if early {
		t.Error("called before it was due")
	}
}
