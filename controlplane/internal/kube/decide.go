package kube

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
)

// Labels and annotations that this package reads or writes.
const (
	// acceptLabel is what the client Services select: a pod that says "false" gets no
	// new connections.
	acceptLabel = "mics.io/accept"
	trackLabel  = "mics.io/track"
	hashLabel   = "pod-template-hash"
	// costAnnotation has a ReplicaSet end the pod with the least first.
	costAnnotation = "controller.kubernetes.io/pod-deletion-cost"
	// cordonAnnotation remembers that the drain of a pod's gateway is ours to undo.
	cordonAnnotation = "mics.io/drained-for-cordon"
)

// costEvery is how often a pod's cost is written at most: each is a write to etcd.
const costEvery = 10 * time.Second

// Pod is a gateway's pod as the rules see it.
type Pod struct {
	Name, Node, Track, Hash string
	Ready, Terminating      bool
	// Accept, Cost and Cordon are what the pod's labels and annotations say.
	Accept, Cordon bool
	Cost           string
	// CostAt is when this process wrote the cost; zero: not yet.
	CostAt time.Time

	// Known: the gateway answers the control plane; what follows is what it says.
	Known, Serving, Draining bool
	Sessions                 uint64
}

// View is what the rules decide upon.
type View struct {
	At   time.Time
	Pods []Pod
	// Newest is the pod template hash that a track's Deployment is at.
	Newest map[string]string
	// Cordoned are the nodes that take no pods.
	Cordoned map[string]bool
}

// Verb is what is to be done.
type Verb string

// The verbs. Accept and Cost set Value; Drain and Undrain are the control plane's
// operations.
const (
	Accept  Verb = "accept"
	Cost    Verb = "cost"
	Drain   Verb = "drain"
	Undrain Verb = "undrain"
)

// Action is one thing to do to one pod.
type Action struct {
	Verb       Verb
	Pod, Value string
	Why        string
}

// Decide returns what is to be done, in the order of the pods. It is level-triggered:
// the same view gives the same actions until they have had their effect.
func Decide(v View) []Action {
	var out []Action
	pods := slices.SortedFunc(slices.Values(v.Pods), func(a, b Pod) int { return cmp.Compare(a.Name, b.Name) })
	for _, p := range pods {
		if p.Terminating {
			continue
		}
		why := v.refuse(p)
		if accept := why == ""; accept != p.Accept {
			out = append(out, Action{Accept, p.Name, strconv.FormatBool(accept), cmp.Or(why, "it stays")})
		}
		if cost := strconv.Itoa(costOf(p.Sessions)); p.Known && v.At.Sub(p.CostAt) >= costEvery && worth(p.Cost, p.Sessions) {
			out = append(out, Action{Verb: Cost, Pod: p.Name, Value: cost})
		}
		switch cordoned := v.Cordoned[p.Node]; {
		case cordoned && p.Known && p.Serving && !p.Cordon:
			out = append(out, Action{Drain, p.Name, "", fmt.Sprintf("node %s is cordoned", p.Node)})
		case !cordoned && p.Cordon:
			out = append(out, Action{Undrain, p.Name, "", fmt.Sprintf("node %s is not cordoned any more", p.Node)})
		}
	}
	return out
}

// refuse says why a pod is to get no new connections; empty: it is to. Somebody has
// to take them: a pod is left out only while another one of its track can.
func (v View) refuse(p Pod) string {
	newest := v.Newest[p.Track]
	stays := func(o Pod) bool { return o.Ready && !o.Terminating && o.Track == p.Track && !o.Draining }
	if newest != "" && p.Hash != newest && slices.ContainsFunc(v.Pods, func(o Pod) bool { return stays(o) && o.Hash == newest && !v.Cordoned[o.Node] }) {
		return "a rollout ends it"
	}
	if v.Cordoned[p.Node] && slices.ContainsFunc(v.Pods, func(o Pod) bool { return stays(o) && !v.Cordoned[o.Node] }) {
		return "its node is cordoned"
	}
	return ""
}

// costOf is the sessions, within what the annotation may hold.
func costOf(sessions uint64) int { return int(min(sessions, math.MaxInt32)) }

// worth tells whether the cost has changed by enough to write it: a tenth, or
// whether there is anything at all.
func worth(written string, sessions uint64) bool {
	old, err := strconv.Atoi(written)
	if err != nil || old < 0 {
		return true
	}
	now := costOf(sessions)
	return (old == 0) != (now == 0) || 10*max(now-old, old-now) > old
}
