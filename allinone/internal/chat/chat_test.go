package chat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/mics-im/mics/internal/testkit"
	mics "github.com/mics-im/mics/sdk/go"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestParse(t *testing.T) {
	for in, want := range map[string]action{
		"":                {},
		"   ":             {},
		" hello  you ":    {kind: say, text: "hello  you"},
		"//not a command": {kind: say, text: "/not a command"},
		"/to bob":         {kind: setTarget, target: target{user: "bob"}},
		"/group  demo":    {kind: setTarget, target: target{group: "demo"}},
		"/help":           {kind: help},
		"/quit":           {kind: quit},
		"/to":             {kind: complain, text: "/to needs a user: /to bob"},
		"/group ":         {kind: complain, text: "/group needs a name: /group demo"},
		"/nope x":         {kind: complain, text: "there is no /nope; /help lists what there is"},
	} {
		if got := parse(in); got != want {
			t.Errorf("%q: %+v, want %+v", in, got, want)
		}
	}
}

// FuzzPrintable: whatever somebody sends, the terminal gets text only.
func FuzzPrintable(f *testing.F) {
	f.Add("plain")
	f.Add("\x1b[2J\x1b]0;title\x07 red \x1b[31m")
	f.Add("\x9b31m \u202eevil \xff\xfe \r\n\t\x00")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range printable(s) {
			if r != '\n' && unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
				t.Fatalf("%q lets %q through", s, r)
			}
		}
		if strings.Contains(oneLine(s), "\n") {
			t.Fatalf("%q is not one line", s)
		}
	})
}

// screen is a model with a recorder for what is said.
type screen struct {
	*model
	t    *testing.T
	said []outgoing
	full bool
}

func newScreen(t *testing.T, o Options) *screen {
	o.Tenant, o.Device = "demo", "terminal"
	clock := time.Date(2030, 1, 2, 12, 30, 0, 0, time.UTC)
	s := &screen{t: t, model: newModel(o, func() time.Time { return clock })}
	s.say = func(line int, to target, text string) error {
		if s.full {
			return errBusy
		}
		s.said = append(s.said, outgoing{line, to, text})
		return nil
	}
	s.Update(tea.WindowSizeMsg{Width: 50, Height: 12})
	return s
}

// typed types a line and returns what Enter asks for.
func (s *screen) typed(line string) tea.Cmd {
	for _, r := range line {
		s.Update(tea.KeyPressMsg{Code: r, Text: string(r)})
	}
	_, cmd := s.Update(tea.KeyPressMsg{Code: tea.KeyEnter})
	return cmd
}

// text is the screen without colours; every line has to fit.
func (s *screen) text() string {
	s.t.Helper()
	text := ansi.Strip(s.View().Content)
	lines := strings.Split(text, "\n")
	if len(lines) > s.height {
		s.t.Errorf("%d lines on a screen of %d", len(lines), s.height)
	}
	for _, l := range lines {
		if lipgloss.Width(l) > s.width {
			s.t.Errorf("line %q is wider than %d", l, s.width)
		}
	}
	return text
}

func (s *screen) wants(parts ...string) {
	s.t.Helper()
	text := s.text()
	flat := strings.Join(strings.Fields(text), " ") // wherever it was wrapped
	for _, p := range parts {
		if !strings.Contains(flat, strings.Join(strings.Fields(p), " ")) {
			s.t.Errorf("the screen lacks %q:\n%s", p, text)
		}
	}
}

func TestScreenConversation(t *testing.T) {
	s := newScreen(t, Options{User: "ann"})
	s.wants("welcome, ann", "connecting", "demo/ann")
	s.typed("to nobody")
	s.wants("nobody to talk to yet")
	s.Update(stateIs{mics.State{Phase: mics.Connected, Node: "gw-1", User: "ann"}})
	s.wants("● connected to gw-1")

	s.typed("/to bob")
	s.typed("hello")
	s.wants("ann → bob  hello …", "bob > ")
	s.typed("again")
	if len(s.said) != 2 || s.said[0].text != "hello" || s.said[1].to.user != "bob" {
		t.Fatalf("said %+v", s.said)
	}
	s.Update(answered{line: s.said[0].line, ack: mics.Ack{OfflineBuffered: 1}})
	s.Update(answered{line: s.said[1].line, err: &mics.SendError{Reason: "tenant qps limited"}})
	s.wants("hello ✓ kept until they are online", "again ✗ tenant qps limited")

	s.Update(received{&mics.Delivery{From: "bob", To: "ann", Body: []byte("evil \x1b[2Jtext")}})
	s.wants("bob  evil text")
	s.Update(stateIs{mics.State{Phase: mics.Reconnecting, URL: "ws://x/ws", Err: &mics.CloseError{Code: 4200, Reason: "server draining"}}})
	s.wants("○ reconnecting", "4200 server draining")
	s.Update(stateIs{mics.State{Phase: mics.Closed, Err: &mics.CloseError{Code: 4201, Reason: "replaced"}}})
	s.wants("✗ closed", "replaced: this device connected")
}

func TestScreenGroup(t *testing.T) {
	s := newScreen(t, Options{User: "ann"})
	s.Update(received{&mics.Delivery{From: "bob", Group: "demo", Body: []byte("hi all")}})
	s.wants("bob #demo  hi all", "#demo > ") // the answer goes where it came from
	s.typed("hi bob")
	s.Update(received{&mics.Delivery{From: "ann", FromDevice: "terminal", Group: "demo", Body: []byte("hi bob")}})
	if n := strings.Count(s.text(), "hi bob"); n != 1 {
		t.Errorf("the own message shows %d times", n)
	}
	s.Update(received{&mics.Delivery{From: "ann", FromDevice: "phone", Group: "demo", Body: []byte("from my phone")}})
	s.wants("from my phone")
}

