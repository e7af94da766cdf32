package controlplane

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// cluster is a router and a gateway in one, behind one port.
type cluster struct {
	routerv1connect.UnimplementedRouterServiceHandler
	gatewayv1connect.UnimplementedGatewayServiceHandler
	info *gatewayv1.GatewayInfo
}

func (c *cluster) Directory(context.Context, *connect.Request[routerv1.DirectoryRequest]) (*connect.Response[routerv1.DirectoryResponse], error) {
	return connect.NewResponse(&routerv1.DirectoryResponse{
		Gateways: []*gatewayv1.GatewayInfo{c.info}, Routers: []*routerv1.RouterInfo{{NodeId: "r", Incarnation: 1}},
	}), nil
}

func (c *cluster) Status(context.Context, *connect.Request[gatewayv1.StatusRequest]) (*connect.Response[gatewayv1.StatusResponse], error) {
	return connect.NewResponse(&gatewayv1.StatusResponse{Gateway: c.info, Sessions: 7}), nil
}

func serve(t *testing.T) *httptest.Server {
	t.Helper()
	c := &cluster{}
	mux := http.NewServeMux()
	mux.Handle(routerv1connect.NewRouterServiceHandler(c))
	mux.Handle(gatewayv1connect.NewGatewayServiceHandler(c))
	srv := httptest.NewUnstartedServer(mux)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	c.info = &gatewayv1.GatewayInfo{NodeId: "g", Incarnation: 1, Endpoint: "http://" + srv.Listener.Addr().String(), Phase: gatewayv1.Phase_PHASE_SERVING}
	srv.Start()
	t.Cleanup(srv.Close)
	return srv
}

func testConfig(router string) Config {
	return Config{
		NodeID: "cp", Listen: "127.0.0.1:0", InternalListen: "127.0.0.1:0", RouterEndpoints: []string{router},
		PollInterval: 20 * time.Millisecond, Telemetry: telemetry.Config{LogWriter: io.Discard},
	}
}

// get returns the status and body of a GET, 0 when there was no answer.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr}).Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestControlPlanesSideBySide(t *testing.T) {
	srv := serve(t)
	client := rpc.NewClient()
	defer client.CloseIdleConnections()
	var all []*ControlPlane
	for range 2 {
		c, err := New(t.Context(), testConfig(srv.URL))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	for _, c := range all {
		internal, operator := "http://"+c.InternalAddr(), "http://"+c.Addr()
		testkit.Eventually(t, "ready", func() bool { code, _ := get(t, internal+"/readyz"); return code == 200 })
		cc := controlv1connect.NewControlServiceClient(client, operator)
		res, err := cc.ListNodes(t.Context(), connect.NewRequest(&controlv1.ListNodesRequest{}))
		if err != nil || len(res.Msg.GetNodes()) != 2 || res.Msg.GetNodes()[0].GetSessions() != 7 {
			t.Fatalf("%v, %v", res, err)
		}
		for url, want := range map[string]int{
			internal + "/healthz": 200, internal + "/metrics": 200, operator + "/healthz": 200,
			operator + "/metrics": 404, operator + "/readyz": 404, internal + controlv1connect.ControlServiceVersionProcedure: 404,
		} {
			if code, body := get(t, url); code != want {
				t.Errorf("%s: %d %s, want %d", url, code, body, want)
			}
		}
		if _, body := get(t, internal+"/metrics"); !strings.Contains(body, "mics_controlplane_gateways 1") {
			t.Errorf("metrics: %s", body)
		}
		// A watch does not keep the process from stopping.
		watch, err := cc.WatchNodes(t.Context(), connect.NewRequest(&controlv1.WatchNodesRequest{}))
		if err != nil || !watch.Receive() {
			t.Fatalf("watch: %v", err)
		}
		if err := c.Stop(t.Context()); err != nil {
			t.Errorf("stop: %v", err)
		}
		for watch.Receive() { // to its end
		}
		_ = watch.Close()
		if err := c.Stop(t.Context()); err != nil {
			t.Errorf("a second stop: %v", err)
		}
		if code, _ := get(t, operator+"/healthz"); code != 0 {
			t.Error("still answers after Stop")
		}
	}
}

