package session

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// published is one call of Publish.
type published struct {
	message *messagev1.MessageRequest
	done    func([]byte)
}

// fakeUplink keeps what it is given; finals are taken at once unless held.
type fakeUplink struct {
	mu        sync.Mutex
	published []published
	finals    []*routerv1.ClosedSession
	taken     []func()
	hold      bool // keep the done of finals
	silent    bool // do not answer messages
}

func (u *fakeUplink) Publish(_ *Session, message []byte, _ string, done func([]byte)) {
	m := &messagev1.MessageRequest{}
	if err := proto.Unmarshal(message, m); err != nil {
		panic(err)
	}
	u.mu.Lock()
	u.published = append(u.published, published{m, done})
	silent := u.silent
	u.mu.Unlock()
	if !silent {
		done(ackOf(m.MsgId))
	}
}

func ackOf(id string) []byte {
	b, _ := proto.Marshal(&messagev1.MessageAck{MsgId: id})
	return b
}

func (u *fakeUplink) Release(context.Context, []*Session) error { return nil }

func (u *fakeUplink) Final(c *routerv1.ClosedSession, done func()) {
	u.mu.Lock()
	u.finals = append(u.finals, c)
	if u.hold {
		u.taken = append(u.taken, done)
		u.mu.Unlock()
		return
	}
	u.mu.Unlock()
	done()
}

func (u *fakeUplink) list() []published {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.published)
}

func (u *fakeUplink) ended() []*routerv1.ClosedSession {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.finals)
}

func (u *fakeUplink) final(t testing.TB) *routerv1.ClosedSession {
	t.Helper()
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.finals) != 1 {
		t.Fatalf("%d finals, want 1", len(u.finals))
	}
	return u.finals[0]
}

// fakeOwner sweeps when it is told to.
type fakeOwner struct {
	mu      sync.Mutex
	watched []*Session
	gone    map[*Session]int
}

func (o *fakeOwner) Opened(*Session, Identity) {}

func (o *fakeOwner) Watch(s *Session) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.watched = append(o.watched, s)
}

func (o *fakeOwner) Gone(s *Session, _ Identity, _ bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gone == nil {
		o.gone = map[*Session]int{}
	}
	o.gone[s]++
}

func (o *fakeOwner) isGone(s *Session) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.gone[s] == 1
}

func (o *fakeOwner) sweep() {
	o.mu.Lock()
	list := o.watched
	o.watched = nil
	o.mu.Unlock()
	for _, s := range list {
		if s.Sweep() {
			o.Watch(s)
		}
	}
}

// world is a host with its surroundings.
type world struct {
	t     testing.TB
	up    *fakeUplink
	owner *fakeOwner
	host  *Host
	ids   uint64
}

