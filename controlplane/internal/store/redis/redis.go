// Package redis keeps the control plane's state in Redis 6 or later (one server,
// Sentinels or a Cluster). All keys are in one slot, so that a write and the check
// of the term under which it is made are one script:
//
//	{mics:control}:lease    hash    who leads: term, instance, name, address; expires
//	{mics:control}:term     string  the last term
//	{mics:control}:items    hash    key → "version:value"
//	{mics:control}:version  string  the last version
//	{mics:control}:log:L    stream  the log L
package redis

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/internal/redisconn"
)

//go:embed lua/*.lua
var lua embed.FS

const (
	// timeout bounds one call.
	timeout = time.Second
	// retryAfter is the pause between attempts to reach a Redis that was away.
	retryAfter = time.Second

	slot       = "{mics:control}:"
	keyLease   = slot + "lease"
	keyTerm    = slot + "term"
	keyItems   = slot + "items"
	keyVersion = slot + "version"
	keyLog     = slot + "log:"
)

// Store implements store.Store.
type Store struct {
	opt rueidis.ClientOption
	log *slog.Logger

	campaign, resign, commit *rueidis.Lua

	mu     sync.Mutex
	client rueidis.Client // nil until Redis was reached; guarded by mu
	failed error          // of the last attempt; guarded by mu
	next   time.Time      // of the next attempt; guarded by mu
	closed bool           // guarded by mu
}

var _ store.Store = (*Store)(nil)

// Open returns the store behind connection, a REDIS__CONNECTION. One that cannot
// be read is an error; a Redis that is away is not: calls fail with ErrUnavailable
// until it is there. Close ends it.
func Open(connection string, log *slog.Logger) (*Store, error) {
	opt, err := redisconn.Parse(connection)
	if err != nil {
		return nil, err
	}
	opt.ConnWriteTimeout = timeout
	opt.DisableCache = true // nothing is read often enough
	s := &Store{opt: opt, log: log}
	for name, to := range map[string]**rueidis.Lua{"campaign": &s.campaign, "resign": &s.resign, "commit": &s.commit} {
		text, err := lua.ReadFile("lua/" + name + ".lua")
		if err != nil {
			return nil, fmt.Errorf("embedded script: %w", err)
		}
		*to = rueidis.NewLuaScript(string(text))
	}
	return s, nil
}

// Close implements store.Store.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.client != nil {
		s.client.Close()
		s.client = nil
	}
}

// conn returns the client, made when first needed; from then on it finds back by
// itself. Callers that come while it is made wait for it.
func (s *Store) conn() (rueidis.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, fmt.Errorf("%w: closed", store.ErrUnavailable)
	case s.client != nil:
		return s.client, nil
	case time.Now().Before(s.next):
		return nil, unavailable(s.failed)
	}
	c, err := rueidis.NewClient(s.opt)
	if err != nil {
		if s.failed == nil {
			s.log.Warn("store_unavailable", "error", err.Error())
		}
		s.failed, s.next = err, time.Now().Add(retryAfter)
		return nil, unavailable(err)
	}
	if s.failed != nil {
		s.log.Info("store_connected")
	}
	s.client, s.failed = c, nil
	return c, nil
}

func unavailable(err error) error { return fmt.Errorf("%w: %w", store.ErrUnavailable, err) }

