package drain

import (
	"context"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/internal/rpc"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
)

// signalsTimeout bounds the question to the routers, and maxRouters how many are
// asked.
const (
	signalsTimeout = 500 * time.Millisecond
	maxRouters     = 64
)

// authLatency follows the tenants' auth hooks as the routers see them. It is for
// one goroutine.
type authLatency struct {
	http   *http.Client
	before map[string]histogram // by router/incarnation, gateway/incarnation
}

// p95 is the 95th percentile since the call before, in ms; 0 if nobody tells.
func (a *authLatency) p95(ctx context.Context, snap *fleet.Snapshot) float64 {
	ctx, cancel := context.WithTimeout(ctx, signalsTimeout)
	defer cancel()
	var mu sync.Mutex
	now := map[string]histogram{} // guarded by mu
	var wg sync.WaitGroup
	asked := 0
	for _, n := range snap.Nodes {
		if n.Kind != fleet.Router || n.Unreachable || asked == maxRouters {
			continue
		}
		asked++
		wg.Go(func() {
			c := routerv1connect.NewRouterServiceClient(a.http, n.Endpoint, rpc.ClientOptions()...)
			res, err := c.Signals(ctx, connect.NewRequest(&routerv1.SignalsRequest{}))
			if err != nil {
				return // an older router, or one that is away: no evidence
			}
			mu.Lock()
			defer mu.Unlock()
			for _, g := range res.Msg.GetGateways() {
				now[key(n)+" "+key(fleet.Node{ID: g.GetNodeId(), Incarnation: g.GetIncarnation()})] = histogramOf(g.GetAuthMs())
			}
		})
	}
	wg.Wait()
	var sum histogram
	for k, h := range now {
		if was, known := a.before[k]; known {
			sum = sum.plus(difference(was, h))
		}
	}
	a.before = now
	if sum.total() < enough {
		return 0
	}
	return sum.quantile(0.95)
}
