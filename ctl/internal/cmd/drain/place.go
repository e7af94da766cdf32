package drain

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// runAll drains the gateway that is named, or all of a Kubernetes node; one that
// cannot be drained does not keep the others.
func (o *Options) runAll(ctx context.Context, args []string) error {
	if o.KubernetesNode == "" {
		return o.run(ctx, args[0])
	}
	nodes, err := o.placed(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range nodes {
		errs = append(errs, o.run(ctx, n))
	}
	return errors.Join(errs...)
}

// placed returns the gateways on the Kubernetes node.
func (o *Options) placed(ctx context.Context) ([]string, error) {
	client, err := o.Client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	res, err := client.ListNodes(ctx, connect.NewRequest(&controlv1.ListNodesRequest{}))
	if err != nil {
		return nil, err
	}
	var here []string
	known := false
	for _, n := range res.Msg.GetNodes() {
		known = known || n.GetKubernetesNode() != ""
		if n.GetKind() == controlv1.NodeKind_NODE_KIND_GATEWAY && n.GetKubernetesNode() == o.KubernetesNode {
			here = append(here, n.GetNodeId())
		}
	}
	switch {
	case len(here) > 0:
		return here, nil
	case !known:
		return nil, fmt.Errorf("the control plane does not know on which Kubernetes nodes gateways are: it needs KUBERNETES_NAMESPACE (controlplane.kubernetes of the chart)")
	}
	return nil, fmt.Errorf("no gateway is on the Kubernetes node %q", o.KubernetesNode)
}
