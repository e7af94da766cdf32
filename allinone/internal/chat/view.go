package chat

import (
	"hash/fnv"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
)

// Colours are the terminal's own sixteen, so that they fit a light and a dark
// background without asking which it is.
var (
	faint  = lipgloss.NewStyle().Faint(true)
	good   = lipgloss.NewStyle().Foreground(lipgloss.Color("2"))
	bad    = lipgloss.NewStyle().Foreground(lipgloss.Color("1"))
	busy   = lipgloss.NewStyle().Foreground(lipgloss.Color("3"))
	own    = lipgloss.NewStyle().Bold(true)
	status = lipgloss.NewStyle().Reverse(true)

	senderColours = []string{"1", "2", "4", "5", "6", "9", "10", "12", "13", "14"}
)

// mark is the delivery state of an own line.
type mark int

const (
	unmarked mark = iota // not an own line
	waiting
	sent
	failed
)

// entry is one line of the conversation.
type entry struct {
	at     time.Time
	number int    // of an own line, to find it when its answer comes
	from   string // empty: a note of the program's
	group  string
	to     string // of an own line
	text   string
	mark   mark
	note   string // beside the mark or, without one, after the text
	own    bool

	laidOut   string // cache of render for width laidOutAt; 0: not rendered
	laidOutAt int
}

// layout is render, cached.
func (e *entry) layout(width int) string {
	if e.laidOutAt != width {
		e.laidOut, e.laidOutAt = e.render(width), width
	}
	return e.laidOut
}

// render lays the entry out for a screen of this width: time, sender and text
// that is wrapped under itself, the mark at its end.
func (e entry) render(width int) string {
	head := faint.Render(e.at.Format("15:04")) + " "
	body := e.text
	switch e.from {
	case "":
		head, body = head+faint.Render("· "), faint.Render(e.text)
	default:
		style := senderStyle(e.from)
		if e.own {
			style = own
		}
		head += style.Render(e.from)
		switch {
		case e.group != "":
			head += faint.Render(" #" + e.group)
		case e.own:
			head += faint.Render(" → " + e.to)
		}
		head += "  "
	}
	if m := e.markText(); m != "" {
		body += " " + m
	}
	indent := min(lipgloss.Width(head), width/2)
	lines := strings.Split(lipgloss.Wrap(body, max(width-indent, 8), ""), "\n")
	return head + strings.Join(lines, "\n"+strings.Repeat(" ", indent))
}

func (e entry) markText() string {
	note := e.note
	if note != "" && e.mark != unmarked {
		note = " " + note
	}
	switch e.mark {
	case waiting:
		return busy.Render("…")
	case sent:
		return good.Render("✓") + faint.Render(note)
	case failed:
		return bad.Render("✗" + note)
	case unmarked:
		return faint.Render(e.note)
	}
	return ""
}

// senderStyle gives a name a colour that stays the same.
func senderStyle(name string) lipgloss.Style {
	h := fnv.New32a()
	h.Write([]byte(name))
	return lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Color(senderColours[h.Sum32()%uint32(len(senderColours))]))
}

// truncate cuts s to the width in cells, with an ellipsis.
func truncate(s string, width int) string { return ansi.Truncate(s, max(width, 0), "…") }
