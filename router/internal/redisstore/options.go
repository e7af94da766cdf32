package redisstore

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

const (
	// commandTimeout bounds the wait for a connection that has gone silent.
	commandTimeout = time.Second
	dialTimeout    = time.Second
	// cachePerConn bounds the client-side route cache, in bytes.
	cachePerConn = 64 << 20
)

// Options reads a REDIS__CONNECTION: a redis:// or rediss:// URL, or the
// StackExchange form that V1 operators have, `host:port,host:port,password=…,
// user=…,ssl=true,defaultDatabase=0,serviceName=…`. An option that it does not
// know is an error that names it.
func Options(connection string) (rueidis.ClientOption, error) {
	var opt rueidis.ClientOption
	var err error
	if strings.Contains(connection, "://") {
		opt, err = rueidis.ParseURL(connection)
	} else {
		opt, err = stackExchange(connection)
	}
	if err != nil {
		return opt, fmt.Errorf("REDIS__CONNECTION: %w", err)
	}
	opt.ConnWriteTimeout = commandTimeout
	opt.Dialer.Timeout = dialTimeout
	opt.CacheSizeEachConn = cachePerConn
	return opt, nil
}

func stackExchange(connection string) (rueidis.ClientOption, error) {
	var opt rueidis.ClientOption
	for part := range strings.SplitSeq(connection, ",") {
		part = strings.TrimSpace(part)
		name, value, isOption := strings.Cut(part, "=")
		if part == "" {
			continue
		}
		if !isOption {
			if _, _, err := net.SplitHostPort(part); err != nil {
				part = net.JoinHostPort(part, "6379")
			}
			opt.InitAddress = append(opt.InitAddress, part)
			continue
		}
		var err error
		switch strings.ToLower(name) {
		case "password":
			opt.Password = value
		case "user":
			opt.Username = value
		case "servicename":
			opt.Sentinel.MasterSet = value
		case "defaultdatabase":
			opt.SelectDB, err = strconv.Atoi(value)
		case "ssl":
			var on bool
			if on, err = strconv.ParseBool(value); on {
				opt.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
			}
		case "abortconnect", "connecttimeout", "synctimeout", "connectretry", "keepalive":
			// How a .NET client waits; this one has bounds of its own.
		default:
			return opt, fmt.Errorf("unknown option %q", name)
		}
		if err != nil {
			return opt, fmt.Errorf("option %s: %w", name, err)
		}
	}
	if len(opt.InitAddress) == 0 {
		return opt, errors.New("no host:port")
	}
	return opt, nil
}
