package drain

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/ctl/internal/view"
)

func gap(ms float64) string { return fmt.Sprintf("%.1f ms", ms) }

func took(ms uint64) string { return (time.Duration(ms) * time.Millisecond).String() }

// writeReceipt writes what came of a drain.
func writeReceipt(w io.Writer, d view.Drain) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	row := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(tw, "%s\t%s\n", name, fmt.Sprintf(format, args...)) // tw keeps its error for Flush
	}
	row("Drain", "%s of %s: %s", output.Clean(d.ID), output.Clean(d.Node), d.State)
	if d.Reason != "" {
		row("Reason", "%s", output.Clean(d.Reason))
	}
	if r := d.Receipt; r != nil {
		row("Sessions", "%d", r.Sessions)
		row("Moved", "%d", r.Moved)
		row("Reconnected", "%d", r.Reconnected)
		row("Closed (4200)", "%d, of which %d confirmed it", r.Closed, r.Echoed)
		row("Gave up", "%d", r.GaveUp)
		if r.Suspended > 0 {
			row("Without a connection", "%d", r.Suspended)
		}
		if r.Unaccounted > 0 {
			row("Unaccounted", "%d", r.Unaccounted)
		}
		row("Handed over", "%d messages in flight", r.HandedOver)
		row("Lost", "%d", r.Lost)
		row("Repeated", "%d", r.Repeated)
		row("Not taken back", "%d", r.NotTakenBack)
		row("Gap", "p50 %s, p99 %s, max %s (%d sessions)", gap(r.GapP50MS), gap(r.GapP99MS), gap(r.GapMaxMS), r.Gaps)
		row("Connects elsewhere", "%d", r.ConnectsElsewhere)
		row("Duration", "%s", took(r.DurationMS))
		if len(r.Incomplete) > 0 {
			row("Not counted to the end", "%s", output.Clean(strings.Join(r.Incomplete, ", ")))
		}
	}
	return tw.Flush()
}

// writeTable writes a list of drains.
func writeTable(w io.Writer, now time.Time, drains []view.Drain) error {
	if len(drains) == 0 {
		_, err := fmt.Fprintln(w, "No drains.")
		return err
	}
	var rows [][]string
	for _, d := range drains {
		lost, p99 := "", ""
		if r := d.Receipt; r != nil {
			lost = fmt.Sprint(r.Lost + r.NotTakenBack)
			if r.Gaps > 0 {
				p99 = gap(r.GapP99MS)
			}
		}
		pace := ""
		if d.State == "draining" && d.Pace > 0 {
			pace = output.Rate(d.Pace) + "/s"
		}
		reason := d.Reason
		if reason == "" && d.State == "draining" {
			reason = d.PaceReason
		}
		rows = append(rows, []string{
			d.ID, d.Node, d.State, fmt.Sprint(d.Left), fmt.Sprint(d.Sessions), pace, lost, p99, age(now, d), reason,
		})
	}
	return output.WriteTable(w, []string{"OPERATION", "NODE", "STATE", "LEFT", "SESSIONS", "PACE", "LOST", "GAP P99", "AGE", "REASON"}, rows)
}

func age(now time.Time, d view.Drain) string {
	at, err := time.Parse(time.RFC3339, d.CreatedAt)
	if err != nil {
		return ""
	}
	return output.Age(now.Sub(at))
}

// writeRehearsal writes what a drain would do.
func writeRehearsal(w io.Writer, r view.Rehearsal) error {
	say := func(format string, args ...any) error { _, err := fmt.Fprintf(w, format+"\n", args...); return err }
	if err := say("%s holds %s, %d of them V2.", output.Clean(r.Node), output.Count(r.Sessions, "session"), r.SessionsV2); err != nil {
		return err
	}
	if r.Refusal != "" {
		if err := say("A drain would be refused: %s.", output.Clean(r.Refusal)); err != nil {
			return err
		}
	}
	if r.Ahead > 0 {
		if err := say("Before it: %s.", output.Count(uint64(r.Ahead), "drain")); err != nil {
			return err
		}
	}
	if len(r.Nodes) == 0 {
		return nil
	}
	room := "not known"
	if r.RoomKnown {
		room = fmt.Sprintf("%d free places", r.Room)
	}
	if err := say("It would take about %s at %s sessions a second; room: %s.\n", took(r.DurationMS), output.Rate(r.Pace), room); err != nil {
		return err
	}
	var rows [][]string
	for _, n := range r.Nodes {
		most, how := "", "by their usual URL"
		if n.SessionsMax > 0 {
			most = fmt.Sprint(n.SessionsMax)
		}
		if n.Directed {
			how = "directly"
		}
		rows = append(rows, []string{
			n.Node, fmt.Sprint(n.Sessions), most, fmt.Sprintf("%.0f %%", 100*n.Share), output.Rate(n.ConnectsPerSecond), how,
		})
	}
	return output.WriteTable(w, []string{"TO", "SESSIONS", "MAX", "SHARE", "CONN/S", "CLIENTS COME"}, rows)
}
