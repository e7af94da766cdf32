// Package redisstore is the route store in Redis (or Redis Cluster, or behind
// Sentinel), version 6 or later. It is the only importer of rueidis. Every
// script touches keys of one slot, so nothing in the data model stops at one
// shard:
//
//	mics:{tenant/user}:r   hash  device → record (route.Record.Text)
//	mics:{tenant}:conns    hash  node/incarnation → connections:touched
//	mics:{tenant}:rate     hash  tokens, at
//	mics:nodes             hash  node → incarnation:until:description
//	mics:routers           hash  the same
//	{mics:nodes}:dead      hash  node/incarnation → route.Death, to be cleaned
//	{mics:nodes}:buried    zset  node/incarnation by when it was buried
//	mics:{n:node/incarnation/shard}:u  set  tenant/user/device/session[/late]
//	mics:{n:node/incarnation/shard}:x  there while the incarnation is buried
//	mics:marker            what is in Redis has this name
//	{mics:marker}:whole    the same name when nothing is missing in it
//	mics:lock:name         its owner
//
// The sets tell which routes name an incarnation, and are never fewer: a bind
// adds to the set before it sets the record, and fails if it could not. They are
// spread over 16 keys, so that no command on them is long.
//
// Where time decides what is kept it is Redis' time. A look-up leaves expired
// ghosts out by this machine's clock: one that is off forgets a device a little
// early or late, which loses nothing, because what comes for an unknown device
// is kept for whichever comes first.
//
// # What a look-up sees
//
// Lookup answers from memory what it has asked before, and Redis tells when that
// changed (server-assisted client-side caching). A change, also one by this very
// store, is visible to Lookup as soon as that word arrives, usually within a
// millisecond of the change's own answer, and at the latest after cacheTTL; a
// lost connection drops what was cached over it. LookupFresh always asks.
package redisstore

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/internal/redisconn"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/redis/rueidis"
)

//go:embed lua/*.lua
var lua embed.FS

// The pauses between attempts to reach a Redis that was away at the start.
const (
	minPause = 100 * time.Millisecond
	maxPause = 2 * time.Second
)

// logEvery is how often malformed data in Redis is worth a log line.
const logEvery = time.Minute

const (
	// commandTimeout bounds a command, and how long a connection may be silent
	// before it is given up.
	commandTimeout = time.Second
	// cachePerConn bounds the client-side route cache, in bytes.
	cachePerConn = 64 << 20
)

// Options is what Open needs.
type Options struct {
	// Connection is the value of REDIS__CONNECTION, see redisconn.Parse.
	Connection string
	// Log takes what no caller is told: nil discards it.
	Log *slog.Logger

	// timeout is commandTimeout unless a test, which must pass on a machine that
	// stands still for seconds, wants more.
	timeout time.Duration
}

// Store implements route.Store. Every command is bounded by a second.
type Store struct {
	log     *slog.Logger
	timeout time.Duration

	// client is nil until Redis has been reached for the first time; from then
	// on it finds back by itself.
	client atomic.Pointer[rueidis.Client]
	// away says why client is nil.
	away atomic.Pointer[error]
	stop context.CancelFunc
	// connecting waits for the goroutine that makes the client.
	connecting sync.WaitGroup

	malformed   atomic.Uint64
	malformedAt atomic.Int64 // Unix nanoseconds of the last log line

	bind, change, renew, remove, living, acquire, release, tokens          script
	dead, bury, note, reap, restore, marker, whole, setConns, lock, unlock script
}

var _ route.Store = (*Store)(nil)

// Open makes a store. A connection string that cannot be read is an error; a
// Redis that is away is not: calls fail with ErrUnavailable until it is there.
// ctx bounds nothing but Open itself, which tries to connect once, within
// seconds. Close ends the store.
func Open(ctx context.Context, o Options) (*Store, error) {
	opt, err := redisconn.Parse(o.Connection)
	if err != nil {
		return nil, err
	}
	s := &Store{log: o.Log, timeout: commandTimeout}
	if o.timeout > 0 {
		s.timeout = o.timeout
	}
	opt.ConnWriteTimeout = s.timeout
	opt.CacheSizeEachConn = cachePerConn
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for name, to := range map[string]*script{
		"bind": &s.bind, "change": &s.change, "renew": &s.renew, "remove": &s.remove,
		"living": &s.living, "acquire": &s.acquire, "release": &s.release, "tokens": &s.tokens,
		"dead": &s.dead, "bury": &s.bury, "note": &s.note, "reap": &s.reap, "restore": &s.restore,
		"marker": &s.marker, "whole": &s.whole, "setconns": &s.setConns, "lock": &s.lock, "unlock": &s.unlock,
	} {
		if *to, err = load(name); err != nil {
			return nil, err
		}
	}
	life, stop := context.WithCancel(context.Background())
	s.stop = stop
	first := make(chan struct{})
	s.connecting.Go(func() { s.connect(life, opt, first) })
	select {
	case <-first:
	case <-ctx.Done():
	}
	return s, nil
}

// connect makes the client, trying until it succeeds or the store is closed;
// first is closed after the first attempt.
func (s *Store) connect(life context.Context, opt rueidis.ClientOption, first chan<- struct{}) {
	said := ""
	for pause := minPause; life.Err() == nil; pause = min(2*pause, maxPause) {
		c, err := rueidis.NewClient(opt)
		if err == nil {
			s.client.Store(&c)
			if said != "" {
				s.log.Info("redis_connected")
			}
		} else {
			s.away.Store(&err)
			if text := err.Error(); text != said {
				said = text
				s.log.Warn("redis_unavailable", "error", text)
			}
		}
		if first != nil {
			close(first)
			first = nil
		}
		if err == nil {
			return
		}
		select {
		case <-life.Done():
		case <-time.After(pause):
		}
	}
	if first != nil {
		close(first)
	}
}

// Close implements route.Store. It waits for an attempt to connect that is
// under way, which takes seconds at most.
func (s *Store) Close() error {
	s.stop()
	s.connecting.Wait()
	if c := s.client.Load(); c != nil {
		(*c).Close()
	}
	return nil
}

// conn returns the client once there is one.
func (s *Store) conn() (rueidis.Client, error) {
	if c := s.client.Load(); c != nil {
		return *c, nil
	}
	if err := s.away.Load(); err != nil {
		return nil, *err
	}
	return nil, errors.New("not connected yet")
}

// unavailable wraps the error of a command; what names it.
func unavailable(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("redis: %s: %w: %w", what, route.ErrUnavailable, err)
}

// skip leaves out a value that no version of this program wrote, so that one
// bad field does not cost a user, or the cluster, all others.
func (s *Store) skip(key string, err error) {
	n := s.malformed.Add(1)
	now, last := time.Now().UnixNano(), s.malformedAt.Load()
	if now-last >= int64(logEvery) && s.malformedAt.CompareAndSwap(last, now) {
		s.log.Error("redis_malformed", "key", key, "error", err.Error(), "total", n)
	}
}

// Ping implements route.Store.
func (s *Store) Ping(ctx context.Context) error {
	c, err := s.conn()
	if err != nil {
		return unavailable("ping", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return unavailable("ping", c.Do(ctx, c.B().Ping().Build()).Error())
}
