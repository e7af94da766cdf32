package drain

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/tests/load"
)

// Report is what one part of the bench found.
type Report struct {
	Part     string `json:"part"`
	Sessions int    `json:"sessions"`
	// Rate is messages per second.
	Rate int `json:"rate"`
	// Load is the machine's load average before, and after.
	Load   []string `json:"load"`
	Phases []Phase  `json:"phases"`
	// Gaps, Moves and Holes are those of all phases, Stages what the gaps consist of.
	// Routed is from the new route to the end of the gap.
	Gaps   Spread `json:"gaps"`
	Routed Spread `json:"routed"`
	Moves  Spread `json:"moves"`
	Holes  Spread `json:"holes"`
	Stages Stages `json:"stages"`
	// Unjoined is of how many moves no gateway told the freeze: their gap counts from
	// the sending of the handshake.
	Unjoined int       `json:"unjoined"`
	Audit    Audit     `json:"audit"`
	Receipts []Receipt `json:"receipts,omitempty"`
	// Disconnects by close code, over all phases.
	Disconnects map[int]int `json:"disconnects,omitempty"`
	// Responsive and Told are of the part far.
	Responsive int     `json:"responsive,omitempty"`
	Told       int     `json:"told,omitempty"`
	ToldAfter  float64 `json:"toldAfterSeconds,omitempty"`
	// Wrong is what must not be. Slow is what took too long, or no wall clock should
	// be asked about on a machine that does other things.
	Wrong []string `json:"wrong,omitempty"`
	Slow  []string `json:"slow,omitempty"`
	// Oddities are examples.
	Oddities []string `json:"oddities,omitempty"`
}

// Phase is a part of a run.
type Phase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Latency Spread  `json:"latency"`
	Moving  Spread  `json:"moving"`
	Gap     Spread  `json:"gap"`
	Move    Spread  `json:"move"`
	Hole    Spread  `json:"hole"`
	Away    Spread  `json:"away"`
	Late    Spread  `json:"late"`
	// Returns are V1 clients' reconnects in each second of the phase.
	Returns []int `json:"returns,omitempty"`
}

