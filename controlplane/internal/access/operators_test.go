package access

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/telemetry"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

func TestParseOperators(t *testing.T) {
	h := sum("x")
	for text, want := range map[string]string{
		"":              "there is no operator",
		"operators: []": "there is no operator",
		"operators: [{name: a, role: operator, token_sha256: " + h + "}]":                                          "",
		"operators: [{name: a, role: viewer, certificate: [a, b]}]":                                                "",
		"operators: [{name: a, role: viewer}]":                                                                     "token_sha256 or certificate",
		"operators: [{name: a, role: root, certificate: a}]":                                                       "role",
		"operators: [{role: viewer, certificate: a}]":                                                              "name",
		"operators: [{name: a, role: viewer, certificate: ''}]":                                                    "certificate",
		"operators: [{name: a, role: viewer, token_sha256: hush}]":                                                 "64 hexadecimal",
		"operators: [{name: a, role: viewer, token: hush}]":                                                        "token",
		"operators: [{name: a, role: viewer, certificate: a}, {name: a, role: operator, token_sha256: " + h + "}]": "another one",
		"operators: [{name: a, role: viewer, token_sha256: '" + strings.ToUpper(h) + "'}]":                         "",
		"operators: [{name: \"a\\nb\", role: viewer, certificate: a}]":                                             "one line",
	} {
		_, err := parseOperators([]byte(text))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), h)) {
			t.Errorf("%s: quotes a secret: %v", text, err)
		}
	}
}

func TestOperatorsByCertificate(t *testing.T) {
	list, err := parseOperators([]byte("operators: [{name: ci, role: viewer, certificate: [ci.ops, 'spiffe://ops/ci']}, {name: ann, role: operator, certificate: ann@ops}]"))
	if err != nil {
		t.Fatal(err)
	}
	uri, _ := url.Parse("spiffe://ops/ci")
	for _, tc := range []struct {
		cert *x509.Certificate
		want string
	}{
		{&x509.Certificate{Subject: pkix.Name{CommonName: "ci.ops"}}, "ci"},
		{&x509.Certificate{DNSNames: []string{"x", "ci.ops"}}, "ci"},
		{&x509.Certificate{URIs: []*url.URL{uri}}, "ci"},
		{&x509.Certificate{EmailAddresses: []string{"ann@ops"}}, "ann"},
		{&x509.Certificate{Subject: pkix.Name{CommonName: "CI.OPS"}}, ""},
		{&x509.Certificate{}, ""},
	} {
		if got, ok := list.byCertificate(tc.cert); got.Name != tc.want || ok != (tc.want != "") {
			t.Errorf("%+v: %+v", tc.cert.Subject, got)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		c      Config
		listen string
		want   string
	}{
		{Config{}, "127.0.0.1:8070", ""},
		{Config{}, ":8070", "OPERATORS_FILE"},
		{Config{Insecure: true}, ":8070", ""},
		{Config{File: "x"}, ":8070", ""},
		{Config{File: "x", Cert: "a"}, ":8070", "alone"},
		{Config{File: "x", Cert: "a", Key: "b", ClientCA: "c"}, ":8070", ""},
		{Config{Cert: "a", Key: "b", ClientCA: "c"}, "127.0.0.1:1", "OPERATORS_FILE"},
		{Config{File: "x", ClientCA: "c"}, ":8070", "OPERATOR_TLS_CERT_FILE"},
	} {
		if err := tc.c.Check(tc.listen); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v", tc.c, err)
		}
	}
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: &logText{}})
	if err != nil {
		t.Fatal(err)
	}
	defer tel.Shutdown(context.Background()) //nolint:errcheck // of a test
	for _, c := range []Config{{File: "/nonexistent"}, {Cert: "/nonexistent", Key: "/nonexistent"}} {
		if _, err := New(Options{Config: c, Telemetry: tel}); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), "/nonexistent") {
			t.Errorf("%v", err)
		}
	}
}

func TestRedact(t *testing.T) {
	long := strings.Repeat("é", maxText)
	got := string(redact(&controlv1.KickRequest{TenantId: "a", Reason: long}))
	if !json.Valid([]byte(got)) || len(got) > maxText+100 || !strings.Contains(got, "…") || strings.Contains(got, "\\ufffd") {
		t.Errorf("%s", got)
	}
	if got := string(redact(&gatewayv1.SessionInfo{SessionId: 7, UserId: "u"})); !strings.Contains(got, `"session_id":7`) {
		t.Errorf("%s", got)
	}
	if got := string(redact(&gatewayv1.Delivery{Message: []byte("private talk")})); strings.Contains(got, "talk") || !strings.Contains(got, "[12 bytes]") {
		t.Errorf("%s", got)
	}
	if redact(nil) != nil {
		t.Error("nothing is something")
	}
	for name, want := range map[string]bool{"resume_token": true, "Password": true, "tenant_id": false} {
		if secret(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
