package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/mics-im/mics/ctl/internal/output"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// Status is how a check came out.
type Status string

// The outcomes. A warning is for a person to look at; it does not fail the
// command.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Result is one check.
type Result struct {
	Category string `json:"category"`
	Check    string `json:"check"`
	Status   Status `json:"status"`
	// Detail says what was found, where that is not what the check's name says.
	Detail string `json:"detail,omitempty"`
	// Hint says what to do.
	Hint string `json:"hint,omitempty"`
	// Link leads to the section of the runbook.
	Link string `json:"link,omitempty"`
}

// Categories, in the order in which they are printed.
const (
	catControlPlane = "control plane"
	catRouters      = "routers"
	catGateways     = "gateways"
	catVersions     = "versions"
)

// runbook returns the link to a section of the runbook.
func runbook(section string) string { return "docs/runbook.md#" + section }

// facts are what the checks are about.
type facts struct {
	endpoint      string
	clientVersion string
	// server is nil when the control plane did not answer; serverErr says why.
	server    *controlv1.VersionResponse
	serverErr string
	// refused: it did answer, that it does not know who asks.
	refused bool
	// inventory is nil when there is none; inventoryErr says why.
	inventory    *controlv1.ListNodesResponse
	inventoryErr string
}

// evaluate applies every check that the facts allow.
func evaluate(f facts) []Result {
	if f.refused {
		return []Result{{
			Category: catControlPlane, Check: "knows you at " + f.endpoint, Status: Fail, Detail: f.serverErr,
			Hint: "set --token-file (MICS_TOKEN_FILE), or --cert and --key, to what its OPERATORS_FILE has for you", Link: runbook("operator-refused"),
		}}
	}
	if f.server == nil {
		return []Result{{
			Category: catControlPlane, Check: "answers at " + f.endpoint, Status: Fail, Detail: f.serverErr,
			Hint: "is the control plane running? Set --endpoint or MICS_ENDPOINT", Link: runbook("control-plane-unreachable"),
		}}
	}
	out := []Result{{
		Category: catControlPlane, Check: "answers at " + f.endpoint, Status: OK,
		Detail: fmt.Sprintf("%s, version %s", f.server.GetNodeId(), f.server.GetVersion()),
	}}
	if f.inventory == nil {
		return append(out, Result{
			Category: catControlPlane, Check: "has an inventory", Status: Fail, Detail: f.inventoryErr,
			Hint: "see its /readyz and its log", Link: runbook("inventory-incomplete"),
		})
	}
	inv := Result{Category: catControlPlane, Check: "has a complete inventory", Status: OK}
	if w := f.inventory.GetWarnings(); len(w) > 0 {
		inv.Status, inv.Detail = Warn, strings.Join(w, "; ")
		inv.Hint, inv.Link = "what follows may be outdated", runbook("inventory-incomplete")
	}
	out = append(out, inv)

	var routers, gateways []*controlv1.Node
	for _, n := range f.inventory.GetNodes() {
		switch n.GetKind() {
		case controlv1.NodeKind_NODE_KIND_ROUTER:
			routers = append(routers, n)
		case controlv1.NodeKind_NODE_KIND_GATEWAY:
			gateways = append(gateways, n)
		}
	}
	out = append(out, checkRouters(routers)...)
	out = append(out, checkGateways(gateways, alive(routers))...)
	return append(out, checkVersions(f, slices.Concat(routers, gateways)))
}

func alive(nodes []*controlv1.Node) (n int) {
	for _, node := range nodes {
		if !node.GetUnreachable() {
			n++
		}
	}
	return n
}

func checkRouters(routers []*controlv1.Node) []Result {
	some := Result{Category: catRouters, Check: "at least one is up", Status: OK, Detail: fmt.Sprintf("%d up", alive(routers))}
	if alive(routers) == 0 {
		some.Status, some.Detail = Fail, "none is up: no message is routed and nobody can connect"
		some.Hint, some.Link = "start routers; check their logs and Redis", runbook("no-router")
	}
	out := []Result{some}
	for _, r := range routers {
		if r.GetUnreachable() {
			out = append(out, Result{
				Category: catRouters, Check: r.GetNodeId() + " is up", Status: Warn, Detail: cmp.Or(r.GetUnreachableReason(), "it is gone"),
				Hint: "the others have taken over; if it was not stopped on purpose, see its log", Link: runbook("router-gone"),
			})
		}
	}
	return out
}

