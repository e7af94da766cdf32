package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"github.com/mics-im/mics/gateway/internal/routertest"
	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/frame"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func (r *rig) status() *gatewayv1.StatusResponse {
	r.t.Helper()
	hc := rpc.NewClient()
	defer hc.CloseIdleConnections()
	c := gatewayv1connect.NewGatewayServiceClient(hc, "http://"+r.g.InternalAddr(), rpc.ClientOptions()...)
	res, err := c.Status(r.t.Context(), connect.NewRequest(&gatewayv1.StatusRequest{}))
	if err != nil {
		r.t.Fatal(err)
	}
	return res.Msg
}

func closeError(err error) (ce websocket.CloseError) {
	errors.As(err, &ce)
	return ce
}

func TestRefusedBeforeTheUpgrade(t *testing.T) {
	r, _ := newRig(t, 1, func(c *Config) {
		c.AllowedOrigins = []string{"https://app.example.com"}
		c.MaxConnections = 1
	})
	r.start()
	if res := r.do("http://"+r.g.Addr()+"/ws?"+params("t", "k", "d"), nil); res.StatusCode != http.StatusBadRequest {
		t.Errorf("not a WebSocket request: %d %q", res.StatusCode, res.body)
	}
	if res := r.handshake(http.Header{"Origin": {"https://evil.test"}}); res.StatusCode != http.StatusForbidden {
		t.Errorf("origin: %d %q", res.StatusCode, res.body)
	}
	if res := r.do("http://"+r.g.Addr()+"/ws?token="+strings.Repeat("x", 32<<10), upgradeHeader()); res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("endless token: %d", res.StatusCode)
	}
	if status, _ := r.get("http://" + r.g.Addr() + "/healthz"); status != http.StatusOK {
		t.Errorf("/healthz: %d", status)
	}
	if status, _ := r.get("http://" + r.g.Addr() + "/metrics"); status != http.StatusNotFound {
		t.Errorf("/metrics for clients: %d", status)
	}
	r.connect("k", "")
	if res := r.handshake(nil); res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("one connection too many: %d, Retry-After %q", res.StatusCode, res.Header.Get("Retry-After"))
	}
	status := r.status()
	if status.GetRefusedHandshakesTotal() != 3 || status.GetSessions() != 1 || status.GetRoutersLinked() != 1 {
		t.Errorf("status %v", status)
	}
}

func TestAcceptRates(t *testing.T) {
	for name, set := range map[string]func(*Config){
		"per address": func(c *Config) { c.AcceptRatePerAddress = 1 },
		"per node":    func(c *Config) { c.AcceptRate = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := newRig(t, 1, set)
			r.start()
			testkit.Eventually(t, "somebody is told to wait", func() bool {
				defer r.client.CloseIdleConnections()
				res := r.do("http://"+r.g.Addr()+"/ws?"+params("t", "k", "d"), upgradeHeader())
				return res.StatusCode == http.StatusTooManyRequests && res.Header.Get("Retry-After") == "1"
			})
			if e := r.log.event("rate_limited"); e == nil || e["threshold"] != 1.0 {
				t.Errorf("rate_limited %v", e)
			}
		})
	}
}

func TestWithoutARouter(t *testing.T) {
	r, _ := newRig(t, 0, nil)
	if err := r.g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if why := r.ready(); why != "no router" {
		t.Errorf("/readyz: %q", why)
	}
	if res := r.handshake(nil); res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Errorf("handshake: %d %q", res.StatusCode, res.body)
	}
	if err := r.g.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRefusedAfterTheUpgrade(t *testing.T) {
	r, routers := newRig(t, 1, nil)
	routers[0].Open = func(req *routerv1.OpenSessionRequest) (*routerv1.OpenSessionResponse, error) {
		switch req.GetToken() {
		case "broken-secret":
			return nil, fault.New(fault.Internal, "internal error")
		case "many-secret":
			return &routerv1.OpenSessionResponse{Refusal: &routerv1.SessionRefusal{CloseCode: 4429, Reason: "user connection limit"}}, nil
		}
		return &routerv1.OpenSessionResponse{Refusal: &routerv1.SessionRefusal{CloseCode: 4001, Reason: "wrong token"}}, nil
	}
	r.start()
	for _, c := range []struct {
		query  string
		code   int
		reason string
	}{
		{params("", "k", "d"), 4002, "invalid tenant"},
		{params("t", "", "d"), 4001, "missing token"},
		{params("t", strings.Repeat("x", 4097), "d"), 4001, "token too long"},
		{params("t", "k", ""), 1008, "invalid deviceId"},
		{params("t", "bad-secret", "d"), 4001, "wrong token"},
		{params("t", "many-secret", "d"), 4429, "user connection limit"},
		{params("t", "broken-secret", "d"), 4001, "auth unavailable"},
	} {
		r.dial(c.query, nil).closed(c.code, c.reason)
	}
	// Only the last one may have been admitted, by a router that gave no answer.
	testkit.Eventually(t, "the router is told", func() bool { return len(routers[0].Closed()) == 1 })
	if c := routers[0].Closed()[0]; !c.GetNeverOpened() || c.GetStage() != routerv1.ClosedSession_STAGE_FINAL {
		t.Errorf("told %v", c)
	}
	if strings.Contains(r.log.String(), "secret") {
		t.Error("a token is in the log")
	}
}

