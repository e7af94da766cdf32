package dispatch

import (
	"github.com/mics-im/mics/router/internal/route"
)

// outbox collects what one pass over flows decided, so that a message for many
// sessions of a gateway is one delivery. It is filled under shard locks and
// flushed outside of them.
type outbox struct {
	d       *Dispatcher
	sends   []*sending
	entries []BufferEntry
	msg     *Message
}

// refusedHere is the reason of a delivery that never left this router: its
// gateway is not known, or too much is under way to it.
const refusedHere = "LINK_FULL"

// sending is one delivery to one gateway.
type sending struct {
	node    route.NodeRef
	msg     *Message
	targets []target
}

type target struct {
	flow    *flow
	item    item
	session uint64
}

func (o *outbox) live(f *flow, r route.Record, it item) {
	t := target{flow: f, item: it, session: r.Session}
	for i := len(o.sends) - 1; i >= 0; i-- {
		s := o.sends[i]
		if s.node == r.Node && s.msg == it.msg {
			s.targets = append(s.targets, t)
			return
		}
		if o.msg == nil {
			break // several messages: never behind a later one
		}
	}
	o.sends = append(o.sends, &sending{node: r.Node, msg: it.msg, targets: []target{t}})
}

func (o *outbox) absent(f *flow, devices []string, it item) {
	d := o.d
	// What was recovered may be older than what is kept for these devices, or newer: it
	// may have been sent to a session that had not got its backlog yet.
	front := it.tracker == nil && it.msg.First()
	o.entries = append(o.entries, BufferEntry{Key: f.key, Devices: devices, Message: it.msg, Front: front, Done: func(r BufferResult) {
		d.answered(f, devices, route.Location{}, it, r == Online)
		what := outcome(0)
		switch r {
		case Stored:
			what = buffered
		case NotKept:
			what = skipped
			if it.tracker == nil {
				d.opts.Hooks.Lost()
			}
		}
		it.tracker.finish(it.user, what)
	}})
}

func (o *outbox) flush() {
	for _, s := range o.sends {
		l := o.d.link(s.node)
		if l == nil || !l.push(s) {
			o.d.opts.Hooks.Refused(refusedHere)
			for _, t := range s.targets {
				t.refuse(o.d, s.node)
			}
		}
	}
	for _, e := range o.entries {
		o.d.opts.Buffer.Put(e)
	}
}

func (t target) loc(node route.NodeRef) route.Location {
	return route.Location{Node: node, Session: t.session}
}

// accept: the gateway has it in its memory, and this router keeps it.
func (t target) accept(d *Dispatcher, node route.NodeRef) {
	d.answered(t.flow, []string{t.item.device}, t.loc(node), t.item, false)
	t.item.tracker.finish(t.item.user, delivered)
}

func (t target) refuse(d *Dispatcher, node route.NodeRef) {
	d.answered(t.flow, []string{t.item.device}, t.loc(node), t.item, true)
	t.item.tracker.finish(t.item.user, 0)
}
