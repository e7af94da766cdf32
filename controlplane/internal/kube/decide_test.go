package kube

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"
)

// pod returns one that runs, is ready and has its cost written.
func pod(name, node, hash string, sessions uint64, more ...func(*Pod)) Pod {
	p := Pod{
		Name: name, Node: node, Hash: hash, Track: "stable", Ready: true, Accept: true,
		Known: true, Serving: true, Sessions: sessions, Cost: fmt.Sprint(sessions),
	}
	for _, f := range more {
		f(&p)
	}
	return p
}

func TestDecide(t *testing.T) {
	refused := func(p *Pod) { p.Accept = false }
	unready := func(p *Pod) { p.Ready = false }
	ending := func(p *Pod) { p.Terminating = true }
	draining := func(p *Pod) { p.Serving, p.Draining = false, true }
	silent := func(p *Pod) { p.Known, p.Serving = false, false }
	canary := func(p *Pod) { p.Track = "canary" }
	ours := func(p *Pod) { p.Cordon = true }
	cost := func(s string) func(*Pod) { return func(p *Pod) { p.Cost = s } }
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	lately := func(p *Pod) { p.CostAt = now.Add(-time.Second) }
	for name, c := range map[string]struct {
		pods     []Pod
		newest   map[string]string
		cordoned []string
		want     []string // verb pod value
	}{
		"nothing to do": {pods: []Pod{pod("a", "n1", "1", 10), pod("b", "n2", "1", 20)}, newest: map[string]string{"stable": "1"}},
		"rollout, the new one not ready": {
			pods: []Pod{pod("a", "n1", "1", 10), pod("b", "n2", "2", 0, unready)}, newest: map[string]string{"stable": "2"},
		},
		"rollout, the new one ready": {
			pods: []Pod{pod("a", "n1", "1", 10), pod("b", "n2", "1", 10), pod("c", "n2", "2", 0)}, newest: map[string]string{"stable": "2"},
			want: []string{"accept a false", "accept b false"},
		},
		"rollout, the only new one ends": {
			pods: []Pod{pod("a", "n1", "1", 10, refused), pod("c", "n2", "2", 0, ending)}, newest: map[string]string{"stable": "2"},
			want: []string{"accept a true"},
		},
		"rollout, the only new one is drained": {
			pods: []Pod{pod("a", "n1", "1", 10, refused), pod("c", "n2", "2", 0, draining)}, newest: map[string]string{"stable": "2"},
			want: []string{"accept a true"},
		},
		"undone": {
			pods: []Pod{pod("a", "n1", "1", 10, refused), pod("c", "n2", "2", 5)}, newest: map[string]string{"stable": "1"},
			want: []string{"accept a true", "accept c false"},
		},
		"the other track's rollout": {
			pods:   []Pod{pod("a", "n1", "1", 10), pod("c", "n2", "2", 5, canary), pod("d", "n2", "3", 5, canary)},
			newest: map[string]string{"stable": "1", "canary": "3"},
			want:   []string{"accept c false"},
		},
		"one that ends is left alone": {
			pods: []Pod{pod("a", "n1", "1", 10, ending, cost("99")), pod("b", "n2", "2", 0)}, newest: map[string]string{"stable": "2"},
		},
		"costs": {
			pods: []Pod{
				pod("none", "n1", "1", 7, cost("")), pod("much", "n1", "1", 112, cost("100")), pod("little", "n1", "1", 109, cost("100")),
				pod("empty", "n1", "1", 0, cost("3")), pod("first", "n1", "1", 1, cost("0")), pod("lately", "n1", "1", 500, cost("1"), lately),
				pod("silent", "n1", "1", 500, cost("1"), silent), pod("huge", "n1", "1", math.MaxUint64, cost("1")),
			},
			want: []string{"cost empty 0", "cost first 1", "cost huge 2147483647", "cost much 112", "cost none 7"},
		},
		"cordoned": {
			pods: []Pod{pod("a", "n1", "1", 10), pod("b", "n2", "1", 10), pod("c", "n1", "1", 10, draining)}, cordoned: []string{"n1"},
			want: []string{"accept a false", "drain a ", "accept c false"},
		},
		"cordoned, nobody else": {
			pods: []Pod{pod("a", "n1", "1", 10)}, cordoned: []string{"n1"},
			want: []string{"drain a "}, // refused there for want of room, and the Service stays as it is
		},
		"cordoned, and asked for": {
			pods: []Pod{pod("a", "n1", "1", 10, refused, ours, draining), pod("b", "n2", "1", 10)}, cordoned: []string{"n1"},
		},
		"uncordoned": {
			pods: []Pod{pod("a", "n1", "1", 10, refused, ours, draining), pod("b", "n2", "1", 10)},
			want: []string{"accept a true", "undrain a "},
		},
		"drained by an operator": {
			pods: []Pod{pod("a", "n1", "1", 10, draining), pod("b", "n2", "1", 10)},
		},
		"the new pod is on a cordoned node": {
			pods: []Pod{pod("a", "n2", "1", 10), pod("c", "n1", "2", 0)}, newest: map[string]string{"stable": "2"}, cordoned: []string{"n1"},
			want: []string{"accept c false", "drain c "},
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := View{At: now, Pods: c.pods, Newest: c.newest, Cordoned: map[string]bool{}}
			for _, n := range c.cordoned {
				v.Cordoned[n] = true
			}
			var got []string
			for _, a := range Decide(v) {
				got = append(got, fmt.Sprintf("%s %s %s", a.Verb, a.Pod, a.Value))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestSomebodyAccepts: whatever the state, a track that has a pod which can take
// connections has one that gets them, once the actions are carried out.
func TestSomebodyAccepts(t *testing.T) {
	for bits := range 1 << 12 {
		flag := func(i int) bool { return bits>>i&1 == 1 }
		v := View{Newest: map[string]string{"stable": "2"}, Cordoned: map[string]bool{"n1": flag(0), "n2": flag(1)}}
		for i, name := range []string{"a", "b"} {
			at := 2 + 5*i
			hash := "1"
			if flag(at) {
				hash = "2"
			}
			p := pod(name, fmt.Sprint("n", i+1), hash, 5)
			p.Ready, p.Terminating, p.Accept, p.Draining = flag(at+1), flag(at+2), flag(at+3), flag(at+4)
			v.Pods = append(v.Pods, p)
		}
		accept := map[string]bool{}
		able := false
		for _, p := range v.Pods {
			accept[p.Name] = p.Accept
			able = able || p.Ready && !p.Terminating && !p.Draining
		}
		for _, a := range Decide(v) {
			if a.Verb == Accept {
				accept[a.Pod] = a.Value == "true"
			}
		}
		served := slices.ContainsFunc(v.Pods, func(p Pod) bool { return p.Ready && !p.Terminating && !p.Draining && accept[p.Name] })
		if able && !served {
			t.Fatalf("%012b: nobody accepts: %+v", bits, v)
		}
	}
}