// Spread is a distribution, in milliseconds.
type Spread struct {
	N   uint64  `json:"n"`
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func spread(h *load.Histogram) Spread {
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return Spread{h.Count(), ms(h.Quantile(0.5)), ms(h.Quantile(0.9)), ms(h.Quantile(0.99)), ms(h.Largest())}
}

func (s Spread) String() string {
	if s.N == 0 {
		return "–"
	}
	return fmt.Sprintf("%s / %s / %s / %s (%d)", short(s.P50), short(s.P90), short(s.P99), short(s.Max), s.N)
}

func short(ms float64) string {
	if ms < 10 {
		return fmt.Sprintf("%.2g", ms)
	}
	return fmt.Sprintf("%.0f", ms)
}

// Receipt is what the cluster itself says of a drain.
type Receipt struct {
	Phase       string  `json:"phase"`
	Node        string  `json:"node"`
	State       string  `json:"state"`
	Seconds     float64 `json:"seconds"`
	Sessions    uint64  `json:"sessions"`
	Moved       uint64  `json:"moved"`
	Reconnected uint64  `json:"reconnected"`
	Closed      uint64  `json:"closed"`
	Echoed      uint64  `json:"echoed"`
	GaveUp      uint64  `json:"gaveUp"`
	HandedOver  uint64  `json:"handedOver"`
	Lost        uint64  `json:"lost"`
	Repeated    uint64  `json:"repeated"`
	NotTaken    uint64  `json:"notTakenBack"`
	// Gap as gateways count it.
	Gap     Spread   `json:"gap"`
	Missing []string `json:"incomplete,omitempty"`
}

func receiptOf(phase string, op *controlv1.DrainOperation) Receipt {
	r := op.GetReceipt()
	return Receipt{
		Phase: phase, Node: op.GetNodeId(), State: strings.ToLower(strings.TrimPrefix(op.GetState().String(), "DRAIN_STATE_")),
		Seconds: float64(r.GetDurationMs()) / 1000, Sessions: r.GetSessions(), Moved: r.GetMoved(), Reconnected: r.GetReconnected(),
		Closed: r.GetClosed(), Echoed: r.GetEchoed(), GaveUp: r.GetGaveUp(), HandedOver: r.GetHandedOver(),
		Lost: r.GetLost(), Repeated: r.GetRepeatedDeliveries(), NotTaken: r.GetNotTakenBack(),
		Gap:     Spread{N: r.GetGaps(), P50: r.GetGapP50Ms(), P99: r.GetGapP99Ms(), Max: r.GetGapMaxMs()},
		Missing: r.GetIncomplete(),
	}
}

// take fills in what clients saw, and the gateways' journal.
func (r *Report) take(o outcome, j journal) {
	all := &timing{}
	holes := &load.Histogram{}
	for i := range r.Phases {
		p := &r.Phases[i]
		s := o.Seen[p.Name]
		if s == nil {
			continue
		}
		t := j.time(s.Moves)
		p.Latency, p.Moving, p.Gap, p.Move, p.Hole = spread(&s.Latency), spread(&s.Moving), spread(&t.gap), spread(&t.move), spread(&s.Hole)
		p.Away, p.Late = spread(&s.Away), spread(&s.Late)
		for second, n := range s.Returns {
			for len(p.Returns) <= second {
				p.Returns = append(p.Returns, 0)
			}
			p.Returns[second] += n
		}
		all.merge(t)
		holes.Merge(&s.Hole)
		r.Disconnects = sum(r.Disconnects, s.Disconnects)
	}
	r.Gaps, r.Routed, r.Moves, r.Holes, r.Stages, r.Unjoined = spread(&all.gap), spread(&all.routed), spread(&all.move), spread(holes), all.stages(), all.unjoined
	r.Audit, r.Oddities = o.Audit, o.Oddities
	r.Responsive, r.Told, r.ToldAfter = o.Responsive, o.Told, o.ToldAfter.Seconds()
}

// judge finds what is wrong.
func (r *Report) judge(cfg Config, o outcome) {
	wrong := func(n int, what string) {
		if n != 0 {
			r.Wrong = append(r.Wrong, fmt.Sprintf("%d %s", n, what))
		}
	}
	a := r.Audit
	wrong(a.Lost, "messages lost")
	wrong(a.Repeated, "messages repeated")
	wrong(a.Disordered, "messages out of order")
	wrong(a.Contradicted, "messages answered FAILED and delivered")
	wrong(a.Failed, "messages failed")
	wrong(a.Unanswered, "messages not answered")
	wrong(o.Ended, "clients ended")
	for _, code := range slices.Sorted(maps.Keys(r.Disconnects)) {
		if r.Part == PartV2 {
			wrong(r.Disconnects[code], fmt.Sprintf("disconnects with %d", code))
		} else if code != codeDraining {
			wrong(r.Disconnects[code], fmt.Sprintf("ends of connections with %d and not with %d", code, codeDraining))
		}
	}
	for _, c := range r.Receipts {
		at := fmt.Sprintf("by the receipt of %s (%s)", c.Node, c.Phase)
		wrong(int(c.Lost), "deliveries lost "+at)
		wrong(int(c.Repeated), "deliveries repeated "+at)
		wrong(int(c.NotTaken), "sessions not taken back "+at)
		if want := map[bool]string{true: "cancelled", false: "done"}[c.Phase == phaseCancelled]; c.State != want {
			r.Wrong = append(r.Wrong, fmt.Sprintf("the drain of %s (%s) ended %s, not %s", c.Node, c.Phase, c.State, want))
		}
	}
	if r.Part == PartFar {
		wrong(r.Responsive-r.Told, fmt.Sprintf("of %d responsive clients were not told %d", r.Responsive, codeDraining))
		if limit := cfg.Timeout.Seconds(); r.ToldAfter > limit {
			r.Slow = append(r.Slow, fmt.Sprintf("the last client was told after %.1f s, limit %.0f s", r.ToldAfter, limit))
		}
	}
	if r.Part == PartV2 {
		if limit := float64(cfg.GapLimit) / float64(time.Millisecond); r.Gaps.P99 >= limit {
			r.Slow = append(r.Slow, fmt.Sprintf("gap p99 %.1f ms, limit %.0f ms", r.Gaps.P99, limit))
		}
		if r.Holes.N > 0 {
			r.Slow = append(r.Slow, fmt.Sprintf("%d connections ended before the next one had its ConnectAck, by %.0f ms at most", r.Holes.N, r.Holes.Max))
		}
		if r.Gaps.N == 0 {
			r.Wrong = append(r.Wrong, "nobody moved")
		}
	}
}

// Missed tells whether something was not as it must be.
func (r Report) Missed() bool { return len(r.Wrong)+len(r.Slow) > 0 }

// WriteJSON writes reports as one document.
func WriteJSON(w io.Writer, all []Report) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(all)
}

