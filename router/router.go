// Package router decides: who may connect, where a message goes, and what is
// kept for whom. Any number of equal routers share the work.
package router

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/lifecycle"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/trust"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/admit"
	"github.com/mics-im/mics/router/internal/away"
	"github.com/mics-im/mics/router/internal/dedup"
	"github.com/mics-im/mics/router/internal/directory"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/event"
	"github.com/mics-im/mics/router/internal/hook"
	"github.com/mics-im/mics/router/internal/memstore"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/peer"
	"github.com/mics-im/mics/router/internal/pipeline"
	"github.com/mics-im/mics/router/internal/reaper"
	"github.com/mics-im/mics/router/internal/recall"
	"github.com/mics-im/mics/router/internal/redisstore"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/service"
	"github.com/mics-im/mics/router/internal/signals"
	"github.com/mics-im/mics/router/internal/stall"
	"github.com/mics-im/mics/router/internal/stats"
	"github.com/mics-im/mics/router/internal/tenant"
)

// Budgets of the steps of a stop. Together they stay below a pod's usual 30 s.
const (
	// streamsBudget is for what Publish streams have under way.
	streamsBudget = 5 * time.Second
	serverBudget  = 3 * time.Second
	stepBudget    = 3 * time.Second
	// goodbyeBudget is for the other routers to hear that this one leaves.
	goodbyeBudget = 500 * time.Millisecond
	// handOnBudget is for buffers on their way to new homes; one that is lent to a
	// device that connects just now is so for 4 s.
	handOnBudget = 8 * time.Second
	// eventsBudget is for events that Kafka has not got yet.
	eventsBudget = 3 * time.Second
	stopBudget   = 25 * time.Second
)

// sweepEvery is how often expired buffer entries of silent users are dropped.
const sweepEvery = 10 * time.Second

// Router is one router. Several can live in one process.
type Router struct {
	cfg     Config
	tel     *telemetry.Telemetry
	stats   *stats.Stats
	cluster *trust.Trust
	signals *signals.Table
	self    route.Router
	client  *http.Client

	tenants    *tenant.Registry
	away       *away.Store // the route store, or what stands in for it
	store      *leasing
	events     *event.Publisher
	directory  *directory.Directory
	kept       *offline.Buffer
	stall      *stall.Detector
	buffer     *peer.Buffer
	admitter   *admit.Admitter
	sents      *dedup.Table[[]byte] // what was answered SENT
	dispatcher *dispatch.Dispatcher
	reaper     *reaper.Reaper
	internal   *rpc.Server

	// announced: the other routers have heard that this one lives, or had time to.
	announced atomic.Bool
	// returns is how many gateways had returned when the buffer was last told.
	returns atomic.Uint64

	mu       sync.Mutex
	started  bool            // guarded by mu
	teardown lifecycle.Stack // guarded by mu
}

// New binds the listener and wires everything; nothing runs until Start. Stop
// must be called also without Start. An invalid cfg wraps config.ErrInvalid. A
// Redis that is away is no error.
func New(ctx context.Context, cfg Config) (_ *Router, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	r := &Router{cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.teardown.Unwind(context.WithoutCancel(ctx)))
		}
	}()
	if r.tel, err = telemetry.New(ctx, cfg.Telemetry); err != nil {
		return nil, fmt.Errorf("start telemetry: %w", err)
	}
	r.teardown.Push("telemetry", stepBudget, r.tel.Shutdown)
	r.stats = stats.New(r.tel)

	cfg.tenants.Log = r.tel.Log
	if r.tenants, err = tenant.New(cfg.tenants); err != nil {
		return nil, err
	}
	r.push("tenants", r.tenants.Close)
	if r.cluster, err = trust.New(cfg.Cluster, r.tel); err != nil {
		return nil, err
	}
	r.teardown.Push("cluster credentials", stepBudget, func(context.Context) error { return r.cluster.Close() })
	ln, err := net.Listen("tcp", cfg.InternalListen)
	if err != nil {
		return nil, fmt.Errorf("INTERNAL_LISTEN: %w", err)
	}
	r.self = route.Router{
		NodeRef:  route.NodeRef{ID: cfg.NodeID, Incarnation: uint64(time.Now().UnixMilli())},
		Endpoint: cfg.endpoint(ln.Addr()), Version: cfg.Version,
	}
	if err := r.openStore(ctx); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	if err := r.openEvents(); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	r.wire(ln)
	return r, nil
}

// push adds a teardown step that does not fail.
func (r *Router) push(name string, f func()) {
	r.teardown.Push(name, stepBudget, func(context.Context) error { f(); return nil })
}

