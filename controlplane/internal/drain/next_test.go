package drain

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

func TestADrainFromItsBeginningToItsReceipt(t *testing.T) {
	w := newWorld(t, newGate("a", 1000), newGate("b", 0), newGate("c", 0))
	w.gate("b").loses = 2
	w.add(Operation{Node: "a"})
	w.until("a has ended", w.ended("a"))
	op, _ := w.result("a")
	r := op.Receipt
	if op.State != Done || op.Reason != "" || r == nil || op.Tally != nil {
		t.Fatalf("%+v", op)
	}
	if r.Sessions != 1000 || r.Moved != 1000 || r.Lost != 2 || r.Repeated != 0 || r.Gaps != 1000 || r.HandedOver != 3 || r.Unaccounted != 0 {
		t.Errorf("receipt %+v", r)
	}
	if r.GapP50 != 8 || r.GapP99 != 8 || r.GapMax != 8 { // bucket 5 to 10, and never above the largest
		t.Errorf("gaps %v %v %v", r.GapP50, r.GapP99, r.GapMax)
	}
	if r.Duration < 2*time.Second || r.Duration > 2*time.Minute || !op.Ended.After(op.Started) {
		t.Errorf("took %v", r.Duration)
	}
}

func TestEarlierDrainsAreNotCountedAgain(t *testing.T) {
	w := newWorld(t, newGate("a", 100), newGate("b", 0))
	w.gate("b").loses = 5
	w.add(Operation{Node: "a"})
	w.until("the first has ended", w.ended("a"))
	w.over = nil
	a := w.gate("a")
	a.op, a.Phase, a.Sessions, a.progress = "", serving, 40, gatewayv1.DrainProgress{}
	w.add(Operation{Node: "a"})
	w.until("the second has ended", w.ended("a"))
	if op, _ := w.result("a"); op.Receipt.Lost != 0 || op.Receipt.Gaps != 40 {
		t.Errorf("receipt %+v", op.Receipt)
	}
}

func TestTheBudgetIsKept(t *testing.T) {
	for _, budget := range []int{1, 2} {
		w := newWorld(t, newGate("a", 300), newGate("b", 300), newGate("c", 300), newGate("d", 300))
		w.rules.Budget = budget
		for _, id := range []string{"a", "b", "c"} {
			w.add(Operation{Node: id})
		}
		most := 0
		w.until("all have ended", func() bool {
			busy := 0
			for _, op := range w.ops {
				if op.State.holdsSlot() {
					busy++
				}
			}
			if most = max(most, busy); busy > budget {
				t.Fatalf("budget %d: %s", budget, brief(w.ops))
			}
			for _, op := range w.ops {
				for _, target := range op.Targets {
					if target.Node != "d" {
						t.Fatalf("sent to %s, which is drained next", target.Node)
					}
				}
			}
			return len(w.over) == 3
		})
		if most != budget || w.gate("d").Sessions != 1200 {
			t.Errorf("budget %d: at most %d at a time, %d sessions at d", budget, most, w.gate("d").Sessions)
		}
	}
}

func TestOneThatDrainsByItselfTakesTheSlot(t *testing.T) {
	w := newWorld(t, newGate("a", 100), newGate("b", 100), newGate("c", 0))
	w.gate("b").Phase = draining
	w.add(Operation{Node: "a"})
	w.tick()
	w.tick()
	if op, _ := w.find("a"); op.State != Waiting || !strings.Contains(op.Reason, "b") {
		t.Errorf("%s", brief(w.ops))
	}
}

