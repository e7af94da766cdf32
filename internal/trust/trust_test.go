package trust

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
)

const (
	one = "one-one-one-one-one"
	two = "two-two-two-two-two"
)

func wantRefused(t *testing.T, err error, says string) {
	t.Helper()
	if fault.KindOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want unauthenticated: %s", err, says)
	}
}

func TestTheTokenAndWhatIsRefused(t *testing.T) {
	p := start(t, Config{Token: one})
	base := "http://" + p.addr
	if err := status(t, p.caller(), base); err != nil {
		t.Fatal(err)
	}
	nobody := rpc.NewClient()
	defer nobody.CloseIdleConnections()
	wantRefused(t, status(t, nobody, base), "token is needed")
	other := start(t, Config{Token: two})
	wantRefused(t, status(t, other.caller(), base), "another one")
	if got := p.refusals(reasonMissing); got != "1" {
		t.Errorf("missing: %s", got)
	}
	if got := p.refusals(reasonToken); got != "1" {
		t.Errorf("wrong: %s", got)
	}
	// Streams are told too, and at once.
	s := rpcTo(nobody, base).Deliver(t.Context())
	_ = s.Send(&gatewayv1.DeliverRequest{})
	if _, err := s.Receive(); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("a stream: %v", err)
	}
	_ = s.CloseRequest()
	_ = s.CloseResponse()
	for path, want := range map[string]int{
		"/healthz": 200, "/readyz": 200, "/metrics": 200, "/": 401, "/metrics/": 401, "//metrics": 401,
		gatewayv1connect.GatewayServiceStatusProcedure: 401,
	} {
		res, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, res.StatusCode, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	if log := p.log.String(); !strings.Contains(log, "rpc_unauthenticated") || strings.Contains(log, one) || strings.Contains(log, two) {
		t.Errorf("log: %s", log)
	}
}

// The three steps of a rotation: accepted, sent, gone. A stream outlives all of it.
func TestTokensRotateInPlace(t *testing.T) {
	files := [2]string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")}
	both := func(text string) {
		for _, f := range files {
			write(t, f, text)
		}
	}
	both(one)
	server, client := start(t, Config{TokenFile: files[0]}), start(t, Config{TokenFile: files[1]})
	base, hc := "http://"+server.addr, client.caller()
	stream := rpcTo(hc, base).Deliver(t.Context())
	exchange := func() {
		t.Helper()
		if err := stream.Send(&gatewayv1.DeliverRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	defer func() { _, _ = stream.CloseRequest(), stream.CloseResponse() }()
	call := func() {
		t.Helper()
		if err := status(t, hc, base); err != nil {
			t.Fatal(err)
		}
		exchange()
	}
	for _, text := range []string{"# next\n" + one + "\n" + two + "\n", two + "\n\n" + one, two} {
		loaded := strings.Count(server.log.String(), "cluster_token_loaded") + strings.Count(client.log.String(), "cluster_token_loaded")
		both(text)
		testkit.Eventually(t, "both have read it", func() bool {
			call()
			return strings.Count(server.log.String(), "cluster_token_loaded")+strings.Count(client.log.String(), "cluster_token_loaded") == loaded+2
		})
		call()
	}
	old := start(t, Config{Token: one})
	wantRefused(t, status(t, old.caller(), base), "another one")
	write(t, files[0], "short")
	testkit.Eventually(t, "it is refused", func() bool { return strings.Contains(server.log.String(), "cluster_token_refused") })
	call()
}

func TestCertificates(t *testing.T) {
	ca := newAuthority(t)
	names := []string{"mics.internal"}
	good := func() Config { return ca.config(t.TempDir(), issue{names: names}) }
	c := good()
	c.TLSNames = []string{"other", "MICS.internal"}
	p := start(t, c)
	base := "https://" + p.addr
	if err := status(t, start(t, good()).caller(), base); err != nil {
		t.Fatal(err)
	}

	foreign := newAuthority(t).config(t.TempDir(), issue{names: names})
	foreign.TLSCA = c.TLSCA // it trusts the server all the same
	refused := 0
	for what, bad := range map[string]Config{
		"expired":           ca.config(t.TempDir(), issue{names: names, expired: true}),
		"another authority": foreign,
		"another name":      ca.config(t.TempDir(), issue{names: []string{"x.internal"}}),
		"no name":           ca.config(t.TempDir(), issue{}),
		"not for clients":   ca.config(t.TempDir(), issue{names: names, usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}),
	} {
		// The alert may come before or after the client's first write fails.
		if err := status(t, start(t, bad).caller(), base); err == nil {
			t.Errorf("%s: taken", what)
		}
		refused++
	}
	testkit.Eventually(t, "all are counted", func() bool { return p.refusals(reasonCertificate) == string(rune('0'+refused)) })

	// No certificate: a call is told so, a probe is answered; so it is without TLS.
	hc := rpc.NewTLSClient(&tls.Config{InsecureSkipVerify: true}) //nolint:gosec // as a kubelet's probe
	defer hc.CloseIdleConnections()
	wantRefused(t, status(t, hc, base), "certificate")
	wantRefused(t, status(t, hc, "http://"+p.addr), "certificate")
	for _, url := range []string{base, "http://" + p.addr} {
		res, err := hc.Get(url + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s: %d", url, res.StatusCode)
		}
	}

	// Servers are checked as well.
	expired := start(t, ca.config(t.TempDir(), issue{names: names, expired: true}))
	if err := status(t, p.caller(), "https://"+expired.addr); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired server: %v", err)
	}
	stranger := start(t, newAuthority(t).config(t.TempDir(), issue{names: names}))
	if err := status(t, p.caller(), "https://"+stranger.addr); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a stranger: %v", err)
	}
}

