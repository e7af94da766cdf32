package drain

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// runAll drains the gateway that is named, or all of a Kubernetes node; one that
// cannot be drained does not keep the others. All are asked for before one is waited
// for: the control plane then moves nobody to a gateway that is drained next.
func (o *Options) runAll(ctx context.Context, args []string) error {
	rate, err := o.check()
	if err != nil {
		return err
	}
	nodes := args
	if o.KubernetesNode != "" {
		if nodes, err = o.placed(ctx); err != nil {
			return err
		}
	}
	var errs []error
	var ops []*controlv1.DrainOperation
	for _, n := range nodes {
		op, err := o.ask(ctx, n, rate)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ops = append(ops, op)
	}
	for _, op := range ops {
		errs = append(errs, o.report(ctx, op))
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
