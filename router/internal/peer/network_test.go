package peer

import (
	"context"

	"connectrpc.com/connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"google.golang.org/protobuf/proto"
)

// wire2 is one router's client of another, whichever start of that is there.
type wire2 struct {
	routerv1connect.PeerServiceClient
	from *member
	id   string
}

// call carries a call: copied, slow, and lost if one of the two is dead.
func call[Req, Res proto.Message](ctx context.Context, w wire2, name string, req Req, serve func(*member, Req) (Res, error)) (res Res, err error) {
	world := w.from.w
	world.pause(4)
	to := world.named(w.id)
	if w.from.dead.Load() || to.dead.Load() || ctx.Err() != nil || world.loses(world, "to "+name) {
		return res, errGone
	}
	res, err = serve(to, proto.Clone(req).(Req))
	world.pause(4)
	if w.from.dead.Load() || to.dead.Load() || ctx.Err() != nil || world.loses(world, name) {
		return res, errGone
	}
	return res, err
}

func (w wire2) Buffer(ctx context.Context, req *connect.Request[routerv1.BufferRequest]) (*connect.Response[routerv1.BufferResponse], error) {
	res, err := call(ctx, w, "buffer", req.Msg, func(to *member, r *routerv1.BufferRequest) (*routerv1.BufferResponse, error) {
		return to.KeepAll(ctx, r), nil
	})
	return connect.NewResponse(res), err
}

func (w wire2) Take(ctx context.Context, req *connect.Request[routerv1.TakeRequest]) (*connect.Response[routerv1.TakeResponse], error) {
	res, err := call(ctx, w, "take", req.Msg, func(to *member, r *routerv1.TakeRequest) (*routerv1.TakeResponse, error) {
		return to.ServeTake(ctx, r), nil
	})
	return connect.NewResponse(res), err
}

func (w wire2) Sync(ctx context.Context, req *connect.Request[routerv1.SyncRequest]) (*connect.Response[routerv1.SyncResponse], error) {
	res, err := call(ctx, w, "sync", req.Msg, (*member).ServeSync)
	return connect.NewResponse(res), err
}
