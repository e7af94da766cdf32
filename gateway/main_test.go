package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/mics-im/mics/gateway/internal/routertest"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// rig is one gateway and fake routers, over real sockets.
type rig struct {
	t       *testing.T
	cluster *routertest.Cluster
	g       *Gateway
	log     *logBuffer
	client  *http.Client // HTTP/1.1, for what is not RPC
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// event returns the first line of an event, nil if there is none.
func (l *logBuffer) event(name string) map[string]any {
	for line := range strings.Lines(l.String()) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && m["msg"] == name {
			return m
		}
	}
	return nil
}

// newRig makes a gateway with routers "r1", "r2", …; it is stopped with the test.
func newRig(t *testing.T, routers int, set func(*Config)) (*rig, []*routertest.Router) {
	t.Helper()
	r := &rig{t: t, cluster: &routertest.Cluster{}, log: &logBuffer{}}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	r.client = &http.Client{Transport: transport}
	var list []*routertest.Router
	for i := range routers {
		list = append(list, r.router(fmt.Sprint("r", i+1), "127.0.0.1:0"))
	}
	r.cluster.Set(list...)
	cfg := defaultConfig()
	cfg.NodeID, cfg.Listen, cfg.InternalListen = "g1", "127.0.0.1:0", "127.0.0.1:0"
	cfg.DrainTimeout = 3 * time.Second
	cfg.RouterEndpoints = []string{"http://127.0.0.1:1"} // nobody
	for _, fake := range list {
		cfg.RouterEndpoints = append(cfg.RouterEndpoints, fake.Info.GetEndpoint())
	}
	cfg.Telemetry.LogWriter, cfg.Telemetry.LogLevel = r.log, "debug"
	if set != nil {
		set(&cfg)
	}
	g, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.g = g
	t.Cleanup(func() { _ = g.Stop(context.Background()) })
	return r, list
}

// start starts the gateway and waits until it is ready.
func (r *rig) start() {
	r.t.Helper()
	if err := r.g.Start(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	testkit.Eventually(r.t, "the gateway is ready", func() bool { return r.ready() == "" })
}

func (r *rig) router(id, addr string) *routertest.Router {
	r.t.Helper()
	var ln net.Listener
	testkit.Eventually(r.t, "router's address is free", func() (ok bool) {
		var err error
		ln, err = net.Listen("tcp", addr)
		return err == nil
	})
	return routertest.New(r.cluster, id, ln, "http://"+ln.Addr().String()).Start(r.t)
}

// ready returns why the gateway is not ready, empty: it is.
func (r *rig) ready() string {
	status, body := r.get("http://" + r.g.InternalAddr() + "/readyz")
	if status == http.StatusOK {
		return ""
	}
	var v struct{ Reasons []string }
	if err := json.Unmarshal([]byte(body), &v); err != nil || status != http.StatusServiceUnavailable {
		r.t.Fatalf("/readyz: %d %q", status, body)
	}
	return strings.Join(v.Reasons, ", ")
}

func (r *rig) get(u string) (status int, body string) {
	res := r.do(u, nil)
	return res.StatusCode, res.body
}

type response struct {
	*http.Response
	body string
}

func (r *rig) do(u string, header http.Header) response {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, u, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	res, err := r.client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode == http.StatusSwitchingProtocols {
		return response{res, ""} // its body is the connection
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return response{res, string(b)}
}

// upgrade are the headers of a handshake.
func upgradeHeader() http.Header {
	return http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"websocket"},
		"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="},
	}
}

// handshake returns the answer of a handshake that is to be refused.
func (r *rig) handshake(header http.Header) response {
	h := upgradeHeader()
	for k, v := range header {
		h[k] = v
	}
	return r.do("http://"+r.g.Addr()+"/ws?"+params("t", "k", "d"), h)
}

func params(tenant, token, device string) string {
	return url.Values{"tenantId": {tenant}, "token": {token}, "deviceId": {device}}.Encode()
}

// peer is a client that does not know MICS.
type peer struct {
	t    *testing.T
	conn *websocket.Conn
}

// dial does the handshake.
func (r *rig) dial(query string, o *websocket.DialOptions) *peer {
	r.t.Helper()
	//nolint:bodyclose // Dial documents that the body need not be closed
	c, res, err := websocket.Dial(r.t.Context(), "ws://"+r.g.Addr()+"/ws?"+query, o)
	if err != nil {
		r.t.Fatalf("dial: %v, %v", err, res)
	}
	c.SetReadLimit(1 << 25)
	r.t.Cleanup(func() { _ = c.CloseNow() })
	return &peer{r.t, c}
}

