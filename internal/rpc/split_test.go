package rpc

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// One port speaks both; who connects and says nothing keeps nobody waiting, and
// does not outlive the listener.
func TestTLSOrPlain(t *testing.T) {
	files := httptest.NewTLSServer(http.NotFoundHandler()) // it brings a certificate
	defer files.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer(TLSOrPlain(ln, &tls.Config{Certificates: files.TLS.Certificates, MinVersion: tls.VersionTLS12}), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		said := "plain " + r.Proto
		if r.TLS != nil {
			said = "TLS " + r.Proto
		}
		_, _ = io.WriteString(w, said)
	}), nil, slog.New(slog.DiscardHandler))
	srv.Start()
	silent, err := net.Dial("tcp", srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()

	hc := NewTLSClient(&tls.Config{InsecureSkipVerify: true}) //nolint:gosec // a certificate for the test
	defer hc.CloseIdleConnections()
	old := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // likewise
	for _, tc := range []struct {
		client    *http.Client
		url, want string
	}{
		{hc, "http://", "plain HTTP/2.0"}, {hc, "https://", "TLS HTTP/2.0"}, {hc, "http://", "plain HTTP/2.0"}, {old, "https://", "TLS HTTP/1.1"}, {old, "http://", "plain HTTP/1.1"},
	} {
		res, err := tc.client.Get(tc.url + srv.Addr())
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || string(b) != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.url, b, err, tc.want)
		}
	}
	hc.CloseIdleConnections()
	if err := srv.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("who said nothing is still connected")
	}
}

func TestASplitListenerThatNeverServed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer(TLSOrPlain(ln, &tls.Config{MinVersion: tls.VersionTLS12}), http.NotFoundHandler(), nil, slog.New(slog.DiscardHandler))
	if err := srv.Stop(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("it listens")
	}
}
