package ctl_test

import (
	"fmt"
	"strings"
	"testing"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// TestAllOfAKubernetesNodeLeave: who waits for one gateway has told of the others
// before, else its sessions would be moved to one that is drained next.
func TestAllOfAKubernetesNodeLeave(t *testing.T) {
	c := healthy()
	c.nodes.Nodes[0].KubernetesNode = "worker-1"
	second := gateway("gw-2")
	second.KubernetesNode = "worker-1"
	c.nodes.Nodes = append(c.nodes.Nodes, second)
	c.steps = []*controlv1.DrainOperation{under(250), finished(controlv1.DrainState_DRAIN_STATE_DONE)}
	got := run(t.Context(), term{}, "drain", "--k8s-node", "worker-1", "--wait", "--endpoint", serve(t, c))
	if got.code != 0 || strings.Count(got.out, "Handed over") != 2 {
		t.Fatalf("got %+v", got)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if fmt.Sprint(c.watched) != "[2 2]" {
		t.Errorf("drains that had been asked for when each was waited for: %v", c.watched)
	}
}

func TestDrainOfAKubernetesNode(t *testing.T) {
	c := healthy()
	for _, id := range []string{"gw-2", "gw-3"} {
		n := gateway(id)
		n.KubernetesNode = "worker-" + strings.TrimPrefix(id, "gw-")
		c.nodes.Nodes = append(c.nodes.Nodes, n)
	}
	c.nodes.Nodes[0].KubernetesNode = "worker-2"
	endpoint := serve(t, c)
	got := run(t.Context(), term{}, "drain", "--k8s-node", "worker-2", "--endpoint", endpoint)
	if got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	var drained []string
	for _, m := range c.asked() {
		if d, ok := m.(*controlv1.DrainRequest); ok {
			drained = append(drained, d.GetNodeId())
		}
	}
	if d := strings.Join(drained, " "); d != "gw-1 gw-2" {
		t.Errorf("drained %q", d)
	}
	for name, tc := range map[string]struct {
		args []string
		code int
		want string
	}{
		"nothing there": {[]string{"drain", "--k8s-node", "worker-9"}, 1, `no gateway is on the Kubernetes node "worker-9"`},
		"both":          {[]string{"drain", "gw-1", "--k8s-node", "worker-2"}, 2, "unknown command"},
		"neither":       {[]string{"drain"}, 2, "1 arg"},
	} {
		got := run(t.Context(), term{}, append(tc.args, "--endpoint", endpoint)...)
		if got.code != tc.code || !strings.Contains(got.err, tc.want) {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if got := run(t.Context(), term{}, "drain", "--k8s-node", "worker-2", "--endpoint", serve(t, healthy())); got.code != 1 || !strings.Contains(got.err, "KUBERNETES_NAMESPACE") {
		t.Errorf("not in Kubernetes: got %+v", got)
	}
}
