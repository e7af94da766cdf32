package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// endpoint is one element of ROUTER_ENDPOINTS: a base URL, or a name behind
// which there are several routers.
type endpoint struct {
	url        string // empty when host is set
	host, port string // of dns://host:port
}

// CheckEndpoints says what is wrong with ROUTER_ENDPOINTS.
func CheckEndpoints(list []string) error {
	_, err := parseEndpoints(list)
	return err
}

func parseEndpoints(list []string) ([]endpoint, error) {
	if len(list) == 0 {
		return nil, errors.New("required: base URLs of routers, or dns://HOST:PORT")
	}
	var out []endpoint
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

func parseEndpoint(s string) (endpoint, error) {
	bad := func() (endpoint, error) {
		return endpoint{}, fmt.Errorf("%q: want http://HOST:PORT, https://HOST:PORT or dns://HOST:PORT", s)
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
		return endpoint{url: u.Scheme + "://" + u.Host}, nil
	case "dns":
		if u.Port() != "" {
			return endpoint{host: u.Hostname(), port: u.Port()}, nil
		}
	}
	return bad()
}

// CheckURL says what is wrong with a base URL of one process.
func CheckURL(s string) error {
	if e, err := parseEndpoint(s); err != nil || e.url == "" {
		return fmt.Errorf("%q: want http://HOST:PORT or https://HOST:PORT", s)
	}
	return nil
}

// resolve returns the base URLs behind the endpoint now.
func (e endpoint) resolve(ctx context.Context, lookup func(context.Context, string) ([]string, error)) ([]string, error) {
	if e.url != "" {
		return []string{e.url}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveEvery)
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
