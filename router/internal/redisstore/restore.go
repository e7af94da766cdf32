package redisstore

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/mics-im/mics/router/internal/route"
	"github.com/redis/rueidis"
)

const (
	markerKey = "mics:marker"
	wholeKey  = "{" + markerKey + "}:whole" // in its slot
)

func lockKey(name string) string { return "mics:lock:" + name }

// Restore implements route.Store. It takes two round trips for every maxBatch
// records, each with a second of its own, and one for every node.
func (s *Store) Restore(ctx context.Context, records []route.Restored) (int, error) {
	for _, r := range records {
		if err := r.Check(); err != nil {
			return 0, err
		}
	}
	set := 0
	nodes := map[route.NodeRef]bool{}
	for left := records; len(left) > 0; {
		end := min(maxBatch, len(left))
		for end < len(left) && left[end].Key.UserKey == left[end-1].Key.UserKey {
			end++
		}
		var batch []route.Restored
		batch, left = left[:end], left[end:]
		n, err := s.restoreBatch(ctx, batch)
		set += n
		if err != nil {
			return set, unavailable("restore", err)
		}
		for _, r := range batch {
			if r.Record.State != route.Ghost {
				nodes[r.Record.Node] = true
			}
		}
	}
	for n := range nodes {
		if err := s.restored(ctx, n, records); err != nil {
			return set, unavailable("restore", err)
		}
	}
	return set, nil
}

func (s *Store) restoreBatch(ctx context.Context, batch []route.Restored) (set int, err error) {
	if err := s.noteSessions(ctx, batch, noted.member); err != nil {
		return 0, err
	}
	var runs []run
	at := map[route.UserKey]int{} // one run for each: nobody sees half of a user
	for _, r := range batch {
		i, known := at[r.Key.UserKey]
		if !known {
			i = len(runs)
			at[r.Key.UserKey] = i
			runs = append(runs, run{key: userKey(r.Key.UserKey)})
		}
		runs[i].args = append(runs[i].args, r.Key.Device, r.Record.Text())
	}
	for _, res := range s.restore.execAll(ctx, s, runs) {
		n, err := res.AsInt64()
		if err != nil {
			return set, err
		}
		set += int(n)
	}
	return set, nil
}

// noteSessions adds the records that are not ghosts to their nodes' sets.
func (s *Store) noteSessions(ctx context.Context, batch []route.Restored, member func(noted) string) error {
	members := map[string][]string{}
	for _, r := range batch {
		if r.Record.State != route.Ghost {
			n := noted{r.Key, r.Record.Location()}
			members[n.set()] = append(members[n.set()], member(n))
		}
	}
	return s.doAll(ctx, len(members), func(c rueidis.Client, cmds rueidis.Commands) rueidis.Commands {
		for key, m := range members {
			cmds = append(cmds, c.B().Sadd().Key(key).Member(m...).Build())
		}
		return cmds
	})
}

// restored sees to it that a node's restored routes are cleaned up one day: also
// if it was buried, and its sets emptied, before they were there (as bindNoted).
func (s *Store) restored(ctx context.Context, n route.NodeRef, records []route.Restored) error {
	buried, err := s.noteNode(ctx, n)
	if err != nil || !buried {
		return err
	}
	late := slices.DeleteFunc(slices.Clone(records), func(r route.Restored) bool { return r.Record.Node != n })
	for batch := range slices.Chunk(late, maxBatch) {
		if err := s.noteSessions(ctx, batch, noted.late); err != nil {
			return err
		}
	}
	_, err = s.noteNode(ctx, n)
	return err
}

// Marker implements route.Store.
func (s *Store) Marker(ctx context.Context) (route.Marker, error) {
	mine := rand.Text()
	res, err := s.marker.exec(ctx, s, run{key: markerKey, more: []string{wholeKey}, args: []string{mine}}).AsStrSlice()
	if err == nil && (len(res) != 2 || res[0] == "") {
		err = errors.New("an odd marker")
	}
	if err != nil {
		return route.Marker{}, unavailable("read the marker", err)
	}
	return route.Marker{ID: res[0], Created: res[0] == mine, Whole: res[1] == res[0]}, nil
}

// SetWhole implements route.Store.
func (s *Store) SetWhole(ctx context.Context, id string, whole bool) error {
	said := ""
	if whole {
		said = id
	}
	return unavailable("say that the routes are whole", s.whole.exec(ctx, s, run{key: markerKey, more: []string{wholeKey}, args: []string{id, said}}).Error())
}

// Lock implements route.Store.
func (s *Store) Lock(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	n, err := s.lock.exec(ctx, s, run{key: lockKey(name), args: []string{owner, millis(ttl)}}).AsInt64()
	return n == 1, unavailable("lock", err)
}

// Unlock implements route.Store.
func (s *Store) Unlock(ctx context.Context, name, owner string) error {
	return unavailable("unlock", s.unlock.exec(ctx, s, run{key: lockKey(name), args: []string{owner}}).Error())
}

func millis(d time.Duration) string { return strconv.FormatInt(route.Millis(d), 10) }
