package chat

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"charm.land/bubbles/v2/textinput"
	"charm.land/bubbles/v2/viewport"
	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	mics "github.com/mics-im/mics/sdk/go"
)

const (
	// history bounds the conversation; the oldest lines go.
	history = 500
	// maxTyped bounds one typed line, in characters.
	maxTyped = 4000
)

// RunScreen is the full-screen chat. It returns when the person leaves or ctx
// ends.
func RunScreen(ctx context.Context, o Options, std IO) error {
	// The session's events can only flow once the program runs, and the program
	// needs the session: say is set before Run and used by its loop only.
	m := newModel(o, time.Now)
	p := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(std.In), tea.WithOutput(std.Out), tea.WithoutSignalHandler())
	s, err := open(ctx, o, func(ev any) { p.Send(ev) })
	if err != nil {
		return err
	}
	m.say = s.say
	_, err = p.Run()
	if ctx.Err() != nil {
		err = nil // asked to end
	}
	closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return errors.Join(err, s.close(closeCtx))
}

// model is the screen's state; bubbletea calls it from one goroutine.
type model struct {
	opts   Options
	now    func() time.Time
	say    func(line int, to target, text string) error
	to     target
	state  mics.State
	count  int // lines said so far
	lines  []entry
	width  int
	height int
	pane   viewport.Model
	input  textinput.Model
	recall recall
}

func newModel(o Options, now func() time.Time) *model {
	m := &model{opts: o, now: now, to: o.target(), pane: viewport.New(), input: textinput.New()}
	m.input.CharLimit = maxTyped
	m.input.SetVirtualCursor(false)
	// The library's own colours are for a dark background.
	m.input.SetStyles(textinput.Styles{
		Focused: textinput.StyleState{Prompt: own, Placeholder: faint}, Cursor: m.input.Styles().Cursor,
	})
	m.input.Focus()
	m.prompt()
	m.add(entry{text: "welcome, " + oneLine(o.User) + ". " + greeting(m.to)})
	return m
}

func greeting(to target) string {
	if to.none() {
		return "/to USER or /group demo to begin, /help for more"
	}
	return "you are talking to " + oneLine(to.String()) + ", /help for more"
}

func (m *model) Init() tea.Cmd { return nil }

func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.pane.SetWidth(m.width)
		m.pane.SetHeight(max(m.height-2, 1)) // status bar and input line
		m.prompt()
		m.layout(true)
		return m, nil
	case tea.KeyPressMsg:
		switch msg.String() {
		case "ctrl+c":
			return m, tea.Quit
		case "enter":
			return m, m.enter()
		case "pgup":
			m.pane.HalfPageUp()
			return m, nil
		case "pgdown":
			m.pane.HalfPageDown()
			return m, nil
		case "up":
			m.recalled(m.recall.older(m.input.Value()))
			return m, nil
		case "down":
			m.recalled(m.recall.newer())
			return m, nil
		}
	case received:
		m.received(msg.Delivery)
		return m, nil
	case stateIs:
		m.changed(msg.State)
		return m, nil
	case answered:
		m.answered(msg)
		return m, nil
	}
	var cmd tea.Cmd
	m.input, cmd = m.input.Update(msg)
	return m, cmd
}

// enter acts on the typed line.
func (m *model) enter() tea.Cmd {
	act := parse(m.input.Value())
	m.recall.add(m.input.Value())
	m.input.Reset()
	switch act.kind {
	case say:
		if m.to.none() {
			m.add(entry{text: "nobody to talk to yet: /to USER or /group NAME"})
			return nil
		}
		m.count++
		e := entry{number: m.count, own: true, from: m.opts.User, to: oneLine(m.to.user), group: oneLine(m.to.group),
			text: printable(act.text), mark: waiting}
		if err := m.say(e.number, m.to, act.text); err != nil {
			e.mark, e.note = failed, reason(err)
		}
		m.add(e)
	case setTarget:
		m.to = act.target
		m.prompt()
		m.add(entry{text: "talking to " + oneLine(m.to.String())})
	case help:
		m.add(entry{text: helpText})
	case complain:
		m.add(entry{text: oneLine(act.text)})
	case quit:
		return tea.Quit
	case nothing:
	}
	return nil
}

