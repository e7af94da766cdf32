package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Endpoint is one element of ROUTER_ENDPOINTS: a base URL, or a name behind
// which there are several.
type Endpoint struct {
	// url is the base URL; empty when host is set.
	url string
	// host and port of dns://host:port.
	host, port string
}

// ParseEndpoints checks a list of endpoints. All problems are reported.
func ParseEndpoints(list []string) ([]Endpoint, error) {
	var out []Endpoint
	var errs []error
	for _, s := range list {
		e, err := parseEndpoint(s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, e)
	}
	return out, errors.Join(errs...)
}

func parseEndpoint(s string) (Endpoint, error) {
	bad := func() (Endpoint, error) {
		return Endpoint{}, fmt.Errorf("%q: want http://HOST:PORT, https://HOST:PORT or dns://HOST:PORT", s)
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return bad()
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return bad()
		}
	}
	switch u.Scheme {
	case "http", "https":
		return Endpoint{url: u.Scheme + "://" + u.Host}, nil
	case "dns":
		if u.Port() == "" {
			return bad()
		}
		return Endpoint{host: u.Hostname(), port: u.Port()}, nil
	}
	return bad()
}

// resolve returns the base URLs behind the endpoint now.
func (e Endpoint) resolve(ctx context.Context, lookup func(context.Context, string) ([]string, error)) ([]string, error) {
	if e.url != "" {
		return []string{e.url}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	addrs, err := lookup(ctx, e.host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", e.host, err)
	}
	urls := make([]string, 0, len(addrs))
	for _, a := range addrs {
		urls = append(urls, "http://"+net.JoinHostPort(a, e.port))
	}
	return urls, nil
}
