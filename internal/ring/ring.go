// Package ring decides which router is a user's home: rendezvous hashing, so
// that a router that comes or goes moves only its own share of users, and
// everybody who knows the same routers agrees without talking.
package ring

import "github.com/cespare/xxhash/v2"

// Pick returns the index of the user's home among nodes, which need not be in
// any order; -1 when there are none. Asked again without the home, it names the
// next one. The answer is the same in every version: peers of two versions have
// to agree during a rolling update.
func Pick(nodes []string, tenant, user string) int {
	best, bestScore := -1, uint64(0)
	for i, n := range nodes {
		s := score(n, tenant, user)
		if best < 0 || s > bestScore || s == bestScore && n < nodes[best] {
			best, bestScore = i, s
		}
	}
	return best
}

// score hashes the parts with their separators, so that no two tuples are the
// same bytes (names hold no NUL).
func score(node, tenant, user string) uint64 {
	var buf [256]byte
	b := append(buf[:0], node...)
	b = append(b, 0)
	b = append(b, tenant...)
	b = append(b, 0)
	b = append(b, user...)
	return xxhash.Sum64(b)
}
