package session

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/wstest"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"pgregory.net/rapid"
)

// lineage is one device and its sessions on two gateways, one after the other, with
// a home router as CONTRACT section 1.4 and the router's DESIGN want it to be.
type lineage struct {
	t      *rapid.T
	gws    []*world
	homes  []*router // the home's stream to each gateway
	serial string

	sessions []*placed // all, the latest last
	buffer   []string  // kept for the absent device
	accepted []string  // what senders were told is SENT, in order
	client   client
}

// placed is a session where it is, with the home's copies of what it accepted.
type placed struct {
	*Session
	gw      int
	epoch   int
	copies  []copied
	absent  bool // its final has come, or its gateway is gone
	conn    *wstest.Client
	end     func()
	read    int  // frames that the client has looked at
	resumed bool // as its ConnectAck said
	opened  bool // its ConnectAck has been read
	dropped bool // the client gave it up before
	left    bool // the client has sent a close frame
}

type copied struct {
	id  uint64
	msg string
}

// client is what an SDK does.
type client struct {
	token  int // epoch that the latest ConnectAck's token names; 0: none
	from   int // the connection with which its seqs begin
	seen   uint64
	known  map[string]bool
	shown  []string
	repeat int
}

// However connections break and move, the client shows everything once, in order.
func TestALineageShowsEverythingOnceInOrder(t *testing.T) {
	inTime(t, func(t *testing.T) {
		var gws []*world
		for range 2 {
			w := newWorld(t, waits, func(c *Config) { c.QueueFrames = 8 })
			w.up.hold = true
			gws = append(gws, w)
		}
		n, resumed, anew := 0, 0, 0
		rapid.Check(struct{ rapid.TB }{t}, func(rt *rapid.T) {
			n++
			l := &lineage{t: rt, gws: gws, serial: fmt.Sprint(n)}
			l.client.known = map[string]bool{}
			for _, w := range gws {
				l.homes = append(l.homes, w.router("home-"+l.serial))
			}
			defer l.cleanUp()
			l.run()
			for _, p := range l.sessions[1:] {
				if p.resumed {
					resumed++
				} else {
					anew++
				}
			}
		})
		if resumed == 0 || anew == 0 {
			t.Errorf("%d sessions were resumed and %d begun anew: too few", resumed, anew)
		}
	})
}

func (l *lineage) run() {
	l.dial()
	for range rapid.IntRange(1, 50).Draw(l.t, "steps") {
		l.step()
		l.settle()
	}
	l.finish()
}

func (l *lineage) current() *placed { return l.sessions[len(l.sessions)-1] }

func (l *lineage) step() {
	switch rapid.SampledFrom([]string{"send", "send", "send", "send", "ack", "read", "drop", "resume", "resume", "anew", "final", "die", "leave", "drain", "wait"}).Draw(l.t, "step") {
	case "send":
		for range rapid.IntRange(1, 4).Draw(l.t, "messages") {
			l.send()
		}
	case "ack":
		p := l.current()
		if n := rapid.Uint64Range(0, l.client.seen).Draw(l.t, "acked"); p.opened && !p.left && n > 0 {
			p.conn.Ack(n)
		}
	case "read":
		for _, p := range l.sessions {
			p.conn.Allow(rapid.IntRange(0, 5).Draw(l.t, "frames"))
		}
	case "drop":
		_ = l.current().conn.Conn.Close()
	case "resume":
		l.dial()
	case "anew":
		l.client.token = 0
		l.dial()
	case "final":
		l.finals()
	case "die":
		l.die(l.current())
	case "leave":
		if p := l.current(); !p.left { // a second one would wait for the first, on a pipe
			p.left = true
			go p.conn.Close(1001, "")
		}
	case "drain":
		l.current().CloseAnswered(CodeDraining, "server draining", time.Second)
	case "wait":
		time.Sleep(rapid.SampledFrom([]time.Duration{time.Second, defaultHeartbeat, resumeWindow}).Draw(l.t, "for") + time.Second)
		for _, p := range l.sessions {
			p.Tick()
		}
	}
}

// send is one message, which the home brings to the device's session or keeps.
func (l *lineage) send() {
	msg := fmt.Sprintf("%s/%d", l.serial, len(l.accepted))
	l.accepted = append(l.accepted, msg)
	l.bring(msg)
}

