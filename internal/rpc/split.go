package rpc

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"
)

const (
	// firstByteTimeout is what a connection gets to say what it is.
	firstByteTimeout = 10 * time.Second
	// recordHandshake is the first byte of a TLS connection; no HTTP begins so.
	recordHandshake = 0x16
)

// TLSOrPlain returns a listener that speaks TLS with those who begin so, and
// leaves other connections as they are: /healthz and /metrics stay where probes
// and scrapers without certificates find them. In a handler Request.TLS tells. Add
// nothing to c afterwards.
func TLSOrPlain(ln net.Listener, c *tls.Config) net.Listener {
	c.NextProtos = []string{"h2", "http/1.1"}
	return &splitListener{
		Listener: ln, tls: c, ready: make(chan accepted), closed: make(chan struct{}), waiting: map[net.Conn]struct{}{},
	}
}

type accepted struct {
	conn net.Conn
	err  error
}

// splitListener waits for first bytes off the accepting goroutine: a connection
// that says nothing must not keep others waiting.
type splitListener struct {
	net.Listener
	tls    *tls.Config
	ready  chan accepted // unbuffered: who accepts sets the pace
	closed chan struct{}
	start  sync.Once
	wg     sync.WaitGroup

	mu      sync.Mutex
	over    bool                  // guarded by mu
	waiting map[net.Conn]struct{} // for their first byte; guarded by mu
}

func (l *splitListener) Accept() (net.Conn, error) {
	l.start.Do(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.over {
			l.wg.Go(l.accept)
		}
	})
	select {
	case a := <-l.ready:
		return a.conn, a.err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// accept runs until Close.
func (l *splitListener) accept() {
	for {
		conn, err := l.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			l.hand(accepted{err: err})
			continue
		}
		l.mu.Lock()
		if l.over {
			l.mu.Unlock()
			_ = conn.Close()
			return
		}
		l.waiting[conn] = struct{}{}
		l.wg.Go(func() { l.sniff(conn) })
		l.mu.Unlock()
	}
}

// sniff reads the first byte of conn and hands the connection on.
func (l *splitListener) sniff(conn net.Conn) {
	first := make([]byte, 1)
	err := conn.SetReadDeadline(time.Now().Add(firstByteTimeout))
	if err == nil {
		_, err = conn.Read(first)
	}
	l.mu.Lock()
	delete(l.waiting, conn)
	l.mu.Unlock()
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	if err != nil { // gone, silent, or Close has closed it
		_ = conn.Close()
		return
	}
	var out net.Conn = &begun{Conn: conn, first: first}
	if first[0] == recordHandshake {
		out = tls.Server(out, l.tls)
	}
	l.hand(accepted{conn: out})
}

// hand gives a to Accept, or ends it with the listener.
func (l *splitListener) hand(a accepted) {
	select {
	case l.ready <- a:
	case <-l.closed:
		if a.conn != nil {
			_ = a.conn.Close()
		}
	}
}

// Close ends the listener and the connections that nobody has accepted.
func (l *splitListener) Close() error {
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return net.ErrClosed
	}
	l.over = true
	close(l.closed)
	err := l.Listener.Close()
	for conn := range l.waiting {
		_ = conn.Close()
	}
	l.mu.Unlock()
	l.wg.Wait()
	return err
}

// begun is a connection whose first byte has been read. One goroutine reads.
type begun struct {
	net.Conn
	first []byte
}

func (c *begun) Read(b []byte) (int, error) {
	if len(c.first) > 0 && len(b) > 0 {
		n := copy(b, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}
