// Package view holds the documents that micsctl prints as JSON and YAML, and
// how they come from the control plane's answers.
package view

import (
	"strconv"
	"strings"

	"github.com/mics-im/mics/ctl/internal/output"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// Nodes is the inventory.
type Nodes struct {
	ObservedAt string   `json:"observedAt"`
	Nodes      []Node   `json:"nodes"`
	Warnings   []string `json:"warnings"`
}

// Node is one gateway or router.
type Node struct {
	Kind string `json:"kind"`
	ID   string `json:"nodeId"`
	// Incarnation may exceed 2^53, which a JSON number does not survive
	// everywhere.
	Incarnation       string `json:"incarnation"`
	Endpoint          string `json:"endpoint"`
	Version           string `json:"version"`
	Unreachable       bool   `json:"unreachable"`
	UnreachableReason string `json:"unreachableReason,omitempty"`
	// Gateway is set for a gateway.
	Gateway *Gateway `json:"gateway,omitempty"`
}

// Gateway is what only gateways have.
type Gateway struct {
	Track               string  `json:"track"`
	Phase               string  `json:"phase"`
	StartedAt           string  `json:"startedAt,omitempty"`
	Sessions            uint64  `json:"sessions"`
	SessionsV2          uint64  `json:"sessionsV2"`
	ConnectsPerSecond   float64 `json:"connectsPerSecond"`
	MessagesInPerSecond float64 `json:"messagesInPerSecond"`
	DeliveriesPerSecond float64 `json:"deliveriesPerSecond"`
	RoutersLinked       uint32  `json:"routersLinked"`
	KubernetesNode      string  `json:"kubernetesNode,omitempty"`
}

// NewNodes converts an inventory.
func NewNodes(nodes []*controlv1.Node, observedAtMS int64, warnings []string) Nodes {
	v := Nodes{ObservedAt: output.Time(observedAtMS), Nodes: make([]Node, 0, len(nodes)), Warnings: list(warnings)}
	for _, n := range nodes {
		v.Nodes = append(v.Nodes, newNode(n))
	}
	return v
}

func newNode(n *controlv1.Node) Node {
	v := Node{
		Kind:              Kind(n.GetKind()),
		ID:                n.GetNodeId(),
		Incarnation:       strconv.FormatUint(n.GetIncarnation(), 10),
		Endpoint:          n.GetEndpoint(),
		Version:           n.GetVersion(),
		Unreachable:       n.GetUnreachable(),
		UnreachableReason: n.GetUnreachableReason(),
	}
	if n.GetKind() == controlv1.NodeKind_NODE_KIND_GATEWAY {
		v.Gateway = &Gateway{
			Track:               n.GetTrack(),
			Phase:               Phase(n.GetPhase()),
			StartedAt:           output.Time(n.GetStartedAtMs()),
			Sessions:            n.GetSessions(),
			SessionsV2:          n.GetSessionsV2(),
			ConnectsPerSecond:   n.GetConnectsPerSecond(),
			MessagesInPerSecond: n.GetMessagesInPerSecond(),
			DeliveriesPerSecond: n.GetDeliveriesPerSecond(),
			RoutersLinked:       n.GetRoutersLinked(),
			KubernetesNode:      n.GetKubernetesNode(),
		}
	}
	return v
}

// Kind names a kind of node: gateway, router, or unknown for one that this
// micsctl is too old to know.
func Kind(k controlv1.NodeKind) string {
	switch k {
	case controlv1.NodeKind_NODE_KIND_GATEWAY:
		return "gateway"
	case controlv1.NodeKind_NODE_KIND_ROUTER:
		return "router"
	}
	return "unknown"
}

// Phase names a gateway's phase: serving, draining, drained, fenced, or unknown.
func Phase(p gatewayv1.Phase) string {
	name, ok := gatewayv1.Phase_name[int32(p)]
	if !ok || p == gatewayv1.Phase_PHASE_UNSPECIFIED {
		return "unknown"
	}
	return strings.ToLower(strings.TrimPrefix(name, "PHASE_"))
}

// Sessions is an answer to a search for sessions.
type Sessions struct {
	Sessions []Session `json:"sessions"`
	// Truncated: there are more than the limit.
	Truncated bool     `json:"truncated"`
	Warnings  []string `json:"warnings"`
}

// Session is one client connection.
type Session struct {
	Node        string `json:"nodeId"`
	SessionID   uint64 `json:"sessionId"`
	Tenant      string `json:"tenantId"`
	User        string `json:"userId"`
	Device      string `json:"deviceId"`
	Epoch       uint64 `json:"epoch"`
	Version     uint32 `json:"version"`
	ConnectedAt string `json:"connectedAt,omitempty"`
	RemoteAddr  string `json:"remoteAddr"`
	Queued      uint32 `json:"queued"`
}

// NewSessions converts an answer.
func NewSessions(r *controlv1.ListSessionsResponse) Sessions {
	v := Sessions{Sessions: make([]Session, 0, len(r.GetSessions())), Truncated: r.GetTruncated(), Warnings: list(r.GetWarnings())}
	for _, s := range r.GetSessions() {
		i := s.GetInfo()
		v.Sessions = append(v.Sessions, Session{
			Node:        s.GetNodeId(),
			SessionID:   i.GetSessionId(),
			Tenant:      i.GetTenantId(),
			User:        i.GetUserId(),
			Device:      i.GetDeviceId(),
			Epoch:       i.GetEpoch(),
			Version:     i.GetVersion(),
			ConnectedAt: output.Time(i.GetConnectedAtMs()),
			RemoteAddr:  i.GetRemoteAddr(),
			Queued:      i.GetQueued(),
		})
	}
	return v
}

// Kick is the outcome of a kick.
type Kick struct {
	Kicked   uint32   `json:"kicked"`
	Warnings []string `json:"warnings"`
}

// NewKick converts an outcome.
func NewKick(r *controlv1.KickResponse) Kick {
	return Kick{Kicked: r.GetKicked(), Warnings: list(r.GetWarnings())}
}

// list makes the empty list of a nil one, so that JSON has [] and not null.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
