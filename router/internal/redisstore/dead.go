package redisstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/mics-im/mics/router/internal/route"
	"github.com/redis/rueidis"
)

// Both are in the slot of nodesKey.
const (
	deadKey   = "{" + nodesKey + "}:dead"
	buriedKey = "{" + nodesKey + "}:buried"
)

// digits of an incarnation, see incarnation.
const digits = 20

// deadField names an incarnation as the scripts on leases do.
func deadField(n route.NodeRef) string { return n.ID + "/" + incarnation(n.Incarnation) }

func parseDeadField(field string) (route.NodeRef, error) {
	at := len(field) - digits - 1
	if at < 0 || field[at] != '/' {
		return route.NodeRef{}, fmt.Errorf("malformed incarnation %q", field)
	}
	n, err := strconv.ParseUint(field[at+1:], 10, 64)
	if err != nil {
		return route.NodeRef{}, fmt.Errorf("malformed incarnation %q", field)
	}
	return route.NodeRef{ID: field[:at], Incarnation: n}, nil
}

// DeadNodes implements route.Store.
func (s *Store) DeadNodes(ctx context.Context) ([]route.DeadNode, error) {
	all, err := s.dead.exec(ctx, s, leaseRun(nodesKey)).AsStrSlice()
	if err == nil && len(all)%2 != 0 {
		err = errors.New("an odd number of values")
	}
	if err != nil {
		return nil, unavailable("look for dead nodes", err)
	}
	out := make([]route.DeadNode, 0, len(all)/2)
	for pair := range slices.Chunk(all, 2) {
		ref, err := parseDeadField(pair[0])
		why, err2 := strconv.ParseUint(pair[1], 10, 8)
		if err := cmp.Or(err, err2); err != nil {
			s.skip(deadKey, err)
			continue
		}
		out = append(out, route.DeadNode{NodeRef: ref, Why: route.Death(why)})
	}
	slices.SortFunc(out, func(a, b route.DeadNode) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Incarnation, b.Incarnation))
	})
	return out, nil
}

// Bury implements route.Store.
func (s *Store) Bury(ctx context.Context, n route.NodeRef) (bool, error) {
	done, err := s.bury.exec(ctx, s, leaseRun(nodesKey, n.ID, incarnation(n.Incarnation), millis(route.BurialMemory))).AsInt64()
	if err != nil || done == 0 {
		return false, unavailable("bury a node", err)
	}
	// A bind that is on its way comes upon these, or its note is found by Reap.
	err = s.doAll(ctx, shards, func(c rueidis.Client, cmds rueidis.Commands) rueidis.Commands {
		for i := range shards {
			cmds = append(cmds, c.B().Set().Key(nodeKey(n, i, "x")).Value("1").PxMilliseconds(route.Millis(route.LeaseMemory)).Build())
		}
		return cmds
	})
	return err == nil, unavailable("bury a node", err)
}

// noteNode has a node cleaned up that a route names now, if nothing else does.
func (s *Store) noteNode(ctx context.Context, n route.NodeRef) (buried bool, err error) {
	res, err := s.note.exec(ctx, s, leaseRun(nodesKey, n.ID, incarnation(n.Incarnation))).AsInt64()
	return res == 1, err
}

// Reap implements route.Store. It takes three round trips, no command of which
// touches more than a sixteenth of limit or one user.
func (s *Store) Reap(ctx context.Context, n route.NodeRef, limit int, ghostTTL func(tenant string) time.Duration) (ended []route.Ended, more bool, err error) {
	each := min(max(1, (limit+shards-1)/shards), maxBatch/shards)
	found, more, err := s.some(ctx, n, each)
	if err != nil {
		return nil, false, unavailable("reap", err)
	}
	seen, tenants := map[route.UserKey]bool{}, map[string]time.Duration{}
	var users []route.UserKey
	var runs []run
	for _, members := range found {
		for _, m := range members {
			key, err := parseMember(m)
			if err != nil {
				s.skip(nodeKey(n, 0, "u"), err)
				continue
			}
			if seen[key.UserKey] {
				continue
			}
			seen[key.UserKey] = true
			users = append(users, key.UserKey)
			ttl, known := tenants[key.Tenant]
			if !known {
				ttl = ghostTTL(key.Tenant)
				tenants[key.Tenant] = ttl
			}
			runs = append(runs, run{key: userKey(key.UserKey), args: []string{
				strconv.FormatUint(n.Incarnation, 10), escapedNode(n), millis(ttl),
			}})
		}
	}
	if len(runs) > 0 {
		for i, res := range s.reap.execAll(ctx, s, runs) {
			changed, err2 := res.AsStrSlice()
			if err2 == nil {
				ended, err2 = appendEnded(ended, users[i], changed)
			}
			err = cmp.Or(err, err2)
		}
	}
	if err != nil {
		return ended, false, unavailable("reap", err)
	}
	// Only now: what was not reaped must be found again.
	err = s.doAll(ctx, len(found)+len(tenants), func(c rueidis.Client, cmds rueidis.Commands) rueidis.Commands {
		for i, members := range found {
			if len(members) > 0 {
				cmds = append(cmds, c.B().Srem().Key(nodeKey(n, i, "u")).Member(members...).Build())
			}
		}
		for tenant := range tenants {
			cmds = append(cmds, c.B().Hdel().Key(tenantKey(tenant, "conns")).Field(countField(n)).Build())
		}
		return cmds
	})
	return ended, more, unavailable("reap", err)
}

// appendEnded reads what the reap script changed of a user.
func appendEnded(ended []route.Ended, user route.UserKey, changed []string) ([]route.Ended, error) {
	for pair := range slices.Chunk(changed, 2) {
		if len(pair) < 2 {
			return ended, errors.New("an odd number of values")
		}
		epoch, err := strconv.ParseUint(pair[1], 10, 64)
		if err != nil {
			return ended, fmt.Errorf("malformed epoch %q", pair[1])
		}
		ended = append(ended, route.Ended{Key: route.DeviceKey{UserKey: user, Device: pair[0]}, Epoch: epoch})
	}
	return ended, nil
}

// some returns up to each of the sessions in every set of the node, and whether
// there may be more. It draws them, because a scan from the start would pass
// over what earlier ones have emptied, again and again.
func (s *Store) some(ctx context.Context, n route.NodeRef, each int) (found [shards][]string, more bool, err error) {
	all := s.results(ctx, shards, func(c rueidis.Client, cmds rueidis.Commands) rueidis.Commands {
		for i := range shards {
			cmds = append(cmds, c.B().Srandmember().Key(nodeKey(n, i, "u")).Count(int64(each)).Build())
		}
		return cmds
	})
	for i, res := range all {
		if found[i], err = res.AsStrSlice(); err != nil {
			return found, false, err
		}
		more = more || len(found[i]) == each
	}
	return found, more, nil
}

// ForgetNode implements route.Store.
func (s *Store) ForgetNode(ctx context.Context, n route.NodeRef) error {
	err := s.doAll(ctx, 1, func(c rueidis.Client, cmds rueidis.Commands) rueidis.Commands {
		return append(cmds, c.B().Hdel().Key(deadKey).Field(deadField(n)).Build())
	})
	if err != nil {
		return unavailable("forget a node", err)
	}
	// A late bind notes its session and then the node: what it noted before this
	// look is found here, and the node that it notes after it is not forgotten.
	left, _, err := s.some(ctx, n, 1)
	if err != nil {
		return unavailable("forget a node", err)
	}
	for _, members := range left {
		if len(members) > 0 {
			_, err := s.noteNode(ctx, n)
			return unavailable("forget a node", err)
		}
	}
	return nil
}
