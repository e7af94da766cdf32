package uplink

import (
	"cmp"
	"slices"
	"time"

	"github.com/mics-im/mics/internal/ring"
	"github.com/mics-im/mics/internal/rpc"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// member is a router of the cluster.
type member struct {
	id          string
	incarnation uint64
	url         string
}

// toMembers reads an answer; routers with an endpoint that cannot be one are
// left out.
func toMembers(routers []*routerv1.RouterInfo) []member {
	var out []member
	for _, r := range routers {
		url, err := rpc.ParseURL(r.GetEndpoint())
		if err == nil && r.GetNodeId() != "" {
			out = append(out, member{r.GetNodeId(), r.GetIncarnation(), url})
		}
	}
	return out
}

// merge makes one set of what several live routers say: whom any of them knows,
// in the latest incarnation that any of them knows. So the set does not flap
// while some routers have heard of a change and others have not. Sorted by id.
func merge(answers [][]member) []member {
	latest := map[string]member{}
	for _, a := range answers {
		for _, m := range a {
			old, ok := latest[m.id]
			if !ok || m.incarnation > old.incarnation || m.incarnation == old.incarnation && m.url < old.url {
				latest[m.id] = m
			}
		}
	}
	out := make([]member, 0, len(latest))
	for _, m := range latest {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b member) int { return cmp.Compare(a.id, b.id) })
	return out
}

// reachable leaves out those that this gateway has not reached for longer than
// grace: routers whose picture is stale (Redis is gone) would name a dead one
// for ever. downFor is zero for a linked router. If none is linked the set
// stays: then the gateway knows nothing.
func reachable(set []member, downFor func(member) time.Duration, grace time.Duration) []member {
	if !slices.ContainsFunc(set, func(m member) bool { return downFor(m) == 0 }) {
		return set
	}
	return slices.DeleteFunc(slices.Clone(set), func(m member) bool { return downFor(m) > grace })
}

// homeIndex returns a function that picks a user's home in set; -1: no router.
func homeIndex(set []member) func(tenant, user string) int {
	names := ids(set)
	return func(tenant, user string) int { return ring.Pick(names, tenant, user) }
}

func ids(set []member) []string {
	out := make([]string, len(set))
	for i, m := range set {
		out[i] = m.id
	}
	return out
}
