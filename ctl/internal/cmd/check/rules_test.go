package check

import (
	"fmt"
	"strings"
	"testing"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

func gw(id string, change func(*controlv1.Node)) *controlv1.Node {
	n := &controlv1.Node{
		Kind: controlv1.NodeKind_NODE_KIND_GATEWAY, NodeId: id, Version: "v1", Phase: gatewayv1.Phase_PHASE_SERVING, RoutersLinked: 2,
	}
	if change != nil {
		change(n)
	}
	return n
}

func rt(id string) *controlv1.Node {
	return &controlv1.Node{Kind: controlv1.NodeKind_NODE_KIND_ROUTER, NodeId: id, Version: "v1"}
}

func base(nodes ...*controlv1.Node) facts {
	return facts{
		endpoint: "http://cp", clientVersion: "v1",
		server:    &controlv1.VersionResponse{NodeId: "cp", Version: "v1"},
		inventory: &controlv1.ListNodesResponse{Nodes: append(nodes, rt("r1"), rt("r2"))},
	}
}

func TestEvaluate(t *testing.T) {
	many := base()
	for i := range 8 {
		many.inventory.Nodes = append(many.inventory.Nodes, gw(fmt.Sprintf("gw%d", i), func(n *controlv1.Node) { n.Version = "v2" }))
	}
	silent := base()
	silent.inventory, silent.inventoryErr = nil, "no inventory yet"
	for name, tc := range map[string]struct {
		facts  facts
		status Status
		// link and detail are of the first result that is not ok.
		link, detail string
	}{
		"all well":          {base(gw("a", nil)), OK, "", ""},
		"no control plane":  {facts{serverErr: "refused"}, Fail, "control-plane-unreachable", "refused"},
		"not known":         {facts{serverErr: "who are you", refused: true}, Fail, "operator-refused", "who are you"},
		"no inventory":      {silent, Fail, "inventory-incomplete", "no inventory yet"},
		"no gateway":        {base(), Fail, "no-gateway", ""},
		"unreachable":       {base(gw("a", func(n *controlv1.Node) { n.Unreachable, n.UnreachableReason = true, "gone" })), Fail, "gateway-unreachable", "gone"},
		"fenced":            {base(gw("a", func(n *controlv1.Node) { n.Phase = gatewayv1.Phase_PHASE_FENCED })), Fail, "gateway-fenced", ""},
		"not linked":        {base(gw("a", func(n *controlv1.Node) { n.RoutersLinked = 0 })), Fail, "gateway-not-linked", ""},
		"half linked":       {base(gw("a", func(n *controlv1.Node) { n.RoutersLinked = 1 })), Warn, "gateway-not-linked", "linked to 1 of 2 routers"},
		"drained":           {base(gw("a", func(n *controlv1.Node) { n.Phase = gatewayv1.Phase_PHASE_DRAINED })), Warn, "gateway-draining", "drained: it takes no new connections"},
		"phase of tomorrow": {base(gw("a", func(n *controlv1.Node) { n.Phase = 99 })), Warn, "mixed-versions", ""},
		"other version":     {base(gw("a", func(n *controlv1.Node) { n.Version = "" })), Warn, "mixed-versions", "unknown: a; v1: cp, micsctl, r1, r2"},
		"dead old version":  {base(gw("b", nil), gw("a", func(n *controlv1.Node) { n.Unreachable, n.Version = true, "v0" })), Fail, "gateway-unreachable", ""},
		"many of a version": {many, Warn, "mixed-versions", "v1: cp, micsctl, r1, r2; v2: gw0, gw1, gw2, gw3, gw4 and 3 more"},
	} {
		t.Run(name, func(t *testing.T) {
			worst, first := OK, Result{}
			for _, r := range evaluate(tc.facts) {
				if r.Status == OK {
					if r.Hint != "" || r.Link != "" {
						t.Errorf("nothing is wrong, and yet: %+v", r)
					}
					continue
				}
				if r.Hint == "" || !strings.HasPrefix(r.Link, "docs/runbook.md#") || r.Detail == "" {
					t.Errorf("does not say what to do: %+v", r)
				}
				if first.Status == "" {
					first = r
				}
				if worst != Fail {
					worst = r.Status
				}
			}
			if worst != tc.status {
				t.Errorf("status %s, want %s", worst, tc.status)
			}
			if tc.link != "" && first.Link != runbook(tc.link) {
				t.Errorf("link %q, want %q", first.Link, runbook(tc.link))
			}
			if tc.detail != "" && first.Detail != tc.detail {
				t.Errorf("detail %q, want %q", first.Detail, tc.detail)
			}
		})
	}
}
