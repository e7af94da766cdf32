package session

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/gateway/internal/wstest"
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

func (u *fakeUplink) Publish(_ *Session, _ string, message []byte, _ string, done func([]byte)) {
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
	return NewDelivery(r.Router, &gatewayv1.Delivery{Id: r.next, Message: message(id), Key: keyOf(id), TakenAt: takenAt(r.next)})
}

// takenAt is when the cluster took a router's nth message.
func takenAt(n uint64) int64 { return int64(1000 + n) }

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

// connect makes a session on a pipe and its client, which reads at once.
func (w *world) connect(version uint32) (*Session, *wstest.Client) {
	s, c := w.connectPaused(version)
	c.Allow(wstest.Plenty)
	return s, c
}

func (w *world) connectPaused(version uint32) (*Session, *wstest.Client) {
	server, peer := net.Pipe()
	return w.session(server, peer, version)
}

func (w *world) session(server, peer net.Conn, version uint32) (*Session, *wstest.Client) {
	s, c, end := w.pair(server, peer, version)
	w.t.Cleanup(end)
	return s, c
}

// pair makes a session and its client, whose goroutine end ends.
func (w *world) pair(server, peer net.Conn, version uint32) (s *Session, c *wstest.Client, end func()) {
	w.ids++
	s = w.host.NewSession(w.ids, ws.NewConn(server, nil), Params{Tenant: "t", Device: "phone", Version: version, RemoteAddr: "test"})
	c = wstest.New(w.t, peer)
	return s, c, func() {
		c.End()
		_ = server.Close()
	}
}

func (w *world) open(s *Session) {
	s.Open(Admission{Identity: Identity{"t", "ann", "phone"}, Epoch: 7, TraceID: "trace"})
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