func TestRoomIsCheckedAgainWhenTheTurnComes(t *testing.T) {
	for name, tc := range map[string]struct {
		op    Operation
		state State
	}{
		"refused": {Operation{}, Failed}, "forced": {Operation{Forced: true}, Done}, "terminating": {Operation{Terminating: true}, Done},
	} {
		w := newWorld(t, newGate("a", 500), newGate("b", 0))
		w.gate("b").max = 499
		tc.op.Node = "a"
		w.add(tc.op)
		w.until(name, w.ended("a"))
		op, _ := w.result("a")
		if op.State != tc.state {
			t.Errorf("%s: %s %s", name, op.State, op.Reason)
		}
		said := op.Reason + strings.Join(op.Warnings, " ")
		if !strings.Contains(said, "500 sessions need a place and there are 499") {
			t.Errorf("%s: no numbers in %q", name, said)
		}
	}
}

func TestGoneAndRestartedGatewaysEndTruthfully(t *testing.T) {
	for name, tc := range map[string]struct {
		terminating bool
		end         func(*world)
		state       State
		unaccounted bool
	}{
		"killed":              {false, func(w *world) { w.end() }, Failed, true},
		"restarted":           {false, func(w *world) { g := w.gate("a"); g.Incarnation, g.op, g.Phase = 8, "", serving }, Failed, true},
		"killed while ending": {true, func(w *world) { w.end() }, Failed, true},
		"silent for long":     {false, func(w *world) { w.gate("a").Unreachable = true }, Failed, true},
	} {
		w := newWorld(t, newGate("a", 50_000), newGate("b", 0))
		w.add(Operation{Node: "a", Terminating: tc.terminating})
		w.until(name+": it drains", func() bool { return w.gate("a").progress.Moved > 0 })
		w.tick()
		tc.end(w)
		w.until(name+": it has ended", w.ended("a"))
		op, _ := w.result("a")
		if op.State != tc.state || (op.Receipt.Unaccounted > 0) != tc.unaccounted || !strings.Contains(op.Reason, "sessions left") {
			t.Errorf("%s: %s %q, receipt %+v", name, op.State, op.Reason, op.Receipt)
		}
		if op.Receipt.Moved == 0 {
			t.Errorf("%s: what moved is forgotten: %+v", name, op.Receipt)
		}
	}
}

func TestOneThatEndsAsItShould(t *testing.T) {
	w := newWorld(t, newGate("a", 3000), newGate("b", 0))
	w.add(Operation{Node: "a", Terminating: true, Timeout: 10 * time.Second})
	w.until("nearly empty", func() bool { g := w.gate("a"); return g.op != "" && float64(g.Sessions) < g.rate/2 })
	w.end() // it exits between two looks
	w.until("it has ended", w.ended("a"))
	if op, _ := w.result("a"); op.State != Done {
		t.Errorf("%s %q", op.State, op.Reason)
	}
}

func TestASilentRouterIsNoEvidence(t *testing.T) {
	w := newWorld(t, newGate("a", 5000), newGate("b", 0))
	w.add(Operation{Node: "a"})
	w.until("it drains", func() bool { return w.gate("a").progress.Moved > 0 })
	w.blind = true
	a := w.gate("a")
	w.end()
	for range 5 {
		w.tick()
	}
	if op, under := w.find("a"); !under || op.State != Draining {
		t.Fatalf("%s %s", brief(w.ops), brief(w.over))
	}
	w.blind = false
	w.gates = append(w.gates, a)
	w.until("it has ended", w.ended("a"))
	if op, _ := w.result("a"); op.State != Done {
		t.Errorf("%s %q", op.State, op.Reason)
	}
}