// bring delivers to the session that holds the route. What it refuses waits for
// what it had accepted to come back, and goes behind it.
func (l *lineage) bring(msg string) {
	p := l.current()
	if !p.absent && len(l.buffer) == 0 {
		d := l.homes[p.gw].delivery(msg)
		if p.Deliver(d) == accepted {
			l.homes[p.gw].Processed(d.id)
			p.copies = append(p.copies, copied{d.id, msg})
			return
		}
	}
	l.buffer = append(l.buffer, msg)
}

// settle lets everything come to rest.
func (l *lineage) settle() {
	for range 2 {
		synctest.Wait()
		for _, w := range l.gws {
			w.owner.sweep()
		}
	}
	synctest.Wait()
	l.look()
}

// confirms drops the copies that need not be kept.
func (l *lineage) confirms() {
	for _, p := range l.sessions {
		if p.absent {
			continue
		}
		h := l.homes[p.gw]
		h.read()
		p.copies = slices.DeleteFunc(p.copies, func(c copied) bool {
			return h.through[sequence{p.id, c.id >= backlogIDs}] >= c.id
		})
	}
}

// finals has the home take what ended sessions hand back.
func (l *lineage) finals() {
	for _, w := range l.gws {
		w.up.mu.Lock()
		finals, taken := w.up.finals, w.up.taken
		w.up.finals, w.up.taken = nil, nil
		w.up.mu.Unlock()
		for i, f := range finals {
			at := slices.IndexFunc(l.sessions, func(p *placed) bool { return l.gws[p.gw] == w && p.id == f.SessionId })
			if at >= 0 && !l.sessions[at].absent {
				l.final(at, idsOf(w.t, f.Undelivered))
			}
			taken[i]()
		}
	}
}

func (l *lineage) final(at int, msgs []string) {
	l.sessions[at].absent, l.sessions[at].copies = true, nil
	if at == len(l.sessions)-1 {
		l.buffer = append(msgs, l.buffer...)
		return
	}
	for _, msg := range msgs { // the device is back already
		l.bring(msg)
	}
}

// die ends the session's gateway without a word.
func (l *lineage) die(p *placed) {
	if p.absent {
		return
	}
	l.confirms()
	p.absent = true
	if p == l.current() {
		var msgs []string
		for _, c := range p.copies {
			if !slices.Contains(msgs, c.msg) {
				msgs = append(msgs, c.msg)
			}
		}
		l.buffer = append(msgs, l.buffer...)
	}
	p.copies = nil
	p.Abort()
}

// dial opens the next session, on either gateway, as the home admits it.
func (l *lineage) dial() {
	l.finalsOfOthers()
	gw := rapid.IntRange(0, 1).Draw(l.t, "gateway")
	w, h := l.gws[gw], l.homes[gw]
	next := &placed{gw: gw, epoch: len(l.sessions) + 1}
	server, peer := net.Pipe()
	next.Session, next.conn, next.end = w.pair(server, peer, 2)
	if rapid.Bool().Draw(l.t, "reads") {
		next.conn.Allow(wstest.Plenty)
	}
	lastSeq, token := l.client.seen, l.client.token
	var handed Handed
	var prev *placed
	if len(l.sessions) > 0 {
		prev = l.current()
		prev.dropped = !prev.opened
		if token != 0 && token != prev.epoch {
			l.client.token, token = 0, 0 // stale: it comes again without
		}
		if token != 0 && !prev.absent {
			if _, ahead := prev.Resumable(lastSeq); ahead {
				l.t.Fatalf("%d is from the future of an honest client", lastSeq)
			}
		}
	}
	l.sessions = append(l.sessions, next) // the route is bound
	kept := l.buffer
	l.buffer = nil
	for range rapid.IntRange(0, 2).Draw(l.t, "meanwhile") {
		l.send()
	}
	if prev != nil && !prev.absent {
		if rapid.IntRange(0, 9).Draw(l.t, "its gateway dies now") == 0 {
			l.confirms()
			var msgs []string
			for _, c := range prev.copies {
				msgs = append(msgs, c.msg)
			}
			kept = append(msgs, kept...)
			l.die(prev)
		} else if h, ok := prev.Freeze(context.Background(), Takeover{
			Code: CodeReplaced, Reason: "replaced", Resume: token != 0, LastSeq: lastSeq,
		}); ok {
			handed = h
			prev.absent = prev.Stage() != Ending || prev.Outcome().Moved
		}
	}
	a := Admission{
		Identity: Identity{"t", "ann", "phone"}, Epoch: uint64(next.epoch), Home: h.Ref, RecentKeys: handed.Keys, RecentAges: handed.Ages,
		ResumeToken: fmt.Sprint(next.epoch), Resumed: handed.NextSeq > 0, NextSeq: handed.NextSeq, Backlog: handed.Undelivered,
	}
	for _, msg := range kept {
		a.Backlog = append(a.Backlog, &gatewayv1.Undelivered{Message: message(msg), Key: keyOf(msg)})
	}
	for i, u := range a.Backlog {
		u.Id = backlogIDs + next.id<<20 + uint64(i) + 1
		next.copies = slices.Insert(next.copies, i, copied{u.Id, idOf(l.gws[0].t, u.Message)})
	}
	next.Open(a)
	l.settle()
}

