package redisstore

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mics-im/mics/router/internal/route"
	"github.com/redis/rueidis"
)

// cacheTTL bounds how long a route is read from this process's memory even if
// the word of its change got lost.
const cacheTTL = time.Minute

// userKey puts the whole user into the hash tag; escaping keeps braces and
// slashes out of its parts, so no two users share a key.
func userKey(k route.UserKey) string {
	return "mics:{" + url.QueryEscape(k.Tenant) + "/" + url.QueryEscape(k.User) + "}:r"
}

// escapedNode is the node's ID as a record has it.
func escapedNode(n route.NodeRef) string { return url.QueryEscape(n.ID) }

// Bind implements route.Store.
func (s *Store) Bind(ctx context.Context, key route.DeviceKey, loc route.Location, version uint8) (uint64, *route.Record, error) {
	if err := key.Check(); err != nil {
		return 0, nil, err
	}
	// The script puts the epoch in the place of this one, a single zero.
	r := route.Record{State: route.Live, Node: loc.Node, Session: loc.Session, Version: version}
	res, err := s.bindNoted(ctx, key, loc, run{key: userKey(key.UserKey), args: []string{key.Device, r.Text()}})
	if err == nil && len(res) != 2 {
		err = fmt.Errorf("%d values instead of 2", len(res))
	}
	if err != nil {
		return 0, nil, unavailable("bind", err)
	}
	epoch, err := res[0].AsUint64()
	if err != nil {
		return 0, nil, unavailable("bind", err)
	}
	old, err := res[1].ToString()
	if err != nil {
		return 0, nil, unavailable("bind", err)
	}
	if old == "" {
		return epoch, nil, nil
	}
	prev, err := route.ParseRecord(key.Device, old)
	if err != nil {
		s.skip(userKey(key.UserKey), err)
		return epoch, nil, nil
	}
	if prev.State != route.Ghost && prev.Location() != loc {
		s.strike(ctx, []noted{{key, prev.Location()}})
	}
	return epoch, &prev, nil
}

// Change implements route.Store. It takes one round trip for every maxBatch
// changes, two if there are ghosts among them, each with a second of its own.
func (s *Store) Change(ctx context.Context, changes []route.Change) ([]bool, error) {
	runs := make([]run, len(changes))
	for i, c := range changes {
		if err := c.Check(); err != nil {
			return nil, err
		}
		runs[i] = run{key: userKey(c.Key.UserKey), args: []string{
			c.Key.Device, strconv.FormatUint(c.Epoch, 10), strconv.FormatUint(c.Node.Incarnation, 10), escapedNode(c.Node),
			strconv.FormatUint(c.Session, 10), strconv.Itoa(int(c.To)), millis(c.GhostTTL),
		}}
	}
	applied := make([]bool, 0, len(changes))
	for batch := range slices.Chunk(runs, maxBatch) {
		var gone []noted
		for _, res := range s.change.execAll(ctx, s, batch) {
			n, err := res.AsInt64()
			if err != nil {
				return nil, unavailable("change", err)
			}
			// A change that does not tell its session leaves its note behind.
			if c := changes[len(applied)]; n == 1 && c.To == route.Ghost && c.Session != 0 {
				gone = append(gone, noted{c.Key, route.Location{Node: c.Node, Session: c.Session}})
			}
			applied = append(applied, n == 1)
		}
		s.strike(ctx, gone)
	}
	return applied, nil
}

// Lookup implements route.Store. It takes one round trip for every maxBatch
// users it does not know, each with a second of its own. Callers that ask for a
// user at the same time share the question, so it does not end with the context
// of one of them.
func (s *Store) Lookup(ctx context.Context, keys []route.UserKey) ([][]route.Record, error) {
	out := make([][]route.Record, 0, len(keys))
	for batch := range slices.Chunk(keys, maxBatch) {
		if err := ctx.Err(); err != nil {
			return nil, unavailable("look up", err)
		}
		c, err := s.conn()
		if err != nil {
			return nil, unavailable("look up", err)
		}
		cmds := make([]rueidis.CacheableTTL, len(batch))
		for i, k := range batch {
			// The life of the hash need not bound that of the cached copy: expired
			// ghosts are left out below.
			cmds[i] = rueidis.CT(c.B().Hgetall().Key(userKey(k)).Cache().ToStaticTTL(), cacheTTL)
		}
		wait := newPatience(s.timeout)
		results := c.DoMultiCache(wait, cmds...)
		wait.end()
		now := time.Now()
		for i, res := range results {
			records, err := s.records(batch[i], res, now)
			if err != nil {
				return nil, err
			}
			out = append(out, records)
		}
	}
	return out, nil
}

// LookupFresh implements route.Store.
func (s *Store) LookupFresh(ctx context.Context, key route.UserKey) ([]route.Record, error) {
	c, err := s.conn()
	if err != nil {
		return nil, unavailable("look up", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return s.records(key, c.Do(ctx, c.B().Hgetall().Key(userKey(key)).Build()), time.Now())
}

// records reads a user's hash.
func (s *Store) records(key route.UserKey, res rueidis.RedisResult, now time.Time) ([]route.Record, error) {
	all, err := res.AsStrMap()
	if err != nil {
		return nil, unavailable("look up", err)
	}
	if len(all) == 0 {
		return nil, nil
	}
	out := make([]route.Record, 0, len(all))
	for device, text := range all {
		r, err := route.ParseRecord(device, text)
		if err != nil {
			s.skip(userKey(key), err)
			continue
		}
		if !r.Forgotten(now) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b route.Record) int { return strings.Compare(a.Device, b.Device) })
	return out, nil
}
