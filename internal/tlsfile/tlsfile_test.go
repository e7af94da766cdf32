package tlsfile

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/testkit"
)

func eventuallyServes(t *testing.T, addr string, a *authority, name string) {
	t.Helper()
	testkit.Eventually(t, "served: "+name, func() bool {
		got, c, err := exchange(t, addr, clientConfig(a))
		if err != nil {
			t.Fatal(err) // never a broken handshake meanwhile
		}
		_ = c.Close()
		return got == name
	})
}

func TestNewHandshakesGetTheNewCertificate(t *testing.T) {
	a := newAuthority(t, "ca")
	_, o := folder(t, a)
	l := new(logs)
	f, err := New(o.Cert, o.Key, l.logger())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	addr := echoServer(t, f.Config())
	name, old, err := exchange(t, addr, clientConfig(a))
	if err != nil || name != "first" {
		t.Fatal(name, err)
	}
	if l.count(t, "tls_certificate_loaded") != 1 {
		t.Fatal(l.text())
	}

	install(t, a, o, "second")
	eventuallyServes(t, addr, a, "second")
	if err := again(old); err != nil {
		t.Fatalf("a connection from before: %v", err)
	}
	testkit.Eventually(t, "it is logged", func() bool { return l.count(t, "tls_certificate_loaded") == 2 })
}

// As a mounted Secret changes: a link to a folder is replaced by one to another.
func TestReplacedFolder(t *testing.T) {
	a := newAuthority(t, "ca")
	dir := t.TempDir()
	version := func(name string) {
		at := filepath.Join(dir, name)
		if err := os.Mkdir(at, 0o700); err != nil {
			t.Fatal(err)
		}
		install(t, a, Options{Cert: filepath.Join(at, "tls.crt"), Key: filepath.Join(at, "tls.key")}, name)
		next := filepath.Join(dir, "next")
		if err := os.Symlink(name, next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, filepath.Join(dir, "data")); err != nil {
			t.Fatal(err)
		}
	}
	version("v1")
	for _, n := range []string{"tls.crt", "tls.key"} {
		if err := os.Symlink(filepath.Join("data", n), filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	l := new(logs)
	f := open(t, Options{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}, l)
	addr := echoServer(t, f.Config())
	eventuallyServes(t, addr, a, "v1")
	version("v2")
	eventuallyServes(t, addr, a, "v2")
	if n := l.count(t, "tls_certificate_refused"); n != 0 {
		t.Fatal(l.text())
	}
}

func TestBadFilesKeepTheOld(t *testing.T) {
	a := newAuthority(t, "ca")
	_, o := folder(t, a)
	l := new(logs)
	f := open(t, o, l)
	addr := echoServer(t, f.Config())
	write(t, o.Cert, []byte("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"))
	testkit.Eventually(t, "it is refused", func() bool { return l.count(t, "tls_certificate_refused") == 1 })
	if name, _, err := exchange(t, addr, clientConfig(a)); err != nil || name != "first" {
		t.Fatal(name, err)
	}
	install(t, a, o, "second")
	eventuallyServes(t, addr, a, "second")
}

// What is bad, without the watch.
func TestRefused(t *testing.T) {
	a := newAuthority(t, "ca")
	cert, key := a.leaf("x", x509.ExtKeyUsageServerAuth)
	_, otherKey := a.leaf("y", x509.ExtKeyUsageServerAuth)
	for name, tc := range map[string]struct{ cert, key, ca []byte }{
		"no certificate":     {nil, key, a.pem},
		"no key":             {cert, nil, a.pem},
		"key for another":    {cert, otherKey, a.pem},
		"swapped":            {key, cert, a.pem},
		"cut":                {cert[:len(cert)/2], key, a.pem},
		"huge":               {append(bytes.Repeat([]byte("\n"), maxFile), cert...), key, a.pem},
		"no authority":       {cert, key, nil},
		"authority is text":  {cert, key, []byte("hello")},
		"authority is a key": {cert, key, key},
		"one authority bad":  {cert, key, append(bytes.Clone(a.pem), pemOf("CERTIFICATE", []byte("x"))...)},
	} {
		t.Run(name, func(t *testing.T) {
			dir, o := folder(t, a)
			o.CA = filepath.Join(dir, "ca.crt")
			write(t, o.CA, a.pem)
			l := new(logs)
			f, err := read(o, l.logger())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
			before := f.current.Load()
			for file, content := range map[string][]byte{o.Cert: tc.cert, o.Key: tc.key, o.CA: tc.ca} {
				write(t, file, content)
			}
			f.follower.Look()
			f.follower.Look() // the same again is not news
			if f.current.Load() != before {
				t.Error("taken")
			}
			if l.count(t, "tls_certificate_refused") != 1 || l.count(t, "tls_certificate_loaded") != 0 {
				t.Error(l.text())
			}
			if secret := strings.Split(string(key), "\n")[1]; strings.Contains(l.text(), secret) {
				t.Error("the key is in the log")
			}
			for _, file := range []string{o.Cert, o.Key, o.CA} {
				_ = os.Remove(file)
			}
			f.follower.Look()
			if f.current.Load() != before || l.count(t, "tls_certificate_refused") != 2 {
				t.Errorf("files removed: %s", l.text())
			}
			if _, err := Open(o, nil); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), o.Cert) {
				t.Errorf("at start: %v", err)
			}
		})
	}
}

