package scenario

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/testkit"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/tests/harness"
)

// replaceFile puts a file in place as a whole.
func replaceFile(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// stray is a gateway that is none of the cluster's. It ends with the test.
type stray struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (s *stray) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(b)
}

func (s *stray) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

func startStray(t *testing.T, env ...string) *stray {
	t.Helper()
	s := &stray{}
	cmd := exec.Command(harness.Binary(t, "mics-gateway"))
	cmd.Env = append([]string{"NODE_ID=stray", "LISTEN=127.0.0.1:0", "INTERNAL_LISTEN=127.0.0.1:0"}, env...)
	cmd.Stdout, cmd.Stderr = s, s
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return s
}

func TestTheClusterTokenIsRotatedUnderTraffic(t *testing.T) {
	t.Parallel()
	const one, two = "token-one-token-one", "token-two-token-two"
	dir := t.TempDir()
	env := map[string][]string{}
	var files []string
	for _, kind := range []string{"router", "gateway", "controlplane"} {
		name := filepath.Join(dir, kind)
		replaceFile(t, name, []byte(one))
		env[kind] = []string{"CLUSTER_TOKEN_FILE=" + name}
		files = append(files, name)
	}
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2, ControlPlane: true, Env: env})
	processes := append(append(c.Names("gw"), c.Names("r")...), "cp")
	loaded := func() (n int) {
		for _, name := range processes {
			n += strings.Count(c.Process(name).Log(), "cluster_token_loaded")
		}
		return n
	}
	ann, bob := c.Client("ann", harness.On("gw1")), c.V1("bob", harness.On("gw2"))
	n := 0
	chat := func() {
		t.Helper()
		n++
		body := fmt.Sprint("message ", n)
		ann.Sends(body).To("bob")
		bob.Wants(body)
	}
	chat()
	for step, text := range []string{one + "\n" + two, two + "\n" + one, two} {
		for _, f := range files {
			replaceFile(t, f, []byte(text))
		}
		testkit.Eventually(t, "every process has read its file", func() bool {
			chat()
			return loaded() == (step+1)*len(processes)
		})
		chat()
	}
	if ann.Connects() != 1 || bob.Connects() != 1 {
		t.Error("somebody was disconnected")
	}
	if got := c.Sum("r", "mics_rpc_unauthenticated_total") + c.Sum("gw", "mics_rpc_unauthenticated_total"); got != 0 {
		t.Errorf("%v calls were refused meanwhile", got)
	}
	// What starts anew gets in with the new token, and with the old one it does not. The
	// gateway is stopped, not killed: a V1 client may see again what it got just before a
	// kill (README, delivery guarantees).
	c.Gateway("gw2").Stop()
	c.Gateway("gw2").Start()
	bob.Connected()
	chat()

	router := "http://" + c.Router("r1").Internal
	old := startStray(t, "ROUTER_ENDPOINTS="+router, "CLUSTER_TOKEN="+one)
	testkit.Eventually(t, "the old token is refused, and that is said", func() bool {
		return strings.Contains(old.log(), "router_lost") && strings.Contains(old.log(), "CLUSTER_TOKEN_FILE") &&
			c.Router("r1").Metrics().Sum("mics_rpc_unauthenticated_total") > 0
	})
	hc := rpc.NewClient()
	defer hc.CloseIdleConnections()
	_, err := routerv1connect.NewRouterServiceClient(hc, router).Directory(t.Context(), connect.NewRequest(&routerv1.DirectoryRequest{}))
	if connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("without a token: %v", err)
	}
	for _, name := range processes {
		if log := c.Process(name).Log(); strings.Contains(log, one) || strings.Contains(log, two) {
			t.Errorf("%s logs a token", name)
		}
	}
}

// clusterCA is an authority for the certificates of a cluster's processes.
type clusterCA struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newClusterCA(t *testing.T) *clusterCA {
	t.Helper()
	ca := &clusterCA{t: t}
	ca.cert, ca.key = ca.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)})
	return ca
}

func (ca *clusterCA) sign(tmpl *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	tmpl.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<60))
	tmpl.NotBefore = time.Now().Add(-2 * time.Hour)
	parent, parentKey := ca.cert, ca.key
	if parent == nil {
		parent, parentKey = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, parentKey)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert, key
}

