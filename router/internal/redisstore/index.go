package redisstore

import (
	"context"
	"crypto/rand"
	"fmt"
	"hash/fnv"
	"net/url"
	"strconv"
	"strings"

	"github.com/mics-im/mics/router/internal/route"
	"github.com/redis/rueidis"
)

// shards is over how many sets the sessions of an incarnation are spread. A
// change of it is a change of the data model.
const shards = 16

// noted is a session in its node's sets.
type noted struct {
	key route.DeviceKey
	at  route.Location
}

// nodeKey is one of the incarnation's keys: u its sessions, x that it is buried.
func nodeKey(n route.NodeRef, shard int, what string) string {
	return "mics:{n:" + countField(n) + "/" + strconv.Itoa(shard) + "}:" + what
}

func shardOf(k route.UserKey) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(k.Tenant))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(k.User))
	return int(h.Sum32() % shards)
}

func (n noted) set() string { return nodeKey(n.at.Node, shardOf(n.key.UserKey), "u") }

func (n noted) member() string {
	return url.QueryEscape(n.key.Tenant) + "/" + url.QueryEscape(n.key.User) + "/" + url.QueryEscape(n.key.Device) +
		"/" + strconv.FormatUint(n.at.Session, 10)
}

// late is a member for a session whose node is being cleaned up already. It is
// like no other, because the first one may have been read and be about to be
// struck.
func (n noted) late() string { return n.member() + "/" + rand.Text() }

// parseMember reads whose session a member is.
func parseMember(text string) (k route.DeviceKey, err error) {
	parts := strings.Split(text, "/")
	if len(parts) != 4 && len(parts) != 5 {
		return k, fmt.Errorf("malformed session %q", text)
	}
	for i, to := range []*string{&k.Tenant, &k.User, &k.Device} {
		if *to, err = url.QueryUnescape(parts[i]); err != nil {
			return k, fmt.Errorf("malformed session %q", text)
		}
	}
	return k, k.Check()
}

// bindNoted notes the session, runs the bind script, and looks whether the node
// is being cleaned up meanwhile, in this order: whoever buries the node between
// the last two sees the note and the record, and whoever did so before is seen
// here and told to look again. One Redis takes the three in one round trip; the
// shards of a cluster do not wait for each other and take two.
func (s *Store) bindNoted(ctx context.Context, key route.DeviceKey, loc route.Location, bind run) ([]rueidis.RedisMessage, error) {
	c, err := s.conn()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	n := noted{key, loc}
	add := func(member string) rueidis.Completed { return c.B().Sadd().Key(n.set()).Member(member).Build() }
	exists := func() rueidis.Completed {
		return c.B().Exists().Key(nodeKey(loc.Node, shardOf(key.UserKey), "x")).Build()
	}
	cmds := rueidis.Commands{add(n.member()), s.bind.byHash(c, bind)}
	if c.Mode() != rueidis.ClientModeCluster {
		cmds = append(cmds, exists())
	}
	all := c.DoMulti(ctx, cmds...)
	if err := all[0].Error(); err != nil {
		return nil, err
	}
	bound, look := all[1], all[len(all)-1]
	again := noScript(bound)
	if again {
		bound = c.Do(ctx, s.bind.byText(c, bind))
	}
	res, err := bound.ToArray()
	if err != nil {
		return nil, err
	}
	if again || len(all) == 2 {
		look = c.Do(ctx, exists())
	}
	if buried, err := look.AsInt64(); err != nil || buried == 0 {
		return res, err
	}
	if err := c.Do(ctx, add(n.late())).Error(); err != nil {
		return nil, err
	}
	_, err = s.noteNode(ctx, loc.Node)
	return res, err
}

// strike takes sessions that have ended out of their nodes' sets. Its failure
// harms nobody: what is left is struck when the node is cleaned up.
func (s *Store) strike(ctx context.Context, ended []noted) {
	if len(ended) == 0 {
		return
	}
	members := map[string][]string{}
	for _, n := range ended {
		members[n.set()] = append(members[n.set()], n.member())
	}
	_ = s.doAll(ctx, len(members), func(c rueidis.Client, cmds rueidis.Commands) rueidis.Commands {
		for key, m := range members {
			cmds = append(cmds, c.B().Srem().Key(key).Member(m...).Build())
		}
		return cmds
	})
}

// doAll runs commands in one round trip per shard and returns the first error.
func (s *Store) doAll(ctx context.Context, n int, build func(rueidis.Client, rueidis.Commands) rueidis.Commands) error {
	for _, res := range s.results(ctx, n, build) {
		if err := res.Error(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) results(ctx context.Context, n int, build func(rueidis.Client, rueidis.Commands) rueidis.Commands) []rueidis.RedisResult {
	c, err := s.conn()
	if err != nil {
		return []rueidis.RedisResult{rueidis.NewErrorResult(err)}
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return c.DoMulti(ctx, build(c, make(rueidis.Commands, 0, n))...)
}
