package fleet

import (
	"cmp"
	"slices"
	"time"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// This file holds the rules by which the inventory changes. It does no I/O and
// knows no clock: a round is merge (what a directory said), observe (what the
// gateways said), expire.

// Kind is what a node is.
type Kind uint8

// The kinds of node.
const (
	Gateway Kind = iota + 1
	Router
)

// Node is one gateway or router as last seen.
type Node struct {
	Kind        Kind
	ID          string
	Incarnation uint64
	Endpoint    string
	Version     string
	// Unreachable says that it did not answer in the last round (a gateway) or
	// that the directory does not name it any more (a router). What is below,
	// and a gateway's phase and figures, are then the last known.
	Unreachable bool
	// Reason says why, for a person.
	Reason string

	// The rest is for gateways only.
	Track         string
	Phase         gatewayv1.Phase
	StartedAtMS   int64
	Sessions      uint64
	SessionsV2    uint64
	RoutersLinked uint32
	Rates         Rates
	// ClientURL is where clients reach this very gateway; empty: not told.
	ClientURL string
	// Status is the last answer of this incarnation, at StatusAt; nil: none yet. It
	// is shared and must not be changed.
	Status   *gatewayv1.StatusResponse
	StatusAt time.Time
}

// entry is a Node and what the rules need besides. Entries are values: the
// rules return new lists and leave the old ones alone.
type entry struct {
	Node
	// samples of this incarnation, oldest first.
	samples []sample
	// missingSince is when a directory that answered first left the node out;
	// zero while it is named. A directory that does not answer says nothing.
	missingSince time.Time
}

type key struct {
	kind Kind
	id   string
}

func (e *entry) key() key { return key{e.Kind, e.ID} }

// notListed is the Reason of a router that the directory stopped naming.
const notListed = "not in the directory any more: stopped, or its lease ran out"

// merge brings the inventory in line with what a directory named at the time.
// It keeps what is not named, marked missing, and is sorted by kind and id.
func merge(old []entry, dir *routerv1.DirectoryResponse, at time.Time) []entry {
	byKey := make(map[key]entry, len(old))
	for _, e := range old {
		byKey[e.key()] = e
	}
	named := make(map[key]bool, len(old))
	name := func(n Node) {
		if n.ID == "" {
			return
		}
		k := key{n.Kind, n.ID}
		e, known := byKey[k]
		switch {
		case known && n.Incarnation < e.Incarnation:
			// An answer from before a restart that we have already seen.
		case known && n.Incarnation == e.Incarnation:
			e.Endpoint, e.Version = n.Endpoint, n.Version
			if n.Kind == Router {
				e.Unreachable, e.Reason = false, ""
			} else if e.Unreachable || len(e.samples) == 0 {
				// What a gateway says itself is newer than what routers say of it.
				e.Track, e.Phase, e.ClientURL = n.Track, n.Phase, n.ClientURL
			}
		default:
			e = entry{Node: n}
		}
		e.missingSince = time.Time{}
		byKey[k], named[k] = e, true
	}
	for _, g := range dir.GetGateways() {
		name(Node{
			Kind: Gateway, ID: g.GetNodeId(), Incarnation: g.GetIncarnation(), Endpoint: g.GetEndpoint(),
			Version: g.GetVersion(), Track: g.GetTrack(), Phase: g.GetPhase(), ClientURL: g.GetClientUrl(),
		})
	}
	for _, r := range dir.GetRouters() {
		name(Node{
			Kind: Router, ID: r.GetNodeId(), Incarnation: r.GetIncarnation(), Endpoint: r.GetEndpoint(), Version: r.GetVersion(),
		})
	}
	out := make([]entry, 0, len(byKey))
	for k, e := range byKey {
		if !named[k] {
			if e.missingSince.IsZero() {
				e.missingSince = at
			}
			if e.Kind == Router {
				e.Unreachable, e.Reason = true, notListed
			}
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// poll is what came of asking one gateway for its status.
type poll struct {
	at     time.Time
	status *gatewayv1.StatusResponse
	// failure says why there is no status.
	failure string
}

// observe brings one gateway's entry in line with the answer to a poll.
func observe(e entry, p poll) entry {
	if p.status == nil {
		e.Unreachable, e.Reason = true, p.failure
		return e
	}
	s, g := p.status, p.status.GetGateway()
	switch {
	case g.GetNodeId() != e.ID:
		// Addresses are handed on: another pod may have got this one's.
		e.Unreachable, e.Reason = true, "its endpoint is answered by another node"
		return e
	case g.GetIncarnation() < e.Incarnation:
		e.Unreachable, e.Reason = true, "its endpoint is answered by an earlier start of the node"
		return e
	case g.GetIncarnation() > e.Incarnation:
		// Restarted, and we see it before the directory does.
		e.samples = nil
	}
	e.Unreachable, e.Reason = false, ""
	e.Incarnation, e.Version, e.Track, e.Phase = g.GetIncarnation(), g.GetVersion(), g.GetTrack(), g.GetPhase()
	e.ClientURL, e.Status, e.StatusAt = g.GetClientUrl(), s, p.at
	e.StartedAtMS, e.RoutersLinked = s.GetStartedAtMs(), s.GetRoutersLinked()
	e.Sessions, e.SessionsV2 = s.GetSessions(), s.GetSessionsV2()
	e.samples = addSample(e.samples, sample{
		at: p.at, connects: s.GetConnectsTotal(), messagesIn: s.GetMessagesInTotal(), deliveries: s.GetDeliveriesTotal(),
	})
	e.Rates = rates(e.samples)
	return e
}

// expire drops the nodes that are gone for good: those that neither the
// directory has named for forgetAfter nor answer themselves. A gateway that was
// draining when it was last heard of has left as announced and goes at once. A
// gateway that answers stays however long no router knows it: it is cut off
// (fenced), and that is what an operator must see.
func expire(entries []entry, at time.Time, forgetAfter time.Duration) []entry {
	out := make([]entry, 0, len(entries))
	for _, e := range entries {
		gone := e.Unreachable && !e.missingSince.IsZero()
		left := e.Phase == gatewayv1.Phase_PHASE_DRAINING || e.Phase == gatewayv1.Phase_PHASE_DRAINED
		if gone && (left || at.Sub(e.missingSince) >= forgetAfter) {
			continue
		}
		out = append(out, e)
	}
	return out
}