// recalled puts an earlier line into the input.
func (m *model) recalled(line string, ok bool) {
	if ok {
		m.input.SetValue(line)
		m.input.CursorEnd()
	}
}

// received shows a delivery, unless the person has just typed it.
func (m *model) received(d *mics.Delivery) {
	if isEcho(d, m.opts.User, m.opts.Device) {
		return
	}
	mine := d.From == m.opts.User
	if m.to.none() && !mine { // answering is the likeliest thing to do
		m.to = target{user: d.From}
		if d.Group != "" {
			m.to = target{group: d.Group}
		}
		m.prompt()
	}
	e := entry{from: oneLine(d.From), own: mine, to: oneLine(d.To), group: oneLine(d.Group), text: printable(string(d.Body))}
	if d.Unmoderated {
		e.note = "(unmoderated)"
	}
	m.add(e)
}

func (m *model) answered(a answered) {
	for i := range m.lines {
		e := &m.lines[i]
		if e.number != a.line || e.mark != waiting {
			continue
		}
		e.mark, e.note, e.laidOutAt = sent, ackNote(a.ack), 0
		if a.err != nil {
			e.mark, e.note = failed, reason(a.err)
		}
	}
	m.layout(false)
}

// changed follows the connection; only its ups and downs are worth a line.
func (m *model) changed(s mics.State) {
	was := m.state.Phase
	m.state = s
	switch {
	case s.Phase == mics.Closed && !errors.Is(s.Err, mics.ErrClosed):
		m.add(entry{text: stateText(s) + ". Ctrl-C leaves."})
	case s.Phase == mics.Connected, s.Phase == mics.Reconnecting && was == mics.Connected:
		m.add(entry{text: stateText(s)})
	}
}

func (m *model) add(e entry) {
	e.at = m.now()
	m.lines = append(m.lines, e)
	if len(m.lines) > history {
		m.lines = m.lines[len(m.lines)-history:]
	}
	m.layout(e.own && e.mark != unmarked)
}

// layout renders the conversation anew. It stays at the end if it was there;
// toEnd goes there in any case.
func (m *model) layout(toEnd bool) {
	if m.width == 0 {
		return
	}
	toEnd = toEnd || m.pane.AtBottom()
	rendered := make([]string, len(m.lines))
	for i := range m.lines {
		rendered[i] = m.lines[i].layout(m.width)
	}
	m.pane.SetContent(strings.Join(rendered, "\n"))
	if toEnd {
		m.pane.GotoBottom()
	}
}

func (m *model) prompt() {
	m.input.Prompt = oneLine(m.to.String()) + " > "
	if m.to.none() {
		m.input.Prompt = "> "
	}
	m.input.SetWidth(max(m.width-lipgloss.Width(m.input.Prompt)-1, 10))
}

// statusBar tells the connection's state and who is who, cut to the width.
func (m *model) statusBar() string {
	var light, conn string
	switch m.state.Phase {
	case mics.Connected:
		light, conn = "●", "connected to "+oneLine(m.state.Node)
	case mics.Closed:
		light, conn = "✗", "closed"
	default:
		light, conn = "○", m.state.Phase.String()+" …"
		if m.state.Err != nil {
			conn = m.state.Phase.String() + ": " + reason(m.state.Err)
		}
	}
	who := fmt.Sprintf(" %s/%s (%s) ", oneLine(m.opts.Tenant), oneLine(m.opts.User), oneLine(m.opts.Device))
	if !m.pane.AtBottom() {
		conn = "PgDn for newer · " + conn
	}
	left := fmt.Sprintf(" %s %s", light, conn)
	room := max(m.width-lipgloss.Width(who), 0)
	if lipgloss.Width(left) > room {
		left = truncate(left, room)
	}
	return status.Render(left + strings.Repeat(" ", max(room-lipgloss.Width(left), 0)) + truncate(who, m.width))
}

func (m *model) View() tea.View {
	if m.width == 0 {
		return tea.NewView("")
	}
	v := tea.NewView(m.pane.View() + "\n" + m.statusBar() + "\n" + m.input.View())
	v.AltScreen = true
	v.WindowTitle = "mics: " + oneLine(m.opts.User)
	if c := m.input.Cursor(); c != nil {
		c.Y += m.pane.Height() + 1
		v.Cursor = c
	}
	return v
}
