package gateway

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/trust"
)

func lookup(m map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := m[name]; return v, ok }
}

func TestLoadConfig(t *testing.T) {
	c, err := LoadConfig([]string{"--track=canary"}, lookup(map[string]string{
		"ROUTER_ENDPOINTS": "http://a:9080, dns://routers:9080", "NODE_ID": "g-0", "TRACK": "stable", "DRAIN_TIMEOUT_SECONDS": "25",
		"WS_KEEPALIVE_INTERVAL_SECONDS": "0", "ALLOWED_ORIGINS": "https://a.example, http://localhost:3000",
		"TRUSTED_PROXIES": "10.0.0.0/8,::1", "RESUME_WINDOW_SECONDS": "5", "ACCEPT_RATE_PER_ADDRESS": "0", "CLUSTER_TOKEN_FILE": "tokens", "PUBLIC_ENDPOINT": "http://g-0.gateways:9080",
		"CLIENT_URL": "wss://g-0.example/ws",
	}))
	if err != nil {
		t.Fatal(err)
	}
	if c.NodeID != "g-0" || c.ClientURL != "wss://g-0.example/ws" || c.Track != "canary" || c.DrainTimeout != 25*time.Second || c.Keepalive != 0 || c.ResumeWindow != 5*time.Second || c.AcceptRatePerAddress != 0 ||
		len(c.RouterEndpoints) != 2 || c.MaxMessageBytes != 1<<20 || c.FloodPerSecond != 200 || c.Listen != ":8080" || c.InternalListen != ":9080" {
		t.Errorf("got %+v", c)
	}
	if got := c.endpoint("127.0.0.1:1"); got != "http://g-0.gateways:9080" {
		t.Errorf("endpoint %q", got)
	}
	// What is read is what New would take for the zero value.
	c, err = LoadConfig(nil, lookup(map[string]string{"ROUTER_ENDPOINTS": "http://a:1", "CLUSTER_INSECURE": "true"}))
	if err != nil {
		t.Fatal(err)
	}
	zero := Config{RouterEndpoints: c.RouterEndpoints, Keepalive: c.Keepalive, ResumeWindow: c.ResumeWindow, AcceptRatePerAddress: c.AcceptRatePerAddress,
		FloodPerSecond: c.FloodPerSecond, Cluster: c.Cluster, Telemetry: c.Telemetry}.withDefaults()
	if c = c.withDefaults(); !reflect.DeepEqual(c, zero) {
		t.Errorf("LoadConfig %+v\nNew        %+v", c, zero)
	}
}

func TestLoadConfigErrors(t *testing.T) {
	for name, c := range map[string]struct{ setting, value, want string }{
		"none":       {"X", "", "ROUTER_ENDPOINTS: required"},
		"router":     {"ROUTER_ENDPOINTS", "a:1", "ROUTER_ENDPOINTS"},
		"track":      {"TRACK", "beta", "TRACK"},
		"number":     {"DRAIN_TIMEOUT_SECONDS", "10s", "DRAIN_TIMEOUT_SECONDS"},
		"zero drain": {"DRAIN_TIMEOUT_SECONDS", "0", "DRAIN_TIMEOUT_SECONDS"},
		"window":     {"RESUME_WINDOW_SECONDS", "1h", "RESUME_WINDOW_SECONDS"},
		"negative":   {"MAX_CONNECTIONS", "-1", "MAX_CONNECTIONS"},
		"endpoint":   {"PUBLIC_ENDPOINT", "dns://a:1", "PUBLIC_ENDPOINT"},
		"client url": {"CLIENT_URL", "http://a/ws", "CLIENT_URL"},
		"controls":   {"CONTROLPLANE_ENDPOINTS", "a:1", "CONTROLPLANE_ENDPOINTS"},
		"origin":     {"ALLOWED_ORIGINS", "example.com", "ALLOWED_ORIGINS"},
		"proxy":      {"TRUSTED_PROXIES", "10.0.0.0/33", "TRUSTED_PROXIES"},
		"lone cert":  {"TLS_CERT_FILE", "a.pem", "TLS_CERT_FILE, TLS_KEY_FILE"},
		"queue":      {"SESSION_QUEUE_BYTES", "65536", "SESSION_QUEUE_BYTES"},
		"node id":    {"NODE_ID", "a b", "NODE_ID"},
		"long id":    {"NODE_ID", strings.Repeat("x", 129), "NODE_ID"},
		"level":      {"LOG_LEVEL", "loud", "LOG_LEVEL"},
		"open":       {"LISTEN", ":1", "INTERNAL_LISTEN"},
		"http":       {"INTERNAL_TLS_CERT_FILE", "x", "all three are needed"},
	} {
		m := map[string]string{c.setting: c.value}
		if c.setting != "ROUTER_ENDPOINTS" && c.setting != "X" {
			m["ROUTER_ENDPOINTS"] = "http://a:1"
		}
		if _, err := LoadConfig(nil, lookup(m)); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := LoadConfig([]string{"--help"}, lookup(nil))
	if !errors.Is(err, config.ErrHelp) || !strings.Contains(err.Error(), "[DRAIN_TIMEOUT_SECONDS]") {
		t.Errorf("help: %v", err)
	}
	if _, err := LoadConfig([]string{"--drain=1"}, lookup(nil)); !errors.Is(err, config.ErrInvalid) {
		t.Errorf("unknown flag: %v", err)
	}
}

func TestEndpoint(t *testing.T) {
	host := config.HostName()
	for addr, want := range map[string]string{
		"127.0.0.1:9080": "http://127.0.0.1:9080", "[::1]:9080": "http://[::1]:9080", "10.0.0.7:1": "http://10.0.0.7:1",
		"0.0.0.0:9080": "http://" + host + ":9080", "[::]:9080": "http://" + host + ":9080",
	} {
		if got := (Config{}).endpoint(addr); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
		secure := Config{Cluster: trust.Config{TLSCert: "x"}}
		if got := secure.endpoint(addr); got != strings.Replace(want, "http:", "https:", 1) {
			t.Errorf("%s with TLS: %s", addr, got)
		}
	}
}

func TestDrainShare(t *testing.T) {
	for timeout, want := range map[time.Duration]time.Duration{
		time.Second: 750 * time.Millisecond, 10 * time.Second: 9 * time.Second, time.Minute: 58 * time.Second,
	} {
		if got := drainShare(timeout); got != want {
			t.Errorf("%v: %v", timeout, got)
		}
	}
}
