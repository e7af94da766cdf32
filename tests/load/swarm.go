package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// attempts are how often one client tries to connect: on a busy machine a
	// hook may be late, which refuses the connection.
	attempts    = 5
	attemptWait = 200 * time.Millisecond
	openTimeout = 15 * time.Second
)

// Swarm is many clients in this process. Close ends it.
type Swarm struct {
	Clients []*Client
	// Retries is how many refused connects were tried again.
	Retries int64

	prefix uint32 // of message ids, so that two runs do not repeat each other's
	wg     sync.WaitGroup
	lost   atomic.Int64 // connections that ended before Close
	ending atomic.Bool
}

// OpenSwarm connects the clients number first to first+n-1, p.Parallel at once,
// and fails if one of them cannot. Of p it looks at Parallel and Device.
func OpenSwarm(ctx context.Context, t Target, p Params, first, n int, ev Events) (*Swarm, error) {
	s := &Swarm{Clients: make([]*Client, n), prefix: rand.Uint32()}
	closed := ev.Closed
	ev.Closed = func(c *Client, code int, err error) {
		if !s.ending.Load() {
			s.lost.Add(1)
		}
		if closed != nil {
			closed(c, code, err)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next, retries atomic.Int64
	var openers sync.WaitGroup
	for range max(min(p.Parallel, n), 1) {
		openers.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				c, tries, err := s.open(ctx, t, p, first+i)
				retries.Add(int64(tries))
				if err != nil {
					cancel(err)
					return
				}
				s.Clients[i] = c
				s.wg.Go(func() { c.run(&ev) })
			}
		})
	}
	openers.Wait()
	s.Retries = retries.Load()
	if err := context.Cause(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// open tries to connect, a bounded number of times.
func (s *Swarm) open(ctx context.Context, t Target, p Params, n int) (c *Client, tries int, err error) {
	device := p.Device
	if device == "" {
		device = "load"
	}
	for ; ; tries++ {
		attempt, cancel := context.WithTimeout(ctx, openTimeout)
		c, err = dial(attempt, t.URLs[n%len(t.URLs)], n, t, device)
		cancel()
		if err == nil || tries == attempts-1 || ctx.Err() != nil {
			return c, tries, err
		}
		select {
		case <-time.After(attemptWait << tries):
		case <-ctx.Done():
		}
	}
}

// Lost is how many connections have ended by themselves.
func (s *Swarm) Lost() int64 { return s.lost.Load() }

// Close ends all connections and waits for their goroutines.
func (s *Swarm) Close() {
	s.ending.Store(true)
	for _, c := range s.Clients {
		if c != nil {
			c.close()
		}
	}
	s.wg.Wait()
}

// PrepareDirect makes every client send to the next one, and the next one to it:
// 0 to 1, 1 to 0, 2 to 3, so that with two gateways every message crosses.
func (s *Swarm) PrepareDirect(body int) {
	for _, c := range s.Clients {
		c.prepare(UserID(c.N^1), "", s.prefix+uint32(c.N), body)
	}
}

// errLost is what a scenario that lost connections fails with.
var errLost = errors.New("connections were lost")

// whole fails if connections were lost: what was measured is then something
// else.
func (s *Swarm) whole() error {
	if n := s.Lost(); n > 0 {
		return fmt.Errorf("%d %w", n, errLost)
	}
	return nil
}

// waitFor polls until cond holds, and says whether it did in time.
func waitFor(ctx context.Context, atMost time.Duration, cond func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	for !cond() {
		select {
		case <-ctx.Done():
			return cond()
		case <-time.After(2 * time.Millisecond):
		}
	}
	return true
}

// sleep waits; ctx ends it early, with its error.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
