// Package tlsfile speaks TLS, as server and as client, with a certificate that is
// kept in files and renewed there while the process runs.
package tlsfile

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/watchfile"
)

// maxFile bounds a file, in bytes: chains and bundles are far below it.
const maxFile = 1 << 20

// Options name the files, in PEM.
type Options struct {
	Cert string // the certificate, then its intermediates
	Key  string // its private key
	// CA holds the authorities of the other side's certificates (mutual TLS). Empty:
	// clients present none, and ClientConfig is of no use.
	CA string
	// Optional lets clients present no certificate.
	Optional bool
	// Check, if given, may refuse a certificate of the other side that is good
	// otherwise.
	Check func(leaf *x509.Certificate) error
}

// Files is a certificate and what clients are checked against, as of the last
// version of the files that was good. Safe for concurrent use.
type Files struct {
	opts     Options
	log      *slog.Logger
	current  atomic.Pointer[material]
	follower *watchfile.Follower
}

// material is one version of the files. It is not modified.
type material struct {
	cert  *tls.Certificate
	peers *x509.CertPool // nil: no CA
}

// New is Open without client certificates.
func New(certFile, keyFile string, log *slog.Logger) (*Files, error) {
	return Open(Options{Cert: certFile, Key: keyFile}, log)
}

// Open reads the files and watches them until Close. An error names the file and
// wraps config.ErrInvalid. log may be nil.
//
// A later version is taken as a whole (tls_certificate_loaded) or refused as a
// whole (tls_certificate_refused, once for each); then the one before stays.
// Nothing but new handshakes sees a change.
func Open(o Options, log *slog.Logger) (*Files, error) {
	f, err := read(o, log)
	if err != nil {
		return nil, err
	}
	f.logLoaded()
	f.follower.Start()
	return f, nil
}

// read is Open without what happens later.
func read(o Options, log *slog.Logger) (*Files, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &Files{opts: o, log: log}
	if o.Cert == "" || o.Key == "" {
		return nil, fmt.Errorf("%w: a certificate and its key are needed", config.ErrInvalid)
	}
	names := []string{o.Cert, o.Key}
	if o.CA != "" {
		names = append(names, o.CA)
	}
	var err error
	f.follower, err = watchfile.New(watchfile.Options{
		Files: names, MaxBytes: maxFile, Take: f.take, Taken: f.logLoaded, Log: log,
		Refused: func(err error) {
			f.log.Error("tls_certificate_refused", "err", err, "kept_not_after", f.current.Load().cert.Leaf.NotAfter)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	return f, nil
}

// Close ends the watching and waits for it; what was loaded last is served on.
func (f *Files) Close() error { return f.follower.Close() }

// Config returns a server's configuration, a new one for each call, which the
// caller may add to: NextProtos is empty. The files' current version is used in
// each handshake.
//
// With Options.CA clients must present a certificate of one of its authorities
// that is good for client authentication, or none with Options.Optional; resumed
// sessions are checked too. Afterwards, if there is one, ConnectionState.PeerCertificates[0] is verified;
// VerifiedChains is empty.
func (f *Files) Config() *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return f.current.Load().cert, nil
		},
	}
	if f.opts.CA != "" {
		// Not ClientCAs, which could not change, and not GetConfigForClient, whose
		// result would lose what the caller has added.
		c.ClientAuth = tls.RequireAnyClientCert
		if f.opts.Optional {
			c.ClientAuth = tls.RequestClientCert
		}
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			if f.opts.Optional && len(cs.PeerCertificates) == 0 {
				return nil
			}
			return f.verify(cs, x509.ExtKeyUsageClientAuth)
		}
	}
	return c
}

// ClientConfig returns the configuration of a client that presents the certificate
// to servers whose own is of one of the authorities of Options.CA and good for
// servers. Their names are compared with nothing: that is for Options.Check.
func (f *Files) ClientConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return f.current.Load().cert, nil
		},
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies, against authorities that may change
		VerifyConnection: func(cs tls.ConnectionState) error {
			return f.verify(cs, x509.ExtKeyUsageServerAuth)
		},
	}
}

// verify checks the other side's certificate.
func (f *Files) verify(cs tls.ConnectionState, usage x509.ExtKeyUsage) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("no certificate")
	}
	roots := f.current.Load().peers
	if roots == nil {
		return errors.New("no authority to check a certificate against") // nil would mean the system's
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, c := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := cs.PeerCertificates[0].Verify(opts); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
	}
	if f.opts.Check != nil {
		return f.opts.Check(cs.PeerCertificates[0])
	}
	return nil
}

func (f *Files) logLoaded() {
	leaf := f.current.Load().cert.Leaf
	sum := sha256.Sum256(leaf.Raw)
	level := slog.LevelInfo
	if time.Now().After(leaf.NotAfter) {
		level = slog.LevelWarn // taken: it is what the operator has
	}
	f.log.Log(context.Background(), level, "tls_certificate_loaded", "file", f.opts.Cert,
		"sha256", hex.EncodeToString(sum[:]), "not_after", leaf.NotAfter)
}

// take makes a version of the files the current one.
func (f *Files) take(contents [][]byte) error {
	m := new(material)
	pair, err := tls.X509KeyPair(contents[0], contents[1]) // its errors quote nothing
	if err != nil {
		return fmt.Errorf("%s with %s: %w", f.opts.Cert, f.opts.Key, err)
	}
	m.cert = &pair
	if f.opts.CA != "" {
		if m.peers, err = parsePool(contents[2]); err != nil {
			return fmt.Errorf("%s: %w", f.opts.CA, err)
		}
	}
	f.current.Store(m)
	return nil
}

// parsePool reads certificates. Unlike AppendCertsFromPEM it skips none: an
// authority that is silently missing locks clients out.
func parsePool(b []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	n := 0
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, errors.New("there is something else than certificates")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		pool.AddCert(c)
		n++
	}
	if n == 0 {
		return nil, errors.New("there is no certificate")
	}
	return pool, nil
}