func TestPauseResumeCancel(t *testing.T) {
	w := newWorld(t, newGate("a", 50_000), newGate("b", 0))
	w.add(Operation{Node: "a", Timeout: time.Hour})
	w.until("it drains", func() bool { return w.gate("a").progress.Moved > 0 })
	order := func(what string) {
		t.Helper()
		op, err := changed(w.ops[0], what, w.now)
		if err != nil {
			t.Fatal(err)
		}
		w.ops[0] = op
	}
	order(Pause)
	w.tick()
	left, spent := w.gate("a").Sessions, w.ops[0].Spent
	for range 100 {
		w.tick()
	}
	if op := w.ops[0]; op.State != Paused || w.gate("a").Sessions != left || op.Spent-spent > 2*time.Second {
		t.Errorf("paused: %s, %d left of %d, spent %v", brief(w.ops), w.gate("a").Sessions, left, op.Spent)
	}
	order(Resume)
	w.tick()
	w.tick()
	if w.gate("a").Sessions >= left {
		t.Error("it does not go on")
	}
	order(Cancel)
	w.gate("a").Unreachable = true
	for range 5 {
		w.tick()
	}
	if op, under := w.find("a"); !under || op.State != Cancelling {
		t.Fatalf("cancelled, and the gateway has not heard it: %s", brief(w.over))
	}
	w.gate("a").Unreachable = false
	w.until("it has ended", w.ended("a"))
	if op, _ := w.result("a"); op.State != Cancelled || w.gate("a").Phase != serving || op.Receipt.Moved == 0 {
		t.Errorf("%s %q, phase %v", op.State, op.Reason, w.gate("a").Phase)
	}
}

func TestChangesThatMakeNoSense(t *testing.T) {
	for name, tc := range map[string]struct {
		op   Operation
		what string
	}{
		"pause a waiting one":      {Operation{State: Waiting}, Pause},
		"pause a paused one":       {Operation{State: Paused}, Pause},
		"resume a draining one":    {Operation{State: Draining}, Resume},
		"cancel one that verifies": {Operation{State: Verifying}, Cancel},
		"cancel a SIGTERM":         {Operation{State: Draining, Terminating: true}, Cancel},
		"pause one alone":          {Operation{State: Draining, Alone: true}, Pause},
	} {
		if op, err := changed(tc.op, tc.what, time.Now()); err == nil {
			t.Errorf("%s: %s", name, op.State)
		}
	}
	if op, err := changed(Operation{State: Waiting}, Cancel, time.Now()); err != nil || op.State != Cancelled {
		t.Errorf("cancel a waiting one: %s, %v", op.State, err)
	}
}

func TestAGatewayThatRefuses(t *testing.T) {
	w := newWorld(t, newGate("a", 100), newGate("b", 0))
	w.gate("a").refuses = "another operation drains it"
	w.add(Operation{Node: "a"})
	w.until("it has ended", w.ended("a"))
	if op, _ := w.result("a"); op.State != Failed || !strings.Contains(op.Reason, "another operation drains it") {
		t.Errorf("%s %q", op.State, op.Reason)
	}
}

func TestAGatewayThatIsNeverEmpty(t *testing.T) {
	w := newWorld(t, newGate("a", 100), newGate("b", 0))
	w.gate("a").stuck = true
	w.add(Operation{Node: "a", Timeout: 10 * time.Second})
	w.until("it has ended", w.ended("a"))
	if op, _ := w.result("a"); op.State != Failed || !strings.Contains(op.Reason, "100 sessions left") {
		t.Errorf("%s %q", op.State, op.Reason)
	}
}

func TestOneThatCouldNotWait(t *testing.T) {
	w := newWorld(t, newGate("a", 10_000), newGate("b", 500), newGate("c", 0))
	w.add(Operation{Node: "a", Timeout: time.Hour, Rate: 10})
	w.add(Operation{Node: "b", Terminating: true})
	w.until("a drains", func() bool { op, _ := w.find("a"); return op.State == Draining })
	b := w.gate("b")
	b.op, b.Phase, b.rate, b.progress.Sessions = "own", draining, 100, 500
	w.until("b has ended", w.ended("b"))
	op, _ := w.result("b")
	if op.State != Done || !op.Alone || op.Receipt.Gaps < 500 || b.drains != 0 {
		t.Errorf("%s %q, told %d times, receipt %+v", op.State, op.Reason, b.drains, op.Receipt)
	}
}

