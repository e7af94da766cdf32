package admit

import (
	"context"
	"strconv"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/event"
	"github.com/mics-im/mics/router/internal/route"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
)

// Events takes what happened, for the tenants' own systems. It never blocks.
type Events interface {
	Enabled() bool
	Publish(tenant string, e event.Event) bool
}

// codeConnected is ConnectAck's code of a connection that was let in (CONTRACT
// section 1.1); the ack is the data of both connection events.
const codeConnected = 1000

// connection is what connection events tell of.
type connection struct {
	key     route.DeviceKey
	node    string // the gateway
	epoch   uint64
	version uint8
	resumed bool
	trace   string
}

// announce tells the tenant that a device is online, and before that the end of
// the connection that this one replaces. A session that goes on elsewhere was
// never offline: nothing is told.
func (a *Admitter) announce(ctx context.Context, o opening, prev *route.Record, res *routerv1.AdmitResponse) {
	replaced := prev != nil && prev.State != route.Ghost
	if replaced && res.Resumed {
		return
	}
	if replaced {
		Ended(a.opts.Events)(o.key, prev.Node, prev.Epoch)
	}
	c := connection{key: o.key, node: o.loc.Node.ID, epoch: res.Epoch, version: o.version, resumed: res.Resumed}
	if sc := trace.SpanContextFromContext(ctx); sc.HasTraceID() {
		c.trace = sc.TraceID().String()
	}
	publish(a.opts.Events, hookv1.EventType_CONNECT_ONLINE, c)
}

// Ended returns what tells tenants that connections have ended (Counted.Ended).
func Ended(events Events) func(key route.DeviceKey, node route.NodeRef, epoch uint64) {
	return func(key route.DeviceKey, node route.NodeRef, epoch uint64) {
		publish(events, hookv1.EventType_CONNECT_OFFLINE, connection{key: key, node: node.ID, epoch: epoch})
	}
}

// publish makes the event. Its msg_id is the connection's epoch, which rises with
// each connection of a device: whoever gets an end after the beginning of a newer
// one knows that the device is still online.
func publish(events Events, kind hookv1.EventType, c connection) {
	if !events.Enabled() {
		return
	}
	data, err := proto.Marshal(&messagev1.ConnectAck{
		Code: codeConnected, TenantId: c.key.Tenant, UserId: c.key.User, DeviceId: c.key.Device, NodeId: c.node,
		TraceId: c.trace, Resumed: c.resumed, Version: int32(c.version),
	})
	if err != nil {
		return // a name that is not UTF-8: no gateway and no hook can have given it
	}
	events.Publish(c.key.Tenant, event.Event{
		Type: kind, Key: c.key.User, MsgID: strconv.FormatUint(c.epoch, 10), User: c.key.User, Device: c.key.Device,
		Data: data, Time: time.Now(), TraceID: c.trace,
	})
}
