package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Endpoint is one element of ROUTER_ENDPOINTS or CONTROLPLANE_ENDPOINTS: a base
// URL, or a name behind which there are several processes. It is comparable.
type Endpoint struct {
	url        string // empty when host is set
	host, port string // of dns://host:port
}

// Lookup returns the addresses behind a name, as net.Resolver.LookupHost does.
type Lookup func(ctx context.Context, host string) ([]string, error)

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
		if u.Port() != "" {
			return Endpoint{host: u.Hostname(), port: u.Port()}, nil
		}
	}
	return bad()
}

// ParseURL checks the base URL of one process and returns it without what says
// nothing.
func ParseURL(s string) (string, error) {
	e, err := parseEndpoint(s)
	if err != nil || e.url == "" {
		return "", fmt.Errorf("%q: want http://HOST:PORT or https://HOST:PORT", s)
	}
	return e.url, nil
}

// Resolve returns the base URLs behind the endpoint now. scheme, http or https,
// is that of processes behind a name.
func (e Endpoint) Resolve(ctx context.Context, scheme string, lookup Lookup) ([]string, error) {
	if e.url != "" {
		return []string{e.url}, nil
	}
	addrs, err := lookup(ctx, e.host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", e.host, err)
	}
	urls := make([]string, 0, len(addrs))
	for _, a := range addrs {
		urls = append(urls, scheme+"://"+net.JoinHostPort(a, e.port))
	}
	return urls, nil
}
