package mics

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// cluster is a model of what V2 gateways and routers do for one device: one
// session at a time, whose window and tokens survive its socket.
type cluster struct {
	t *testing.T

	mu       sync.Mutex
	epoch    int // of the present session and of its tokens
	alive    bool
	window   []entry // unacknowledged, in order
	next     uint64  // the seq to give
	conn     *wire   // nil: suspended
	accepted []string

	// What befalls the next handshakes, first one first.
	fate []fate
}

type entry struct {
	seq uint64
	n   int
}

type fate int

const (
	fine  fate = iota
	busy       // 503
	muted      // admitted, but the ConnectAck is lost
)

// wire is one socket: frames go out in order, without the sender waiting.
type wire struct {
	p      *peer
	epoch  int
	sent   uint64 // guarded by cluster.mu: highest seq that may be acknowledged
	frames chan func(p *peer) error
	ctx    context.Context
	cut    context.CancelFunc // breaks it
}

func (c *cluster) frame(me *wire, e entry) func(*peer) error {
	return func(p *peer) error {
		c.mu.Lock()
		me.sent = e.seq
		c.mu.Unlock()
		return p.deliverSeq(e.n, e.seq)
	}
}

// serve is a step for all handshakes.
func (c *cluster) serve(g *gateway, w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	f := fine
	if len(c.fate) > 0 {
		f, c.fate = c.fate[0], c.fate[1:]
	}
	c.mu.Unlock()
	if f == busy {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	ws, err := websocket.Accept(w, r, nil)
	if err != nil {
		g.t.Errorf("accept: %v", err)
		return
	}
	defer func() { _ = ws.CloseNow() }()
	p := &peer{t: c.t, ws: ws}
	me, refusal := c.admit(p, r)
	if refusal != "" {
		p.close(4001, refusal)
		return
	}
	if f == muted {
		me.cut()
		c.drop(me)
		return
	}
	defer context.AfterFunc(me.ctx, func() { _ = ws.CloseNow() })()
	var writer sync.WaitGroup
	writer.Go(func() {
		for {
			select {
			case f := <-me.frames:
				if f(p) != nil {
					me.cut()
				}
			case <-me.ctx.Done():
				return
			}
		}
	})
	for f := p.read(); f != nil; f = p.read() {
		c.handle(me, f)
	}
	me.cut()
	writer.Wait()
	c.drop(me)
}

// admit decides about a handshake; a refusal changes nothing.
func (c *cluster) admit(p *peer, r *http.Request) (*wire, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := r.URL.Query()
	resumed, last := false, uint64(0)
	if token := q.Get("resume"); token != "" {
		if token[1:] != strconv.Itoa(c.epoch) {
			return nil, "stale resume token"
		}
		last, _ = strconv.ParseUint(q.Get("lastSeq"), 10, 64)
		if resumed = c.alive; resumed {
			if last >= c.next {
				c.t.Errorf("lastSeq %d from the future, next is %d", last, c.next)
			}
			c.confirm(last)
		}
	}
	if old := c.conn; old != nil {
		old.frames <- func(p *peer) error {
			go p.close(4201, "replaced") // ends with the socket
			return nil
		}
	}
	if !resumed {
		for i := range c.window {
			c.window[i].seq = uint64(i) + 1
		}
		c.next = uint64(len(c.window)) + 1
	}
	c.epoch++
	c.alive = true
	me := &wire{p: p, epoch: c.epoch, frames: make(chan func(*peer) error, 10000)}
	if resumed {
		me.sent = last
	}
	me.ctx, me.cut = context.WithCancel(context.Background())
	me.frames <- func(p *peer) error {
		return p.connAck(&messagev1.ConnectAck{Version: 2, Resumed: resumed, ResumeToken: fmt.Sprint("r", me.epoch), HeartbeatTimeoutSeconds: 30})
	}
	for _, e := range c.window {
		me.frames <- c.frame(me, e)
	}
	c.conn = me
	return me, ""
}

func (c *cluster) confirm(seq uint64) {
	c.window = slices.DeleteFunc(c.window, func(e entry) bool { return e.seq <= seq })
}

func (c *cluster) handle(me *wire, f *messagev1.ClientFrame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch p := f.GetPayload().(type) {
	case *messagev1.ClientFrame_DeliveryAck:
		if seq := p.DeliveryAck.GetSeq(); seq > me.sent {
			c.t.Errorf("ack of %d, of which %d were sent", seq, me.sent)
		} else if c.conn == me {
			c.confirm(seq)
		}
	case *messagev1.ClientFrame_HeartbeatPing:
		me.frames <- func(p *peer) error {
			return p.send(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_HeartbeatPong{HeartbeatPong: &messagev1.HeartbeatPong{}}})
		}
	case *messagev1.ClientFrame_Message:
		if c.conn != me {
			return // frozen: the outcome is lost
		}
		a := &messagev1.MessageAck{MsgId: p.Message.GetMsgId()}
		if body := string(p.Message.GetMsgBody()); slices.Contains(c.accepted, body) {
			a.Reason = "duplicate"
		} else {
			c.accepted = append(c.accepted, body)
		}
		me.frames <- func(p *peer) error { return p.ack(a) }
	}
}