func TestScreenBusy(t *testing.T) {
	s := newScreen(t, Options{User: "ann", To: "bob"})
	s.full = true
	s.typed("one too many")
	s.wants("one too many ✗ too many unanswered messages")
}

func TestScreenWrapsScrollsAndForgets(t *testing.T) {
	s := newScreen(t, Options{User: "ann", To: "bob"})
	for i := range history + 50 {
		s.Update(received{&mics.Delivery{From: "bob", Body: fmt.Appendf(nil, "number %d %s", i, strings.Repeat("word ", 20))}})
	}
	if len(s.lines) != history {
		t.Errorf("%d lines kept, want %d", len(s.lines), history)
	}
	s.wants(fmt.Sprint("number ", history+49))
	s.Update(tea.KeyPressMsg{Code: tea.KeyPgUp})
	before := s.text()
	if !strings.Contains(before, "PgDn for newer") {
		t.Errorf("nothing says that there is more:\n%s", before)
	}
	s.Update(received{&mics.Delivery{From: "bob", Body: []byte("news")}})
	if strings.Contains(s.text(), "news") {
		t.Error("a delivery tore the reader away")
	}
	s.typed("mine")
	s.wants("mine …")
	s.Update(tea.WindowSizeMsg{Width: 20, Height: 5})
	s.text()
	s.Update(tea.WindowSizeMsg{Width: 3, Height: 3})
	s.View()
}

func TestScreenRecallsWhatWasTyped(t *testing.T) {
	s := newScreen(t, Options{User: "ann", To: "bob"})
	key := func(code rune) { s.Update(tea.KeyPressMsg{Code: code}) }
	key(tea.KeyUp)
	key(tea.KeyDown)
	for _, line := range []string{"one", "two", "two", ""} {
		s.typed(line)
	}
	for _, r := range "half" {
		s.Update(tea.KeyPressMsg{Code: r, Text: string(r)})
	}
	for i, st := range []struct {
		key  rune
		want string
	}{
		{tea.KeyUp, "two"}, {tea.KeyUp, "one"}, {tea.KeyUp, "one"}, {tea.KeyDown, "two"}, {tea.KeyDown, "half"}, {tea.KeyDown, "half"}, {tea.KeyUp, "two"},
	} {
		key(st.key)
		if got := s.input.Value(); got != st.want {
			t.Errorf("key %d shows %q, want %q", i, got, st.want)
		}
	}
	key(tea.KeyEnter)
	if last := s.said[len(s.said)-1].text; last != "two" || s.input.Value() != "" {
		t.Errorf("said %q, left %q", last, s.input.Value())
	}
	for i := range 2 * maxRecall {
		s.typed(fmt.Sprint(i))
	}
	if len(s.recall.lines) != maxRecall {
		t.Errorf("%d lines kept", len(s.recall.lines))
	}
}

func TestScreenSaysWhatWasNotModerated(t *testing.T) {
	s := newScreen(t, Options{User: "ann"})
	s.Update(received{&mics.Delivery{From: "bob", Body: []byte("psst"), Unmoderated: true}})
	s.wants("bob  psst (unmoderated)")
}

func TestScreenQuits(t *testing.T) {
	s := newScreen(t, Options{User: "ann"})
	if cmd := s.typed("/quit"); cmd == nil || cmd() != tea.Quit() {
		t.Error("/quit does not quit")
	}
	if _, cmd := s.Update(tea.KeyPressMsg{Code: 'c', Mod: tea.ModCtrl}); cmd == nil || cmd() != tea.Quit() {
		t.Error("Ctrl-C does not quit")
	}
	if cmd := s.typed("/help"); cmd != nil {
		t.Error("/help does more than help")
	}
	s.wants("/group NAME   talk to a group")
}

func TestLinePrinter(t *testing.T) {
	var out, errs bytes.Buffer
	p := &linePrinter{std: IO{Out: &out, Err: &errs}, user: "ann", device: "d", ended: make(chan struct{})}
	p.event(stateIs{mics.State{Phase: mics.Connected, Node: "gw-1", User: "ann"}})
	p.event(received{&mics.Delivery{From: "bob", Body: []byte("two\nlines")}})
	p.event(received{&mics.Delivery{From: "bob", Group: "demo", Body: []byte("hi")}})
	p.event(received{&mics.Delivery{From: "ann", FromDevice: "d", Group: "demo", Body: []byte("echo")}})
	p.event(answered{ack: mics.Ack{ID: "1", Duplicate: true}})
	if err := p.verdict(); err != nil {
		t.Error(err)
	}
	p.event(answered{ack: mics.Ack{ID: "2"}, err: context.DeadlineExceeded})
	if err := p.verdict(); err == nil {
		t.Error("an unsent message goes unsaid")
	}
	p.event(stateIs{mics.State{Phase: mics.Closed, Err: mics.ErrKicked}})
	if err := p.verdict(); !errors.Is(err, mics.ErrKicked) {
		t.Error(err)
	}
	<-p.ended
	if want := "bob: two ⏎ lines\nbob #demo: hi\n"; out.String() != want {
		t.Errorf("out %q, want %q", out.String(), want)
	}
	want := "* connected to gw-1 as ann\n* sent 1 (duplicate)\n* failed 2: no answer for 1m0s\n* closed: kicked\n"
	if errs.String() != want {
		t.Errorf("err %q, want %q", errs.String(), want)
	}
}