func TestASilentWaiterDoesNotHoldUpTheOthers(t *testing.T) {
	w := newWorld(t, newGate("a", 10), newGate("b", 10), newGate("c", 0))
	w.add(Operation{Node: "a", Terminating: true})
	w.ops[0].Asked = w.now.Add(-time.Minute)
	w.add(Operation{Node: "b"})
	w.until("b has ended", w.ended("b"))
	w.until("a has ended", w.ended("a"))
	if op, _ := w.result("a"); op.State != Cancelled {
		t.Errorf("%s %q", op.State, op.Reason)
	}
}

func TestANewLeaderGoesOnFromWhatIsStored(t *testing.T) {
	w := newWorld(t, newGate("a", 5000), newGate("b", 0), newGate("c", 0))
	w.add(Operation{Node: "a"})
	w.until("has ended", func() bool {
		for i, op := range w.ops { // a leader a second
			b, err := json.Marshal(op)
			if err != nil {
				t.Fatal(err)
			}
			var next Operation
			if err := json.Unmarshal(b, &next); err != nil {
				t.Fatal(err)
			}
			w.ops[i] = next
		}
		w.answers, w.before = map[string]Answer{}, nil
		_, ended := w.result("a")
		return ended
	})
	if op, _ := w.result("a"); op.State != Done || op.Receipt.Gaps != 5000 || op.Receipt.Moved != 5000 {
		t.Errorf("%s %q, receipt %+v", op.State, op.Reason, op.Receipt)
	}
}

func TestNextLeavesWhatItIsGiven(t *testing.T) {
	w := newWorld(t, newGate("a", 500), newGate("b", 0))
	w.add(Operation{Node: "a"})
	w.until("has ended", func() bool {
		before, err := json.Marshal(w.ops)
		if err != nil {
			t.Fatal(err)
		}
		given := w.ops
		w.tick()
		after, _ := json.Marshal(given)
		if string(before) != string(after) {
			t.Fatalf("changed from %s to %s", before, after)
		}
		return w.ended("a")()
	})
}

