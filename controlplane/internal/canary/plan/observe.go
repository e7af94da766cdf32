package plan

import (
	"slices"
	"time"

	"github.com/mics-im/mics/controlplane/internal/canary/analysis"
	"github.com/mics-im/mics/controlplane/internal/pace"
	"github.com/mics-im/mics/internal/cohort"
)

// Node is a gateway as it was last seen.
type Node struct {
	ID          string
	Incarnation uint64
	Track       string
	Version     string
	// Serving: it answers, and takes sessions.
	Serving bool
	// Reached: it answers; its figures are of now.
	Reached     bool
	Sessions    uint64
	SessionsV2  uint64
	OfCanary    uint64 // sessions whose users belong to the canary
	Misplaced   uint64
	MisplacedV1 uint64 // of them
	Generation  uint64 // of its rule
	// Places are the sessions by their users' places, by the rule's salt; nil: it
	// was not asked, or is of a version that does not tell.
	Places    []uint32
	ClientURL string
}

// Observation is what is seen of the fleet at a moment.
type Observation struct {
	At    time.Time
	Nodes []Node
	// Load is of the gateways that take sessions, since the last observation.
	Load pace.Load
	// Sample is set when an interval of the analysis has passed.
	Sample *analysis.Sample
}

// Population is how sessions are spread over the tracks.
type Population struct {
	Stable, Canary Group
	// OfCanary is how many sessions belong to the canary by the rule.
	OfCanary uint64
	// Places are all sessions by their users' places; nil if a gateway does not tell,
	// or not by the newest rule, or does not answer.
	Places []uint64
	// Current: every gateway that answers decides by the newest rule.
	Current bool
	// Silent is how many gateways had sessions when they answered last, and do not
	// answer now: those sessions are in none of the counts.
	Silent int
}

// Group is the gateways of one track.
type Group struct {
	Nodes                            int // that serve
	Sessions, Misplaced, MisplacedV1 uint64
	Versions                         []string
}

// Total of the sessions.
func (p Population) Total() uint64 { return p.Stable.Sessions + p.Canary.Sessions }

// Share of the sessions that are on the canary track.
func (p Population) Share() float64 { return ratio(p.Canary.Sessions, p.Total()) }

// ByRule is the share that is to be there.
func (p Population) ByRule() float64 { return ratio(p.OfCanary, p.Total()) }

func ratio(a, b uint64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// movable is how many sessions on the wrong track can be moved.
func (p Population) movable(v1 bool) uint64 {
	n := p.Stable.Misplaced + p.Canary.Misplaced
	if !v1 {
		n -= min(n, p.Stable.MisplacedV1+p.Canary.MisplacedV1)
	}
	return n
}

// Count sums the gateways that answer.
func Count(nodes []Node, generation uint64) Population {
	p := Population{Current: true}
	told := true
	for _, n := range nodes {
		if !n.Reached {
			if n.Sessions > 0 {
				p.Silent++
			}
			continue
		}
		g := &p.Stable
		if n.Track == cohort.Canary {
			g = &p.Canary
		}
		if n.Serving {
			g.Nodes++
			if !slices.Contains(g.Versions, n.Version) {
				g.Versions = append(g.Versions, n.Version)
			}
		}
		g.Sessions += n.Sessions
		g.Misplaced += n.Misplaced
		g.MisplacedV1 += n.MisplacedV1
		p.OfCanary += n.OfCanary
		if n.Generation != generation {
			p.Current = false
		}
		if told = told && len(n.Places) == cohort.Full; !told {
			continue
		}
		if p.Places == nil {
			p.Places = make([]uint64, cohort.Full)
		}
		for i, sessions := range n.Places {
			p.Places[i] += uint64(sessions)
		}
	}
	if !told || !p.Current || p.Silent > 0 {
		p.Places = nil
	}
	slices.Sort(p.Stable.Versions)
	slices.Sort(p.Canary.Versions)
	return p
}
