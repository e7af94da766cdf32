package pipeline

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"github.com/mics-im/mics/router/internal/event"
	"go.opentelemetry.io/otel/trace"
)

// Events takes what happened, for the tenants' own systems. It never blocks.
type Events interface {
	// Enabled: somebody takes events at all.
	Enabled() bool
	// Publish takes an event or says that it does not.
	Publish(tenant string, e event.Event) bool
}

// eventPatience is how long a message waits for the broker to have its event,
// where the tenant asks for that.
const eventPatience = 5 * time.Second

// conversation is the key of a message's events: one order for both directions
// of a chat, and for a group.
func conversation(m *message) string {
	if m.group() {
		return m.header.Group
	}
	a, b := m.header.User, m.header.ToUser
	if a > b {
		a, b = b, a
	}
	return a + ":" + b
}

// event is the message's event.
func (m *message) event() event.Event {
	e := event.Event{
		Type: hookv1.EventType_SINGLE_CHAT_MSG, Key: conversation(m), Time: time.Now(),
		MsgID: m.header.MsgID, User: m.header.User, Device: m.header.Device, ToUser: m.header.ToUser, Group: m.header.Group,
		Data: m.bytes, Unmoderated: m.unmoderated,
	}
	if m.group() {
		e.Type = hookv1.EventType_GROUP_CHAT_MSG
	}
	if sc := trace.SpanContextFromContext(m.ctx); sc.HasTraceID() {
		e.TraceID = sc.TraceID().String()
	}
	return e
}

// tell publishes the message's event; what is not taken is counted there.
func (p *Pipeline) tell(m *message) {
	if p.opts.Events.Enabled() {
		p.opts.Events.Publish(m.tenant.Name(), m.event())
	}
}

// store publishes the event of a message whose tenant requires it, and lets the
// message go on, in its connection's order, when the broker has it. What comes
// in between and needs no event waits its turn.
//
// The event goes before the delivery here, other than elsewhere: SENT is to mean
// that it is stored, and FAILED that nothing was delivered, and after a delivery
// only one of the two could be kept. The price is an event of a message that
// fails afterwards, or whose acknowledgement by the broker came too late.
func (p *Pipeline) store(m *message) {
	m.ready = false
	m.required = m.tenant.EventsRequired()
	p.storing.enter(m)
	if !m.required {
		p.storing.ready(m)
		return
	}
	p.require(m.tenant.Name(), m.event(), func(stored bool) {
		if !stored {
			m.failure = reasonNotStored
		}
		p.storing.ready(m)
	})
}

// stored sends a message that has waited for its event, unless this pipeline has
// ended meanwhile: then its gateway sends it again, elsewhere.
func (p *Pipeline) stored(m *message) {
	if p.ctx.Err() == nil {
		p.send(m)
	}
}

// require publishes an event and calls then once, with whether a broker has it:
// in the tenant's topic or, where that does not take it, among the dead letters,
// from where it can be brought back.
func (p *Pipeline) require(tenant string, e event.Event, then func(stored bool)) {
	var once sync.Once
	late := time.AfterFunc(eventPatience, func() { once.Do(func() { then(false) }) })
	e.Expires = e.Time.Add(eventPatience)
	e.Done = func(err error) {
		late.Stop()
		once.Do(func() { then(err == nil || errors.Is(err, event.ErrDeadLettered)) })
	}
	if !p.opts.Events.Publish(tenant, e) {
		e.Done(event.ErrDropped)
	}
}

// notify tells the tenant of the users who have not got a message, and calls then
// with how many it was told of. Where there are no events nobody is told, and
// they count all the same: the tenant knows its messages by check-message.
func (p *Pipeline) notify(m *message, users []string, then func(notified int)) {
	if len(users) == 0 || !p.opts.Events.Enabled() {
		then(len(users))
		return
	}
	e := m.event()
	e.Type = hookv1.EventType_OFFLINE_MESSAGE
	if !m.required {
		notified := 0
		for _, e.ToUser = range users {
			if p.opts.Events.Publish(m.tenant.Name(), e) {
				notified++
			}
		}
		then(notified)
		return
	}
	var told, left atomic.Int64
	left.Store(int64(len(users)))
	for _, e.ToUser = range users {
		p.require(m.tenant.Name(), e, func(stored bool) {
			if stored {
				told.Add(1)
			}
			if left.Add(-1) == 0 {
				then(int(told.Load()))
			}
		})
	}
}
