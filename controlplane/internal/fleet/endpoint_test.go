package fleet

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/fault"
)

func TestParseEndpoints(t *testing.T) {
	got, err := ParseEndpoints([]string{"http://a:1", "https://b", "http://c/", "dns://routers:9080", "http://[::1]:2"})
	want := []Endpoint{{url: "http://a:1"}, {url: "https://b"}, {url: "http://c"}, {host: "routers", port: "9080"}, {url: "http://[::1]:2"}}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %v, %v", got, err)
	}
	bad := []string{"", "a:1", "ftp://a", "http://", "dns://a", "dns:///a", "http://a/path", "http://u:p@a", "http://a?x=1", "http://a#f", "http://a:0", "http://a:99999", "dns://a:x"}
	_, err = ParseEndpoints(bad)
	for _, s := range bad {
		if _, one := ParseEndpoints([]string{s}); one == nil {
			t.Errorf("%q was taken", s)
		} else if !strings.Contains(err.Error(), one.Error()) {
			t.Errorf("%q is not among all problems: %v", s, err)
		}
	}
}

func FuzzParseEndpoint(f *testing.F) {
	for _, s := range []string{"http://a:1", "dns://a:1", "http://[::1%25eth0]:1", "dns://[::1]:1", "https://é:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parseEndpoint(s)
		if err == nil && (e.url == "") == (e.host == "") {
			t.Fatalf("%q: neither or both: %+v", s, e)
		}
	})
}

func TestResolve(t *testing.T) {
	lookup := func(_ context.Context, host string) ([]string, error) {
		if host == "gone" {
			return nil, errors.New("no such host")
		}
		return []string{"10.0.0.1", "fd00::1"}, nil
	}
	got, err := Endpoint{host: "routers", port: "9080"}.resolve(t.Context(), lookup)
	if err != nil || !slices.Equal(got, []string{"http://10.0.0.1:9080", "http://[fd00::1]:9080"}) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := (Endpoint{host: "gone", port: "1"}).resolve(t.Context(), lookup); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("got %v", err)
	}
}

func TestReason(t *testing.T) {
	long := Reason(errors.New(strings.Repeat("é", 1000)))
	if len(long) > maxReason+len("…") || !utf8.ValidString(long) {
		t.Errorf("%d bytes: %q", len(long), long)
	}
	for want, err := range map[string]error{
		"no answer in time":  context.DeadlineExceeded,
		"no answer in time ": connect.NewError(connect.CodeDeadlineExceeded, errors.New("x")),
		"detail":             fault.Wrap(fault.Unavailable, "detail", errors.New("cause")),
		"message":            connect.NewError(connect.CodeUnavailable, errors.New("message")),
		"a; b":               errors.Join(errors.New("a"), errors.New("b")),
	} {
		if got := Reason(err); got != strings.TrimSpace(want) {
			t.Errorf("Reason(%v) = %q, want %q", err, got, want)
		}
	}
}
