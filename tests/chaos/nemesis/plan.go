// Package nemesis makes plans of what goes wrong in a run, from a seed. A plan
// is data: the same seed, topology and bounds give the same plan.
package nemesis

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Kind of a fault.
type Kind string

// The faults. All but Terminate, Flush and those of links may hit any process.
const (
	// Kill is SIGKILL; the process is started again at the end.
	Kill Kind = "kill"
	// Pause is SIGSTOP; SIGCONT comes at the end.
	Pause Kind = "pause"
	// Terminate is SIGTERM; the process is started again at the end.
	Terminate Kind = "terminate"
	// Flush empties Redis; it has no length.
	Flush Kind = "flush"
	// Cut, Blackhole and Delay are of the links from a process to another.
	Cut       Kind = "cut"
	Blackhole Kind = "blackhole"
	Delay     Kind = "delay"
)

// Any stands for every process at one end of a link.
const Any = "*"

// Fault is one thing that goes wrong and is made good.
type Fault struct {
	Kind Kind
	// Target is a process, or the destination of a link.
	Target string
	// From is the source of a link, or Any; then the target is cut off in both
	// directions.
	From string `json:",omitempty"`
	// At is when it begins and For how long it lasts.
	At, For time.Duration
}

func (f Fault) String() string {
	s := fmt.Sprintf("%.1fs %s %s", f.At.Seconds(), f.Kind, f.Target)
	if f.From != "" {
		s = fmt.Sprintf("%.1fs %s %s→%s", f.At.Seconds(), f.Kind, f.From, f.Target)
	}
	if f.For > 0 {
		s += fmt.Sprintf(" for %.1fs", f.For.Seconds())
	}
	return s
}

// Class names the fault and the sort of process it hits, as in "kill gateway".
func (f Fault) Class() string { return string(f.Kind) + " " + sort(f.Target) }

func sort(name string) string {
	switch {
	case name == "cp":
		return "control plane"
	case name == "redis":
		return "redis"
	case len(name) > 1 && name[:2] == "gw":
		return "gateway"
	}
	return "router"
}

// Topology is what there is to hit. Names begin with gw for gateways.
type Topology struct {
	Gateways, Routers   []string
	ControlPlane, Redis bool
	// Links may be hit: the cluster is proxied.
	Links bool
}

// Bounds of a plan.
type Bounds struct {
	// Within is the time in which faults begin and end.
	Within time.Duration
	// AtOnce is how many faults there may be at one time.
	AtOnce int
	// Shortest and Longest bound a fault; after each there is a rest of up to
	// Rest in which nothing is wrong (with AtOnce 1).
	Shortest, Longest, Rest time.Duration
	// Only, if set, names the classes of faults to choose from.
	Only []string
}

// Plan makes a plan. Faults are sorted by their beginning, end within the
// bounds, and no two that overlap have a process in common, so that each can be
// made good without undoing another.
func Plan(seed uint64, top Topology, b Bounds) []Fault {
	rng := rand.New(rand.NewPCG(seed, 0x6d696373))
	menu := top.menu(b.Only)
	var plan []Fault
	if len(menu) == 0 {
		return nil
	}
	for track := range b.AtOnce {
		// Later tracks begin later, so that the first fault is seen alone.
		at := time.Duration(track)*b.Shortest/2 + between(rng, 0, b.Rest)
		for {
			f := pick(rng, menu)
			f.At = at
			f.For = between(rng, b.Shortest, b.Longest)
			if f.Kind == Flush {
				f.For = 0
			}
			if f.At+f.For > b.Within {
				break
			}
			at = f.At + f.For + between(rng, b.Rest/4, b.Rest)
			if !slices.ContainsFunc(plan, f.conflicts) {
				plan = append(plan, f)
			}
		}
	}
	slices.SortStableFunc(plan, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	return plan
}

// settle is the time after a fault in which its process is left alone.
const settle = 500 * time.Millisecond

func (f Fault) conflicts(o Fault) bool {
	if f.At > o.At+o.For+settle || o.At > f.At+f.For+settle {
		return false
	}
	return f.touches(o.Target) || o.touches(f.Target) || f.From != "" && f.From != Any && f.From == o.From
}

func (f Fault) touches(name string) bool { return f.Target == name || f.From == name }

func between(rng *rand.Rand, lo, hi time.Duration) time.Duration {
	if hi <= lo {
		return lo
	}
	return lo + time.Duration(rng.Int64N(int64(hi-lo)))
}

// menu groups the possible faults by class, so that a class is as likely as any
// other, however many processes there are.
func (t Topology) menu(only []string) [][]Fault {
	byClass := map[string][]Fault{}
	add := func(f Fault) {
		if len(only) == 0 || slices.Contains(only, f.Class()) {
			byClass[f.Class()] = append(byClass[f.Class()], f)
		}
	}
	services := slices.Concat(t.Gateways, t.Routers)
	if t.ControlPlane {
		services = append(services, "cp")
	}
	for _, name := range services {
		for _, k := range []Kind{Kill, Pause, Terminate} {
			add(Fault{Kind: k, Target: name})
		}
	}
	if t.Redis {
		for _, k := range []Kind{Kill, Pause, Flush} {
			add(Fault{Kind: k, Target: "redis"})
		}
	}
	if t.Links {
		t.links(add)
	}
	classes := make([]string, 0, len(byClass))
	for c := range byClass {
		classes = append(classes, c)
	}
	slices.Sort(classes)
	menu := make([][]Fault, 0, len(classes))
	for _, c := range classes {
		menu = append(menu, byClass[c])
	}
	return menu
}

func (t Topology) links(add func(Fault)) {
	all := slices.Concat(t.Gateways, t.Routers)
	for _, k := range []Kind{Cut, Blackhole, Delay} {
		for _, to := range all {
			add(Fault{Kind: k, Target: to, From: Any})
			for _, from := range all {
				// Gateways do not speak to each other.
				if from != to && (sort(from) == "router" || sort(to) == "router") {
					add(Fault{Kind: k, Target: to, From: from})
				}
			}
		}
		if t.Redis {
			for _, from := range append([]string{Any}, t.Routers...) {
				add(Fault{Kind: k, Target: "redis", From: from})
			}
		}
	}
}

func pick(rng *rand.Rand, menu [][]Fault) Fault {
	class := menu[rng.IntN(len(menu))]
	return class[rng.IntN(len(class))]
}
