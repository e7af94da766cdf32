// Package slot asks the control plane for the slot in which a gateway that is told
// to end may drain, so that a rollout does not drain more of them at once than the
// rest can take.
package slot

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
)

const (
	// callTimeout bounds one call, and one look-up of names.
	callTimeout = time.Second
	// askEvery is how long a gateway waits between two questions, and retryAfter
	// after a round in which nobody answered.
	askEvery   = time.Second
	retryAfter = 300 * time.Millisecond
	// maxSilent is after how many rounds without any answer there is no control
	// plane.
	maxSilent = 2
)

// Options of a Client; all are required.
type Options struct {
	// Endpoints is CONTROLPLANE_ENDPOINTS; none: there is no control plane.
	Endpoints []rpc.Endpoint
	// Scheme, http or https, is that of processes behind a name.
	Scheme string
	Lookup rpc.Lookup
	HTTP   *http.Client
	Log    *slog.Logger
}

// Client asks for slots. Safe for concurrent use.
type Client struct{ o Options }

// New returns a client.
func New(o Options) *Client { return &Client{o} }

// Await asks until a slot is granted, begun is closed or ctx ends. nil: the gateway
// need not, or cannot, wait for one: there is no control plane, or none answers, or
// it has waited for long enough.
func (c *Client) Await(ctx context.Context, begun <-chan struct{}, request func() *controlv1.TerminateRequest) *controlv1.TerminateResponse {
	if len(c.o.Endpoints) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with ctx
		select {
		case <-begun:
			cancel()
		case <-ctx.Done():
		}
	}()
	silent := 0
	reason := ""
	for {
		res, err := c.ask(ctx, request())
		wait := askEvery
		switch {
		case ctx.Err() != nil:
			return nil
		case res.GetGranted():
			c.o.Log.Info("drain_slot_granted", "operation", res.GetOperationId(), "sessions_per_second", res.GetSessionsPerSecond(), "targets", len(res.GetTargets()))
			return res
		case err == nil:
			silent = 0
			if res.GetReason() != reason {
				reason = res.GetReason()
				c.o.Log.Info("drain_slot_waiting", "reason", reason)
			}
		case connect.IsWireError(err) && fault.KindOf(err) == fault.Unavailable:
			silent = 0 // a control plane that elects its leader
		default:
			if silent++; silent >= maxSilent {
				c.o.Log.Warn("drain_slot_failed", "error", err)
				return nil
			}
			wait = retryAfter
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// Drained tells once what came of a drain. There is no control plane that takes it
// down: then the receipt is made of what others say.
func (c *Client) Drained(ctx context.Context, req *controlv1.TerminateRequest) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := c.ask(ctx, req); err != nil {
		c.o.Log.Warn("drain_not_reported", "operation", req.GetDrained().GetOperationId(), "error", err)
	}
}

// ask returns the first answer; the error is the last one's.
func (c *Client) ask(ctx context.Context, req *controlv1.TerminateRequest) (*controlv1.TerminateResponse, error) {
	err := errors.New("nobody to ask")
	for _, e := range c.o.Endpoints {
		lctx, cancel := context.WithTimeout(ctx, callTimeout)
		urls, lerr := e.Resolve(lctx, c.o.Scheme, c.o.Lookup)
		cancel()
		if lerr != nil {
			err = lerr
		}
		for _, u := range urls {
			var res *controlv1.TerminateResponse
			if res, err = c.call(ctx, u, req); err == nil || ctx.Err() != nil {
				return res, err
			}
		}
	}
	return nil, err
}

func (c *Client) call(ctx context.Context, url string, req *controlv1.TerminateRequest) (*controlv1.TerminateResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := controlv1connect.NewNodeServiceClient(c.o.HTTP, url, rpc.ClientOptions()...).Terminate(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}
