package redisstore

import (
	"context"
	"crypto/sha1" // Redis names scripts by it; nothing is secured by it
	"encoding/hex"
	"fmt"

	"github.com/redis/rueidis"
)

// maxBatch bounds the commands that share one command timeout.
const maxBatch = 1024

// script is one of lua/*.lua, on keys of one slot. Redis is sent its hash, and its
// text when Redis does not know it (any more).
type script struct {
	text, sha string
}

// run is one execution of a script.
type run struct {
	key  string
	args []string
	more []string // keys beside key, in its slot
}

func load(name string) (script, error) {
	text, err := lua.ReadFile("lua/" + name + ".lua")
	if err != nil {
		return script{}, fmt.Errorf("embedded script: %w", err)
	}
	sum := sha1.Sum(text)
	return script{text: string(text), sha: hex.EncodeToString(sum[:])}, nil
}

// exec runs the script once.
func (p script) exec(ctx context.Context, s *Store, r run) rueidis.RedisResult {
	c, err := s.conn()
	if err != nil {
		return rueidis.NewErrorResult(err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	res := c.Do(ctx, p.byHash(c, r))
	if noScript(res) {
		res = c.Do(ctx, p.byText(c, r))
	}
	return res
}

// execAll runs the script at most maxBatch times in one round trip per shard.
// Runs on one key happen in their order, except when Redis forgets its scripts
// (a restart) and learns this one from somebody else halfway through.
func (p script) execAll(ctx context.Context, s *Store, runs []run) []rueidis.RedisResult {
	c, err := s.conn()
	if err != nil {
		return []rueidis.RedisResult{rueidis.NewErrorResult(err)}
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	cmds := make(rueidis.Commands, len(runs))
	for i, r := range runs {
		cmds[i] = p.byHash(c, r)
	}
	all := c.DoMulti(ctx, cmds...)
	var unknown []int
	for i, res := range all {
		if noScript(res) {
			unknown = append(unknown, i)
		}
	}
	if len(unknown) == 0 {
		return all
	}
	cmds = cmds[:0]
	for _, i := range unknown {
		cmds = append(cmds, p.byText(c, runs[i]))
	}
	for j, res := range c.DoMulti(ctx, cmds...) {
		all[unknown[j]] = res
	}
	return all
}

func (p script) byHash(c rueidis.Client, r run) rueidis.Completed {
	return c.B().Evalsha().Sha1(p.sha).Numkeys(int64(1 + len(r.more))).Key(r.key).Key(r.more...).Arg(r.args...).Build()
}

func (p script) byText(c rueidis.Client, r run) rueidis.Completed {
	return c.B().Eval().Script(p.text).Numkeys(int64(1 + len(r.more))).Key(r.key).Key(r.more...).Arg(r.args...).Build()
}

func noScript(res rueidis.RedisResult) bool {
	e, ok := rueidis.IsRedisErr(res.Error())
	return ok && e.IsNoScript()
}
