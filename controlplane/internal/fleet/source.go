package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/rpc"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
)

const (
	// callTimeout leaves a round with a dead node in it inside one interval.
	callTimeout = 800 * time.Millisecond
	// maxAsked bounds how many routers are asked at once when the one that
	// answered last does not.
	maxAsked = 16
)

// RPC is the Source that asks real routers and gateways. It is safe for
// concurrent use.
type RPC struct {
	http   *http.Client
	seeds  []rpc.Endpoint
	scheme string
	lookup rpc.Lookup

	mu    sync.Mutex
	good  string   // the router that answered last; guarded by mu
	known []string // routers of the last directory; guarded by mu
	turn  int      // where the next search begins; guarded by mu
}

// errNobody: the seeds resolve to nothing new, and no router is known.
var errNobody = errors.New("no other router to ask")

// NewRPC returns a source that finds routers through the seeds; scheme, http or
// https, is that of routers behind a name.
func NewRPC(client *http.Client, seeds []rpc.Endpoint, scheme string) *RPC {
	return &RPC{http: client, seeds: seeds, scheme: scheme, lookup: net.DefaultResolver.LookupHost}
}

// Status asks the gateway at the base URL.
func (r *RPC) Status(ctx context.Context, endpoint string) (*gatewayv1.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c := gatewayv1connect.NewGatewayServiceClient(r.http, endpoint, rpc.ClientOptions()...)
	res, err := c.Status(ctx, connect.NewRequest(&gatewayv1.StatusRequest{}))
	if err != nil {
		return nil, errors.New(Reason(err))
	}
	return res.Msg, nil
}

// Directory asks the router that answered last; if it does not, the seeds and
// every router known from before, and takes the first answer.
func (r *RPC) Directory(ctx context.Context) (*routerv1.DirectoryResponse, error) {
	r.mu.Lock()
	good := r.good
	r.mu.Unlock()
	var failed error
	if good != "" {
		dir, err := r.ask(ctx, good)
		if err == nil {
			return dir, nil
		}
		failed = err
	}
	candidates, err := r.candidates(ctx, good)
	if len(candidates) == 0 {
		return nil, errors.Join(failed, err, errNobody)
	}
	dir, aerr := r.askFirst(ctx, candidates)
	if aerr != nil {
		return nil, errors.Join(failed, err, aerr)
	}
	return dir, nil
}

// ask asks one router and remembers it if it answers.
func (r *RPC) ask(ctx context.Context, endpoint string) (*routerv1.DirectoryResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c := routerv1connect.NewRouterServiceClient(r.http, endpoint, rpc.ClientOptions()...)
	res, err := c.Directory(ctx, connect.NewRequest(&routerv1.DirectoryRequest{}))
	if err != nil {
		return nil, fmt.Errorf("%s: %s", endpoint, Reason(err))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.good, r.known = endpoint, nil
	for _, n := range res.Msg.GetRouters() {
		r.known = append(r.known, n.GetEndpoint())
	}
	return res.Msg, nil
}

// askFirst asks all endpoints at once and returns the first answer, or every
// error.
func (r *RPC) askFirst(ctx context.Context, endpoints []string) (*routerv1.DirectoryResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		dir *routerv1.DirectoryResponse
		err error
	}
	answers := make(chan answer, len(endpoints)) // none blocks: losers end by themselves
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, e := range endpoints {
		wg.Go(func() {
			dir, err := r.ask(ctx, e)
			answers <- answer{dir, err}
		})
	}
	var errs []error
	for range endpoints {
		a := <-answers
		if a.err == nil {
			return a.dir, nil
		}
		errs = append(errs, a.err)
	}
	return nil, errors.Join(errs...)
}

// candidates returns at most maxAsked base URLs to ask, without except,
// beginning at another one each time so that all get their turn.
func (r *RPC) candidates(ctx context.Context, except string) ([]string, error) {
	var all []string
	var errs []error
	for _, s := range r.seeds {
		lookupCtx, cancel := context.WithTimeout(ctx, callTimeout)
		urls, err := s.Resolve(lookupCtx, r.scheme, r.lookup)
		cancel()
		if err != nil {
			errs = append(errs, err)
		}
		all = append(all, urls...)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	all = append(all, r.known...)
	slices.Sort(all)
	all = slices.DeleteFunc(slices.Compact(all), func(s string) bool { return s == except || s == "" })
	if len(all) > maxAsked {
		start := r.turn % len(all)
		r.turn += maxAsked
		all = append(slices.Clone(all[start:]), all[:start]...)[:maxAsked]
	}
	return all, errors.Join(errs...)
}