func TestWhoHangsUpIsNotAdmitted(t *testing.T) {
	r, routers := newRig(t, 1, nil)
	asked, stuck := make(chan struct{}, 8), make(chan struct{})
	routers[0].Open = func(*routerv1.OpenSessionRequest) (*routerv1.OpenSessionResponse, error) {
		asked <- struct{}{}
		<-stuck
		return nil, fault.New(fault.Unavailable, "too late")
	}
	defer close(stuck)
	r.start()
	p := r.dial(params("t", "k", "d"), nil)
	<-asked
	_ = p.conn.CloseNow() // a hang-up is no error here
	testkit.Eventually(t, "the router is told", func() bool { return len(routers[0].Closed()) == 1 })
	if c := routers[0].Closed()[0]; !c.GetNeverOpened() {
		t.Errorf("told %v", c)
	}
	if len(asked) > 0 {
		t.Error("asked again")
	}
}

func TestTokenOutOfTheURL(t *testing.T) {
	r, _ := newRig(t, 1, nil)
	r.start()
	p := r.dial("tenantId=t&deviceId=d", &websocket.DialOptions{
		Subprotocols: []string{"mics.v2", "mics.token." + base64.RawURLEncoding.EncodeToString([]byte("ann"))},
	})
	if p.conn.Subprotocol() != "mics.v2" {
		t.Errorf("subprotocol %q", p.conn.Subprotocol())
	}
	if ack := p.next().GetConnectAck(); ack.GetUserId() != "u-ann" || ack.GetVersion() != 2 {
		t.Errorf("ConnectAck %v", ack)
	}
}

// received returns the ids of messages, with a ? for possible repeats.
func received(r *routertest.Router) (ids []string) {
	for _, in := range r.Received() {
		h, _ := frame.ParseMessage(in.GetMessage())
		id := h.MsgID
		if in.GetPossibleRepeat() {
			id += "?"
		}
		ids = append(ids, id)
	}
	return ids
}

func TestMessagesThroughBrokenStreams(t *testing.T) {
	r, routers := newRig(t, 1, nil)
	routers[0].Answer = func(*routerv1.Inbound) []byte { return nil } // held
	r.start()
	p := r.connect("ann", "")
	p.message("1")
	p.message("2")
	testkit.Eventually(t, "the router has both", func() bool { return len(routers[0].Received()) == 2 })
	in := routers[0].Received()[0]
	if h, err := frame.ParseMessage(in.GetMessage()); err != nil || h.Tenant != "t" || h.User != "u-ann" || h.Device != "d" || h.TimestampMS == 0 {
		t.Errorf("stamped %+v, %v", h, err)
	}
	routers[0].BreakPublish()
	testkit.Eventually(t, "it gets them again", func() bool { return len(routers[0].Received()) == 4 })
	p.message("3")
	testkit.Eventually(t, "it gets the third", func() bool { return len(routers[0].Received()) == 5 })
	if got := received(routers[0]); !slices.Equal(got, []string{"1", "2", "1?", "2?", "3"}) {
		t.Errorf("the router got %v", got)
	}
	routers[0].Release()
	for _, want := range []string{"1", "2", "3"} {
		if ack := p.next().GetAck(); ack.GetMsgId() != want || ack.GetStatus() != messagev1.AckStatus_SENT {
			t.Errorf("ack %v, want %s", ack, want)
		}
	}
}