func newWorld(t testing.TB, change ...func(*Config)) *world {
	tel, err := telemetry.New(context.Background(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
	w := &world{t: t, up: &fakeUplink{}, owner: &fakeOwner{}}
	cfg := Config{NodeID: "gw-1", Uplink: w.up, Telemetry: tel}
	for _, f := range change {
		f(&cfg)
	}
	w.host = NewHost(cfg, w.owner)
	return w
}

// router is a fake router's stream.
type router struct {
	*Router
	wake chan struct{}
	next uint64
	// through is what was confirmed last, per sequence.
	through map[sequence]uint64
}

func (w *world) router(id string) *router {
	r := &router{Router: w.host.Router(RouterRef{ID: id, Incarnation: 1}), wake: make(chan struct{}, 1), through: map[sequence]uint64{}}
	r.Attach(r.wake)
	return r
}

// read takes the confirms that there are.
func (r *router) read() {
	for _, c := range r.Take(r.wake, 1<<20) {
		r.through[sequence{c.SessionId, c.ThroughId >= backlogIDs}] = c.ThroughId
	}
}

func (r *router) confirmed(s *Session) uint64 {
	r.read()
	return r.through[sequence{s.id, false}]
}

func (r *router) confirmedBacklog(s *Session) uint64 {
	r.read()
	return r.through[sequence{s.id, true}]
}

// delivery makes the next delivery of the router, of a message with the id.
func (r *router) delivery(id string) *Delivery {
	r.next++
	return NewDelivery(r.Router, &gatewayv1.Delivery{Id: r.next, Message: message(id), Key: keyOf(id)})
}

func message(id string) []byte {
	b, _ := proto.Marshal(&messagev1.MessageRequest{TenantId: "t", UserId: "bob", DeviceId: "d", MsgId: id, ToUserId: "ann", MsgBody: []byte("hello")})
	return b
}

func keyOf(id string) []byte { return fmt.Appendf(nil, "%-16.16s", id) }

func idOf(t testing.TB, b []byte) string {
	t.Helper()
	m := &messagev1.MessageRequest{}
	if err := proto.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
	return m.MsgId
}

func idsOf(t testing.TB, list []*gatewayv1.Undelivered) (ids []string) {
	t.Helper()
	for _, u := range list {
		ids = append(ids, idOf(t, u.Message))
	}
	return ids
}

// client is the other end of a socket. It reads frame by frame, as far as it is
// allowed to.
type client struct {
	t      testing.TB
	conn   net.Conn
	tokens chan struct{}

	mu     sync.Mutex
	frames []*messagev1.ServerFrame
	pings  int
	pongs  int
	code   int // of the server's close frame
	reason string
	err    error
	echo   bool // answer a close frame
	over   chan struct{}
}

const plenty = 1 << 16

// connect makes a session on a pipe and its client, which reads at once.
func (w *world) connect(version uint32) (*Session, *client) {
	s, c := w.connectPaused(version)
	c.allow(plenty)
	return s, c
}

func (w *world) connectPaused(version uint32) (*Session, *client) {
	server, peer := net.Pipe()
	return w.session(server, peer, version)
}

func (w *world) session(server, peer net.Conn, version uint32) (*Session, *client) {
	s, c, end := w.pair(server, peer, version)
	w.t.Cleanup(end)
	return s, c
}

// pair makes a session and its client, whose goroutine end ends.
func (w *world) pair(server, peer net.Conn, version uint32) (s *Session, c *client, end func()) {
	w.ids++
	s = w.host.NewSession(w.ids, ws.NewConn(server, nil), Params{Tenant: "t", Device: "phone", Version: version, RemoteAddr: "test"})
	c = &client{t: w.t, conn: peer, tokens: make(chan struct{}, plenty+1000), echo: true, over: make(chan struct{})}
	go c.read()
	return s, c, func() {
		_ = peer.Close()
		_ = server.Close()
		close(c.tokens)
		<-c.over
	}
}

func (w *world) open(s *Session) {
	s.Open(Admission{Identity: Identity{"t", "ann", "phone"}, Epoch: 7, TraceID: "trace"})
}

func (c *client) allow(frames int) {
	for range frames {
		c.tokens <- struct{}{}
	}
}

func (c *client) read() {
	defer close(c.over)
	for range c.tokens {
		op, payload, err := readFrame(c.conn)
		c.mu.Lock()
		if err != nil {
			c.err = err
			c.mu.Unlock()
			return
		}
		switch op {
		case ws.Binary:
			f := &messagev1.ServerFrame{}
			if err := proto.Unmarshal(payload, f); err != nil {
				c.t.Errorf("server frame %x: %v", payload, err)
			}
			c.frames = append(c.frames, f)
		case ws.Ping:
			c.pings++
		case ws.Pong:
			c.pongs++
		case ws.Close:
			c.code, c.reason, _ = ws.ParseClose(payload)
			if c.echo {
				c.mu.Unlock()
				c.write(ws.Close, payload)
				c.mu.Lock()
			}
		}
		c.mu.Unlock()
	}
}

func readFrame(r io.Reader) (ws.Op, []byte, error) {
	var h [10]byte
	if _, err := io.ReadFull(r, h[:2]); err != nil {
		return 0, nil, err
	}
	size := int(h[1])
	var long []byte
	switch h[1] {
	case 126:
		long = h[2:4]
	case 127:
		long = h[2:10]
	}
	if _, err := io.ReadFull(r, long); err != nil {
		return 0, nil, err
	}
	switch len(long) {
	case 2:
		size = int(binary.BigEndian.Uint16(long))
	case 8:
		size = int(binary.BigEndian.Uint64(long))
	}
	b := make([]byte, size)
	_, err := io.ReadFull(r, b)
	return ws.Op(h[0] & 0x0f), b, err
}

// write sends a frame masked with zeros; an error is the test's own business.
func (c *client) write(op ws.Op, payload []byte) {
	f := ws.AppendHeader(nil, op, len(payload))
	f[1] |= 0x80
	f = append(f, 0, 0, 0, 0)
	_, _ = c.conn.Write(append(f, payload...))
}

func (c *client) send(f *messagev1.ClientFrame) {
	b, err := proto.Marshal(f)
	if err != nil {
		c.t.Fatal(err)
	}
	c.write(ws.Binary, b)
}

func (c *client) message(m *messagev1.MessageRequest) {
	c.send(&messagev1.ClientFrame{Payload: &messagev1.ClientFrame_Message{Message: m}})
}

func (c *client) ack(seq uint64) {
	c.send(&messagev1.ClientFrame{Payload: &messagev1.ClientFrame_DeliveryAck{DeliveryAck: &messagev1.DeliveryAck{Seq: seq}}})
}

// got returns what has come so far.
func (c *client) got() []*messagev1.ServerFrame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.frames)
}

// delivered are the ids of the messages that have come.
func (c *client) delivered() (ids []string) {
	for _, f := range c.got() {
		if d := f.GetDelivery(); d != nil {
			ids = append(ids, d.GetMessage().GetMsgId())
		}
	}
	return ids
}

func (c *client) closedWith() (int, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.code, c.reason
}

func (c *client) errors() (codes []int32) {
	for _, f := range c.got() {
		if e := f.GetError(); e != nil {
			codes = append(codes, e.Code)
		}
	}
	return codes
}

func (c *client) setEcho(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.echo = on
}

// inTime runs the test with fake time.
func inTime(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// pass lets time go by, swept like a registry does.
func (w *world) pass(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(25 * time.Millisecond) // fake time
		synctest.Wait()
		w.owner.sweep()
		synctest.Wait()
	}
}