// drop leaves the session without its socket, if that is still its.
func (c *cluster) drop(me *wire) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == me {
		c.conn = nil
	}
}

func (c *cluster) deliver(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := entry{c.next, n}
	c.next++
	c.window = append(c.window, e)
	if c.conn != nil {
		c.conn.frames <- c.frame(c.conn, e)
	}
}

func (c *cluster) migrate(delay, deadline time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		m := &messagev1.Migrate{Reason: "draining", DelayMs: delay.Milliseconds(), DeadlineMs: deadline.Milliseconds(),
			ResumeToken: fmt.Sprint("m", c.epoch)}
		c.conn.frames <- func(p *peer) error { return p.migrate(m) }
	}
}

// breakSocket cuts the socket; with lose, the gateway has died and its session
// with it.
func (c *cluster) breakSocket(lose bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.cut()
		c.conn = nil
	}
	if lose {
		c.alive = false
	}
}

func (p *peer) connAck(a *messagev1.ConnectAck) error {
	a.Code, a.UserId, a.NodeId = 1000, "ann", "gw-test"
	return p.send(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_ConnectAck{ConnectAck: a}})
}

func (p *peer) deliverSeq(n int, seq uint64) error {
	return p.send(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Delivery{Delivery: &messagev1.MessageDelivery{
		Seq: seq, Message: &messagev1.MessageRequest{MsgId: strconv.Itoa(n), UserId: "bob", ToUserId: "ann"},
	}}})
}

func (p *peer) migrate(m *messagev1.Migrate) error {
	return p.send(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Migrate{Migrate: m}})
}

// TestExactlyOnceInOrder: whatever happens to sockets and gateways, OnDelivery
// sees every message once and in order, and the cluster accepts what is sent
// once and in order.
func TestExactlyOnceInOrder(t *testing.T) {
	var total Stats
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) { exactlyOnce(t, rand.New(rand.NewPCG(seed, 7)), &total) })
		})
	}
	t.Logf("%+v", total)
	if total.Migrations == 0 || total.Resumes == 0 || total.Repeats == 0 || total.Resends == 0 {
		t.Errorf("something never happened: %+v", total)
	}
}

func exactlyOnce(t *testing.T, rnd *rand.Rand, total *Stats) {
	cl := &cluster{t: t, next: 1}
	g := newGateway(t, cl.serve)
	o := g.options()
	o.URLs = []string{"ws://gw-a", "ws://gw-b"}
	o.QueueSize = 1 + rnd.IntN(40)
	var got, want []string // got is OnDelivery's until Close
	slow := time.Duration(rnd.IntN(3)) * time.Millisecond
	o.OnDelivery = func(d *Delivery) {
		time.Sleep(slow)
		got = append(got, d.ID)
	}
	c := connect(t, o)
	var pending []*Pending
	for range 60 {
		switch rnd.IntN(9) {
		default:
			for range rnd.IntN(50) {
				cl.deliver(len(want))
				want = append(want, strconv.Itoa(len(want)))
			}
		case 0, 1:
			if len(pending) < 50 {
				p, err := c.Submit(t.Context(), Message{To: "bob", Body: strconv.AppendInt(nil, int64(len(pending)), 10)})
				if err != nil {
					t.Fatal(err)
				}
				pending = append(pending, p)
			}
		case 2, 3:
			cl.migrate(time.Duration(rnd.IntN(500))*time.Millisecond, time.Duration(200+rnd.IntN(5000))*time.Millisecond)
		case 4:
			cl.breakSocket(false)
		case 5:
			cl.breakSocket(true)
		case 6:
			cl.mu.Lock()
			cl.fate = append(cl.fate, fate(rnd.IntN(3)))
			cl.mu.Unlock()
		}
		if rnd.IntN(3) > 0 {
			time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond)
		}
	}
	time.Sleep(10 * time.Minute)
	for i, p := range pending {
		if _, err := p.Wait(); err != nil {
			t.Errorf("message %d: %v", i, err)
		}
	}
	s := c.Stats()
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("delivered %v\nwant 0..%d", got, len(want)-1)
	}
	for i, body := range cl.accepted {
		if body != strconv.Itoa(i) {
			t.Errorf("accepted %s", strings.Join(cl.accepted, " "))
			break
		}
	}
	if len(cl.accepted) != len(pending) || len(cl.window) != 0 {
		t.Errorf("%d of %d accepted, %d deliveries unacknowledged", len(cl.accepted), len(pending), len(cl.window))
	}
	if s.DroppedDeliveries != 0 || s.Deliveries-s.Repeats != uint64(len(want)) {
		t.Errorf("stats %+v", s)
	}
	total.Migrations += s.Migrations
	total.Resumes += s.Resumes
	total.Repeats += s.Repeats
	total.Resends += s.Resends
}
