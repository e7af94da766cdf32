package harness

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Any stands for every process in a rule of a Network.
const Any = "*"

// Condition is what a link suffers. The zero value is a healthy link.
type Condition struct {
	// Cut resets the link's connections, also new ones.
	Cut bool
	// Blackhole takes bytes and forwards none; they arrive when it ends.
	Blackhole bool
	// Delay is added to every byte's way, in each direction.
	Delay time.Duration
}

func (c Condition) with(o Condition) Condition {
	return Condition{c.Cut || o.Cut, c.Blackhole || o.Blackhole, max(c.Delay, o.Delay)}
}

type link struct{ from, to string }

// Network is the TCP proxies between the processes of a cluster. A proxy stands
// in front of each destination; which process a connection comes from is looked
// up when it is accepted, so that every pair of processes is a link of its own.
// It is safe for concurrent use.
type Network struct {
	// source names the process at the other end of an accepted connection.
	source func(net.Conn) string

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	rules     map[link]Condition
	changed   chan struct{} // closed and replaced when the rules change
	flows     map[*flow]struct{}
	listeners []net.Listener
}

// newNetwork returns a network without proxies; close it.
func newNetwork(source func(net.Conn) string) *Network {
	n := &Network{source: source, rules: map[link]Condition{}, changed: make(chan struct{}), flows: map[*flow]struct{}{}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// proxy starts a proxy in front of the process called to, which listens at
// target, and returns its address.
func (n *Network) proxy(to, target string) (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	n.mu.Lock()
	n.listeners = append(n.listeners, ln)
	n.mu.Unlock()
	n.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return // closed: nothing else ends a listener on loopback
			}
			n.wg.Go(func() { n.serve(conn, to, target) })
		}
	})
	return ln.Addr().String(), nil
}

// close ends all proxies and waits for them.
func (n *Network) close() {
	n.cancel()
	n.mu.Lock()
	for _, ln := range n.listeners {
		_ = ln.Close()
	}
	for f := range n.flows {
		f.reset()
	}
	n.mu.Unlock()
	n.wg.Wait()
}

// Set puts the links from one process to another into a condition; either may
// be Any. It replaces an earlier one of the same pair of names.
func (n *Network) Set(from, to string, c Condition) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c == (Condition{}) {
		delete(n.rules, link{from, to})
	} else {
		n.rules[link{from, to}] = c
	}
	n.announce()
}

// Isolate puts all links of a process, in both directions, into a condition.
func (n *Network) Isolate(name string, c Condition) {
	n.Set(name, Any, c)
	n.Set(Any, name, c)
}

// Heal ends every condition.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.rules)
	n.announce()
}

// announce tells every flow. The caller holds mu.
func (n *Network) announce() {
	close(n.changed)
	n.changed = make(chan struct{})
	for f := range n.flows {
		if n.condition(f.link).Cut {
			f.reset()
		}
	}
}

// condition merges the rules for a link. The caller holds mu.
func (n *Network) condition(l link) Condition {
	c := n.rules[l]
	for _, r := range []link{{l.from, Any}, {Any, l.to}, {Any, Any}} {
		c = c.with(n.rules[r])
	}
	return c
}

// pass waits until something that came at the given time may go on. False: the
// network has ended.
func (n *Network) pass(l link, came time.Time) bool {
	for {
		n.mu.Lock()
		c, changed := n.condition(l), n.changed
		n.mu.Unlock()
		wait := time.Until(came.Add(c.Delay))
		if !c.Blackhole && wait <= 0 {
			return n.ctx.Err() == nil
		}
		var due <-chan time.Time
		if !c.Blackhole {
			due = time.After(wait)
		}
		select {
		case <-due:
		case <-changed:
		case <-n.ctx.Done():
			return false
		}
	}
}

// flow is one proxied connection.
type flow struct {
	link
	mu    sync.Mutex
	conns []net.Conn // guarded by mu
	cut   bool       // guarded by mu
}

// add takes a connection in; one that is added to a cut flow is reset.
func (f *flow) add(c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = append(f.conns, c)
	if f.cut {
		abort(c)
	}
}

func (f *flow) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut = true
	for _, c := range f.conns {
		abort(c)
	}
}

// abort closes with RST.
func abort(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

func (n *Network) serve(client net.Conn, to, target string) {
	came := time.Now()
	f := &flow{link: link{n.source(client), to}}
	f.add(client)
	defer f.reset()
	n.mu.Lock()
	n.flows[f] = struct{}{}
	ended := n.ctx.Err() != nil || n.condition(f.link).Cut
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.flows, f)
		n.mu.Unlock()
	}()
	if ended || !n.pass(f.link, came) {
		return
	}
	server, err := (&net.Dialer{}).DialContext(n.ctx, "tcp", target)
	if err != nil {
		return // refused, as the client learns by the reset
	}
	f.add(server)
	var wg sync.WaitGroup
	wg.Go(func() { n.pump(f, client, server) })
	wg.Go(func() { n.pump(f, server, client) })
	wg.Wait()
}

// chunk is what was read at once; nil bytes: the end.
type chunk struct {
	at    time.Time
	bytes []byte
	err   error
}

// chunks bounds what is on the way in one direction; beyond, nothing is read and
// TCP slows the sender down.
const chunks = 64

func (n *Network) pump(f *flow, from, to net.Conn) {
	way := make(chan chunk, chunks)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer close(way)
		for {
			buf := make([]byte, 16<<10)
			k, err := from.Read(buf)
			if k > 0 {
				way <- chunk{at: time.Now(), bytes: buf[:k]}
			}
			if err != nil {
				way <- chunk{at: time.Now(), err: err}
				return
			}
		}
	})
	open := true
	for c := range way { // to its end, or the reader would hang
		if !open {
			continue
		}
		if open = n.pass(f.link, c.at); !open {
			f.reset()
			continue
		}
		switch {
		case errors.Is(c.err, io.EOF):
			if t, ok := to.(*net.TCPConn); ok {
				_ = t.CloseWrite()
			}
		case c.err != nil:
			f.reset()
		default:
			if _, err := to.Write(c.bytes); err != nil {
				open = false
				f.reset()
			}
		}
	}
}