// finalsOfOthers has what earlier sessions hand back arrive before the next one:
// what comes later than that is not in order (see Freeze).
func (l *lineage) finalsOfOthers() {
	if len(l.sessions) > 1 && rapid.Bool().Draw(l.t, "finals first") {
		l.finals()
	}
}

// look is the client's reading.
func (l *lineage) look() {
	for i, p := range l.sessions {
		frames := p.conn.Frames()
		for _, f := range frames[p.read:] {
			l.client.frame(l, i, p, f)
		}
		p.read = len(frames)
	}
	l.confirms()
	// A copy may be forgotten only when the client has it.
	for _, msg := range l.accepted {
		if !l.client.known[msg] && !l.somewhere(msg) {
			l.t.Fatalf("%s is nowhere any more", msg)
		}
	}
}

func (l *lineage) somewhere(msg string) bool {
	if slices.Contains(l.buffer, msg) {
		return true
	}
	for _, p := range l.sessions {
		if slices.ContainsFunc(p.copies, func(c copied) bool { return c.msg == msg }) {
			return true
		}
	}
	return false
}

func (c *client) frame(l *lineage, at int, p *placed, f *messagev1.ServerFrame) {
	if p.dropped {
		return
	}
	if ack := f.GetConnectAck(); ack != nil {
		p.opened, p.resumed = true, ack.GetResumed()
		c.token = p.epoch
		if !p.resumed {
			c.from, c.seen = at, 0
		}
		return
	}
	d := f.GetDelivery()
	if d == nil || at < c.from || d.GetSeq() <= c.seen && p.opened {
		if d != nil {
			c.repeat++
		}
		return
	}
	if d.GetSeq() != c.seen+1 {
		l.t.Fatalf("seq %d comes after %d", d.GetSeq(), c.seen)
	}
	c.seen = d.GetSeq()
	if id := d.GetMessage().GetMsgId(); !c.known[id] {
		c.known[id] = true
		c.shown = append(c.shown, id)
	}
	if n := len(c.shown); n > len(l.accepted) || c.shown[n-1] != l.accepted[n-1] {
		l.t.Fatalf("shown %v of %v", c.shown, l.accepted)
	}
}

// finish connects once more and lets everything arrive.
func (l *lineage) finish() {
	l.dial()
	for range 5 { // it may be cut for what had piled up
		for range 3 {
			for _, p := range l.sessions {
				p.conn.Allow(200)
			}
			l.settle()
			l.finals()
		}
		if l.current().Stage() == Open && len(l.buffer) == 0 {
			break
		}
		l.dial()
	}
	p := l.current()
	if !slices.Equal(l.client.shown, l.accepted) {
		l.t.Fatalf("shown %v of %v", l.client.shown, l.accepted)
	}
	if l.client.seen > 0 {
		p.conn.Ack(l.client.seen)
	}
	l.settle()
	if len(p.copies) > 0 || len(p.conn.Errors()) > 0 {
		l.t.Fatalf("copies %v are kept for ever; errors %v", p.copies, p.conn.Errors())
	}
}

func (l *lineage) cleanUp() {
	for _, p := range l.sessions {
		p.Abort()
		p.end()
	}
	synctest.Wait()
	for _, w := range l.gws {
		w.owner.sweep()
		w.up.mu.Lock()
		taken := w.up.taken
		w.up.finals, w.up.taken = nil, nil
		w.up.mu.Unlock()
		for _, f := range taken {
			f()
		}
	}
}
