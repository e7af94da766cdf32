package plan

import (
	"github.com/mics-im/mics/internal/cohort"
)

// Target is a gateway to which sessions are sent; see gateway.proto.
type Target struct {
	Node   string
	URL    string
	Weight uint32
}

// Orders are what is to be true now. They are given again and again.
type Orders struct {
	Rule            Rule
	Tenants, Denied []string
	MoveV1          bool
	// CountPlaces: gateways are to tell Node.Places.
	CountPlaces bool
	// Pace is how many sessions per second each gateway moves, by node; one that
	// is not named moves none.
	Pace map[string]float64
	// Where to, by track.
	Stable, Canary []Target
	// Weight of the canary track for new connections, in hundredths of a per cent.
	Weight uint32
	// Version that the stable gateways are to have; empty: as they are.
	Version string
	// Drain names old stable gateways that are to be emptied, unless what replaces
	// them by Version does that.
	Drain []string
}

// Give derives the orders of a state.
func Give(s State, nodes []Node) Orders {
	o := Orders{
		Rule: s.Rule, Tenants: s.Spec.Tenants, Denied: s.Spec.Denied, MoveV1: s.Spec.MoveV1, Weight: s.Target,
		Stable: targets(nodes, cohort.Stable), Canary: targets(nodes, cohort.Canary), Pace: map[string]float64{},
		CountPlaces: s.Phase.onTrial() && s.whole(),
	}
	if s.Phase == Replacing {
		o.Version, o.Drain = s.Version, s.Old(nodes)
	}
	// An aborted or promoted canary stays the rule: whoever is on a canary gateway
	// all the same has to go.
	if !s.Paused && !s.Aiming {
		spread(&o, s, nodes)
	}
	return o
}

// targets are the gateways of a track that take sessions, the emptier the more.
// If one cannot be reached by itself all are reached by the track's name.
func targets(nodes []Node, track string) []Target {
	var out []Target
	most := uint64(0)
	for _, n := range nodes {
		if n.Serving && trackOf(n) == track {
			most = max(most, n.Sessions)
		}
	}
	for _, n := range nodes {
		if !n.Serving || trackOf(n) != track {
			continue
		}
		if n.ClientURL == "" {
			return []Target{{URL: "?track=" + track, Weight: 1}}
		}
		out = append(out, Target{Node: n.ID, URL: n.ClientURL, Weight: uint32(min(most-n.Sessions, 1<<20)) + uint32(min(most/10, 1<<20)) + 1})
	}
	return out
}

func trackOf(n Node) string {
	if n.Track == cohort.Canary {
		return cohort.Canary
	}
	return cohort.Stable
}

// spread shares the sessions per second among the gateways that have some to move.
func spread(o *Orders, s State, nodes []Node) {
	for _, from := range []string{cohort.Stable, cohort.Canary} {
		takers, total := 0, uint64(0)
		for _, n := range nodes {
			if trackOf(n) != from && n.Serving {
				takers++
			}
			if trackOf(n) == from {
				total += moves(s, n)
			}
		}
		if takers == 0 {
			continue
		}
		rate := s.rate(takers)
		for _, n := range nodes {
			if trackOf(n) != from || !n.Reached {
				continue
			}
			// Whoever lands on the wrong track later is not to wait for a new pace.
			o.Pace[n.ID] = max(1, rate/float64(len(nodes)))
			if m := moves(s, n); m > 0 {
				o.Pace[n.ID] = max(1, rate*float64(m)/float64(total))
			}
		}
	}
}

func moves(s State, n Node) uint64 {
	if !n.Reached {
		return 0
	}
	if s.Spec.MoveV1 {
		return n.Misplaced
	}
	return n.Misplaced - min(n.Misplaced, n.MisplacedV1)
}
