// Package redisstore is the route store in Redis (or Redis Cluster, or behind
// Sentinel). It is the only importer of rueidis. Every script touches keys of
// one slot, so nothing in the data model stops at one shard:
//
//	mics:{tenant/user}:r   hash  device → epoch:state:session:incarnation:version:until:node
//	mics:{tenant}:conns    hash  node/incarnation → connections
//	mics:{tenant}:rate     hash  tokens, at
//	mics:nodes             hash  node → incarnation:until:description
//	mics:routers           hash  the same
//
// Where time decides something it is Redis' time.
package redisstore

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mics-im/mics/router/internal/route"
	"github.com/redis/rueidis"
)

//go:embed lua/*.lua
var lua embed.FS

func script(name string) *rueidis.Lua {
	src, err := lua.ReadFile("lua/" + name + ".lua")
	if err != nil {
		panic(err) // embedded: a build without it is broken
	}
	return rueidis.NewLuaScript(string(src))
}

const (
	// cacheTTL bounds how long a route is read from this process's memory even
	// if an invalidation got lost; normally Redis invalidates it at once.
	cacheTTL = time.Minute
	nodesKey = "mics:nodes"
	routers  = "mics:routers"
)

// Store implements route.Store. A Lookup may be answered from a cache which
// Redis invalidates: a change is visible to it within a moment, not at once;
// LookupFresh is never behind.
type Store struct {
	c rueidis.Client

	bind, change, renew, remove, living, acquire, release, tokens *rueidis.Lua
}

var _ route.Store = (*Store)(nil)

// Open connects to what the connection string names; see Options.
func Open(connection string) (*Store, error) {
	opt, err := Options(connection)
	if err != nil {
		return nil, err
	}
	c, err := rueidis.NewClient(opt)
	if err != nil {
		return nil, fmt.Errorf("connect to Redis: %w: %w", route.ErrUnavailable, err)
	}
	return &Store{
		c: c, bind: script("bind"), change: script("change"), renew: script("renew"), remove: script("remove"),
		living: script("living"), acquire: script("acquire"), release: script("release"), tokens: script("tokens"),
	}, nil
}

func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", route.ErrUnavailable, err)
}

// userKey: the hash tag holds the whole user; escaping keeps braces out of it.
func userKey(k route.UserKey) string {
	return "mics:{" + url.QueryEscape(k.Tenant) + "/" + url.QueryEscape(k.User) + "}:r"
}

func tenantKey(tenant, what string) string {
	return "mics:{" + url.QueryEscape(tenant) + "}:" + what
}

func num(n uint64) string { return strconv.FormatUint(n, 10) }

// Bind implements route.Store.
func (s *Store) Bind(ctx context.Context, key route.DeviceKey, loc route.Location, version uint8) (uint64, *route.Record, error) {
	rest := fmt.Sprintf("%d:%d:%d:0:%s", loc.Session, loc.Node.Incarnation, version, loc.Node.ID)
	res, err := s.bind.Exec(ctx, s.c, []string{userKey(key.UserKey)}, []string{key.Device, rest}).ToArray()
	if err != nil {
		return 0, nil, unavailable(err)
	}
	epoch, err := res[0].AsUint64()
	if err != nil {
		return 0, nil, unavailable(err)
	}
	old, err := res[1].ToString()
	if err != nil {
		return 0, nil, unavailable(err)
	}
	if old == "" {
		return epoch, nil, nil
	}
	prev, err := decode(key.Device, old)
	return epoch, &prev, err
}

// Change implements route.Store.
func (s *Store) Change(ctx context.Context, changes []route.Change) ([]bool, error) {
	if len(changes) == 0 {
		return nil, nil
	}
	execs := make([]rueidis.LuaExec, len(changes))
	for i, c := range changes {
		execs[i] = rueidis.LuaExec{
			Keys: []string{userKey(c.Key.UserKey)},
			Args: []string{c.Key.Device, num(c.Epoch), num(c.Node.Incarnation), c.Node.ID, num(uint64(c.To)), strconv.FormatInt(c.GhostTTL.Milliseconds(), 10)},
		}
	}
	applied := make([]bool, len(changes))
	for i, res := range s.change.ExecMulti(ctx, s.c, execs...) {
		n, err := res.AsInt64()
		if err != nil {
			return nil, unavailable(err)
		}
		applied[i] = n == 1
	}
	return applied, nil
}

