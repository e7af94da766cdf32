package drain

import (
	"context"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
)

// callTimeout leaves a tick with a dead gateway in it inside one interval.
const callTimeout = 800 * time.Millisecond

// call carries the actions out, at once, and keeps the answers for the next tick.
func (r *Runner) call(ctx context.Context, actions []Action) {
	var wg sync.WaitGroup
	for _, a := range actions { // as many as the budget
		wg.Go(func() {
			answer := r.ask(ctx, a)
			r.mu.Lock()
			defer r.mu.Unlock()
			r.answers[a.Operation] = answer
		})
	}
	wg.Wait()
}

func (r *Runner) ask(ctx context.Context, a Action) Answer {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c := gatewayv1connect.NewGatewayServiceClient(r.cfg.HTTP, a.Endpoint, rpc.ClientOptions()...)
	var out Answer
	var err error
	if a.Drain != nil {
		res, derr := c.Drain(ctx, connect.NewRequest(a.Drain))
		if err = derr; err == nil {
			out.Progress = res.Msg.GetProgress()
		}
	} else {
		res, uerr := c.Undrain(ctx, connect.NewRequest(a.Undrain))
		if err = uerr; err == nil {
			out.Undrained, out.Progress = true, res.Msg.GetProgress()
		}
	}
	switch {
	case err == nil:
	case fault.KindOf(err) == fault.FailedPrecondition || fault.KindOf(err) == fault.Invalid:
		out.Refused = fleet.Reason(err)
	case connect.CodeOf(err) == connect.CodeUnimplemented:
		out.Refused = "it is of a version that cannot be drained from outside"
	default:
		out.Failed = fleet.Reason(err)
	}
	return out
}
