// Package rebalance evens out the sessions of the gateways of each track: those that
// have more than the mean give some to those that have less (GatewayService.Shed).
package rebalance

import (
	"cmp"
	"slices"

	"github.com/mics-im/mics/internal/cohort"
)

// Node is a gateway that serves.
type Node struct {
	ID          string
	Incarnation uint64
	Track       string
	Sessions    uint64
	// Movable are those that can be asked to move.
	Movable   uint64
	ClientURL string
}

// Threshold says from when on it is worth it: the fullest gateway of a track has
// Ratio times the mean, and Excess sessions more than it.
type Threshold struct {
	Ratio  float64
	Excess uint64
}

// The thresholds of an operator's word, and of the automatic.
var (
	manual    = Threshold{Ratio: 1.02, Excess: 2}
	automatic = Threshold{Ratio: 1.1, Excess: 1000}
)

// Share is what a gateway is to give away or to get.
type Share struct {
	Node
	Gives, Gets uint64
}

// Plan reckons who gives what, by track and name; why says why nobody does.
func Plan(nodes []Node, th Threshold) (shares []Share, why string) {
	why = "the sessions are even"
	for _, track := range []string{cohort.Stable, cohort.Canary} {
		var mine []Node
		for _, n := range nodes {
			if (n.Track == cohort.Canary) == (track == cohort.Canary) {
				mine = append(mine, n)
			}
		}
		if got, w := even(mine, th); w != "" {
			why = w
		} else {
			shares = append(shares, got...)
		}
	}
	slices.SortFunc(shares, func(a, b Share) int { return cmp.Or(cmp.Compare(a.Track, b.Track), cmp.Compare(a.ID, b.ID)) })
	if slices.ContainsFunc(shares, func(s Share) bool { return s.Gives > 0 }) {
		why = ""
	}
	return shares, why
}

// even reckons one track.
func even(nodes []Node, th Threshold) (shares []Share, why string) {
	var total, most uint64
	for _, n := range nodes {
		total += n.Sessions
		most = max(most, n.Sessions)
	}
	for _, n := range nodes {
		shares = append(shares, Share{Node: n})
	}
	if len(nodes) < 2 {
		return shares, ""
	}
	mean := total / uint64(len(nodes))
	if float64(most) < th.Ratio*float64(mean) || most-mean < th.Excess {
		return shares, ""
	}
	for i := range shares {
		s := &shares[i]
		switch {
		case s.Sessions > mean:
			s.Gives = min(s.Sessions-mean, s.Movable)
		case s.ClientURL == "":
			return shares, "a gateway that has room cannot be named to clients (CLIENT_URL is not set): " + s.ID
		default:
			s.Gets = mean - s.Sessions
		}
	}
	return shares, ""
}
