package chat

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	mics "github.com/mics-im/mics/sdk/go"
)

// IO is where a chat reads and writes.
type IO struct {
	In       io.Reader
	Out, Err io.Writer
}

// RunLines is the chat for scripts: lines of In are said (or are commands),
// what arrives is printed to Out as "sender: text" or "sender #group: text",
// states and outcomes to Err as lines that begin with "*". It ends with its
// input or /quit, once everything said is answered, or with ctx; listen makes it
// go on receiving after the input's end. It returns an error if the client ended by
// itself or a message was not sent.
func RunLines(ctx context.Context, o Options, std IO, listen bool) error {
	p := &linePrinter{std: std, user: o.User, device: o.Device, ended: make(chan struct{})}
	s, err := open(ctx, o, p.event)
	if err != nil {
		return err
	}
	left, err := sayAll(ctx, s, p, o.target())
	if listen && !left && err == nil {
		select {
		case <-ctx.Done():
		case <-p.ended:
		}
	}
	if ctx.Err() == nil {
		s.drain()
	}
	closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return errors.Join(err, s.close(closeCtx), p.verdict())
}

// sayAll reads the input until it ends, the session does, or /quit (left).
func sayAll(ctx context.Context, s *session, p *linePrinter, to target) (left bool, err error) {
	lines := make(chan string)
	failed := make(chan error, 1)
	stop := make(chan struct{})
	defer close(stop)
	// Reading standard input cannot be interrupted: when the session ends first
	// this goroutine stays until the next line or the process's end.
	go func() {
		in := bufio.NewScanner(p.std.In)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			select {
			case lines <- in.Text():
			case <-stop:
				return
			}
		}
		failed <- in.Err()
	}()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return false, nil
		case <-p.ended:
			return false, nil
		case err := <-failed:
			if err != nil {
				return false, fmt.Errorf("read input: %w", err)
			}
			return false, nil
		case line := <-lines:
			act := parse(line)
			switch act.kind {
			case nothing:
			case say:
				if to.none() {
					p.note("nobody to talk to: --to USER, --group NAME or /to USER first")
					continue
				}
				// A script may be faster than the cluster: it is made to wait.
				select {
				case s.lines <- outgoing{n, to, act.text}:
				case <-p.ended:
				case <-ctx.Done():
				}
			case setTarget:
				to = act.target
			case help:
				p.note(helpText)
			case complain:
				p.note(act.text)
			case quit:
				return true, nil
			}
		}
	}
}

// linePrinter prints events; it is safe for concurrent use.
type linePrinter struct {
	std          IO
	user, device string

	mu     sync.Mutex
	err    error         // guarded by mu: why the client ended
	unsent int           // guarded by mu
	ended  chan struct{} // closed when the client has ended
}

func (p *linePrinter) event(ev any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch ev := ev.(type) {
	case received:
		if isEcho(ev.Delivery, p.user, p.device) {
			return
		}
		from := oneLine(ev.From)
		if ev.Group != "" {
			from += " #" + oneLine(ev.Group)
		}
		if ev.Unmoderated {
			p.noteLocked("unmoderated: " + from)
		}
		_, _ = fmt.Fprintf(p.std.Out, "%s: %s\n", from, oneLine(string(ev.Body)))
	case stateIs:
		p.noteLocked(stateText(ev.State))
		if ev.Phase == mics.Closed {
			if !errors.Is(ev.Err, mics.ErrClosed) {
				p.err = ev.Err
			}
			close(p.ended)
		}
	case answered:
		if ev.err != nil {
			p.unsent++
			p.noteLocked("failed " + ev.ack.ID + ": " + reason(ev.err))
			return
		}
		p.noteLocked(AckText(ev.ack))
	}
}

func (p *linePrinter) note(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noteLocked(s)
}

func (p *linePrinter) noteLocked(s string) { _, _ = fmt.Fprintf(p.std.Err, "* %s\n", s) }

func (p *linePrinter) verdict() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	if p.unsent > 0 {
		return fmt.Errorf("%d messages were not sent", p.unsent)
	}
	return nil
}

// AckText is an ack as one line for a person.
func AckText(a mics.Ack) string {
	s := "sent " + a.ID
	if note := ackNote(a); note != "" {
		s += " (" + note + ")"
	}
	return s
}

// stateText is a state as one line for a person.
func stateText(s mics.State) string {
	switch s.Phase {
	case mics.Connected:
		return fmt.Sprintf("connected to %s as %s", oneLine(s.Node), oneLine(s.User))
	case mics.Closed:
		if errors.Is(s.Err, mics.ErrClosed) {
			return "closed"
		}
		return "closed: " + reason(s.Err)
	}
	text := fmt.Sprintf("%s to %s", s.Phase, s.URL)
	if s.RetryIn > 0 {
		text += fmt.Sprintf(" in %s", s.RetryIn.Round(10*time.Millisecond))
	}
	if s.Err != nil {
		text += ": " + reason(s.Err)
	}
	return text
}

// SendOnce connects, sends one message, waits for its ack, and leaves.
func SendOnce(ctx context.Context, o Options, text string) (mics.Ack, error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	s, err := open(ctx, o, func(any) {})
	if err != nil {
		return mics.Ack{}, err
	}
	connectCtx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := s.client.Connect(connectCtx); err != nil {
		return mics.Ack{}, errors.Join(err, s.close(ctx))
	}
	ack, err := s.client.Send(ctx, mics.Message{To: o.To, Group: o.Group, Body: []byte(text)})
	return ack, errors.Join(err, s.close(ctx))
}
