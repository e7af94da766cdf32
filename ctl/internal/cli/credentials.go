package cli

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/output"
)

// Environment variables behind the flags of the same meaning. There is none for a
// token itself, and no flag: both would be seen by others on the machine.
const (
	TokenFileEnv = "MICS_TOKEN_FILE"
	CACertEnv    = "MICS_CACERT"
	CertEnv      = "MICS_CERT"
	KeyEnv       = "MICS_KEY"
)

// maxTokenFile bounds the file, in bytes: a token is far below it.
const maxTokenFile = 4 << 10

// Credentials are how the person at the keyboard proves who he is. All are names of
// files; empty: none.
type Credentials struct {
	TokenFile         string
	CACert, Cert, Key string
}

func (c *Credentials) addFlags(root *cobra.Command, getenv func(string) string) {
	for _, f := range []struct {
		p                *string
		name, env, usage string
	}{
		{&c.TokenFile, "token-file", TokenFileEnv, "file with your token"},
		{&c.CACert, "cacert", CACertEnv, "PEM file with the authorities of the control plane's certificate"},
		{&c.Cert, "cert", CertEnv, "PEM file with your certificate"},
		{&c.Key, "key", KeyEnv, "PEM file with its key"},
	} {
		root.PersistentFlags().StringVar(f.p, f.name, getenv(f.env), f.usage+" (environment: "+f.env+")")
		must(root.MarkPersistentFlagFilename(f.name))
	}
}

// token reads the token; empty: there is none. Its errors do not quote it.
func (c *Credentials) token() (string, error) {
	if c.TokenFile == "" {
		return "", nil
	}
	f, err := os.Open(c.TokenFile)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" || len(b) > maxTokenFile || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("--token-file: %s: must hold one token, of printable ASCII without blanks", c.TokenFile)
	}
	return token, nil
}

// tls returns nil where the system's defaults will do.
func (c *Credentials) tls() (*tls.Config, error) {
	if (c.Cert == "") != (c.Key == "") {
		return nil, errors.New("--cert, --key: one of them alone is of no use")
	}
	if c.CACert == "" && c.Cert == "" {
		return nil, nil //nolint:nilnil // as documented
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CACert != "" {
		b, err := os.ReadFile(c.CACert)
		if err != nil {
			return nil, fmt.Errorf("--cacert: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("--cacert: %s: there is no certificate in it", c.CACert)
		}
	}
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("--cert, --key: %w", err)
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}

// client returns an HTTP client that shows the credentials to the control plane at
// base, and to nobody that it redirects to.
func (a *App) client(base string) (*http.Client, error) {
	token, err := a.token()
	if err != nil {
		return nil, Usage(err)
	}
	c, err := a.tls()
	if err != nil {
		return nil, Usage(err)
	}
	if c != nil && a.transport.TLSClientConfig == nil {
		a.transport.TLSClientConfig = c
	}
	out := &http.Client{
		Transport:     a.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if token == "" {
		return out, nil
	}
	out.Transport = bearing{next: a.transport, token: token}
	if u, err := url.Parse(base); err == nil && u.Scheme == "http" && !loopback(u.Hostname()) && !a.warned {
		a.warned = true
		_, err = fmt.Fprintf(a.Err, "Warning: your token crosses the network to %s as it is: use https://\n", output.Clean(u.Host))
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// bearing shows the token with every request.
type bearing struct {
	next  http.RoundTripper
	token string
}

func (b bearing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}
