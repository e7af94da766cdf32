package trust

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// gateway answers what is asked in these tests.
type gateway struct {
	gatewayv1connect.UnimplementedGatewayServiceHandler
}

func (gateway) Status(context.Context, *connect.Request[gatewayv1.StatusRequest]) (*connect.Response[gatewayv1.StatusResponse], error) {
	return connect.NewResponse(&gatewayv1.StatusResponse{Sessions: 7}), nil
}

func (gateway) Deliver(_ context.Context, s *connect.BidiStream[gatewayv1.DeliverRequest, gatewayv1.DeliverResponse]) error {
	for {
		if _, err := s.Receive(); err != nil {
			return nil
		}
		if err := s.Send(&gatewayv1.DeliverResponse{}); err != nil {
			return err
		}
	}
}

// process is a Trust with a server.
type process struct {
	*Trust
	t    *testing.T
	addr string
	log  *logText
	tel  *telemetry.Telemetry
}

type logText struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func start(t *testing.T, c Config) *process {
	t.Helper()
	if err := c.Check("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, log: &logText{}}
	var err error
	if p.tel, err = telemetry.New(t.Context(), telemetry.Config{LogWriter: p.log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.tel.Shutdown(context.Background()) })
	if p.Trust, err = New(c, p.tel); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(gatewayv1connect.NewGatewayServiceHandler(gateway{}, rpc.HandlerOptions()...))
	rpc.Operate(mux, p.tel.Metrics(), func() []string { return nil })
	srv := p.Server(ln, mux)
	srv.Start()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // whoever is connected by now is no business of the test
		_ = srv.Stop(ctx)
	})
	p.addr = srv.Addr()
	return p
}

// caller is a client of this process, with connections of its own.
func (p *process) caller() *http.Client {
	c := p.Client()
	p.t.Cleanup(c.CloseIdleConnections)
	return c
}

func rpcTo(hc *http.Client, base string) gatewayv1connect.GatewayServiceClient {
	return gatewayv1connect.NewGatewayServiceClient(hc, base, rpc.ClientOptions()...)
}

func status(t *testing.T, hc *http.Client, base string) error {
	t.Helper()
	res, err := rpcTo(hc, base).Status(t.Context(), connect.NewRequest(&gatewayv1.StatusRequest{}))
	if err == nil && res.Msg.GetSessions() != 7 {
		t.Fatal("somebody else answered")
	}
	return err
}

// refusals reads the counter from /metrics, as a scraper does: without anything.
func (p *process) refusals(reason string) string {
	p.t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr}).Get("http://" + p.addr + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "mics_rpc_unauthenticated_total{") && strings.Contains(line, `reason="`+reason+`"`) {
			return strings.Fields(line)[1]
		}
	}
	p.t.Fatalf("no counter for %s in %s", reason, b)
	return ""
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// authority is a certificate authority of a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key = a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour)})
	return a
}

func (a *authority) sign(tmpl *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<60))
	tmpl.Subject = pkix.Name{CommonName: "mics"}
	tmpl.NotBefore = time.Now().Add(-2 * time.Hour)
	parent, parentKey := a.cert, a.key
	if parent == nil {
		parent, parentKey = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, parentKey)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c, key
}

// issue says what a certificate is like that differs from a good one.
type issue struct {
	names   []string
	expired bool
	usage   []x509.ExtKeyUsage
}

// config writes a certificate of the authority into dir and returns settings that
// name it.
func (a *authority) config(dir string, i issue) Config {
	a.t.Helper()
	tmpl := &x509.Certificate{DNSNames: i.names, NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: i.usage}
	if i.expired {
		tmpl.NotAfter = time.Now().Add(-time.Hour)
	}
	if i.usage == nil {
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	cert, key := a.sign(tmpl)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	c := Config{TLSCert: filepath.Join(dir, "tls.crt"), TLSKey: filepath.Join(dir, "tls.key"), TLSCA: filepath.Join(dir, "ca.crt")}
	write(a.t, c.TLSCert, pemOf("CERTIFICATE", cert.Raw))
	write(a.t, c.TLSKey, pemOf("PRIVATE KEY", der))
	write(a.t, c.TLSCA, pemOf("CERTIFICATE", a.cert.Raw))
	return c
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