// Lookup implements route.Store.
func (s *Store) Lookup(ctx context.Context, keys []route.UserKey) ([][]route.Record, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	cmds := make([]rueidis.CacheableTTL, len(keys))
	for i, k := range keys {
		cmds[i] = rueidis.CT(s.c.B().Hgetall().Key(userKey(k)).Cache(), cacheTTL)
	}
	out := make([][]route.Record, len(keys))
	for i, res := range s.c.DoMultiCache(ctx, cmds...) {
		var err error
		if out[i], err = records(res); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// LookupFresh implements route.Store.
func (s *Store) LookupFresh(ctx context.Context, key route.UserKey) ([]route.Record, error) {
	return records(s.c.Do(ctx, s.c.B().Hgetall().Key(userKey(key)).Build()))
}

func records(res rueidis.RedisResult) ([]route.Record, error) {
	all, err := res.AsStrMap()
	if err != nil {
		return nil, unavailable(err)
	}
	var out []route.Record
	now := time.Now()
	for device, value := range all {
		r, err := decode(device, value)
		if err != nil {
			return nil, err
		}
		if r.State != route.Ghost || now.Before(r.Until) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b route.Record) int { return strings.Compare(a.Device, b.Device) })
	return out, nil
}

// decode reads epoch:state:session:incarnation:version:until:node.
func decode(device, value string) (route.Record, error) {
	parts := strings.SplitN(value, ":", 7)
	if len(parts) != 7 {
		return route.Record{}, fmt.Errorf("route of device %q is malformed: %q", device, value)
	}
	var n [6]uint64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseUint(parts[i], 10, 64); err != nil {
			return route.Record{}, fmt.Errorf("route of device %q is malformed: %w", device, err)
		}
	}
	r := route.Record{
		Device: device, Epoch: n[0], State: route.State(n[1]), Session: n[2], Version: uint8(n[4]),
		Node: route.NodeRef{ID: parts[6], Incarnation: n[3]},
	}
	if r.State == route.Ghost {
		r.Until = time.UnixMilli(int64(n[5]))
	}
	return r, nil
}

func (s *Store) renewLease(ctx context.Context, key string, ref route.NodeRef, what any, lease time.Duration) error {
	text, err := json.Marshal(what)
	if err != nil {
		return err
	}
	ok, err := s.renew.Exec(ctx, s.c, []string{key}, []string{
		ref.ID, fmt.Sprintf("%020d", ref.Incarnation), strconv.FormatInt(lease.Milliseconds(), 10), string(text),
	}).AsInt64()
	if err != nil {
		return unavailable(err)
	}
	if ok == 0 {
		return route.ErrSuperseded
	}
	return nil
}

func (s *Store) removeLease(ctx context.Context, key string, ref route.NodeRef) error {
	return unavailable(s.remove.Exec(ctx, s.c, []string{key}, []string{ref.ID, fmt.Sprintf("%020d", ref.Incarnation)}).Error())
}

func leases[T any](ctx context.Context, s *Store, key string, id func(T) string) ([]T, error) {
	texts, err := s.living.Exec(ctx, s.c, []string{key}, nil).AsStrSlice()
	if err != nil {
		return nil, unavailable(err)
	}
	out := make([]T, len(texts))
	for i, text := range texts {
		if err := json.Unmarshal([]byte(text), &out[i]); err != nil {
			return nil, fmt.Errorf("lease in %s is malformed: %w", key, err)
		}
	}
	slices.SortFunc(out, func(a, b T) int { return strings.Compare(id(a), id(b)) })
	return out, nil
}

// RenewNode implements route.Store.
func (s *Store) RenewNode(ctx context.Context, n route.Node, lease time.Duration) error {
	return s.renewLease(ctx, nodesKey, n.NodeRef, n, lease)
}

// RemoveNode implements route.Store.
func (s *Store) RemoveNode(ctx context.Context, n route.NodeRef) error {
	return s.removeLease(ctx, nodesKey, n)
}

// Nodes implements route.Store.
func (s *Store) Nodes(ctx context.Context) ([]route.Node, error) {
	return leases(ctx, s, nodesKey, func(n route.Node) string { return n.ID })
}

// RenewRouter implements route.Store.
func (s *Store) RenewRouter(ctx context.Context, r route.Router, lease time.Duration) error {
	return s.renewLease(ctx, routers, r.NodeRef, r, lease)
}

// RemoveRouter implements route.Store.
func (s *Store) RemoveRouter(ctx context.Context, r route.NodeRef) error {
	return s.removeLease(ctx, routers, r)
}

// Routers implements route.Store.
func (s *Store) Routers(ctx context.Context) ([]route.Router, error) {
	return leases(ctx, s, routers, func(r route.Router) string { return r.ID })
}

func connField(n route.NodeRef) string { return n.ID + "/" + num(n.Incarnation) }

// AcquireConn implements route.Store.
func (s *Store) AcquireConn(ctx context.Context, tenant string, node route.NodeRef, limit int, live []route.NodeRef) (bool, int, error) {
	args := []string{connField(node), strconv.Itoa(limit)}
	for _, n := range live {
		args = append(args, connField(n))
	}
	res, err := s.acquire.Exec(ctx, s.c, []string{tenantKey(tenant, "conns")}, args).AsIntSlice()
	if err != nil {
		return false, 0, unavailable(err)
	}
	return res[0] == 1, int(res[1]), nil
}

// ReleaseConns implements route.Store.
func (s *Store) ReleaseConns(ctx context.Context, tenant string, node route.NodeRef, n int) error {
	return unavailable(s.release.Exec(ctx, s.c, []string{tenantKey(tenant, "conns")}, []string{connField(node), strconv.Itoa(n)}).Error())
}

// LeaseTokens implements route.Store.
func (s *Store) LeaseTokens(ctx context.Context, tenant string, rate, want int) (int, error) {
	n, err := s.tokens.Exec(ctx, s.c, []string{tenantKey(tenant, "rate")}, []string{strconv.Itoa(rate), strconv.Itoa(want)}).AsInt64()
	return int(n), unavailable(err)
}

// Ping implements route.Store.
func (s *Store) Ping(ctx context.Context) error {
	return unavailable(s.c.Do(ctx, s.c.B().Ping().Build()).Error())
}

// Close implements route.Store.
func (s *Store) Close() error {
	s.c.Close()
	return nil
}
