package cli

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// completionTimeout is as long as a person will wait after pressing Tab.
const completionTimeout = 2 * time.Second

// CompleteGateways completes the names of gateways by asking the control
// plane. When it does not answer there are no proposals and no error: a shell
// has no place to show one.
func (a *App) CompleteGateways(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	const directive = cobra.ShellCompDirectiveNoFileComp
	client, err := a.Client()
	if err != nil {
		return nil, directive
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), min(a.Timeout, completionTimeout))
	defer cancel()
	res, err := client.ListNodes(ctx, connect.NewRequest(&controlv1.ListNodesRequest{}))
	if err != nil {
		return nil, directive
	}
	var names []string
	for _, n := range res.Msg.GetNodes() {
		if n.GetKind() == controlv1.NodeKind_NODE_KIND_GATEWAY && strings.HasPrefix(n.GetNodeId(), prefix) {
			names = append(names, n.GetNodeId())
		}
	}
	return names, directive
}

// CompleteFlag sets how a flag of cmd is completed. The flag must exist.
func CompleteFlag(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	must(cmd.RegisterFlagCompletionFunc(flag, f))
}
