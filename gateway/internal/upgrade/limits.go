package upgrade

import (
	"container/list"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

var errOrigin = errors.New("want * or SCHEME://HOST[:PORT]")

// maxAddresses bounds the table of addresses; the one not seen for longest goes.
const maxAddresses = 1 << 16

// limiter bounds how many connections are taken per second, from everybody and
// from each address. Safe for concurrent use.
type limiter struct {
	all *rate.Limiter // nil: no limit
	per int           // per address and second; 0: no limit
	max int           // addresses kept

	mu    sync.Mutex
	table map[netip.Addr]*list.Element // guarded by mu
	order list.List                    // guarded by mu; *address, seen last in front
}

type address struct {
	addr netip.Addr
	rate *rate.Limiter
}

func newLimiter(all, perAddress int) *limiter {
	l := &limiter{per: perAddress, max: maxAddresses, table: map[netip.Addr]*list.Element{}}
	if all > 0 {
		l.all = rate.NewLimiter(rate.Limit(all), all)
	}
	return l
}

// what a handshake was refused for.
type verdict string

const (
	allowed    verdict = ""
	perNode    verdict = "accept_rate"
	perAddress verdict = "accept_rate_address"
)

// allow takes a connection from addr, or says why not and how long to wait.
func (l *limiter) allow(addr netip.Addr, now time.Time) (verdict, time.Duration) {
	if l.per > 0 {
		if ok, wait := take(l.of(addr), now); !ok {
			return perAddress, wait
		}
	}
	if l.all != nil {
		if ok, wait := take(l.all, now); !ok {
			return perNode, wait
		}
	}
	return allowed, 0
}

func take(l *rate.Limiter, now time.Time) (ok bool, wait time.Duration) {
	if l.AllowN(now, 1) {
		return true, 0
	}
	r := l.ReserveN(now, 1)
	defer r.CancelAt(now)
	return false, r.DelayFrom(now)
}

// of returns an address's limiter.
func (l *limiter) of(addr netip.Addr) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.table[addr]; e != nil {
		l.order.MoveToFront(e)
		return e.Value.(*address).rate
	}
	if l.order.Len() >= l.max {
		oldest := l.order.Back()
		l.order.Remove(oldest)
		delete(l.table, oldest.Value.(*address).addr)
	}
	a := &address{addr, rate.NewLimiter(rate.Limit(l.per), l.per)}
	l.table[addr] = l.order.PushFront(a)
	return a.rate
}

// clientAddr is who connects: the peer, or what the last trusted proxy says. An
// IPv6 address stands for its /64, which is one customer.
func clientAddr(r *http.Request, trusted []netip.Prefix) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	if hops := forwarded(r.Header); len(trusted) > 0 {
		for i := len(hops) - 1; i >= 0 && isTrusted(addr, trusted); i-- {
			next, err := netip.ParseAddr(hops[i])
			if err != nil {
				break
			}
			addr = next
		}
	}
	return network(addr)
}

func forwarded(h http.Header) (hops []string) {
	for _, v := range h.Values("X-Forwarded-For") {
		for p := range strings.SplitSeq(v, ",") {
			hops = append(hops, strings.TrimSpace(p))
		}
	}
	return hops
}

func isTrusted(a netip.Addr, trusted []netip.Prefix) bool {
	a = a.Unmap()
	for _, p := range trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func network(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// ParseProxies reads TRUSTED_PROXIES: addresses and CIDR prefixes.
func ParseProxies(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil {
				return nil, errors.New("want addresses or CIDR prefixes, got " + s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}