func TestReadinessFollowsTheRouters(t *testing.T) {
	srv := serve(t)
	c, err := New(t.Context(), testConfig(srv.URL))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Stop(context.Background()) //nolint:errcheck // tested elsewhere
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err == nil {
		t.Error("started twice")
	}
	readyz := "http://" + c.InternalAddr() + "/readyz"
	testkit.Eventually(t, "ready", func() bool { code, _ := get(t, readyz); return code == 200 })
	srv.CloseClientConnections()
	srv.Close()
	testkit.Eventually(t, "not ready", func() bool {
		code, body := get(t, readyz)
		return code == 503 && strings.Contains(body, "no router reachable")
	})
	if code, _ := get(t, "http://"+c.InternalAddr()+"/healthz"); code != 200 {
		t.Errorf("healthz %d: the process lives", code)
	}
}

func TestWebPagesOfOthersMayNotOperate(t *testing.T) {
	c, err := New(t.Context(), testConfig("http://127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Stop(context.Background()) //nolint:errcheck // tested elsewhere
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	post := func(site string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+c.Addr()+controlv1connect.ControlServiceVersionProcedure, bytes.NewBufferString("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if site != "" {
			req.Header.Set("Sec-Fetch-Site", site)
		}
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close() //nolint:errcheck // only the status counts
		return res.StatusCode
	}
	if got := post("cross-site"); got != http.StatusForbidden {
		t.Errorf("another site's page: %d", got)
	}
	if got := post("same-origin"); got != http.StatusOK {
		t.Errorf("our own page: %d", got)
	}
	if got := post(""); got != http.StatusOK {
		t.Errorf("no browser: %d", got)
	}
}

func TestNewThatFailsLeavesNothing(t *testing.T) {
	first, err := New(t.Context(), testConfig("http://127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	taken := testConfig("http://127.0.0.1:1")
	taken.Listen = first.Addr()
	if c, err := New(t.Context(), taken); err == nil || !strings.HasPrefix(err.Error(), "LISTEN: ") {
		t.Errorf("got %v, %v", c, err)
	}
	if err := first.Stop(t.Context()); err != nil { // never started
		t.Error(err)
	}
	for _, routers := range [][]string{nil, {"ftp://x"}} {
		bad := testConfig("")
		bad.RouterEndpoints = routers
		if c, err := New(t.Context(), bad); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), "ROUTER_ENDPOINTS") {
			t.Errorf("%v: got %v, %v", routers, c, err)
		}
	}
}

func TestRunStopsWithItsContext(t *testing.T) {
	c, err := New(t.Context(), testConfig("http://127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	testkit.Eventually(t, "alive", func() bool { code, _ := get(t, "http://"+c.Addr()+"/healthz"); return code == 200 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLoadConfig(t *testing.T) {
	lookup := func(env map[string]string) func(string) (string, bool) {
		return func(k string) (string, bool) { v, ok := env[k]; return v, ok }
	}
	c, err := LoadConfig([]string{"--poll-interval-ms", "500"}, lookup(map[string]string{"ROUTER_ENDPOINTS": "http://a:1, dns://b:2", "CLUSTER_TOKEN_FILE": "tokens", "OPERATORS_FILE": "operators"}))
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != ":8070" || c.InternalListen != ":9080" || c.NodeID == "" || len(c.RouterEndpoints) != 2 ||
		c.PollInterval != 500*time.Millisecond || c.ForgetAfter != 30*time.Second {
		t.Errorf("%+v", c)
	}
	for want, env := range map[string]map[string]string{
		"ROUTER_ENDPOINTS: required":     {},
		`ROUTER_ENDPOINTS: "a:1": want`:  {"ROUTER_ENDPOINTS": "a:1"},
		`POLL_INTERVAL_MS="0"`:           {"ROUTER_ENDPOINTS": "http://a:1", "POLL_INTERVAL_MS": "0"},
		`FORGET_AFTER_SECONDS="forever"`: {"ROUTER_ENDPOINTS": "http://a:1", "FORGET_AFTER_SECONDS": "forever"},
		`LOG_LEVEL="loud"`:               {"ROUTER_ENDPOINTS": "http://a:1", "LOG_LEVEL": "loud"},
		`PUBLIC_ENDPOINT: "a:1"`:         {"ROUTER_ENDPOINTS": "http://a:1", "PUBLIC_ENDPOINT": "a:1"},
		"INTERNAL_LISTEN":                {"ROUTER_ENDPOINTS": "http://a:1"},
		"LISTEN: ":                       {"ROUTER_ENDPOINTS": "http://a:1", "CLUSTER_INSECURE": "true"},
	} {
		if _, err := LoadConfig(nil, lookup(env)); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if _, err := LoadConfig([]string{"--help"}, lookup(nil)); !errors.Is(err, config.ErrHelp) || !strings.Contains(err.Error(), "ROUTER_ENDPOINTS") {
		t.Errorf("help: %v", err)
	}
}
