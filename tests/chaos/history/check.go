package history

import (
	"fmt"
	"slices"
	"time"
)

// Rule is a promise that can be broken.
type Rule string

// What a history may show that it must not.
const (
	// Lost: a SENT message did not reach a device that existed when it was sent.
	Lost Rule = "lost"
	// Repeated: a device's application saw a message twice.
	Repeated Rule = "repeated"
	// Reordered: two messages of one connection arrived the other way round.
	Reordered Rule = "reordered"
	// Leaked: a device saw a message that was not for it, or that nobody sent.
	Leaked Rule = "leaked"
	// Unanswered: a message got no answer, or the client gave up waiting.
	Unanswered Rule = "unanswered"
	// FailedButDelivered: its sender was told that nothing would be delivered.
	FailedButDelivered Rule = "failed_but_delivered"
	// Ended: a client stopped for good, or ends the run without a connection.
	Ended Rule = "ended"
)

// Rules are all of them.
func Rules() []Rule {
	return []Rule{Lost, Repeated, Reordered, Leaked, Unanswered, FailedButDelivered, Ended}
}

// Violation is one broken promise.
type Violation struct {
	Rule   Rule
	At     time.Duration
	Device Device
	Msg    string
	Detail string
}

func (v Violation) String() string {
	return fmt.Sprintf("%s at %.3fs: %s %q: %s", v.Rule, v.At.Seconds(), v.Device, v.Msg, v.Detail)
}

// Report is what Check found.
type Report struct {
	Violations []Violation
	// Messages by outcome; Sent includes Partial ones, whose unserved recipients
	// are not counted as lost, because the sender was told.
	Messages, Sent, Failed, Partial, Abandoned int
	Deliveries                                 int
	// V1Ambiguous: repeats at clients that cannot acknowledge, or were started anew
	// since, of what a gateway had written to them and not confirmed when it was
	// killed.
	V1Ambiguous int
	// V1Frozen: the same, of a gateway that was stopped, or cut off, and went on: for the
	// cluster it was as good as dead.
	V1Frozen int
	// Resequenced: messages that arrived the other way round, at least one of
	// which its client had to write again, on another connection perhaps.
	Resequenced int
	// Connects, and the longest times without a connection and for an answer.
	Connects          int
	LongestGap        time.Duration
	LongestAnswer     time.Duration
	FailedReasons     map[string]int
	LongestUndelivery time.Duration // from Send to the last device's Deliver
}

// Check judges a history that ends with every fault healed, every device
// connected, and enough quiet for all that is under way to arrive.
func Check(events []Event) Report {
	c := &checker{
		report:   Report{FailedReasons: map[string]int{}},
		devices:  map[Device]*device{},
		users:    map[user][]*device{},
		messages: map[string]*message{},
	}
	for _, e := range events {
		c.event(e)
	}
	for _, m := range c.order {
		c.judge(m)
	}
	for _, d := range c.joined {
		c.sequence(d)
		if d.conn == 0 && !d.gone {
			c.broken(Ended, d.lastSeen, d.id, "", "not connected at the end")
		}
	}
	slices.SortStableFunc(c.report.Violations, func(a, b Violation) int { return int(a.At - b.At) })
	return c.report
}

type user struct{ tenant, name string }

// device is what became of one, connection by connection.
type device struct {
	id       Device
	v1, gone bool
	conn     int           // the present connection; 0: none
	conns    []connection  // all, in order
	first    time.Duration // of its first connect; < 0: none yet
	lost     time.Duration // of the last disconnect
	lastSeen time.Duration
	seen     []sight
}

type connection struct {
	places     []place       // all, in order
	start      int           // of the program that made it
	began, end time.Duration // end < 0: still there
	code       int
}

// place is where a connection was from then on.
type place struct {
	node string
	at   time.Duration
}

// was tells whether the connection may have been there at that moment, or had been within
// the time in which a gateway may not have told yet what it has written.
func (c *connection) was(node string, at time.Duration) bool {
	for i, p := range c.places {
		if p.node == node && p.at <= at && (i+1 == len(c.places) || c.places[i+1].at > at-unconfirmed) {
			return true
		}
	}
	return false
}

// sight is one delivery.
type sight struct {
	msg  *message
	at   time.Duration
	conn int
}