func TestMessagesWhenTheHomeMoves(t *testing.T) {
	r, routers := newRig(t, 2, nil)
	for _, fake := range routers {
		fake.Answer = func(*routerv1.Inbound) []byte { return nil }
	}
	r.start()
	testkit.Eventually(t, "both are linked", func() bool { return r.g.uplink.Linked() == 2 })
	p := r.connect("ann", "")
	p.message("1")
	testkit.Eventually(t, "one has it", func() bool { return len(routers[0].Received())+len(routers[1].Received()) == 1 })
	old, next := routers[0], routers[1]
	if len(next.Received()) == 1 {
		old, next = next, old
	}
	r.cluster.Set(next) // old leaves, and has not answered yet
	testkit.Eventually(t, "the gateway knows", func() bool { return r.g.uplink.Linked() == 1 })
	p.message("2")
	p.send(&messagev1.ClientFrame{Payload: &messagev1.ClientFrame_HeartbeatPing{HeartbeatPing: &messagev1.HeartbeatPing{TimestampMs: 1}}})
	p.next() // the pong: message 2 has been read
	if got := received(next); len(got) != 0 {
		t.Fatalf("the new home got %v while message 1 is under way", got)
	}
	old.Release()
	testkit.Eventually(t, "the new home gets message 2", func() bool { return len(next.Received()) == 1 })
	if got := received(next); !slices.Equal(got, []string{"2"}) {
		t.Errorf("the new home got %v", got)
	}
	testkit.Eventually(t, "the old home's stream ends", func() bool { _, n := old.Streams(); return n == 0 })
}

func TestNewFails(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	good := Config{NodeID: "g", Listen: "127.0.0.1:0", InternalListen: "127.0.0.1:0", RouterEndpoints: []string{"http://a:1"}}
	for name, c := range map[string]struct {
		set     func(*Config)
		invalid bool
		names   string
	}{
		"address taken":          {func(c *Config) { c.Listen = ln.Addr().String() }, false, "LISTEN"},
		"internal address taken": {func(c *Config) { c.InternalListen = ln.Addr().String() }, false, "INTERNAL_LISTEN"},
		"no routers":             {func(c *Config) { c.RouterEndpoints = nil }, true, "ROUTER_ENDPOINTS"},
		"no certificate":         {func(c *Config) { c.TLSCert, c.TLSKey = "/nowhere", "/nowhere" }, true, "TLS_CERT_FILE"},
		"proxies":                {func(c *Config) { c.TrustedProxies = []string{"x"} }, true, "TRUSTED_PROXIES"},
	} {
		cfg := good
		c.set(&cfg)
		g, err := New(t.Context(), cfg)
		if err == nil || g != nil || errors.Is(err, config.ErrInvalid) != c.invalid || !strings.Contains(err.Error(), c.names) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTLS(t *testing.T) {
	ts := httptest.NewTLSServer(nil) // has a certificate for 127.0.0.1
	ts.Close()
	cert := ts.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	r, routers := newRig(t, 1, func(c *Config) {
		c.TLSCert, c.TLSKey = write("cert.pem", "CERTIFICATE", cert.Certificate[0]), write("key.pem", "PRIVATE KEY", key)
	})
	r.start()
	pool := x509.NewCertPool()
	pool.AddCert(ts.Certificate())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}}
	defer transport.CloseIdleConnections()
	//nolint:bodyclose // Dial documents that the body need not be closed
	c, _, err := websocket.Dial(t.Context(), "wss://"+r.g.Addr()+"/ws?"+params("t", "ann", "d"), &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	p := &peer{t, c}
	if ack := p.next().GetConnectAck(); ack.GetCode() != 1000 {
		t.Errorf("ConnectAck %v", ack)
	}
	p.message("1")
	if ack := p.next().GetAck(); ack.GetStatus() != messagev1.AckStatus_SENT || len(routers[0].Received()) != 1 {
		t.Errorf("ack %v", ack)
	}
}

func TestTwoGatewaysInOneProcess(t *testing.T) {
	one, routers := newRig(t, 1, nil)
	one.start()
	two, _ := newRig(t, 0, func(c *Config) {
		c.NodeID, c.RouterEndpoints = "g2", []string{routers[0].Info.GetEndpoint()}
	})
	two.start()
	one.connect("ann", "")
	if err := two.g.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if why := one.ready(); why != "" {
		t.Errorf("the other gateway is not ready: %s", why)
	}
}
