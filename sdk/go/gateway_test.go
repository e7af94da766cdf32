package mics

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipeListener is a network of net.Pipes: it lives inside a synctest bubble.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// dialed is one handshake as the fake gateway saw it.
type dialed struct {
	at    time.Time
	host  string
	query map[string]string
	offer string // subprotocols
}

// gateway is a scripted gateway: step n serves the n-th handshake, the last
// step all further ones.
type gateway struct {
	t     *testing.T
	ln    *pipeListener
	srv   *http.Server
	steps []step

	handlers sync.WaitGroup

	mu    sync.Mutex
	dials []dialed
}

// step serves one handshake.
type step func(g *gateway, w http.ResponseWriter, r *http.Request)

func newGateway(t *testing.T, steps ...step) *gateway {
	t.Helper()
	g := &gateway{t: t, ln: newPipeListener(), steps: steps}
	g.srv = &http.Server{Handler: http.HandlerFunc(g.serve)}
	var served sync.WaitGroup
	served.Go(func() { _ = g.srv.Serve(g.ln) })
	t.Cleanup(func() {
		_ = g.srv.Close()
		served.Wait()
		g.handlers.Wait() // the server does not know upgraded connections
	})
	return g
}

func (g *gateway) serve(w http.ResponseWriter, r *http.Request) {
	g.handlers.Add(1)
	defer g.handlers.Done()
	q := r.URL.Query()
	g.mu.Lock()
	n := len(g.dials)
	g.dials = append(g.dials, dialed{at: time.Now(), host: r.Host, offer: r.Header.Get("Sec-Websocket-Protocol"), query: map[string]string{
		"tenantId": q.Get("tenantId"), "deviceId": q.Get("deviceId"), "token": q.Get("token"),
		"v": q.Get("v"), "resume": q.Get("resume"), "lastSeq": q.Get("lastSeq"),
	}})
	g.mu.Unlock()
	g.steps[min(n, len(g.steps)-1)](g, w, r)
}

func (g *gateway) seen() []dialed {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]dialed(nil), g.dials...)
}

// options are those of a client of g, for the test to adapt.
func (g *gateway) options() Options {
	return Options{
		URLs: []string{"ws://gw-a"}, Tenant: "demo", Device: "d1",
		Token:      func(context.Context) (string, error) { return "s3cret-token", nil },
		HTTPClient: &http.Client{Transport: &http.Transport{DialContext: g.ln.dial, DisableKeepAlives: true}},
	}
}

// peer is the gateway's end of one connection.
type peer struct {
	t  *testing.T
	ws *websocket.Conn
}

// upgraded makes a step of what happens after the upgrade. The socket is gone
// when f returns.
func upgraded(f func(p *peer)) step {
	return func(g *gateway, w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			g.t.Errorf("accept: %v", err)
			return
		}
		defer func() { _ = ws.CloseNow() }()
		f(&peer{t: g.t, ws: ws})
	}
}

// connected is upgraded plus a ConnectAck with this heartbeat timeout.
func connected(heartbeatSeconds int32, f func(p *peer)) step {
	return upgraded(func(p *peer) {
		_ = p.send(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_ConnectAck{ConnectAck: &messagev1.ConnectAck{
			Code: 1000, TenantId: "demo", UserId: "ann", DeviceId: "d1", NodeId: "gw-test",
			HeartbeatTimeoutSeconds: heartbeatSeconds,
		}}})
		f(p)
	})
}

// refusedWith refuses the token right after the upgrade.
func refusedWith(reason string) step {
	return upgraded(func(p *peer) { p.close(4001, reason) })
}

// status answers the handshake with plain HTTP.
func status(code int, header ...string) step {
	return func(_ *gateway, w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

func (p *peer) close(code int, reason string) {
	if err := p.ws.Close(websocket.StatusCode(code), reason); err != nil {
		p.t.Logf("close %d: %v", code, err)
	}
}

func (p *peer) send(f *messagev1.ServerFrame) error {
	b, err := proto.Marshal(f)
	if err != nil {
		p.t.Errorf("marshal: %v", err)
	}
	return p.ws.Write(context.Background(), websocket.MessageBinary, b)
}

func (p *peer) deliver(n int) error {
	return p.send(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Delivery{Delivery: &messagev1.MessageDelivery{
		Message: &messagev1.MessageRequest{MsgId: strconv.Itoa(n), UserId: "bob", DeviceId: "d9", ToUserId: "ann",
			MsgBody: []byte("body " + strconv.Itoa(n)), TimestampMs: 1000},
	}}})
}

func (p *peer) ack(a *messagev1.MessageAck) error {
	return p.send(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Ack{Ack: a}})
}

// read returns the client's next frame, nil when the connection is over.
func (p *peer) read() *messagev1.ClientFrame {
	_, b, err := p.ws.Read(context.Background())
	if err != nil {
		return nil
	}
	f := &messagev1.ClientFrame{}
	if err := proto.Unmarshal(b, f); err != nil {
		p.t.Errorf("client frame: %v", err)
	}
	return f
}

// message returns the client's next message, answering heartbeats on the way;
// nil when the connection is over.
func (p *peer) message() *messagev1.MessageRequest {
	for {
		f := p.read()
		switch {
		case f == nil:
			return nil
		case f.GetMessage() != nil:
			return f.GetMessage()
		case f.GetHeartbeatPing() != nil:
			_ = p.send(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_HeartbeatPong{
				HeartbeatPong: &messagev1.HeartbeatPong{TimestampMs: f.GetHeartbeatPing().GetTimestampMs()},
			}})
		}
	}
}

// ackAll answers everything with SENT until the connection is over.
func (p *peer) ackAll() {
	for m := p.message(); m != nil; m = p.message() {
		if p.ack(&messagev1.MessageAck{MsgId: m.GetMsgId(), TimestampMs: 2000}) != nil {
			return
		}
	}
}

// bubble runs f with a fake clock; everything that f starts must have ended
// when it returns.
func bubble(t *testing.T, f func(t *testing.T)) { synctest.Test(t, f) }

// start makes a client, and closes it when the test ends.
func start(t *testing.T, o Options) *Client {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return c
}

func connect(t *testing.T, o Options) *Client {
	t.Helper()
	c := start(t, o)
	if err := c.Connect(t.Context()); err != nil {
		t.Fatalf("Connect: %v", err)
	}
	return c
}
