// Package redisconn reads REDIS__CONNECTION, the same for every service that has
// a Redis: one server, Sentinels or a Cluster.
package redisconn

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

const (
	dialTimeout = time.Second
	// keepAlive is how often a silent connection is asked whether it lives.
	keepAlive = time.Second
	// topologyRefresh finds a master or a shard that moved without a word.
	topologyRefresh = 10 * time.Second
	// maxRedirects bounds how often a cluster may send one command elsewhere.
	maxRedirects = 8
)

// Parse reads a REDIS__CONNECTION: a redis:// or rediss:// URL, or the
// StackExchange form that V1 operators have, `host:port,host:port,password=…,
// user=…,ssl=true,defaultDatabase=0,serviceName=…`. Several hosts are the seeds
// of a Redis Cluster or, with a serviceName, the Sentinels. What it does not
// know is an error that names it, unless it may be a piece of a password: no
// error repeats a value.
func Parse(connection string) (rueidis.ClientOption, error) {
	var opt rueidis.ClientOption
	var err error
	if scheme, _, found := strings.Cut(connection, "://"); found && !strings.ContainsAny(scheme, ",:=") {
		opt, err = parseURL(connection)
	} else {
		opt, err = parseStackExchange(connection)
	}
	switch {
	case err != nil:
	case opt.SelectDB < 0:
		err = errors.New("the database number is negative")
	case opt.SelectDB != 0 && len(opt.InitAddress) > 1 && opt.Sentinel.MasterSet == "":
		err = errors.New("several hosts are a Redis Cluster, which has database 0 only")
	}
	if err != nil {
		return rueidis.ClientOption{}, fmt.Errorf("REDIS__CONNECTION: %w", err)
	}
	opt.Dialer = net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive}
	// A deadline then gives up the wait and not the connection.
	opt.AlwaysPipelining = true
	opt.ClusterOption.ShardsRefreshInterval = topologyRefresh
	opt.ClusterOption.MaxMovedRedirections = maxRedirects
	if opt.Sentinel.MasterSet != "" {
		opt.Sentinel.Dialer = opt.Dialer
		opt.Sentinel.TopologyRefreshInterval = topologyRefresh
		opt.Sentinel.TLSConfig = opt.TLSConfig
	}
	return opt, nil
}

// errURL does not say where, because that would quote parts of a password.
var errURL = errors.New("not a URL of the form redis://user:password@host:port/0; " +
	"characters like @ : / ? # % in a password must be percent-encoded")

// parseURL reads what rueidis does, but not its errors, which quote, and not
// parameters that would undo what this package relies on.
func parseURL(connection string) (rueidis.ClientOption, error) {
	var none rueidis.ClientOption
	u, err := url.Parse(connection)
	// An @ behind the host, like a fragment, is the rest of a password.
	if err != nil || u.Fragment != "" || strings.Contains(u.RawQuery, "@") || strings.Contains(u.Path, "@") {
		return none, errURL
	}
	if u.Scheme != "redis" && u.Scheme != "rediss" {
		return none, fmt.Errorf("unknown scheme %q: want redis or rediss", u.Scheme)
	}
	known := []string{"addr", "db", "client_name", "master_set"}
	for name := range u.Query() {
		if !slices.Contains(known, name) {
			return none, fmt.Errorf("unknown parameter %q: want one of %s", name, strings.Join(known, ", "))
		}
	}
	if u.Path == "/" {
		u.Path = ""
	}
	for _, db := range append([]string{strings.TrimPrefix(u.Path, "/")}, u.Query()["db"]...) {
		if _, err := strconv.Atoi(db); err != nil && db != "" {
			return none, errors.New("the database is not a whole number")
		}
	}
	if u.Hostname() == "" {
		return none, errors.New("no host in the URL")
	}
	opt, err := rueidis.ParseURL(u.String())
	if err != nil {
		return none, errURL
	}
	// rueidis takes the first host for one without a port.
	opt.InitAddress = opt.InitAddress[:1]
	for _, text := range u.Query()["addr"] {
		addr, err := hostPort(text)
		if err != nil {
			return none, fmt.Errorf("parameter addr: %w", err)
		}
		opt.InitAddress = append(opt.InitAddress, addr)
	}
	return opt, nil
}

// stackExchangeKeys says what each known key, in lower case, sets.
var stackExchangeKeys = map[string]func(opt *rueidis.ClientOption, value string) error{
	"password": func(o *rueidis.ClientOption, v string) error { o.Password = v; return nil },
	"user":     func(o *rueidis.ClientOption, v string) error { o.Username = v; return nil },
	"name":     func(o *rueidis.ClientOption, v string) error { o.ClientName = v; return nil },
	"servicename": func(o *rueidis.ClientOption, v string) error {
		o.Sentinel.MasterSet = v
		return nil
	},
	"defaultdatabase": func(o *rueidis.ClientOption, v string) (err error) {
		if o.SelectDB, err = strconv.Atoi(v); err != nil {
			return errors.New("must be a whole number")
		}
		return nil
	},
	"ssl": func(o *rueidis.ClientOption, v string) error {
		on, err := strconv.ParseBool(v)
		if err != nil {
			return errors.New("must be true or false")
		}
		if on && o.TLSConfig == nil {
			o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		return nil
	},
	// Read after all others: a host name is of use with TLS only.
	"sslhost": nil,
	// How a .NET client waits and warns; this one has bounds of its own.
	"abortconnect": ignored, "allowadmin": ignored, "connectretry": ignored, "connecttimeout": ignored,
	"synctimeout": ignored, "asynctimeout": ignored, "responsetimeout": ignored, "keepalive": ignored,
	"resolvedns": ignored,
}

func ignored(*rueidis.ClientOption, string) error { return nil }

// errAfterPassword stands for an error that would name its cause: what follows
// a password may be the rest of it.
var errAfterPassword = errors.New("what follows the password is neither a known option nor host:port (a port is required there); " +
	"a password with a comma needs the URL form")

func parseStackExchange(connection string) (rueidis.ClientOption, error) {
	var opt rueidis.ClientOption
	sslHost, afterPassword := "", false
	for part := range strings.SplitSeq(connection, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		name, value, isOption := strings.Cut(part, "=")
		name = strings.ToLower(name)
		set, known := stackExchangeKeys[name]
		var err error
		switch {
		case !isOption:
			var addr string
			if addr, err = hostPort(part); afterPassword && !strings.Contains(part, ":") {
				err = errAfterPassword
			}
			opt.InitAddress = append(opt.InitAddress, addr)
		case !known:
			err = fmt.Errorf("unknown option %q", name)
		case set == nil:
			sslHost = value
		default:
			if err = set(&opt, value); err != nil {
				err = fmt.Errorf("option %s: %w", name, err)
			}
		}
		if err != nil && afterPassword && !known {
			err = errAfterPassword
		}
		if err != nil {
			return opt, err
		}
		afterPassword = afterPassword || name == "password"
	}
	if len(opt.InitAddress) == 0 {
		return opt, errors.New("no host:port")
	}
	if opt.TLSConfig != nil {
		opt.TLSConfig.ServerName = sslHost
	}
	return opt, nil
}

// hostPort adds the usual port to a host, an IPv6 address included.
func hostPort(s string) (string, error) {
	if s == "" || strings.ContainsAny(s, " @/") {
		return "", errors.New("not host:port")
	}
	if host, port, err := net.SplitHostPort(s); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); host == "" || err != nil || n == 0 {
			return "", errors.New("not host:port")
		}
		return s, nil
	}
	return net.JoinHostPort(strings.Trim(s, "[]"), "6379"), nil
}
