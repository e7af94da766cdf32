package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/mics-im/mics/tests/chaos/history"
	"github.com/mics-im/mics/tests/harness"
)

// phone is one user's device; it implements harness.Observer.
type phone struct {
	crowd *crowd
	url   string
	v1    bool
	id    history.Device
	end   harness.Endpoint // set by dial, before anything else

	mu      sync.Mutex
	history *history.History // guarded by mu; of the phase, nil before the first
	conns   int              // guarded by mu; so far
	conn    int              // guarded by mu; 0: none
	at      string           // guarded by mu; the gateway
}

func (p *phone) dial() {
	d := harness.Dialing{
		URLs: []string{p.url}, Tenant: p.id.Tenant, User: p.id.User, Device: p.id.Name, Observer: p, AnswerWithin: answerWithin,
	}
	if p.v1 {
		p.end = harness.DialV1(d)
		return
	}
	e, err := harness.DialSDK(d)
	if err != nil {
		panic(err) // the options are ours, but for the URL that join was given
	}
	p.end = e
}

func (p *phone) node() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

// present begins a phase's history for the device.
func (p *phone) present(h *history.History) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.history = h
	h.Add(history.Event{Kind: history.Join, Device: p.id, V1: p.v1})
	if p.conn != 0 {
		p.conns, p.conn = 1, 1
		h.Add(history.Event{Kind: history.Connect, Device: p.id, Conn: 1, Node: p.at})
	} else {
		p.conns = 0
	}
}

// add records an event of the device. Called with mu held.
func (p *phone) add(e history.Event) {
	if p.history != nil {
		e.Device = p.id
		p.history.Add(e)
	}
}

// live talks until ctx ends.
func (p *phone) live(ctx context.Context, phase string, rng *rand.Rand) {
	for n := 0; ; n++ {
		wait := time.NewTimer(time.Duration(rng.ExpFloat64() * float64(p.crowd.pause)))
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
			p.send(fmt.Sprintf("%s/%s#%d", phase, p.id.User, n), rng)
		}
	}
}

// send sends one message; its key is the beginning of its body. One in eight is
// for a group.
func (p *phone) send(key string, rng *rand.Rand) {
	m := harness.Outgoing{Body: append([]byte(key+" "), bytes.Repeat([]byte{'.'}, rng.IntN(200))...)}
	e := history.Event{Kind: history.Send, Msg: key}
	if rng.IntN(8) == 0 {
		m.Group = fmt.Sprintf("g%d", rng.IntN(len(p.crowd.groups)))
		e.Group, e.Recipients = m.Group, slices.Clone(p.crowd.groups[m.Group])
	} else {
		m.To = p.crowd.phones[rng.IntN(len(p.crowd.phones))].id.User
		e.Recipients = []string{m.To}
	}
	p.mu.Lock()
	e.Conn = p.conn
	p.add(e)
	p.mu.Unlock()
	if !p.end.Submit(m, func(a harness.Answer) { p.answered(key, a) }) {
		p.answered(key, harness.Answer{Err: harness.ErrLeft})
	}
}

func (p *phone) answered(key string, a harness.Answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := history.Event{Kind: history.Answer, Msg: key, Conn: p.conn, Attempts: a.Attempts, Reason: a.Reason, Partial: a.Partial}
	switch {
	case errors.Is(a.Err, harness.ErrLeft):
		e.Status = history.Abandoned
	case a.Err != nil:
		e.Status, e.Reason = history.Unknown, a.Err.Error()
	case a.Sent:
		e.Status = history.Sent
	default:
		e.Status = history.Failed
	}
	p.add(e)
}

// Connected implements harness.Observer, as the next three do.
func (p *phone) Connected(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns++
	p.conn, p.at = p.conns, node
	p.add(history.Event{Kind: history.Connect, Conn: p.conn, Node: node})
}

// Disconnected implements harness.Observer.
func (p *phone) Disconnected(code int, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != 0 {
		p.add(history.Event{Kind: history.Disconnect, Conn: p.conn, Code: code, Reason: reason})
	}
	p.conn, p.at = 0, ""
}

// Delivered implements harness.Observer.
func (p *phone) Delivered(m harness.Incoming) {
	key, _, _ := bytes.Cut(m.Body, []byte{' '})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(history.Event{Kind: history.Deliver, Msg: string(key)})
}

// Ended implements harness.Observer.
func (p *phone) Ended(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn, p.at = 0, ""
	p.add(history.Event{Kind: history.Gone, Reason: err.Error()})
}
