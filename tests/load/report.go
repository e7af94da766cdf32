package load

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// Report is what several runs of a scenario said.
type Report struct {
	Scenario string   `json:"scenario"`
	Runs     int      `json:"runs"`
	Figures  []Figure `json:"figures"`
}

// Figure is a metric over several runs.
type Figure struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit,omitempty"`
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	// Bare is the yardstick's median, Ratio Median as a multiple of it; nil: not
	// measured, or 0.
	Bare  *float64 `json:"bare,omitempty"`
	Ratio *float64 `json:"ratio,omitempty"`
	// Target is the most that Median should be, Met whether it is not more; nil:
	// there is none.
	Target *float64 `json:"target,omitempty"`
	Met    *bool    `json:"met,omitempty"`
	// Note is that of the first run that had one.
	Note string `json:"note,omitempty"`
}

// Summarize makes a report of runs, and of runs of the yardstick, which may be
// none. Metrics are matched by name.
func Summarize(scenario string, runs, bare [][]Metric) Report {
	r := Report{Scenario: scenario, Runs: len(runs)}
	for _, m := range names(runs) {
		v := values(runs, m.Name)
		f := Figure{Name: m.Name, Unit: m.Unit, Median: median(v), Min: slices.Min(v), Max: slices.Max(v), Note: note(runs, m.Name)}
		if b := values(bare, m.Name); len(b) > 0 {
			f.Bare = new(float64)
			if *f.Bare = median(b); *f.Bare != 0 {
				f.Ratio = new(float64)
				*f.Ratio = f.Median / *f.Bare
			}
		}
		target := m.Limit
		if m.LimitBare > 0 && f.Ratio != nil {
			target = m.LimitBare * *f.Bare
		}
		if target > 0 {
			met := f.Median <= target
			f.Target, f.Met = &target, &met
		}
		r.Figures = append(r.Figures, f)
	}
	return r
}

// names are the metrics of all runs, each once, in the order of their first
// appearance.
func names(runs [][]Metric) (all []Metric) {
	for _, run := range runs {
		for _, m := range run {
			if !slices.ContainsFunc(all, func(o Metric) bool { return o.Name == m.Name }) {
				all = append(all, m)
			}
		}
	}
	return all
}

func values(runs [][]Metric, name string) (v []float64) {
	for _, run := range runs {
		for _, m := range run {
			if m.Name == name {
				v = append(v, m.Value)
			}
		}
	}
	return v
}

func note(runs [][]Metric, name string) string {
	for _, run := range runs {
		for _, m := range run {
			if m.Name == name && m.Note != "" {
				return m.Note
			}
		}
	}
	return ""
}

// median of a non-empty list.
func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// Failed tells whether a target was missed.
func (r Report) Failed() bool {
	return slices.ContainsFunc(r.Figures, func(f Figure) bool { return f.Met != nil && !*f.Met })
}

// WriteJSON writes reports as one JSON document.
func WriteJSON(w io.Writer, reports []Report) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(reports)
}

// WriteTable writes a report for reading.
func WriteTable(w io.Writer, r Report) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(tw, "%s, median of %d\t\tmin to max\tbare\tratio\ttarget\t\n", r.Scenario, r.Runs)
	for _, f := range r.Figures {
		target := ""
		if f.Target != nil {
			target = "≤ " + number(*f.Target)
			if !*f.Met {
				target += " missed"
			}
		}
		name := f.Name
		if f.Note != "" {
			name += " (" + f.Note + ")"
		}
		spread := ""
		if r.Runs > 1 {
			spread = number(f.Min) + " to " + number(f.Max)
		}
		_, _ = fmt.Fprintf(tw, "%s\t%s %s\t%s\t%s\t%s\t%s\t\n", name, number(f.Median), f.Unit, spread, optional(f.Bare, ""), optional(f.Ratio, "×"), target)
	}
	_, _ = fmt.Fprintln(tw)
	return tw.Flush() // it keeps the errors of the writes
}

func optional(v *float64, unit string) string {
	if v == nil {
		return ""
	}
	return number(*v) + unit
}

// number has three figures that mean something.
func number(v float64) string {
	switch a := max(v, -v); {
	case a == 0:
		return "0"
	case a < 1:
		return fmt.Sprintf("%.3f", v)
	case a < 10:
		return fmt.Sprintf("%.2f", v)
	case a < 100:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}