// openStore opens the route store.
func (r *Router) openStore(ctx context.Context) error {
	var s route.Store = memstore.New()
	if r.cfg.Redis != Memory {
		rs, err := redisstore.Open(ctx, redisstore.Options{Connection: r.cfg.Redis, Log: r.tel.Log})
		if err != nil {
			return fmt.Errorf("%w: %w", config.ErrInvalid, err)
		}
		s = rs
	}
	r.away = away.New(away.Options{Store: s, Self: r.self, Lease: directory.Lease, Telemetry: r.tel})
	r.store = &leasing{Counted: admit.NewCounted(r.away, r.stats, r.tel.Log)}
	r.teardown.Push("route store", stepBudget, func(context.Context) error { return s.Close() })
	r.push("route store watch", r.away.Stop)
	return nil
}

// wire builds everything from the inside out. The teardown, last in first out,
// ends what uses something before what is used.
func (r *Router) wire(ln net.Listener) {
	cfg, log := r.cfg, r.tel.Log
	r.client = r.cluster.Client()
	r.push("rpc client", r.client.CloseIdleConnections)
	hooks := hook.New(r.tel)
	r.push("hooks", hooks.Close)
	r.directory = directory.New(r.store, r.self, log, r.pictureChanged, r.lapsed)
	r.signals = signals.New(r.directory.Alive, r.tel)
	limiter := tenant.NewLimiter(tenant.LimiterOptions{
		Leaser: r.store, Routers: func() int { return len(r.directory.Routers()) }, Log: log,
	})
	r.push("message rates", limiter.Close)

	for _, why := range offline.Drops {
		r.stats.BufferDropped.With(string(why))
	}
	r.stall = stall.New()
	r.kept = offline.New(cfg.offline, func(_ string, why offline.Drop, n int) { r.stats.BufferDropped.With(string(why)).Add(int64(n)) })
	r.sents = dedup.NewTable[[]byte](cfg.dedupEntries, func(n int) { r.stats.DedupForgotten.Add(int64(n)) })
	remembered := recall.New(func(n int) { r.stats.KeysForgot.Add(int64(n)) })
	r.buffer = peer.NewBuffer(peer.Options{
		Directory: r.directory, Members: r.directory, Local: r.kept, Recall: remembered, Lookup: r.store.LookupFresh, Client: r.peer, TTL: r.offlineTTL,
		Admitting: func(key route.UserKey) bool { return r.admitter.Admitting(key) },
		Sents:     r.sents, Deliver: func(key route.DeviceKey, msgs []*dispatch.Message) { r.dispatcher.SendOlder(key, msgs) }, Surrender: r.surrender, Hooks: r.peerHooks(),
	})
	r.sents.OnSent(r.buffer.Sent)
	remembered.OnEnded(r.buffer.Took)
	r.push("offline buffer", r.buffer.Close)
	absent := pipeline.NewAbsent(r.buffer)
	r.push("absent users", absent.Close)
	r.dispatcher = dispatch.New(dispatch.Options{
		Directory: r.directory, Routes: r.store, Buffer: absent, Dial: r.dial, Hooks: r.dispatchHooks(),
		GhostTTL: r.offlineTTL, Router: r.self.NodeRef,
	})
	r.push("dispatcher", r.dispatcher.Close)
	r.admitter = admit.New(admit.Options{
		Self: r.self, Directory: r.directory, Homes: r.buffer, Routes: r.store, Tenant: r.tenants.Get, Hooks: hooks, Dispatcher: r.dispatcher,
		Kept: r.buffer, Buffer: r.buffer, Recall: remembered, Stalled: r.stall.Lately, Peer: r.peer, Gateway: r.gateway, Tokens: cfg.tokenKeys(log),
		MaxMessageBytes: cfg.messages.MaxMessageBytes, Events: r.events, Stats: r.stats, Signals: r.signals, Log: log, Tracer: r.tel.Tracer,
	})
	r.push("admissions", r.admitter.Close)
	messages := pipeline.New(pipeline.Options{
		Tenant: r.tenants.Get, Hooks: hooks, Routes: r.store, Dispatcher: r.dispatcher, Absent: absent, Dedup: r.sents, Limiter: limiter,
		Events: r.events, Limits: cfg.messages, Stats: r.stats, Signals: r.signals, Tracer: r.tel.Tracer,
	})
	r.push("pipeline", messages.Close)
	r.reaper = reaper.New(reaper.Options{
		Store: r.store, Owner: fmt.Sprintf("%s/%d", r.self.ID, r.self.Incarnation),
		Living:   r.directory.Heard,
		GhostTTL: r.offlineTTL, Ended: admit.Ended(r.events), Room: r.events.Room, Telemetry: r.tel,
	})
	r.gauges()

	svc := service.New(service.Options{
		Directory: r.directory, Admitter: r.admitter, Buffer: r.buffer, Copies: r.buffer, Records: r.away, Keeper: r.dispatcher, Self: r.self, DeadLetters: r.events, Signals: r.signals, Stats: r.stats, Log: log,
		Intake: func(gateway route.NodeRef, answer func(uint64, []byte)) service.Intake {
			return messages.Intake(gateway, answer)
		},
	})
	mux := http.NewServeMux()
	rpc.Operate(mux, r.tel.Metrics(), r.notReady, r.away.Degraded)
	mux.Handle(routerv1connect.NewRouterServiceHandler(svc, rpc.HandlerOptions()...))
	mux.Handle(routerv1connect.NewPeerServiceHandler(svc, rpc.HandlerOptions()...))
	r.internal = r.cluster.Server(ln, mux)
	r.teardown.Push("internal server", serverBudget, r.internal.Stop)
	// Before the server that carries them, which waits for its streams.
	r.teardown.Push("streams", streamsBudget, svc.Close)
}

