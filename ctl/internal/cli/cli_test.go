package cli

import "testing"

func TestParseEndpoint(t *testing.T) {
	for in, want := range map[string]string{
		"http://a:1":     "http://a:1",
		"http://a:1/":    "http://a:1",
		"https://a/ops/": "https://a/ops",
		"a:8070":         "http://a:8070",
		"127.0.0.1:8070": "http://127.0.0.1:8070",
		"[::1]:8070":     "http://[::1]:8070",
		"cp":             "http://cp",
		"":               "",
		"http://":        "",
		"ftp://a":        "",
		"http://u:p@a":   "",
		"http://a?x=1":   "",
		"http://a#b":     "",
		"http://a b":     "",
		"http://a:port":  "",
	} {
		got, err := ParseEndpoint(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ParseEndpoint(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}
