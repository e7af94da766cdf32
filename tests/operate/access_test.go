package operate

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/controlplane"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
)

// files are what operators of a test have, in one folder.
type files struct {
	t   *testing.T
	dir string
}

func (f files) path(name string) string { return filepath.Join(f.dir, name) }

func (f files) write(name string, content []byte) string {
	f.t.Helper()
	if err := os.WriteFile(f.path(name), content, 0o600); err != nil {
		f.t.Fatal(err)
	}
	return f.path(name)
}

// token writes a token and returns its hash.
func (f files) token(name string) string {
	f.t.Helper()
	text := rand.Text()
	f.write(name, []byte(text+"\n"))
	return fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
}

// certificates writes ca.crt and, for each name, name.crt and name.key.
func (f files) certificates(names ...string) {
	f.t.Helper()
	sign := func(tmpl, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			f.t.Fatal(err)
		}
		if parent == nil {
			parent, parentKey = tmpl, key
		}
		tmpl.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<60))
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, parentKey)
		if err != nil {
			f.t.Fatal(err)
		}
		return der, key
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true}
	der, caKey := sign(ca, nil, nil)
	f.write("ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	for _, name := range names {
		der, key := sign(&x509.Certificate{
			Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}, ca, caKey)
		secret, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			f.t.Fatal(err)
		}
		f.write(name+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		f.write(name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
	}
}

func TestOperatorsAndViewers(t *testing.T) {
	f := files{t, t.TempDir()}
	f.certificates("cp", "ci.ops", "stranger")
	operators := "operators:\n  - {name: ann, role: operator, token_sha256: " + f.token("ann") + "}\n" +
		"  - {name: vic, role: viewer, token_sha256: [" + f.token("vic") + "]}\n" +
		"  - {name: ci, role: operator, certificate: ci.ops}\n"
	f.token("else")

	g := &gateway{info: &gatewayv1.GatewayInfo{NodeId: "g1", Incarnation: 5, Track: "stable", Version: "v1", Phase: gatewayv1.Phase_PHASE_SERVING}}
	path, h := gatewayv1connect.NewGatewayServiceHandler(g, rpc.HandlerOptions()...)
	g.info.Endpoint, _ = serve(t, path, h)
	path, h = routerv1connect.NewRouterServiceHandler(&router{gateway: g.info}, rpc.HandlerOptions()...)
	routerURL, _ := serve(t, path, h)
	cfg := controlplane.Config{
		NodeID: "cp", Listen: "127.0.0.1:0", InternalListen: "127.0.0.1:0", RouterEndpoints: []string{routerURL},
		Telemetry: telemetry.Config{LogWriter: io.Discard},
	}
	cfg.Access.File = f.write("operators.yaml", []byte(operators))
	cfg.Access.Cert, cfg.Access.Key, cfg.Access.ClientCA = f.path("cp.crt"), f.path("cp.key"), f.path("ca.crt")
	cp, err := controlplane.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := cp.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cp.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	as := func(who string, args ...string) (string, int) {
		t.Helper()
		args = append(args, "--cacert", f.path("ca.crt"))
		switch {
		case who == "":
		case strings.HasPrefix(who, "certificate "):
			name := strings.TrimPrefix(who, "certificate ")
			args = append(args, "--cert", f.path(name+".crt"), "--key", f.path(name+".key"))
		default:
			args = append(args, "--token-file", f.path(who))
		}
		return micsctl(t, cp.URL(), args...)
	}
	kick := []string{"kick", "--tenant", "demo", "--user", "ann", "--yes"}

	for _, who := range []string{"ann", "vic", "certificate ci.ops"} {
		testkit.Eventually(t, who+" sees the gateway", func() bool {
			out, code := as(who, "nodes")
			return code == 0 && strings.Contains(out, "g1")
		})
	}
	for who, says := range map[string]string{"": "--token-file", "else": "OPERATORS_FILE", "certificate stranger": "OPERATORS_FILE"} {
		if out, code := as(who, "nodes"); code != 1 || !strings.Contains(out, "unauthenticated") || !strings.Contains(out, says) {
			t.Errorf("%q: exit %d\n%s", who, code, out)
		}
		if out, code := as(who, "check"); code != 1 || !strings.Contains(out, "operator-refused") {
			t.Errorf("%q checks: exit %d\n%s", who, code, out)
		}
	}
	for _, change := range [][]string{kick, {"drain", "g1"}, {"undrain", "g1"}, {"dlq", "list", "--tenant", "demo"}} {
		out, code := as("vic", change...)
		if code != 1 || !strings.Contains(out, "permission_denied") || !strings.Contains(out, "role operator") {
			t.Errorf("a viewer: %v: exit %d\n%s", change, code, out)
		}
	}
	if g.kicked.Load() != nil {
		t.Fatal("a viewer has kicked")
	}
	for _, who := range []string{"ann", "certificate ci.ops"} {
		if out, code := as(who, kick...); code != 0 {
			t.Errorf("%s kicks: exit %d\n%s", who, code, out)
		}
	}
	out, code := as("vic", "audit", "--since", "1h")
	if code != 0 || strings.Count(out, "Kick") != 3 || !strings.Contains(out, "Undrain") || !strings.Contains(out, "vic is a viewer") ||
		!strings.Contains(out, `"user_id":"ann"`) || !strings.Contains(out, "ci ") {
		t.Errorf("audit: exit %d\n%s", code, out)
	}
	if out, code := micsctl(t, cp.URL(), "nodes"); code != 1 || !strings.Contains(out, "certificate") {
		t.Errorf("without the authority: exit %d\n%s", code, out)
	}
}

func TestCredentialsThatAreNone(t *testing.T) {
	f := files{t, t.TempDir()}
	for what, args := range map[string][]string{
		"no such file":   {"--token-file", f.path("none")},
		"one token":      {"--token-file", f.write("two", []byte("a\nb\n"))},
		"alone":          {"--cert", f.path("none")},
		"no certificate": {"--cacert", f.write("text", []byte("hello"))},
	} {
		if out, code := micsctl(t, "https://127.0.0.1:1", append([]string{"nodes"}, args...)...); code != 2 || !strings.Contains(out, what) {
			t.Errorf("%v: exit %d\n%s", args, code, out)
		}
	}
	f.token("mine")
	if out, _ := micsctl(t, "http://cp.invalid:1", "nodes", "--token-file", f.path("mine"), "--timeout", "1ms"); !strings.Contains(out, "Warning: your token") {
		t.Errorf("a token in the clear: %s", out)
	}
}