// Start announces this router and begins to serve. It returns at once, or within
// two seconds when the route store and another router do not answer. Call it once.
func (r *Router) Start(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.started {
		return errors.New("router started twice")
	}
	r.started = true
	r.away.Start(away.Cluster{Directory: r.directory, Peer: r.peer, Gateway: r.gateway, Rebuilt: r.buffer.Recheck})
	r.directory.Start()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.sweep(stop)
	}()
	r.push("sweeper", func() { close(stop); <-done })
	watch, cancel := context.WithCancel(context.WithoutCancel(ctx))
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		r.stall.Run(watch)
	}()
	r.push("stall detector", func() { cancel(); <-watched })
	r.reaper.Start()
	r.push("reaper", r.reaper.Stop)
	// The server still answers meanwhile: who takes a buffer over asks back.
	r.teardown.Push("hand buffers on", handOnBudget, r.buffer.HandOn)
	// First of all: nobody comes to a router that is not in the directory.
	r.teardown.Push("directory", stepBudget, r.leave)
	r.internal.Start()
	// Who stops as soon as this one is ready has to know to whom it hands on what it keeps.
	r.away.AwaitHeard()
	r.announced.Store(true)
	r.tel.Log.InfoContext(ctx, "started", "internal_listen", r.InternalAddr(), "endpoint", r.self.Endpoint, "version", r.self.Version, "tenants", r.tenants.Len())
	return nil
}

// pictureChanged is called by the directory when others have come or gone.
func (r *Router) pictureChanged() {
	r.dispatcher.Prune()
	r.buffer.Rebalance()
	if n := r.directory.Returns(); r.returns.Swap(n) != n {
		r.buffer.Recheck()
	}
}

// lapsed is called by the directory, which is made before the buffer.
func (r *Router) lapsed(taken bool) {
	r.buffer.Lapsed(taken)
	r.away.Lapsed()
}

// leave takes this router out of the directory, and tells the others: without the
// store its lease has to run out by itself.
func (r *Router) leave(ctx context.Context) error {
	// Others that have only just registered, and have not been heard.
	r.directory.Refresh(ctx)
	r.store.leaving.Store(true)
	r.buffer.Leave()
	r.sayGoodbye(ctx)
	err := r.directory.Stop(ctx)
	if errors.Is(err, route.ErrUnavailable) {
		r.tel.Log.WarnContext(ctx, "router_not_removed", "err", err)
		return nil
	}
	return err
}

// sayGoodbye tells all other routers that this one leaves, those that answer soon.
func (r *Router) sayGoodbye(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, goodbyeBudget)
	defer cancel()
	var wg sync.WaitGroup
	for _, to := range r.directory.Routers() {
		if to.NodeRef == r.self.NodeRef {
			continue
		}
		wg.Go(func() {
			req := &routerv1.LeaveRequest{Router: &routerv1.RouterRef{NodeId: r.self.ID, Incarnation: r.self.Incarnation}}
			if _, err := r.peer(to).Leave(ctx, connect.NewRequest(req)); err != nil {
				r.tel.Log.WarnContext(ctx, "goodbye_not_heard", "router", to.ID, "err", err)
			}
		})
	}
	wg.Wait()
}

// sweep drops expired buffer entries until stop is closed.
func (r *Router) sweep(stop <-chan struct{}) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.kept.Sweep()
		case <-stop:
			return
		}
	}
}

// Endpoint is the base URL at which others reach it.
func (r *Router) Endpoint() string { return r.self.Endpoint }

// InternalAddr is where it listens, host:port.
func (r *Router) InternalAddr() string { return r.internal.Addr() }

// Stop takes this router out of the directory, lets what is under way come to
// its end for a bounded time, and ends everything. A second call does nothing.
func (r *Router) Stop(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.teardown.Unwind(ctx)
}

// Run starts, waits for ctx to end, and stops.
func (r *Router) Run(ctx context.Context) error {
	if err := r.Start(ctx); err != nil {
		return errors.Join(err, r.Stop(context.WithoutCancel(ctx)))
	}
	<-ctx.Done()
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopBudget)
	defer cancel()
	return r.Stop(stopCtx)
}
