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

// signals asks the routers what they have counted.
func signals(ctx context.Context, client *http.Client, snap *fleet.Snapshot) []*routerv1.SignalsResponse {
	ctx, cancel := context.WithTimeout(ctx, signalsTimeout)
	defer cancel()
	var mu sync.Mutex
	var said []*routerv1.SignalsResponse // guarded by mu
	var wg sync.WaitGroup
	asked := 0
	for _, n := range snap.Nodes {
		if n.Kind != fleet.Router || n.Unreachable || asked == maxRouters {
			continue
		}
		asked++
		wg.Go(func() {
			c := routerv1connect.NewRouterServiceClient(client, n.Endpoint, rpc.ClientOptions()...)
			res, err := c.Signals(ctx, connect.NewRequest(&routerv1.SignalsRequest{}))
			if err != nil {
				return // an older router, or one that is away: no evidence
			}
			mu.Lock()
			defer mu.Unlock()
			said = append(said, res.Msg)
		})
	}
	wg.Wait()
	return said
}
