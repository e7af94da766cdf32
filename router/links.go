package router

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/rpc"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/admit"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/event"
	"github.com/mics-im/mics/router/internal/peer"
	"github.com/mics-im/mics/router/internal/route"
)

func (r *Router) peer(to route.Router) routerv1connect.PeerServiceClient {
	return routerv1connect.NewPeerServiceClient(r.client, to.Endpoint, rpc.ClientOptions()...)
}

func (r *Router) gateway(to route.Node) gatewayv1connect.GatewayServiceClient {
	return gatewayv1connect.NewGatewayServiceClient(r.client, to.Endpoint, rpc.ClientOptions()...)
}

// dial opens a Deliver stream.
func (r *Router) dial(ctx context.Context, to route.Node) dispatch.Stream {
	return r.gateway(to).Deliver(ctx)
}

// openEvents makes what publishes events, and has the store tell it of
// connections that end.
func (r *Router) openEvents() error {
	p, err := event.New(event.Options{
		Config: r.cfg.events, MaxMessageBytes: r.cfg.messages.MaxMessageBytes,
		Node: fmt.Sprintf("%s@%d", r.self.ID, r.self.Incarnation), Secret: r.secret, Telemetry: r.tel, Locks: r.store,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	r.events = p
	r.teardown.Push("events", eventsBudget, func(ctx context.Context) error { p.Stop(ctx); return nil })
	r.store.Ended = admit.Ended(p)
	return nil
}

// secret is what signs a tenant's events; empty when none is known.
func (r *Router) secret(name string) string {
	t, ok := r.tenants.Get(name)
	if !ok {
		return ""
	}
	return t.Secret()
}

// offlineTTL is how long a tenant's messages are kept; of a tenant that was taken
// away nothing is.
func (r *Router) offlineTTL(name string) time.Duration {
	t, ok := r.tenants.Get(name)
	if !ok {
		return 0
	}
	return t.OfflineTTL()
}

// dispatchHooks count what the dispatcher does.
func (r *Router) dispatchHooks() dispatch.Hooks {
	// Reasons come from gateways: only those of the contract make a series.
	for reason := range gatewayv1.Refusal_Reason_value {
		r.stats.Refused.With(reason)
	}
	return dispatch.Hooks{
		Refused: func(reason string) {
			if _, known := gatewayv1.Refusal_Reason_value[reason]; !known {
				reason = gatewayv1.Refusal_REASON_UNSPECIFIED.String()
			}
			r.stats.Refused.With(reason).Inc()
		},
		Forwarded: func(node route.NodeRef, d time.Duration) {
			r.stats.ForwardDuration.Record(float64(d.Microseconds()) / 1000)
			r.signals.Of(node).Forward(false)
		},
		ForwardFailed: func(node route.NodeRef) {
			r.stats.ForwardFailed.Inc()
			r.signals.Of(node).Forward(true)
		},
		Recovered: func(n int) { r.stats.Recovered.Add(int64(n)) },
		Settled:   func(key route.DeviceKey) { r.buffer.Settled(key) },
		Lost:      r.stats.Lost.Inc,
	}
}

// peerHooks count what the offline buffer does with other routers.
func (r *Router) peerHooks() peer.Hooks {
	return peer.Hooks{
		SyncFailed:    r.stats.SyncFailed.Inc,
		SingleCopy:    func(n int) { r.stats.SingleCopy.Add(int64(n)) },
		Moved:         func(n int) { r.stats.Moved.Add(int64(n)) },
		Overflowed:    func(n int) { r.stats.SyncOverflowed.Add(int64(n)) },
		CopiesRefused: func(n int) { r.stats.CopiesRefused.Add(int64(n)) },
	}
}

func (r *Router) gauges() {
	r.tel.Gauge("mics_router_gateways", "Living gateways in this router's picture.", func() int64 { return int64(len(r.directory.Gateways())) })
	r.tel.Gauge("mics_router_routers", "Living routers in this router's picture.", func() int64 { return int64(len(r.directory.Routers())) })
	r.tel.Gauge("mics_router_tenants", "Configured tenants.", func() int64 { return int64(r.tenants.Len()) })
	r.tel.Gauge("mics_offline_buffer_bytes", "Size of this router's part of the offline buffer, copies of others' parts included.", func() int64 { return r.kept.Bytes() + r.buffer.CopiesBytes() })
	r.tel.Gauge("mics_peer_sync_queue", "What other routers have to be told about this one's buffer.", r.buffer.SyncQueue)
	r.tel.Gauge("mics_dedup_entries", "Message ids remembered.", func() int64 { return int64(r.sents.Len()) })
	r.tel.Gauge("mics_copies_held", "Copies that wait for a gateway's confirm.", r.dispatcher.HeldCopies)
}

// notReady tells why this router can do no work: it has never had a picture of
// the cluster. Later the last picture stands.
func (r *Router) notReady() []string {
	if r.directory.Read().IsZero() {
		return []string{"the route store has not been reached yet"}
	}
	if !r.announced.Load() {
		return []string{"the other routers have not been told yet"}
	}
	return nil
}

// surrender is peer.Options.Surrender.
func (r *Router) surrender(ctx context.Context, key route.DeviceKey, lost route.Location) []*dispatch.Message {
	return r.dispatcher.Surrender(ctx, key, func(at route.Location) bool { return at == lost || !r.directory.Alive(at.Node) })
}

// leasing is the route store as this router uses it: connection counts are kept
// true, and from when it leaves the directory its lease is not renewed.
type leasing struct {
	*admit.Counted
	leaving atomic.Bool
}

// RenewRouter implements route.Store.
func (l *leasing) RenewRouter(ctx context.Context, r route.Router, lease time.Duration) error {
	if l.leaving.Load() {
		return nil
	}
	return l.Counted.RenewRouter(ctx, r, lease)
}