type message struct {
	key        string
	from       *device
	sent       time.Duration
	place      int // among all messages
	conn       int // at Send
	recipients map[string]bool

	status   string
	answered time.Duration
	partial  bool
	once     bool // written once, on conn
	saw      map[*device]int
	due      []*device
}

type checker struct {
	report   Report
	devices  map[Device]*device
	joined   []*device
	users    map[user][]*device
	messages map[string]*message
	order    []*message
	kills    []Event
}

func (c *checker) broken(r Rule, at time.Duration, d Device, msg, detail string, args ...any) {
	c.report.Violations = append(c.report.Violations, Violation{r, at, d, msg, fmt.Sprintf(detail, args...)})
}

func (c *checker) event(e Event) {
	if e.Kind == Fault || e.Kind == Heal {
		if e.Kind == Fault && (e.Reason == Killed || e.Reason == Frozen || e.Reason == CutOff) {
			c.kills = append(c.kills, e)
		}
		return
	}
	d := c.device(e)
	d.lastSeen = e.At
	switch e.Kind {
	case Connect:
		c.report.Connects++
		d.conn = e.Conn
		d.conns = append(d.conns, connection{places: []place{{e.Node, e.At}}, start: e.Start, began: e.At, end: -1})
		if d.first < 0 {
			d.first = e.At
		} else {
			c.report.LongestGap = max(c.report.LongestGap, e.At-d.lost)
		}
	case Move:
		if n := len(d.conns); n > 0 {
			d.conns[n-1].places = append(d.conns[n-1].places, place{e.Node, e.At})
		}
	case Disconnect:
		d.conn, d.lost = 0, e.At
		if n := len(d.conns); n > 0 {
			d.conns[n-1].end, d.conns[n-1].code = e.At, e.Code
		}
	case Gone:
		d.conn, d.gone = 0, true
		c.broken(Ended, e.At, d.id, "", "stopped for good: %s", e.Reason)
	case Send:
		c.send(d, e)
	case Answer:
		c.answer(d, e)
	case Deliver:
		c.deliver(d, e)
	}
}

func (c *checker) device(e Event) *device {
	d := c.devices[e.Device]
	if d == nil {
		d = &device{id: e.Device, first: -1}
		c.devices[e.Device] = d
		c.joined = append(c.joined, d)
		u := user{e.Device.Tenant, e.Device.User}
		c.users[u] = append(c.users[u], d)
	}
	d.v1 = d.v1 || e.V1
	return d
}

func (c *checker) send(d *device, e Event) {
	m := &message{
		key: e.Msg, from: d, sent: e.At, place: len(c.order), conn: e.Conn,
		recipients: map[string]bool{}, saw: map[*device]int{}, answered: -1,
	}
	for _, r := range e.Recipients {
		m.recipients[r] = true
		for _, to := range c.users[user{d.id.Tenant, r}] {
			if to.first >= 0 {
				m.due = append(m.due, to)
			}
		}
	}
	c.messages[e.Msg] = m
	c.order = append(c.order, m)
	c.report.Messages++
}

func (c *checker) answer(d *device, e Event) {
	m := c.messages[e.Msg]
	if m == nil || m.from != d {
		c.broken(Leaked, e.At, d.id, e.Msg, "answer to a message that this device did not send")
		return
	}
	// A client that wrote it twice may hear FAILED of the first and SENT of the
	// second, which was processed anew: then it was sent.
	if m.status == Sent || m.status == Failed && e.Status == Abandoned {
		return
	}
	m.status, m.answered, m.partial = e.Status, e.At, e.Partial
	m.once = m.conn != 0 && m.conn == e.Conn && e.Attempts <= 1
	if e.Status == Failed {
		c.report.FailedReasons[e.Reason]++
	}
}

func (c *checker) deliver(d *device, e Event) {
	c.report.Deliveries++
	m := c.messages[e.Msg]
	switch {
	case m == nil:
		c.broken(Leaked, e.At, d.id, e.Msg, "nobody sent this")
		return
	case m.from.id.Tenant != d.id.Tenant:
		c.broken(Leaked, e.At, d.id, e.Msg, "sent within tenant %s", m.from.id.Tenant)
		return
	case !m.recipients[d.id.User]:
		c.broken(Leaked, e.At, d.id, e.Msg, "it was for others")
		return
	}
	s := sight{m, e.At, len(d.conns)}
	if m.saw[d]++; m.saw[d] > 1 {
		c.repeat(d, s)
		return
	}
	d.seen = append(d.seen, s)
	c.report.LongestUndelivery = max(c.report.LongestUndelivery, e.At-m.sent)
}

