package fleet

import (
	"context"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/rpc"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
)

// Each calls f for the nodes, at most 64 at a time, and waits.
func Each(nodes []Node, f func(Node)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, pollers)
	for _, n := range nodes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(n)
		})
	}
	wg.Wait()
}

// Signals asks routers what they have counted (RouterService.Signals). It is safe for
// concurrent use.
type Signals struct {
	// Ask asks one router.
	Ask func(context.Context, Node) (*routerv1.SignalsResponse, error)
	// Most bounds how many are asked, Timeout each call.
	Most    int
	Timeout time.Duration
}

// AskOver asks over HTTP.
func AskOver(c *http.Client) func(context.Context, Node) (*routerv1.SignalsResponse, error) {
	return func(ctx context.Context, n Node) (*routerv1.SignalsResponse, error) {
		res, err := routerv1connect.NewRouterServiceClient(c, n.Endpoint, rpc.ClientOptions()...).Signals(ctx, connect.NewRequest(&routerv1.SignalsRequest{}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
}

// All asks the routers of an inventory that answer. silent are those that did not
// tell: of an older version, or away.
func (s Signals) All(ctx context.Context, snap *Snapshot) (said []*routerv1.SignalsResponse, silent int) {
	var nodes []Node
	for _, n := range snap.Nodes {
		if n.Kind == Router && !n.Unreachable && len(nodes) < s.Most {
			nodes = append(nodes, n)
		}
	}
	var mu sync.Mutex
	Each(nodes, func(n Node) {
		ctx, cancel := context.WithTimeout(ctx, s.Timeout)
		defer cancel()
		res, err := s.Ask(ctx, n)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			silent++
			return
		}
		said = append(said, res)
	})
	return said, silent
}