// issue puts a new certificate into dir; trusted are the authorities whose
// certificates its owner takes.
func (ca *clusterCA) issue(dir string, notAfter time.Time, trusted ...*clusterCA) {
	ca.t.Helper()
	cert, key := ca.sign(&x509.Certificate{NotAfter: notAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		ca.t.Fatal(err)
	}
	var bundle []byte
	for _, other := range trusted {
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.cert.Raw})...)
	}
	replaceFile(ca.t, filepath.Join(dir, "ca.crt"), bundle)
	replaceFile(ca.t, filepath.Join(dir, "tls.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	replaceFile(ca.t, filepath.Join(dir, "tls.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

func internalTLS(dir string) []string {
	return []string{
		"INTERNAL_TLS_CERT_FILE=" + filepath.Join(dir, "tls.crt"), "INTERNAL_TLS_KEY_FILE=" + filepath.Join(dir, "tls.key"),
		"INTERNAL_TLS_CA_FILE=" + filepath.Join(dir, "ca.crt"),
	}
}

func TestTheAuthorityOfTheClusterIsReplacedUnderTraffic(t *testing.T) {
	t.Parallel()
	first, second := newClusterCA(t), newClusterCA(t)
	dir, later := t.TempDir(), time.Now().Add(time.Hour)
	first.issue(dir, later, first)
	env := map[string][]string{}
	for _, kind := range []string{"router", "gateway", "controlplane"} {
		env[kind] = internalTLS(dir)
	}
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2, ControlPlane: true, Scheme: "https", Env: env})
	processes := append(append(c.Names("gw"), c.Names("r")...), "cp")
	loads := func(name string) int { return strings.Count(c.Process(name).Log(), "tls_certificate_loaded") }
	ann, bob := c.Client("ann", harness.On("gw1")), c.V1("bob", harness.On("gw2"))
	n := 0
	chat := func() {
		t.Helper()
		n++
		body := fmt.Sprint("message ", n)
		ann.Sends(body).To("bob")
		bob.Wants(body)
	}
	chat()
	// As an operator does it: the new authority is trusted, then used, then alone.
	for _, issue := range []func(){
		func() { first.issue(dir, later, first, second) },
		func() { second.issue(dir, later, first, second) },
		func() { second.issue(dir, later, second) },
	} {
		before := map[string]int{}
		for _, name := range processes {
			before[name] = loads(name)
		}
		issue()
		testkit.Eventually(t, "every process has read the files", func() bool {
			chat()
			for _, name := range processes {
				if loads(name) == before[name] {
					return false
				}
			}
			return true
		})
	}
	if ann.Connects() != 1 || bob.Connects() != 1 {
		t.Error("somebody was disconnected")
	}
	if got := c.Sum("r", "mics_rpc_unauthenticated_total") + c.Sum("gw", "mics_rpc_unauthenticated_total"); got != 0 {
		t.Errorf("%v calls were refused meanwhile", got)
	}
	c.Router("r2").Kill()
	c.Router("r2").Start()
	c.AwaitSettled()
	chat()

	router := "https://" + c.Router("r1").Internal
	for what, issue := range map[string]func(dir string){
		"expired":       func(dir string) { second.issue(dir, time.Now().Add(-time.Minute), second) },
		"old authority": func(dir string) { first.issue(dir, later, second) },
	} {
		before := c.Router("r1").Metrics().Sum("mics_rpc_unauthenticated_total")
		other := t.TempDir()
		issue(other)
		s := startStray(t, append(internalTLS(other), "ROUTER_ENDPOINTS="+router)...)
		testkit.Eventually(t, what+" is refused and counted", func() bool {
			// Its own log has the alert, or a write that failed before the alert was read.
			return strings.Contains(s.log(), "router_lost") &&
				c.Router("r1").Metrics().Sum("mics_rpc_unauthenticated_total") > before
		})
	}
}

func TestTLSWithoutATokenNeedsHTTPS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := newClusterCA(t)
	ca.issue(dir, time.Now().Add(time.Hour), ca)
	cmd := exec.Command(harness.Binary(t, "mics-gateway"))
	cmd.Env = append(internalTLS(dir), "ROUTER_ENDPOINTS=http://127.0.0.1:1", "LISTEN=127.0.0.1:0", "INTERNAL_LISTEN=127.0.0.1:0")
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "must be https://") {
		t.Errorf("%v, says %s", err, out)
	}
}

func TestAViewerChangesNothing(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "operators.yaml")
	hash := func(token string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(token))) }
	replaceFile(t, file, []byte("operators: [{name: ann, role: operator, token_sha256: "+hash("ann-token")+"}, {name: vic, role: viewer, token_sha256: "+hash("vic-token")+"}]"))
	c := harness.New(t, harness.Options{NoRedis: true, ControlPlane: true, Env: map[string][]string{"controlplane": {"OPERATORS_FILE=" + file}}})
	bob := c.V1("bob")
	bob.Connected()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: within}
	client := controlv1connect.NewControlServiceClient(hc, "http://"+c.ControlPlane().Public)
	kick := func(token string) (uint32, error) {
		req := connect.NewRequest(&controlv1.KickRequest{TenantId: c.Tenant().Name, UserId: "bob"})
		req.Header().Set("Authorization", "Bearer "+token)
		res, err := client.Kick(t.Context(), req)
		if err != nil {
			return 0, err
		}
		return res.Msg.GetKicked(), nil
	}
	drain := connect.NewRequest(&controlv1.DrainRequest{NodeId: "gw1", Force: true})
	drain.Header().Set("Authorization", "Bearer vic-token")
	_, drained := client.Drain(t.Context(), drain)
	_, kicked := kick("vic-token")
	for what, err := range map[string]error{"drains": drained, "kicks": kicked} {
		if connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("a viewer %s: %v", what, err)
		}
	}
	if _, err := kick("else"); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("nobody known kicks: %v", err)
	}
	if n := bob.Connects(); n != 1 || !c.Gateway("gw1").Ready() {
		t.Error("and it had an effect")
	}
	testkit.Eventually(t, "an operator kicks", func() bool { n, err := kick("ann-token"); return err == nil && n == 1 })
	bob.WantsClose(4409, "kicked")
	if m := c.ControlPlane().Metrics(); m.Sum("mics_operator_refused_total") != 3 {
		t.Errorf("%v refusals are counted", m.Sum("mics_operator_refused_total"))
	}
	if log := c.ControlPlane().Log(); strings.Count(log, "operator_change") < 3 || strings.Contains(log, "ann-token") {
		t.Error("the log is not as it should be")
	}
}