// WriteText writes a report for reading.
func WriteText(w io.Writer, r Report) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(tw, format+"\n", args...) }
	p("%s: %d sessions, %d messages/s; load average %s", r.Part, r.Sessions, r.Rate, strings.Join(r.Load, " before, after "))
	p("in ms: p50 / p90 / p99 / max (how many)\n")
	if r.Part == PartV2 {
		p("phase\ts\tlatency\t· recipient moving\tgap\twhole move\told one ended first")
		for _, x := range r.Phases {
			p("%s\t%.0f\t%s\t%s\t%s\t%s\t%s", x.Name, x.Seconds, x.Latency, x.Moving, x.Gap, x.Move, x.Hole)
		}
		p("all moves\t\t\t\t%s\t%s", r.Gaps, r.Moves)
		p("\nthe gap: frozen to answered %s, to ConnectAck written %s, to read %s", r.Stages.Answered, r.Stages.Written, r.Stages.Read)
		p("from the new route to the end of the gap: %s", r.Routed)
		p("moves whose freeze no gateway told, counted from the handshake: %d", r.Unjoined)
	} else {
		p("phase\ts\tlatency\taway\treconnects per second")
		for _, x := range r.Phases {
			p("%s\t%.0f\t%s\t%s\t%s", x.Name, x.Seconds, x.Latency, x.Away, strings.Trim(fmt.Sprint(x.Returns), "[]"))
		}
	}
	if len(r.Phases) > 0 {
		p("\nmessages handed to clients later than due, at rest: %s", r.Phases[0].Late)
	}
	p("\ndrain\tof\tended\ts\tsessions\tmoved\treconnected\tclosed\techoed\tgave up\thanded over\tlost\trepeated\tgap p50, p99 (bounds), max")
	for _, c := range r.Receipts {
		p("%s\t%s\t%s\t%.1f\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s, %s, %s", c.Phase, c.Node, c.State, c.Seconds, c.Sessions, c.Moved, c.Reconnected,
			c.Closed, c.Echoed, c.GaveUp, c.HandedOver, c.Lost, c.Repeated, short(c.Gap.P50), short(c.Gap.P99), short(c.Gap.Max))
	}
	a := r.Audit
	p("\nmessages: %d sent, %d delivered, %d lost, %d repeated, %d out of order, %d failed, %d not answered",
		a.Sent, a.Delivered, a.Lost, a.Repeated, a.Disordered, a.Failed, a.Unanswered)
	if len(r.Disconnects) > 0 {
		p("ends of connections by close code: %v", r.Disconnects)
	}
	if r.Part == PartFar {
		p("told %d: %d of %d responsive clients, the last one after %.1f s", codeDraining, r.Told, r.Responsive, r.ToldAfter)
	}
	for _, line := range slices.Concat(r.Audit.Examples, r.Oddities) {
		p("  %s", line)
	}
	for _, line := range slices.Concat(r.Wrong, r.Slow) {
		p("MISSED: %s", line)
	}
	if !r.Missed() {
		p("all as it must be")
	}
	p("")
	return tw.Flush() // it keeps the errors of the writes
}