// do runs one command or script.
func (s *Store) do(ctx context.Context, f func(context.Context, rueidis.Client) rueidis.RedisResult) (rueidis.RedisMessage, error) {
	c, err := s.conn()
	if err != nil {
		return rueidis.RedisMessage{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	m, err := f(ctx, c).ToMessage()
	if err != nil && !rueidis.IsRedisNil(err) {
		return m, unavailable(err)
	}
	return m, nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Item, error) {
	m, err := s.do(ctx, func(ctx context.Context, c rueidis.Client) rueidis.RedisResult {
		return c.Do(ctx, c.B().Hget().Key(keyItems).Field(key).Build())
	})
	if err != nil || m.IsNil() {
		return store.Item{}, err
	}
	text, err := m.ToString()
	if err != nil {
		return store.Item{}, unavailable(err)
	}
	return parseItem(key, text)
}

func parseItem(key, text string) (store.Item, error) {
	head, value, found := strings.Cut(text, ":")
	version, err := strconv.ParseUint(head, 10, 64)
	if err != nil || !found {
		return store.Item{}, fmt.Errorf("item %s in Redis is not of this program", key)
	}
	return store.Item{Key: key, Value: []byte(value), Version: version}, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Item, error) {
	m, err := s.do(ctx, func(ctx context.Context, c rueidis.Client) rueidis.RedisResult {
		return c.Do(ctx, c.B().Hgetall().Key(keyItems).Build())
	})
	if err != nil {
		return nil, err
	}
	all, err := m.AsStrMap()
	if err != nil {
		return nil, unavailable(err)
	}
	var out []store.Item
	for key, text := range all {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		it, err := parseItem(key, text)
		if err != nil {
			return nil, err
		}
		out = append(out, it)
	}
	slices.SortFunc(out, func(a, b store.Item) int { return cmp.Compare(a.Key, b.Key) })
	return out, nil
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, term uint64, b store.Batch) ([]uint64, error) {
	if err := b.Check(); err != nil {
		return nil, err
	}
	keys := []string{keyLease, keyItems, keyVersion}
	args := []string{u(term), strconv.Itoa(store.MaxItems), strconv.Itoa(len(b.Changes))}
	for _, c := range b.Changes {
		remove := "0"
		if c.Delete {
			remove = "1"
		}
		args = append(args, c.Key, u(c.Version), remove, string(c.Value))
	}
	for _, e := range b.Entries {
		keys = append(keys, keyLog+e.Log)
		args = append(args, string(e.Value), strconv.Itoa(e.Keep))
	}
	answer, err := s.strings(ctx, s.commit, keys, args)
	if err != nil {
		return nil, err
	}
	switch answer[0] {
	case "deposed":
		return nil, store.ErrDeposed
	case "conflict":
		return nil, store.ErrConflict
	case "full":
		return nil, store.ErrFull
	}
	versions := make([]uint64, len(b.Changes))
	for i, text := range answer[1:] {
		if versions[i], err = strconv.ParseUint(text, 10, 64); err != nil {
			return nil, fmt.Errorf("answer of the commit script: %w", err)
		}
	}
	return versions, nil
}

func u(n uint64) string { return strconv.FormatUint(n, 10) }

// strings runs a script that answers with at least one string.
func (s *Store) strings(ctx context.Context, script *rueidis.Lua, keys, args []string) ([]string, error) {
	m, err := s.do(ctx, func(ctx context.Context, c rueidis.Client) rueidis.RedisResult {
		return script.Exec(ctx, c, keys, args)
	})
	if err != nil {
		return nil, err
	}
	out, err := m.AsStrSlice()
	if err != nil || len(out) == 0 {
		return nil, fmt.Errorf("answer of a script: %d strings, %w", len(out), err)
	}
	return out, nil
}

// Append implements store.Store.
func (s *Store) Append(ctx context.Context, e store.Entry) error {
	if err := e.Check(); err != nil {
		return err
	}
	_, err := s.do(ctx, func(ctx context.Context, c rueidis.Client) rueidis.RedisResult {
		return c.Do(ctx, c.B().Xadd().Key(keyLog+e.Log).Maxlen().Threshold(strconv.Itoa(e.Keep)).Id("*").FieldValue().FieldValue("v", string(e.Value)).Build())
	})
	return err
}

// Tail implements store.Store.
func (s *Store) Tail(ctx context.Context, log string, since time.Time, limit int) ([]store.Record, error) {
	if limit < 1 {
		return nil, nil
	}
	from := "-"
	if !since.IsZero() {
		from = strconv.FormatInt(since.UnixMilli(), 10)
	}
	m, err := s.do(ctx, func(ctx context.Context, c rueidis.Client) rueidis.RedisResult {
		return c.Do(ctx, c.B().Xrevrange().Key(keyLog+log).End("+").Start(from).Count(int64(limit)).Build())
	})
	if err != nil {
		return nil, err
	}
	entries, err := m.AsXRange()
	if err != nil {
		return nil, unavailable(err)
	}
	out := make([]store.Record, 0, len(entries))
	for _, e := range entries {
		ms, _, _ := strings.Cut(e.ID, "-")
		at, err := strconv.ParseInt(ms, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("entry %s of log %s: %w", e.ID, log, err)
		}
		out = append(out, store.Record{ID: e.ID, At: time.UnixMilli(at), Value: bytes.Clone([]byte(e.FieldValues["v"]))})
	}
	return out, nil
}

// Campaign implements store.Store.
func (s *Store) Campaign(ctx context.Context, c store.Candidate, ttl time.Duration) (store.Leader, error) {
	out, err := s.strings(ctx, s.campaign, []string{keyLease, keyTerm},
		[]string{c.Instance, c.Name, c.Address, strconv.FormatInt(ttl.Milliseconds(), 10)})
	if err != nil {
		return store.Leader{}, err
	}
	return parseLeader(out)
}

// parseLeader reads term, instance, name, address.
func parseLeader(f []string) (store.Leader, error) {
	if len(f) != 4 {
		return store.Leader{}, fmt.Errorf("the lease in Redis has %d fields", len(f))
	}
	if f[0] == "" {
		return store.Leader{}, nil
	}
	term, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil {
		return store.Leader{}, fmt.Errorf("term in Redis: %w", err)
	}
	return store.Leader{Candidate: store.Candidate{Instance: f[1], Name: f[2], Address: f[3]}, Term: term}, nil
}

// Leader implements store.Store.
func (s *Store) Leader(ctx context.Context) (store.Leader, error) {
	m, err := s.do(ctx, func(ctx context.Context, c rueidis.Client) rueidis.RedisResult {
		return c.Do(ctx, c.B().Hmget().Key(keyLease).Field("term", "instance", "name", "address").Build())
	})
	if err != nil {
		return store.Leader{}, err
	}
	fields, err := m.AsStrSlice()
	if err != nil {
		return store.Leader{}, unavailable(err)
	}
	return parseLeader(fields)
}

// Resign implements store.Store.
func (s *Store) Resign(ctx context.Context, instance string) error {
	_, err := s.do(ctx, func(ctx context.Context, c rueidis.Client) rueidis.RedisResult {
		return s.resign.Exec(ctx, c, []string{keyLease}, []string{instance})
	})
	return err
}