func TestCertificatesAreReadAgainOnBothSides(t *testing.T) {
	ca, dirs := newAuthority(t), [2]string{t.TempDir(), t.TempDir()}
	server, client := start(t, ca.config(dirs[0], issue{})), start(t, ca.config(dirs[1], issue{}))
	base := "https://" + server.addr
	before := client.caller()
	if err := status(t, before, base); err != nil {
		t.Fatal(err)
	}
	next := newAuthority(t)
	for _, dir := range dirs { // all at once here; an operator adds the authority first
		next.config(dir, issue{})
	}
	testkit.Eventually(t, "both sides have the new authority", func() bool {
		return status(t, client.caller(), base) == nil &&
			strings.Count(server.log.String(), "tls_certificate_loaded") > 1 && strings.Count(client.log.String(), "tls_certificate_loaded") > 1
	})
	if err := status(t, before, base); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	late := start(t, ca.config(t.TempDir(), issue{}))
	if err := status(t, late.caller(), base); err == nil {
		t.Error("the old authority counts")
	}
}

// A cluster changes from a token to certificates while it runs: both are accepted.
func TestEitherProofWillDo(t *testing.T) {
	ca := newAuthority(t)
	c := ca.config(t.TempDir(), issue{})
	c.Token = one
	p := start(t, c)
	onlyToken, onlyTLS := start(t, Config{Token: one}), start(t, ca.config(t.TempDir(), issue{}))
	for what, err := range map[string]error{
		"token":       status(t, onlyToken.caller(), "http://"+p.addr),
		"certificate": status(t, onlyTLS.caller(), "https://"+p.addr),
		"both, TLS":   status(t, p.caller(), "https://"+p.addr),
		"both, plain": status(t, p.caller(), "http://"+p.addr),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantRefused(t, status(t, onlyTLS.caller(), "http://"+p.addr), "token")
}

func TestNobodyGuardsLoopbackButAgainstBrowsers(t *testing.T) {
	p := start(t, Config{})
	hc := p.caller()
	if err := status(t, hc, "http://"+p.addr); err != nil {
		t.Fatal(err)
	}
	for _, header := range []string{"Origin", "Sec-Fetch-Site"} {
		req := connect.NewRequest(&gatewayv1.StatusRequest{})
		req.Header().Set(header, "x")
		_, err := rpcTo(hc, "http://"+p.addr).Status(t.Context(), req)
		wantRefused(t, err, "web page")
	}
	if got := p.refusals(reasonBrowser); got != "2" {
		t.Errorf("counted %s", got)
	}
	if !strings.Contains(p.log.String(), "cluster_unauthenticated") {
		t.Error("not a word about it")
	}
}

func TestCheck(t *testing.T) {
	full := Config{TLSCert: "a", TLSKey: "b", TLSCA: "c"}
	for _, tc := range []struct {
		c      Config
		listen string
		urls   []string
		want   string
	}{
		{Config{}, "127.0.0.1:1", []string{"http://x:1"}, ""},
		{Config{}, "[::1]:1", nil, ""},
		{Config{}, "localhost:1", nil, ""},
		{Config{}, ":9080", nil, "INTERNAL_LISTEN"},
		{Config{}, "", nil, "CLUSTER_INSECURE"},
		{Config{}, "10.0.0.1:1", nil, "CLUSTER_TOKEN_FILE"},
		{Config{}, "localhost.example.com:1", nil, "INTERNAL_LISTEN"},
		{Config{Insecure: true}, ":9080", nil, ""},
		{Config{Token: one}, ":9080", nil, ""},
		{Config{TokenFile: "x"}, ":9080", nil, ""},
		{full, ":9080", []string{"https://a:1", "dns://a:1", ""}, ""},
		{full, ":9080", []string{"http://a:1"}, "https://"},
		{Config{Token: one, TLSCert: "a", TLSKey: "b", TLSCA: "c"}, ":9080", []string{"http://a:1"}, ""},
		{Config{TLSCert: "a"}, ":9080", nil, "all three"},
		{Config{TLSNames: []string{"a"}, Token: one}, ":9080", nil, "INTERNAL_TLS_NAMES"},
		{Config{Token: one, TokenFile: "x"}, ":9080", nil, "one of them"},
		{Config{Token: "hush"}, ":9080", nil, "16 to 512"},
		{Config{Token: "hush hush hush hush"}, ":9080", nil, "blanks"},
	} {
		err := tc.c.Check(tc.listen, tc.urls...)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v at %q: %v, want %q", tc.c, tc.listen, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("quotes the token: %v", err)
		}
	}
}

func TestFilesAreCheckedAtTheStart(t *testing.T) {
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer tel.Shutdown(context.Background()) //nolint:errcheck // of a test
	dir := t.TempDir()
	empty, bad := filepath.Join(dir, "empty"), filepath.Join(dir, "bad")
	write(t, empty, "# none\n")
	write(t, bad, one+"\nhush hush hush hush")
	for want, c := range map[string]Config{
		"no such file":           {TokenFile: filepath.Join(dir, "none")},
		"there is no token":      {TokenFile: empty},
		"line 2":                 {TokenFile: bad},
		"INTERNAL_TLS_CERT_FILE": {TLSCert: empty, TLSKey: empty, TLSCA: empty},
	} {
		if _, err := New(c, tel); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
