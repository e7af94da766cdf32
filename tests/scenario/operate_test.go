package scenario

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/testkit"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
	"github.com/mics-im/mics/tests/harness"
)

// kick asks the control plane, as micsctl does, once it knows all gateways.
func kick(t *testing.T, c *harness.Cluster, user, reason string) (kicked uint32) {
	t.Helper()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: within}
	client := controlv1connect.NewControlServiceClient(hc, "http://"+c.ControlPlane().Public)
	testkit.Eventually(t, "the control plane knows all gateways", func() bool {
		res, err := client.ListNodes(context.Background(), connect.NewRequest(&controlv1.ListNodesRequest{}))
		if err != nil {
			return false
		}
		known := 0
		for _, n := range res.Msg.GetNodes() {
			if n.GetKind() == controlv1.NodeKind_NODE_KIND_GATEWAY && !n.GetUnreachable() {
				known++
			}
		}
		return known == len(c.Names("gw"))
	})
	res, err := client.Kick(context.Background(), connect.NewRequest(&controlv1.KickRequest{
		TenantId: c.Tenant().Name, UserId: user, Reason: reason,
	}))
	if err != nil {
		t.Fatal(err)
	}
	return res.Msg.GetKicked()
}

func TestWrongSettingsAreErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		binary string
		env    []string
		says   string
	}{
		{"mics-gateway", nil, "ROUTER_ENDPOINTS"},
		{"mics-gateway", []string{"ROUTER_ENDPOINTS=http://127.0.0.1:1", "DRAIN_TIMEOUT_SECONDS=soon"}, "DRAIN_TIMEOUT_SECONDS"},
		{"mics-gateway", []string{"ROUTER_ENDPOINTS=http://127.0.0.1:1", "TLS_CERT_FILE=/nonexistent"}, "TLS_CERT_FILE"},
		{"mics-router", nil, "REDIS__CONNECTION"},
		{"mics-router", []string{"REDIS__CONNECTION=memory", "TENANT_AUTH_MAP={"}, "TENANT_AUTH_MAP"},
		{"mics-controlplane", nil, "ROUTER_ENDPOINTS"},
		{"mics-router", []string{"REDIS__CONNECTION=memory", "INTERNAL_LISTEN=:0"}, "CLUSTER_TOKEN_FILE"},
		{"mics-gateway", []string{"ROUTER_ENDPOINTS=http://127.0.0.1:1", "INTERNAL_LISTEN=:0"}, "CLUSTER_INSECURE"},
		{"mics-controlplane", []string{"ROUTER_ENDPOINTS=http://127.0.0.1:1", "LISTEN=:0"}, "OPERATORS_FILE"},
		{"mics-controlplane", []string{"ROUTER_ENDPOINTS=http://127.0.0.1:1", "OPERATORS_FILE=/nonexistent"}, "OPERATORS_FILE"},
		{"mics-router", []string{"REDIS__CONNECTION=memory", "CLUSTER_TOKEN_FILE=/nonexistent"}, "CLUSTER_TOKEN_FILE"},
	} {
		cmd := exec.Command(harness.Binary(t, c.binary))
		cmd.Env = append([]string{"LISTEN=127.0.0.1:0", "INTERNAL_LISTEN=127.0.0.1:0"}, c.env...)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), c.says) {
			t.Errorf("%s %v: %v, says %s", c.binary, c.env, err, out)
		}
	}
}

// certificate writes a self-signed certificate for 127.0.0.1 and returns it.
func certificate(t *testing.T, dir string, serial int64) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "EC PRIVATE KEY", Bytes: secret}} {
		part := filepath.Join(dir, name+".new")
		if err := os.WriteFile(part, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(part, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestClientsListenerFollowsItsCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := certificate(t, dir, 1)
	c := harness.New(t, harness.Options{NoRedis: true, Env: map[string][]string{
		"gateway": {"TLS_CERT_FILE=" + filepath.Join(dir, "cert.pem"), "TLS_KEY_FILE=" + filepath.Join(dir, "key.pem")},
	}})
	dial := func(trusted *x509.Certificate) (*tls.Conn, error) {
		pool := x509.NewCertPool()
		pool.AddCert(trusted)
		return tls.Dial("tcp", c.Gateway("gw1").Public, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12})
	}
	old, err := dial(first)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Close() }()
	second := certificate(t, dir, 2)
	testkit.Eventually(t, "the new certificate is served", func() bool {
		conn, err := dial(second)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	// The connection from before is none the worse.
	if _, err := old.Write([]byte("GET /ws HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 12)
	if _, err := old.Read(b); err != nil || string(b) != "HTTP/1.1 400" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestConnectsLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 1, Routers: 2})
	goroutines := func() (n float64) {
		return c.Sum("gw", "go_goroutines") + c.Sum("r", "go_goroutines")
	}
	ann := c.V1("ann")
	ann.Sends("warm").To("ann")
	ann.Wants("warm")
	ann.Leaves()
	before := goroutines()
	for round := range 25 {
		hi := fmt.Sprint("hi ", round) // a new instance's message 1 with the same content would be a repeat
		var all []*harness.Device
		for i := range 20 {
			d := c.V1("user"+string(rune('a'+i)), harness.On("gw1"))
			d.Sends(hi).To(d.User)
			all = append(all, d)
		}
		for _, d := range all {
			d.Wants(hi)
			d.Leaves()
		}
	}
	// Connections between our own processes come and go by a few.
	testkit.Eventually(t, "the goroutines are gone", func() bool {
		now := goroutines()
		if now > before+100 { // a leak per connect would be 500
			return false
		}
		t.Logf("goroutines: %.0f before, %.0f after", before, now)
		return true
	})
	testkit.Eventually(t, "no connection is counted", func() bool { return c.Sum("gw", "mics_ws_connections") == 0 })
}
