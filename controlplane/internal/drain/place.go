package drain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/controlplane/internal/pace"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// maxWeight is the largest weight of a target.
const maxWeight = 1000

// Rules are what an operator sets.
type Rules struct {
	// Budget is how many gateways are drained at a time.
	Budget int
	// MaxRate bounds the pace, in sessions per second.
	MaxRate float64
	// SessionsMax is what a gateway takes that does not say so itself; 0: unknown.
	SessionsMax uint64
}

// Place is a gateway that stays.
type Place struct {
	Node     fleet.Node
	Sessions uint64
	// Max is what it takes; 0: unknown.
	Max uint64
	// Share of the sessions that it is meant to take, 0 to 1.
	Share float64
}

func (p Place) free() uint64 { return since(p.Sessions, p.Max) }

// Room is what is there for the sessions of a gateway.
type Room struct {
	// Sessions need a place: the gateway's own, and those of others that are
	// being drained or will be.
	Sessions uint64
	Places   []Place
	// Free places; meaningless unless Known.
	Free  uint64
	Known bool
}

// room looks at who would stay if node went, beside all that the operations drain.
func (r Rules) room(node string, ops []Operation, gateways []fleet.Node) Room {
	leaving := map[string]bool{node: true}
	for _, op := range ops {
		if !op.State.Final() && op.State != Cancelling {
			leaving[op.Node] = true
		}
	}
	room := Room{Known: true}
	for _, g := range gateways {
		switch {
		case leaving[g.ID]:
			room.Sessions += g.Sessions
		case g.Phase == gatewayv1.Phase_PHASE_SERVING && !g.Unreachable:
			p := Place{Node: g, Sessions: g.Sessions, Max: cmp.Or(g.Status.GetSessionsMax(), r.SessionsMax)}
			room.Places = append(room.Places, p)
			room.Free += p.free()
			room.Known = room.Known && p.Max > 0
		case g.Phase == gatewayv1.Phase_PHASE_DRAINING && !g.Unreachable:
			room.Sessions += g.Sessions // by itself
		}
	}
	return room
}

// refusal says why there is not the room; empty if there is, or nobody knows.
func (r Room) refusal(node string) string {
	if len(r.Places) == 0 {
		return fmt.Sprintf("%s is the last gateway that serves and stays: %d sessions would have nowhere to go", node, r.Sessions)
	}
	if !r.Known || r.Free >= r.Sessions {
		return ""
	}
	var parts []string
	for i, p := range r.Places {
		if i == 5 {
			parts = append(parts, fmt.Sprintf("%d more", len(r.Places)-i))
			break
		}
		parts = append(parts, fmt.Sprintf("%s has %d of %d free", p.Node.ID, p.free(), p.Max))
	}
	return fmt.Sprintf("no room: %d sessions need a place and there are %d (%s)", r.Sessions, r.Free, strings.Join(parts, ", "))
}

// unknown names the gateways of which nobody knows what they take.
func (r Room) unknown() string {
	var names []string
	for _, p := range r.Places {
		if p.Max == 0 {
			names = append(names, p.Node.ID)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "room not checked: it is not known what these take: " + strings.Join(names, ", ")
}

// place decides who takes the sessions of from: those that stay, of its own track
// where there are any, and of the newest version where several are about, because
// the older ones are drained next. Shares go by head room.
func (r Rules) place(from fleet.Node, ops []Operation, gateways []fleet.Node) []Place {
	places := r.room(from.ID, ops, gateways).Places
	places = prefer(places, func(p Place) bool { return p.Node.Track == from.Track })
	if newest, rollout := newestVersion(from.Track, gateways); rollout {
		places = prefer(places, func(p Place) bool { return p.Node.Version == newest })
	}
	var most uint64
	for _, p := range places {
		most = max(most, p.Sessions)
	}
	var sum float64
	weights := make([]float64, len(places))
	for i, p := range places {
		weights[i] = float64(since(p.Sessions, most) + most/2 + 1) // fewer sessions, more room
		if p.Max > 0 {
			weights[i] = float64(p.free())
		}
		sum += weights[i]
	}
	for i := range places {
		if places[i].Share = 1 / float64(len(places)); sum > 0 {
			places[i].Share = weights[i] / sum
		}
	}
	return places
}

// prefer keeps the places that match, or all if none does.
func prefer(places []Place, match func(Place) bool) []Place {
	var out []Place
	for _, p := range places {
		if match(p) {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return places
	}
	return out
}

// newestVersion is the version of the gateway of the track that was started last;
// rollout tells whether there are others.
func newestVersion(track string, gateways []fleet.Node) (version string, rollout bool) {
	var last int64 = -1
	versions := map[string]bool{}
	for _, g := range gateways {
		if g.Track != track || g.Unreachable {
			continue
		}
		versions[g.Version] = true
		if g.StartedAtMS > last {
			last, version = g.StartedAtMS, g.Version
		}
	}
	return version, len(versions) > 1
}

// targets are the places to which clients can be sent; none if there is no such
// place: they then dial their usual URL.
func targets(places []Place) []Target {
	var top float64
	for _, p := range places {
		if p.Node.ClientURL != "" {
			top = max(top, p.Share)
		}
	}
	var out []Target
	for _, p := range places {
		if p.Node.ClientURL == "" || p.Share <= 0 {
			continue
		}
		out = append(out, Target{Node: p.Node.ID, URL: p.Node.ClientURL, Weight: max(1, uint32(p.Share/top*maxWeight))})
	}
	slices.SortFunc(out, func(a, b Target) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

// Rehearsal is what a drain would do.
type Rehearsal struct {
	Node     fleet.Node
	Room     Room
	Places   []Place
	Duration time.Duration
	// Rate is the average, in sessions per second.
	Rate    float64
	Refusal string
	Ahead   int
	// Warnings say what is not known.
	Warnings []string
}

// rehearse reckons with the others taking whatever comes.
func (r Rules) rehearse(op Operation, node fleet.Node, ops []Operation, gateways []fleet.Node) Rehearsal {
	h := Rehearsal{Node: node, Room: r.room(node.ID, ops, gateways), Places: r.place(node, ops, gateways)}
	h.Refusal = h.Room.refusal(node.ID)
	for _, o := range ops {
		if !o.State.Final() && o.State != Verifying {
			h.Ahead++
		}
	}
	if u := h.Room.unknown(); u != "" {
		h.Warnings = append(h.Warnings, u)
	}
	op.Sessions = node.Sessions
	p := r.begin(op, pace.Load{})
	left, second := float64(node.Sessions), time.Duration(0)
	for ; left > 0 && second < op.Timeout; second += time.Second {
		left -= p.Rate
		if op.Rate == 0 {
			p.Rate = min(p.Rate+r.goal(op).Step, r.MaxRate)
		}
	}
	if left > 0 {
		h.Warnings = append(h.Warnings, fmt.Sprintf("at the timeout %.0f sessions are left and are closed at once", left))
	}
	if h.Duration = second; second > 0 {
		h.Rate = (float64(node.Sessions) - max(left, 0)) / second.Seconds()
	}
	return h
}
