package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/tlsfile"
	"github.com/mics-im/mics/internal/watchfile"
)

// Why a call or a connection was refused: values of the counter's label.
const (
	reasonMissing     = "missing"     // neither token nor certificate
	reasonToken       = "token"       // a wrong one
	reasonCertificate = "certificate" // one that is expired, or not of the cluster
	reasonBrowser     = "browser"     // a web page's request: no process of ours
)

// logEvery bounds the log lines about refused calls.
const logEvery = 10 * time.Second

// maxTokenFile bounds CLUSTER_TOKEN_FILE, in bytes.
const maxTokenFile = 64 << 10

// open are the paths that need no proof: probes and scrapers have none, and they
// change nothing.
var open = []string{"/healthz", "/readyz", "/metrics"}

// Trust is a process's part in the cluster. Safe for concurrent use.
type Trust struct {
	cfg     Config
	log     *slog.Logger
	refused *telemetry.CounterVec
	logged  atomic.Int64 // when a refusal was logged last, Unix nanoseconds
	errors  *connect.ErrorWriter

	current  atomic.Pointer[tokens] // nil: no token
	follower *watchfile.Follower    // nil: no file
	files    *tlsfile.Files         // nil: no TLS
}

// New reads and watches the files, until Close. The Config has been checked. An
// error about a file wraps config.ErrInvalid. A later version of a file that is no
// good is refused as a whole, with a log line (cluster_token_refused,
// tls_certificate_refused), and the one before stays.
func New(c Config, tel *telemetry.Telemetry) (*Trust, error) {
	t := &Trust{
		cfg: c, log: tel.Log, errors: connect.NewErrorWriter(rpc.HandlerOptions()...),
		refused: tel.CounterVec("mics_rpc_unauthenticated_total", "Calls and connections between processes that were refused.", "reason"),
	}
	for _, reason := range []string{reasonMissing, reasonToken, reasonCertificate, reasonBrowser} {
		t.refused.With(reason)
	}
	if c.Token != "" {
		t.current.Store(newTokens(c.Token))
	}
	if c.TokenFile != "" {
		f, err := watchfile.New(watchfile.Options{
			Name: settingTokenFile, Files: []string{c.TokenFile}, MaxBytes: maxTokenFile, Log: t.log,
			Take: func(contents [][]byte) error {
				list, err := parseTokens(contents[0])
				if err != nil {
					return fmt.Errorf("%s: %s: %w", settingTokenFile, c.TokenFile, err)
				}
				t.current.Store(list)
				return nil
			},
			Taken:   func() { t.log.Info("cluster_token_loaded", "accepted", len(t.current.Load().accept)) },
			Refused: func(err error) { t.log.Error("cluster_token_refused", "err", err) },
		})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
		}
		f.Start()
		t.follower = f
	}
	if c.tls() {
		files, err := tlsfile.Open(tlsfile.Options{Cert: c.TLSCert, Key: c.TLSKey, CA: c.TLSCA, Optional: true, Check: t.checkName}, t.log)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s, %s, %s: %w", settingCert, settingKey, settingCA, err), t.Close())
		}
		t.files = files
	}
	if !c.tls() && !c.token() {
		say := t.log.Info
		if c.Insecure {
			say = t.log.Warn
		}
		say("cluster_unauthenticated", "effect", "whoever reaches INTERNAL_LISTEN may call every RPC there",
			"remedy", "set "+settingTokenFile+" or "+settingCert)
	}
	return t, nil
}

// Close ends the watching; what was read last stays in force.
func (t *Trust) Close() error {
	var err error
	if t.follower != nil {
		err = t.follower.Close()
	}
	if t.files != nil {
		err = errors.Join(err, t.files.Close())
	}
	return err
}

// checkName compares a certificate's names with TLSNames.
func (t *Trust) checkName(leaf *x509.Certificate) error {
	if len(t.cfg.TLSNames) == 0 {
		return nil
	}
	for _, name := range leaf.DNSNames {
		if slices.ContainsFunc(t.cfg.TLSNames, func(want string) bool { return strings.EqualFold(want, name) }) {
			return nil
		}
	}
	return fmt.Errorf("the certificate has none of the names of %s", settingNames)
}

// Client returns a client for calls to the cluster's processes. Close it with
// CloseIdleConnections. A connection keeps the certificates with which it began.
func (t *Trust) Client() *http.Client {
	if t.files == nil {
		return t.client(nil)
	}
	c := t.files.ClientConfig()
	c.MinVersion = tls.VersionTLS13
	return t.client(c)
}

func (t *Trust) client(c *tls.Config) *http.Client {
	client := rpc.NewTLSClient(c)
	if t.current.Load() != nil {
		client.Transport = &bearing{next: client.Transport, t: t}
	}
	return client
}

// bearing sends the token with every call.
type bearing struct {
	next http.RoundTripper
	t    *Trust
}

func (b *bearing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", b.t.current.Load().send)
	return b.next.RoundTrip(r)
}

func (b *bearing) CloseIdleConnections() {
	if c, ok := b.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// Server serves h on ln, as rpc.NewServer does: all of it to the cluster's
// processes, /healthz, /readyz and /metrics to everybody. With certificates it
// speaks TLS with whoever begins so; without TLS a call needs the token.
func (t *Trust) Server(ln net.Listener, h http.Handler) *rpc.Server {
	if t.files != nil {
		c := t.files.Config()
		c.MinVersion = tls.VersionTLS13
		verify := c.VerifyConnection
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			err := verify(cs)
			if err != nil {
				t.count(reasonCertificate, "", "", err)
			}
			return err
		}
		ln = rpc.TLSOrPlain(ln, c)
	}
	return rpc.NewServer(ln, t.protect(h), nil, t.log)
}

func (t *Trust) protect(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(open, r.URL.Path) {
			if reason, says := t.judge(r); reason != "" {
				t.count(reason, r.RemoteAddr, r.URL.Path, nil)
				t.refuse(w, r, says)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}

// judge says why a call is refused, in the label's word and in the caller's; empty:
// it is not.
func (t *Trust) judge(r *http.Request) (reason, says string) {
	// Of no process of ours: it matters where nothing else guards loopback.
	if r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" {
		return reasonBrowser, "no web page may call the cluster's processes"
	}
	list := t.current.Load()
	if list == nil && t.files == nil {
		return "", ""
	}
	if t.files != nil && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		return "", "" // verified in the handshake
	}
	header := r.Header.Get("Authorization")
	switch {
	case list == nil:
		return reasonMissing, "a certificate of the cluster is needed: " + settingCert
	case header == "":
		return reasonMissing, "the cluster token is needed: " + settingTokenFile
	case !list.accepts(header):
		return reasonToken, "the cluster token is another one here: " + settingTokenFile
	}
	return "", ""
}

func (t *Trust) refuse(w http.ResponseWriter, r *http.Request, says string) {
	if !t.errors.IsSupported(r) {
		http.Error(w, says, http.StatusUnauthorized)
		return
	}
	_ = t.errors.Write(w, r, connect.NewError(connect.CodeUnauthenticated, errors.New(says))) // the caller is gone
}

// count counts a refusal and logs some of them.
func (t *Trust) count(reason, from, path string, err error) {
	t.refused.With(reason).Inc()
	now, last := time.Now().UnixNano(), t.logged.Load()
	if now-last >= int64(logEvery) && t.logged.CompareAndSwap(last, now) {
		t.log.Warn("rpc_unauthenticated", "reason", reason, "from", from, "path", path, "err", err)
	}
}
