package chat

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/charmbracelet/x/ansi"
)

// target is whom a line is for; the zero value is nobody yet.
type target struct {
	user, group string
}

func (t target) none() bool { return t == target{} }

func (t target) String() string {
	switch {
	case t.user != "":
		return t.user
	case t.group != "":
		return "#" + t.group
	}
	return "nobody"
}

// action is what one input line asks for.
type action struct {
	kind   actionKind
	target target // setTarget
	text   string // say; complain: what was wrong
}

type actionKind int

const (
	nothing actionKind = iota
	say
	setTarget
	help
	quit
	complain
)

const helpText = `/to USER      talk to a user
/group NAME   talk to a group (the demo group is called demo)
/help         this text
/quit         leave (so does Ctrl-C)
//text        say /text
PgUp, PgDn    scroll
Up, Down      what you typed before`

// parse reads one input line.
func parse(line string) action {
	line = strings.TrimSpace(line)
	if line == "" {
		return action{}
	}
	if strings.HasPrefix(line, "//") {
		return action{kind: say, text: line[1:]}
	}
	if !strings.HasPrefix(line, "/") {
		return action{kind: say, text: line}
	}
	word, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	switch word {
	case "/to":
		if rest != "" {
			return action{kind: setTarget, target: target{user: rest}}
		}
		return action{kind: complain, text: "/to needs a user: /to bob"}
	case "/group":
		if rest != "" {
			return action{kind: setTarget, target: target{group: rest}}
		}
		return action{kind: complain, text: "/group needs a name: /group demo"}
	case "/help", "/?":
		return action{kind: help}
	case "/quit", "/exit", "/q":
		return action{kind: quit}
	}
	return action{kind: complain, text: fmt.Sprintf("there is no %s; /help lists what there is", word)}
}

// printable makes what somebody else wrote safe for this terminal: no escape
// sequences and no control characters but the line break.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return r
		case r == '\t':
			return ' '
		case unicode.IsControl(r), r == unicode.ReplacementChar:
			return -1
		case unicode.Is(unicode.Bidi_Control, r): // would reorder the line around it
			return -1
		}
		return r
	}, ansi.Strip(strings.ToValidUTF8(s, "")))
}

// oneLine is printable for names, reasons and line mode.
func oneLine(s string) string { return strings.ReplaceAll(printable(s), "\n", " ⏎ ") }

// recall is what was typed before, for the arrow keys. The zero value is empty.
type recall struct {
	lines []string // oldest first, at most maxRecall
	at    int      // of lines; len(lines) is the line being typed
	draft string   // the line being typed, while an older one is shown
}

// maxRecall bounds the lines that are kept; the oldest go.
const maxRecall = 100

func (r *recall) add(line string) {
	if line != "" && (len(r.lines) == 0 || r.lines[len(r.lines)-1] != line) {
		r.lines = append(r.lines, line)
		if len(r.lines) > maxRecall {
			r.lines = r.lines[1:]
		}
	}
	r.at, r.draft = len(r.lines), ""
}

// older returns the line before the one shown; now is what the input holds.
func (r *recall) older(now string) (string, bool) {
	if r.at == 0 {
		return "", false
	}
	if r.at == len(r.lines) {
		r.draft = now
	}
	r.at--
	return r.lines[r.at], true
}

// newer returns the line after the one shown, in the end the unfinished one.
func (r *recall) newer() (string, bool) {
	if r.at >= len(r.lines) {
		return "", false
	}
	r.at++
	if r.at == len(r.lines) {
		return r.draft, true
	}
	return r.lines[r.at], true
}