// connect does what a client does up to the ConnectAck; the user is u-token.
func (r *rig) connect(token, more string) *peer {
	r.t.Helper()
	p := r.dial(params("t", token, "d")+more, nil)
	ack := p.next().GetConnectAck()
	if ack.GetCode() != 1000 || ack.GetUserId() != "u-"+token || ack.GetNodeId() != "g1" || ack.GetHeartbeatTimeoutSeconds() != 30 {
		r.t.Fatalf("ConnectAck %v", ack)
	}
	return p
}

func (p *peer) next() *messagev1.ServerFrame {
	p.t.Helper()
	_, b, err := p.conn.Read(p.t.Context())
	if err != nil {
		p.t.Fatalf("read: %v", err)
	}
	f := &messagev1.ServerFrame{}
	if err := proto.Unmarshal(b, f); err != nil {
		p.t.Fatal(err)
	}
	return f
}

func (p *peer) send(f *messagev1.ClientFrame) {
	p.t.Helper()
	b, err := proto.Marshal(f)
	if err == nil {
		err = p.conn.Write(p.t.Context(), websocket.MessageBinary, b)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) message(id string) {
	p.t.Helper()
	p.send(&messagev1.ClientFrame{Payload: &messagev1.ClientFrame_Message{Message: &messagev1.MessageRequest{
		MsgId: id, ToUserId: "x", MsgBody: []byte("hello"), TenantId: "forged", UserId: "forged",
	}}})
}

// closed reads up to the close frame, which it answers.
func (p *peer) closed(code int, reason string) {
	p.t.Helper()
	for {
		_, _, err := p.conn.Read(p.t.Context())
		if err == nil {
			continue
		}
		var ce websocket.CloseError
		if websocket.CloseStatus(err) == -1 {
			p.t.Fatalf("connection ended with %v, want %d %q", err, code, reason)
		}
		ce = closeError(err)
		if int(ce.Code) != code || ce.Reason != reason {
			p.t.Fatalf("closed with %d %q, want %d %q", ce.Code, ce.Reason, code, reason)
		}
		return
	}
}

// deliverer is a router's stream of deliveries.
type deliverer struct {
	t      *testing.T
	send   func(*gatewayv1.DeliverRequest) error
	recv   func() (*gatewayv1.DeliverResponse, error)
	answer chan *gatewayv1.DeliverResponse
}

// deliver opens a stream as the router does.
func (r *rig) deliver(router *routertest.Router) *deliverer {
	r.t.Helper()
	hc := rpc.NewClient()
	ctx, cancel := context.WithCancel(r.t.Context())
	s := gatewayv1connect.NewGatewayServiceClient(hc, "http://"+r.g.InternalAddr(), rpc.ClientOptions()...).Deliver(ctx)
	d := &deliverer{t: r.t, send: s.Send, recv: s.Receive, answer: make(chan *gatewayv1.DeliverResponse, 100)}
	done := make(chan struct{})
	d.must(d.send(&gatewayv1.DeliverRequest{
		RouterId: router.Info.GetNodeId(), RouterIncarnation: router.Info.GetIncarnation(), GatewayIncarnation: r.g.ref.GetIncarnation(),
	}))
	go func() {
		defer close(done)
		for {
			res, err := s.Receive()
			if err != nil {
				close(d.answer)
				return
			}
			d.answer <- res
		}
	}()
	r.t.Cleanup(func() {
		_ = s.CloseRequest()
		cancel()
		<-done
		hc.CloseIdleConnections()
	})
	return d
}

func (d *deliverer) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// message sends one delivery and waits until the session has accepted it.
func (d *deliverer) message(id, session uint64, msgID string) {
	d.t.Helper()
	b, err := proto.Marshal(&messagev1.MessageRequest{MsgId: msgID, TenantId: "t", UserId: "from"})
	d.must(err)
	d.must(d.send(&gatewayv1.DeliverRequest{Deliveries: []*gatewayv1.Delivery{{Id: id, Message: b, SessionIds: []uint64{session}, Key: []byte(fmt.Sprintf("%016d", id))}}}))
	for res := range d.answer {
		if len(res.GetRefusals()) > 0 {
			d.t.Fatalf("refused: %v", res.GetRefusals())
		}
		if res.GetAnsweredThrough() >= id {
			return
		}
	}
	d.t.Fatal("the stream ended")
}