// unconfirmed is how long a gateway may take to tell that it has written a
// message. What a client saw longer ago must not come again, whatever happened.
const unconfirmed = time.Second

// repeat: the first copy's gateway may have been killed, or stopped or cut off for so long
// that it counted as dead, after it had written to a client, and before it had said
// so. Only a client that has ways to tell it from new, and is still the same, has to
// know better.
func (c *checker) repeat(d *device, s sight) {
	i := slices.IndexFunc(d.seen, func(o sight) bool { return o.msg == s.msg })
	first := d.seen[i]
	if first.conn > 0 && first.conn < s.conn && (d.v1 || d.conns[first.conn-1].start != d.conns[s.conn-1].start) {
		on := d.conns[first.conn-1]
		for _, k := range c.kills {
			if !on.was(k.Node, first.at) || k.At > s.at || k.At < first.at-unconfirmed || k.At > first.at+unconfirmed {
				continue
			}
			if k.Reason == Killed {
				c.report.V1Ambiguous++
			} else {
				c.report.V1Frozen++
			}
			return
		}
	}
	where := "on one connection"
	if first.conn > 0 && first.conn != s.conn {
		on := d.conns[first.conn-1]
		where = fmt.Sprintf("on connections %d (to %s, ended with %d) and %d", first.conn, on.places[len(on.places)-1].node, on.code, s.conn)
	}
	c.broken(Repeated, s.at, d.id, s.msg.key, "seen at %.3fs already, %s", first.at.Seconds(), where)
}

func (c *checker) judge(m *message) {
	if m.answered >= 0 {
		c.report.LongestAnswer = max(c.report.LongestAnswer, m.answered-m.sent)
	}
	switch m.status {
	case Failed:
		c.report.Failed++
		for _, d := range c.joined {
			if m.saw[d] > 0 {
				c.broken(FailedButDelivered, m.sent, d.id, m.key, "answered FAILED to %s", m.from.id)
			}
		}
	case Sent:
		c.report.Sent++
		if m.partial {
			c.report.Partial++
			return
		}
		for _, d := range m.due {
			if m.saw[d] == 0 {
				c.broken(Lost, m.sent, d.id, m.key, "sent by %s, answered SENT at %.3fs", m.from.id, m.answered.Seconds())
			}
		}
		c.nobodyYet(m)
	case Abandoned:
		c.report.Abandoned++
	default:
		c.broken(Unanswered, m.sent, m.from.id, m.key, "no answer (%s)", m.status)
	}
}

// nobodyYet: what was sent to a user who had no device waits for the first one.
func (c *checker) nobodyYet(m *message) {
	for r := range m.recipients {
		var known, saw bool
		devices := c.users[user{m.from.id.Tenant, r}]
		for _, d := range devices {
			known = known || d.first >= 0 && d.first <= m.sent
			saw = saw || m.saw[d] > 0
		}
		if !known && !saw && len(devices) > 0 {
			c.broken(Lost, m.sent, devices[0].id, m.key, "sent before the user's first connect, reached none of %d devices", len(devices))
		}
	}
}

// sequence checks what a device saw of each sender's connection: of two messages
// that were both written once, on the same connection, the first comes first.
func (c *checker) sequence(d *device) {
	type lane struct {
		from *device
		conn int
	}
	newest := map[lane]*message{}      // by connection, of those written once
	anything := map[*device]*message{} // by sender
	for _, s := range d.seen {
		m := s.msg
		if p := anything[m.from]; p == nil || p.place < m.place {
			anything[m.from] = m
		} else if !m.once || !p.once {
			c.report.Resequenced++
		}
		if !m.once {
			continue
		}
		l := lane{m.from, m.conn}
		if p := newest[l]; p == nil || p.place < m.place {
			newest[l] = m
		} else {
			c.broken(Reordered, s.at, d.id, m.key, "came after %q, which %s sent later on the same connection", p.key, m.from.id)
		}
	}
}
