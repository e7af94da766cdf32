package rpc

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
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
		if _, one := ParseURL(s); one == nil {
			t.Errorf("%q was taken as a URL", s)
		}
	}
	if _, err := ParseURL("dns://a:1"); err == nil {
		t.Error("a name is not one process")
	}
	if got, err := ParseURL("http://a:1/"); err != nil || got != "http://a:1" {
		t.Errorf("got %q, %v", got, err)
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
	for scheme, want := range map[string][]string{
		"http": {"http://10.0.0.1:9080", "http://[fd00::1]:9080"}, "https": {"https://10.0.0.1:9080", "https://[fd00::1]:9080"},
	} {
		got, err := Endpoint{host: "routers", port: "9080"}.Resolve(t.Context(), scheme, lookup)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("got %v, %v", got, err)
		}
	}
	if got, err := (Endpoint{url: "http://a:1"}).Resolve(t.Context(), "https", lookup); err != nil || !slices.Equal(got, []string{"http://a:1"}) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := (Endpoint{host: "gone", port: "1"}).Resolve(t.Context(), "http", lookup); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("got %v", err)
	}
}