func TestTargets(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(g map[string]*gate)
		want   []string
	}{
		"by head room":     {nil, []string{"b 1000", "c 500", "d 1000", "e 1000", "f 1000"}},
		"no URL":           {func(g map[string]*gate) { g["b"].ClientURL = "" }, []string{"c 500", "d 1000", "e 1000", "f 1000"}},
		"no URLs":          {func(g map[string]*gate) { clearURLs(g) }, nil},
		"full":             {func(g map[string]*gate) { g["b"].Sessions = 1000 }, []string{"c 500", "d 1000", "e 1000", "f 1000"}},
		"own track":        {func(g map[string]*gate) { g["b"].Track, g["c"].Track = "canary", "canary" }, []string{"d 1000", "e 1000", "f 1000"}},
		"newest version":   {func(g map[string]*gate) { g["d"].Version, g["d"].StartedAtMS = "v2", 9 }, []string{"d 1000"}},
		"not the draining": {func(g map[string]*gate) { g["d"].Phase = draining; g["e"].Unreachable = true }, []string{"b 1000", "c 500", "f 1000"}},
	} {
		byID := map[string]*gate{}
		w := newWorld(t, newGate("a", 1000), newGate("b", 0), newGate("c", 500), newGate("d", 0), newGate("e", 0), newGate("f", 0))
		for _, g := range w.gates {
			g.max = 1000
			byID[g.ID] = g
		}
		if tc.change != nil {
			tc.change(byID)
		}
		inv := w.inventory()
		var got []string
		for _, x := range targets(w.rules.place(inv[0], nil, inv)) {
			got = append(got, strings.TrimSpace(x.Node+" "+itoa(x.Weight)))
			if !strings.HasPrefix(x.URL, "ws://"+x.Node) {
				t.Errorf("%s: %+v", name, x)
			}
		}
		if !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func clearURLs(g map[string]*gate) {
	for _, x := range g {
		x.ClientURL = ""
	}
}

func itoa(n uint32) string { b, _ := json.Marshal(n); return string(b) }

func TestRefusals(t *testing.T) {
	w := newWorld(t, newGate("a", 800), newGate("b", 300), newGate("c", 900))
	for _, g := range w.gates {
		g.max = 1000
	}
	inv := w.inventory()
	if why := w.rules.room("b", nil, inv).refusal("b"); why != "" { // 200 + 100 for 300
		t.Errorf("b: %s", why)
	}
	if why := w.rules.room("c", nil, inv).refusal("c"); why != "" { // 200 + 700 for 900
		t.Errorf("c: %s", why)
	}
	w.gate("a").Sessions++
	inv = w.inventory()
	want := "no room: 900 sessions need a place and there are 899 (a has 199 of 1000 free, b has 700 of 1000 free)"
	if why := w.rules.room("c", nil, inv).refusal("c"); why != want {
		t.Errorf("c: %q, want %q", why, want)
	}
	queued := []Operation{{Node: "a", State: Waiting}, {Node: "b", State: Draining}}
	if why := w.rules.room("c", queued, inv).refusal("c"); !strings.Contains(why, "c is the last gateway") {
		t.Errorf("the last: %q", why)
	}
	w.gate("b").max = 0
	room := w.rules.room("c", nil, w.inventory())
	if room.refusal("c") != "" || !strings.Contains(room.unknown(), "b") {
		t.Errorf("unknown: %q, %q", room.refusal("c"), room.unknown())
	}
	with := Rules{SessionsMax: 500}.room("c", nil, w.inventory())
	if !with.Known || with.Free != 399 {
		t.Errorf("by the setting: %+v", with)
	}
	for name, g := range map[string]fleet.Node{
		"drained": {ID: "a", Phase: drained}, "draining": {ID: "a", Phase: draining}, "silent": {ID: "a", Phase: serving, Unreachable: true},
	} {
		if drainable(g, nil) == nil {
			t.Errorf("%s is drained", name)
		}
	}
	if err := drainable(fleet.Node{ID: "a", Phase: serving}, queued); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("already: %v", err)
	}
}

func TestRehearsalIsLikeTheDrain(t *testing.T) {
	w := newWorld(t, newGate("a", 20_000), newGate("b", 0), newGate("c", 0))
	inv := w.inventory()
	h := w.rules.rehearse(Operation{Node: "a", Timeout: 5 * time.Minute}, inv[0], nil, inv)
	if h.Refusal != "" || len(h.Places) != 2 || h.Ahead != 0 || len(h.Warnings) != 0 {
		t.Fatalf("%+v", h)
	}
	w.add(Operation{Node: "a"})
	w.until("has ended", w.ended("a"))
	op, _ := w.result("a")
	if took := op.Progress.At.Sub(op.Started); h.Duration < took*2/3 || h.Duration > took*3/2 {
		t.Errorf("said %v, took %v", h.Duration, took)
	}
	short := w.rules.rehearse(Operation{Node: "a", Timeout: 10 * time.Second, Rate: 100}, inv[0], nil, inv)
	if len(short.Warnings) != 1 || !strings.Contains(short.Warnings[0], "19000 sessions are left") || short.Rate != 100 {
		t.Errorf("%+v", short)
	}
}

// A session that has moved is still there for a moment, and so may be when its gateway
// is heard of last.
func TestWhatHasMovedIsAccountedFor(t *testing.T) {
	now := time.Now()
	op := Operation{
		Sessions: 20, Started: now, Verdict: Done,
		Progress: Progress{At: now, Sessions: 20, Left: 15, Moved: 20},
	}
	if r := op.receipt(); r.Moved != 20 || r.Unaccounted != 0 {
		t.Errorf("%+v", r)
	}
	op.Progress.Moved = 12
	if r := op.receipt(); r.Moved != 12 || r.Unaccounted != 8 {
		t.Errorf("%+v", r)
	}
}
