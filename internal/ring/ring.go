// Package ring decides which router is a user's home: rendezvous hashing, so
// that a router that comes or goes moves only its own share of users, and
// everybody who knows the same routers agrees without talking.
//
// The answers are the same in every version: peers of two versions have to agree
// during a rolling update.
package ring

import (
	"encoding/binary"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// Hash is the user's place in every ranking; whoever has only the hash can tell
// the user's home.
func Hash(tenant, user string) uint64 {
	// The separator keeps any two tuples different (names hold no NUL).
	var buf [256]byte
	b := append(buf[:0], tenant...)
	b = append(b, 0)
	b = append(b, user...)
	return xxhash.Sum64(b)
}

// HomeParam is the query parameter in which a gateway that sends a client elsewhere
// tells the next one the user's Hash, in hexadecimal, see Hint.
const HomeParam = "home"

// Hint writes a Hash for HomeParam.
func Hint(h uint64) string { return strconv.FormatUint(h, 16) }

// ParseHint reads one; 0: there is none.
func ParseHint(s string) uint64 {
	h, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0
	}
	return h
}

// Pick returns the index of the user's home among nodes, which need not be in
// any order; -1 when there are none. Asked again without the home, it names the
// next one.
func Pick(nodes []string, tenant, user string) int { return PickHash(nodes, Hash(tenant, user)) }

// PickHash is Pick by the user's hash.
func PickHash(nodes []string, h uint64) int {
	home, _ := Pair(nodes, h)
	return home
}

// Pair returns the indexes of the user's home and of the next one, its backup;
// -1 for what there is not.
func Pair(nodes []string, h uint64) (home, backup int) {
	home, backup = -1, -1
	var first, second uint64
	for i, n := range nodes {
		s := score(n, h)
		switch {
		case home < 0 || s > first || s == first && n < nodes[home]:
			home, backup, first, second = i, home, s, first
		case backup < 0 || s > second || s == second && n < nodes[backup]:
			backup, second = i, s
		}
	}
	return home, backup
}

func score(node string, h uint64) uint64 {
	var buf [256]byte
	b := binary.LittleEndian.AppendUint64(buf[:0], h)
	b = append(b, node...)
	return xxhash.Sum64(b)
}