func TestWrongOptions(t *testing.T) {
	for _, o := range []Options{
		{}, {Cert: "x"}, {Key: "x"},
		{Cert: filepath.Join(t.TempDir(), "none", "x"), Key: "y"},
	} {
		if _, err := Open(o, nil); !errors.Is(err, config.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestOldProtocolsAreRefused(t *testing.T) {
	a := newAuthority(t, "ca")
	_, o := folder(t, a)
	addr := echoServer(t, open(t, o, new(logs)).Config())
	for version, ok := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		c := clientConfig(a)
		c.MinVersion, c.MaxVersion = version, version
		if _, _, err := exchange(t, addr, c); (err == nil) != ok {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}

func TestConfigsAreTheCallersOwn(t *testing.T) {
	a := newAuthority(t, "ca")
	_, o := folder(t, a)
	f := open(t, o, new(logs))
	one := f.Config()
	one.NextProtos = []string{"h2"}
	if two := f.Config(); two.NextProtos != nil {
		t.Fatal("shared")
	}
	c := clientConfig(a)
	c.NextProtos = []string{"h2"}
	_, conn, err := exchange(t, echoServer(t, one), c)
	if err != nil || conn.ConnectionState().NegotiatedProtocol != "h2" {
		t.Fatal(err)
	}
}

func TestClientCertificates(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) { testClientCertificates(t, version) })
	}
}

func testClientCertificates(t *testing.T, version uint16) {
	a, b, other := newAuthority(t, "a"), newAuthority(t, "b"), newAuthority(t, "other")
	dir, o := folder(t, a)
	o.CA = filepath.Join(dir, "clients.crt")
	write(t, o.CA, append(bytes.Clone(a.pem), b.pem...))
	l := new(logs)
	addr := echoServer(t, open(t, o, l).Config())

	// A client keeps sessions, so that they are resumed.
	client := func(cert *tls.Certificate) *tls.Config {
		c := clientConfig(a)
		c.MaxVersion = version
		c.ClientSessionCache = tls.NewLRUClientSessionCache(0)
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert == nil {
				return new(tls.Certificate), nil
			}
			return cert, nil
		}
		return c
	}
	ofA := client(a.pair("client a", x509.ExtKeyUsageClientAuth))
	ofB := client(b.pair("client b", x509.ExtKeyUsageClientAuth))
	ofOther := client(other.pair("client o", x509.ExtKeyUsageClientAuth))
	want := func(what string, c *tls.Config, ok, resumed bool) {
		t.Helper()
		_, conn, err := exchange(t, addr, c)
		switch {
		case (err == nil) != ok:
			t.Fatalf("%s: %v", what, err)
		case err == nil && conn.ConnectionState().DidResume != resumed:
			t.Fatalf("%s: resumed %v", what, !resumed)
		}
	}
	want("none", client(nil), false, false)
	want("of another authority", ofOther, false, false)
	want("for servers", client(a.pair("server", x509.ExtKeyUsageServerAuth)), false, false)
	want("of a", ofA, true, false)
	want("of a, resumed", ofA, true, true)
	want("of b", ofB, true, false)

	write(t, o.CA, append(bytes.Clone(b.pem), other.pem...))
	testkit.Eventually(t, "it is taken", func() bool { return l.count(t, "tls_certificate_loaded") == 2 })
	want("of a, resumed after a left", ofA, false, false)
	want("of a after a left", client(a.pair("client a", x509.ExtKeyUsageClientAuth)), false, false)
	want("of b, resumed", ofB, true, true)
	want("of the other, which came", ofOther, true, false)
}

func TestExpiredIsTakenAndWarned(t *testing.T) {
	a := newAuthority(t, "ca")
	_, o := folder(t, a)
	c, k := a.sign(&x509.Certificate{NotAfter: a.cert.NotBefore.Add(1)}, a.cert, a.key)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	write(t, o.Cert, pemOf("CERTIFICATE", c.Raw))
	write(t, o.Key, pemOf("PRIVATE KEY", der))
	l := new(logs)
	open(t, o, l)
	if text := l.text(); !strings.Contains(text, `"level":"WARN"`) || !strings.Contains(text, fmt.Sprintf("%d", c.NotAfter.Year())) {
		t.Fatal(text)
	}
}
