// Package chat is the terminal chat of mics-dev: a full-screen one for people,
// a line mode for scripts, and a one-shot send.
package chat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	mics "github.com/mics-im/mics/sdk/go"
)

const (
	// sendQueue bounds the lines that were typed and not yet taken in by the
	// client; a further one fails with errBusy.
	sendQueue = 64
	// sendTimeout is how long a message is tried for.
	sendTimeout = 60 * time.Second
	// connectTimeout is how long a one-shot send looks for a gateway.
	connectTimeout = 10 * time.Second
)

var errBusy = errors.New("too many unanswered messages")

// Options says who talks to which gateway.
type Options struct {
	URL    string
	Tenant string
	User   string
	// Token for the gateway; empty means the demo tenant's "valid:" + User.
	Token  string
	Device string
	// To and Group preset whom lines are for; at most one.
	To, Group string
	Log       *slog.Logger
}

func (o Options) token() string {
	if o.Token != "" {
		return o.Token
	}
	return "valid:" + o.User
}

func (o Options) target() target { return target{user: o.To, group: o.Group} }

// Events of a session.
type (
	received struct{ *mics.Delivery }
	stateIs  struct{ mics.State }
	// answered is the outcome of the line with this number.
	answered struct {
		line int
		ack  mics.Ack
		err  error
	}
)

// session is a client together with the order of what was typed. Its events go
// to emit, from several goroutines.
type session struct {
	client *mics.Client
	emit   func(any)
	lines  chan outgoing
	cancel context.CancelFunc

	connecting sync.WaitGroup
	sending    sync.WaitGroup // send and the lines that wait for their answer
}

type outgoing struct {
	line int
	to   target
	text string
}

// open starts a session; connecting goes on in the background.
func open(ctx context.Context, o Options, emit func(any)) (*session, error) {
	s := &session{emit: emit, lines: make(chan outgoing, sendQueue)}
	client, err := mics.New(mics.Options{
		URLs: []string{o.URL}, Tenant: o.Tenant, Device: o.Device,
		Token:      func(context.Context) (string, error) { return o.token(), nil },
		OnDelivery: func(d *mics.Delivery) { emit(received{d}) },
		OnState:    func(st mics.State) { emit(stateIs{st}) },
		Logger:     o.Log,
	})
	if err != nil {
		return nil, err
	}
	s.client = client
	ctx, s.cancel = context.WithCancel(ctx)
	s.connecting.Go(func() { _ = client.Connect(ctx) }) // its outcome is also a state
	s.sending.Go(func() { s.send(ctx) })
	return s, nil
}

// say queues a line; it never blocks.
func (s *session) say(line int, to target, text string) error {
	select {
	case s.lines <- outgoing{line, to, text}:
		return nil
	default:
		return errBusy
	}
}

// send submits the queued lines in their order, until ctx ends or the queue is
// closed, and reports each one's outcome. Submit bounds the waiting goroutines.
func (s *session) send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case l, ok := <-s.lines:
			if !ok {
				return
			}
			ctx, cancel := context.WithTimeout(ctx, sendTimeout)
			p, err := s.client.Submit(ctx, mics.Message{To: l.to.user, Group: l.to.group, Body: []byte(l.text)})
			if err != nil {
				cancel()
				s.emit(answered{line: l.line, err: err})
				continue
			}
			s.sending.Go(func() {
				defer cancel()
				ack, err := p.Wait()
				s.emit(answered{line: l.line, ack: ack, err: err})
			})
		}
	}
}

// drain lets what was said be answered; say must not be called any more.
func (s *session) drain() {
	close(s.lines)
	s.sending.Wait()
}

// close ends the session. Events that are still under way are emitted.
func (s *session) close(ctx context.Context) error {
	s.cancel()
	err := s.client.Close(ctx)
	s.connecting.Wait()
	s.sending.Wait()
	return err
}

// isEcho says whether d is this very device's own message, come back because
// its user is a member of the group.
func isEcho(d *mics.Delivery, user, device string) bool {
	return d.Group != "" && d.From == user && d.FromDevice == device
}

// reason is err in a few words for a person.
func reason(err error) string {
	var refused *mics.SendError
	switch {
	case errors.As(err, &refused):
		return oneLine(refused.Reason)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("no answer for %s", sendTimeout)
	case errors.Is(err, mics.ErrReplaced):
		return "replaced: this device connected elsewhere (use another --device)"
	case errors.Is(err, mics.ErrClosed), errors.Is(err, context.Canceled):
		return "left before it was answered"
	}
	return oneLine(strings.TrimPrefix(err.Error(), "mics: "))
}

// ackNote says what an ack adds to a plain "sent"; empty: nothing.
func ackNote(a mics.Ack) string {
	switch {
	case a.Duplicate:
		return "duplicate"
	case a.Partial:
		return "partly delivered"
	case a.OfflineBuffered > 0:
		return "kept until they are online"
	case a.OfflineNotified > 0:
		return "offline, the tenant was told"
	case a.OfflineSkipped > 0:
		return "offline, not kept"
	}
	return ""
}
