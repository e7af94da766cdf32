// Package cohort decides which track a user belongs to while a canary runs. The
// decision depends on the rule, the tenant and the user alone, so gateways, the
// control plane and tests agree without talking, all devices of a user stay
// together, and raising the weight only ever adds users.
//
// The answers are the same in every version: during a canary two of them work
// side by side.
package cohort

import (
	"math/bits"

	"github.com/cespare/xxhash/v2"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// Full is the weight that takes every user: weights are hundredths of a per cent.
const Full = 10_000

// The tracks, as gateways announce them.
const (
	Stable = "stable"
	Canary = "canary"
)

// Rule is a compiled CanaryRule. It is immutable and safe for concurrent use; the
// zero Rule is no rule.
type Rule struct {
	generation uint64
	salt       string
	weight     uint64
	only       map[string]struct{} // nil: every tenant
	never      map[string]struct{}
}

// Compile reads a rule from the wire. A nil one, or one of generation 0, is none.
// A weight above Full counts as Full.
func Compile(r *gatewayv1.CanaryRule) Rule {
	if r.GetGeneration() == 0 {
		return Rule{}
	}
	return Rule{
		generation: r.GetGeneration(), salt: r.GetSalt(), weight: uint64(min(r.GetWeight(), Full)),
		only: set(r.GetTenants()), never: set(r.GetTenantsDenied()),
	}
}

func set(names []string) map[string]struct{} {
	if len(names) == 0 {
		return nil
	}
	out := make(map[string]struct{}, len(names))
	for _, n := range names {
		out[n] = struct{}{}
	}
	return out
}

// Generation is the rule's; 0: there is no rule.
func (r Rule) Generation() uint64 { return r.generation }

// Canary tells whether the user belongs to the canary track. Without a rule
// nobody does. It does not allocate for names of usual length.
func (r Rule) Canary(tenant, user string) bool {
	if r.weight == 0 {
		return false
	}
	if _, no := r.never[tenant]; no {
		return false
	}
	if _, yes := r.only[tenant]; r.only != nil && !yes {
		return false
	}
	return place(r.salt, tenant, user) < r.weight
}

// Place is the user's among Full: without tenant lists he belongs to the canary at
// every weight above it. Raising the weight from one place to the next adds
// whoever has it.
func (r Rule) Place(tenant, user string) uint32 { return uint32(place(r.salt, tenant, user)) }

// Track is the track that the user belongs to. Without a rule it is empty: the
// user is welcome anywhere.
func (r Rule) Track(tenant, user string) string {
	switch {
	case r.generation == 0:
		return ""
	case r.Canary(tenant, user):
		return Canary
	default:
		return Stable
	}
}

// place is the user's place among Full, the same for every weight: a user is in
// as soon as the weight is above it. The salt gives every canary other users.
func place(salt, tenant, user string) uint64 {
	// The separators keep any two tuples different (names hold no NUL).
	var buf [384]byte
	b := append(buf[:0], salt...)
	b = append(b, 0)
	b = append(b, tenant...)
	b = append(b, 0)
	b = append(b, user...)
	hi, _ := bits.Mul64(xxhash.Sum64(b), Full)
	return hi
}
