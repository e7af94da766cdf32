package reaper

import (
	"slices"
	"testing"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

func TestDecide(t *testing.T) {
	a, b := route.NodeRef{ID: "a", Incarnation: 1}, route.NodeRef{ID: "b", Incarnation: 1}
	lapsed := route.DeadNode{NodeRef: a, Why: route.Lapsed}
	type look struct {
		after  time.Duration // since the look before
		dead   []route.DeadNode
		living []route.NodeRef
		want   []route.DeadNode
	}
	nobody, one := []route.DeadNode(nil), []route.DeadNode{lapsed}
	const tick = lookEvery
	for name, looks := range map[string][]look{
		"lapsed for long enough": {{tick, one, nil, nobody}, {tick, one, nil, nobody}, {tick, one, nil, nobody}, {tick, one, nil, one}, {tick, one, nil, one}},
		"renewed in between":     {{tick, one, nil, nobody}, {tick, one, nil, nobody}, {tick, nobody, nil, nobody}, {tick, one, nil, nobody}, {tick, one, nil, nobody}, {tick, one, nil, nobody}, {tick, one, nil, one}},
		"no look for a while":    {{tick, one, nil, nobody}, {grace + 1, one, nil, nobody}, {tick, one, nil, nobody}, {tick, one, nil, nobody}, {tick, one, nil, one}},
		"slow looks":             {{tick, one, nil, nobody}, {grace, one, nil, one}},
		"known to this router":   {{tick, one, nil, nobody}, {grace, one, []route.NodeRef{a}, nobody}, {tick, one, nil, nobody}, {grace, one, nil, one}},
		"others have no grace": {{tick, []route.DeadNode{lapsed, {NodeRef: b, Why: route.Buried}}, []route.NodeRef{b}, []route.DeadNode{{NodeRef: b, Why: route.Buried}}},
			{tick, []route.DeadNode{{NodeRef: b, Why: route.Stopped}}, nil, []route.DeadNode{{NodeRef: b, Why: route.Stopped}}},
			{tick, []route.DeadNode{{NodeRef: b, Why: route.Superseded}}, nil, []route.DeadNode{{NodeRef: b, Why: route.Superseded}}}},
		"another incarnation": {{tick, one, nil, nobody}, {grace, []route.DeadNode{{NodeRef: route.NodeRef{ID: "a", Incarnation: 2}, Why: route.Lapsed}}, nil, nobody}},
	} {
		var m memory
		now := time.Unix(1000, 0)
		for i, l := range looks {
			now = now.Add(l.after)
			var due []route.DeadNode
			m, due = decide(m, l.dead, func(n route.NodeRef) bool { return slices.Contains(l.living, n) }, now)
			if !slices.Equal(due, l.want) {
				t.Errorf("%s, look %d: due %+v, want %+v", name, i, due, l.want)
			}
		}
	}
}
