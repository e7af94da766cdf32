package drain

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// far is a connection to somebody who is a time away, in each direction. The delay
// is this side's: the peer's kernel sees its bytes acknowledged at once.
type far struct {
	net.Conn
	delay time.Duration

	in   chan chunk // closed after the last one
	rest []byte     // owned by Read
	err  error      // set before in is closed

	mu      sync.Mutex
	out     []chunk // guarded by mu: on their way
	writing bool    // guarded by mu: a goroutine carries them
	failed  error   // guarded by mu
	closed  bool    // guarded by mu
	gone    chan struct{}
	wg      *sync.WaitGroup // of its goroutines
}

// chunk is bytes that are there at a time.
type chunk struct {
	b   []byte
	due time.Time
}

// underway bounds the chunks that a reader has not taken.
const underway = 32

// dialFar is a dial that takes a round trip. wg waits for the connection's
// goroutines, which end soon after it is closed.
func dialFar(ctx context.Context, addr string, delay time.Duration, wg *sync.WaitGroup) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	select {
	case <-time.After(2 * delay):
	case <-ctx.Done():
		_ = conn.Close()
		return nil, context.Cause(ctx)
	}
	f := &far{Conn: conn, delay: delay, in: make(chan chunk, underway), gone: make(chan struct{}), wg: wg}
	wg.Go(f.pump)
	return f, nil
}

// pump reads what arrives; it ends with the connection.
func (f *far) pump() {
	defer close(f.in)
	buf := make([]byte, 2048)
	for {
		n, err := f.Conn.Read(buf)
		due := time.Now().Add(f.delay)
		if n > 0 {
			select {
			case f.in <- chunk{append([]byte(nil), buf[:n]...), due}:
			case <-f.gone:
				err = net.ErrClosed
			}
		}
		if err != nil {
			f.err = err
			if errors.Is(err, io.EOF) {
				f.wait(due)
			}
			return
		}
	}
}

// wait returns at the time, or when the connection is closed.
func (f *far) wait(due time.Time) {
	if d := time.Until(due); d > 0 {
		select {
		case <-time.After(d):
		case <-f.gone:
		}
	}
}

func (f *far) Read(b []byte) (int, error) {
	if len(f.rest) == 0 {
		c, ok := <-f.in
		if !ok {
			return 0, f.err
		}
		f.wait(c.due)
		f.rest = c.b
	}
	n := copy(b, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

func (f *far) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return 0, net.ErrClosed
	case f.failed != nil:
		return 0, f.failed
	}
	f.out = append(f.out, chunk{append([]byte(nil), b...), time.Now().Add(f.delay)})
	if !f.writing {
		f.writing = true
		f.wg.Go(f.carry)
	}
	return len(b), nil
}

// carry writes what is on its way, and ends when nothing is; it closes the
// connection when it has been closed here.
func (f *far) carry() {
	for {
		f.mu.Lock()
		if len(f.out) == 0 || f.failed != nil {
			f.writing, f.out = false, nil
			closed := f.closed
			f.mu.Unlock()
			if closed {
				_ = f.Conn.Close()
			}
			return
		}
		c := f.out[0]
		f.out = f.out[1:]
		f.mu.Unlock()
		time.Sleep(time.Until(c.due)) // also after a close: it was sent before
		if _, err := f.Conn.Write(c.b); err != nil {
			f.mu.Lock()
			f.failed = err
			f.mu.Unlock()
		}
	}
}

func (f *far) Close() error {
	f.mu.Lock()
	again, busy := f.closed, f.writing
	f.closed = true
	f.mu.Unlock()
	if again {
		return nil
	}
	close(f.gone)
	if busy {
		return nil // carry closes it
	}
	return f.Conn.Close()
}