// checkGateways checks that there are gateways, and each one. routers is how
// many are up, and so how many each gateway should be linked to.
func checkGateways(gateways []*controlv1.Node, routers int) []Result {
	if len(gateways) == 0 {
		return []Result{{
			Category: catGateways, Check: "at least one is known", Status: Fail, Detail: "no router knows a gateway: nobody can connect",
			Hint: "start gateways; check their ROUTER_ENDPOINTS", Link: runbook("no-gateway"),
		}}
	}
	out := make([]Result, 0, len(gateways))
	for _, g := range gateways {
		out = append(out, checkGateway(g, routers))
	}
	return out
}

// checkGateway reports the worst thing about a gateway.
func checkGateway(g *controlv1.Node, routers int) Result {
	r := Result{Category: catGateways, Check: g.GetNodeId() + " is reachable, serving and linked", Status: OK}
	linked := int(g.GetRoutersLinked())
	switch {
	case g.GetUnreachable():
		r.Status, r.Detail = Fail, cmp.Or(g.GetUnreachableReason(), "it does not answer")
		r.Hint, r.Link = "is it running? Can the control plane reach "+g.GetEndpoint()+"?", runbook("gateway-unreachable")
	case g.GetPhase() == gatewayv1.Phase_PHASE_FENCED:
		r.Status, r.Detail = Fail, "fenced: no router within its lease, so it turns clients away"
		r.Hint, r.Link = "check the network between it and the routers", runbook("gateway-fenced")
	case linked == 0:
		r.Status, r.Detail = Fail, "linked to no router"
		r.Hint, r.Link = "check its ROUTER_ENDPOINTS and the network", runbook("gateway-not-linked")
	case g.GetPhase() == gatewayv1.Phase_PHASE_DRAINING, g.GetPhase() == gatewayv1.Phase_PHASE_DRAINED:
		r.Status, r.Detail = Warn, strings.ToLower(strings.TrimPrefix(g.GetPhase().String(), "PHASE_"))+": it takes no new connections"
		r.Hint, r.Link = "expected during a rollout", runbook("gateway-draining")
	case g.GetPhase() != gatewayv1.Phase_PHASE_SERVING:
		r.Status, r.Detail = Warn, "in a phase that this micsctl does not know"
		r.Hint, r.Link = "update micsctl", runbook("mixed-versions")
	case linked < routers:
		r.Status, r.Detail = Warn, fmt.Sprintf("linked to %d of %d routers", linked, routers)
		r.Hint, r.Link = "normal for seconds after a router started; else check the network", runbook("gateway-not-linked")
	default:
		r.Detail = output.Count(g.GetSessions(), "session")
	}
	return r
}

// checkVersions warns of a cluster (this micsctl included) of several versions.
func checkVersions(f facts, nodes []*controlv1.Node) Result {
	who := map[string][]string{
		f.server.GetVersion(): {f.server.GetNodeId()},
	}
	who[f.clientVersion] = append(who[f.clientVersion], "micsctl")
	for _, n := range nodes {
		if !n.GetUnreachable() {
			who[n.GetVersion()] = append(who[n.GetVersion()], n.GetNodeId())
		}
	}
	r := Result{Category: catVersions, Check: "all are the same", Status: OK, Detail: f.clientVersion}
	if len(who) == 1 {
		return r
	}
	var parts []string
	for version, ids := range who {
		if version == "" {
			version = "unknown"
		}
		slices.Sort(ids)
		parts = append(parts, fmt.Sprintf("%s: %s", version, some(ids)))
	}
	slices.Sort(parts)
	r.Status, r.Detail = Warn, strings.Join(parts, "; ")
	r.Hint, r.Link = "expected during a rollout or canary", runbook("mixed-versions")
	return r
}

// some names the first few of many.
func some(ids []string) string {
	const shown = 5
	if len(ids) <= shown {
		return strings.Join(ids, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(ids[:shown], ", "), len(ids)-shown)
}
