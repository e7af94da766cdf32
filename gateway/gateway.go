// Package gateway holds clients' connections: it is the single writer of their
// sessions, and everything that has to be decided it asks the routers.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/gateway/internal/arrival"
	"github.com/mics-im/mics/gateway/internal/downlink"
	"github.com/mics-im/mics/gateway/internal/drainer"
	"github.com/mics-im/mics/gateway/internal/orphans"
	"github.com/mics-im/mics/gateway/internal/registry"
	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/gateway/internal/slot"
	"github.com/mics-im/mics/gateway/internal/steer"
	"github.com/mics-im/mics/gateway/internal/upgrade"
	"github.com/mics-im/mics/gateway/internal/uplink"
	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/lifecycle"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/tlsfile"
	"github.com/mics-im/mics/internal/trust"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
)

// ErrSuperseded is in the chain of Run's error when another process with the
// same NODE_ID has started since.
var ErrSuperseded = errors.New("superseded by a newer process with the same NODE_ID, or declared dead after a silence: to be started anew")

// Gateway is one gateway. Several can live in one process.
type Gateway struct {
	cfg      Config
	tel      *telemetry.Telemetry
	ref      *gatewayv1.GatewayRef
	endpoint string

	uplink   *uplink.Uplink
	sessions *registry.Registry
	orphans  *orphans.Rescuer
	arrivals *arrival.Table
	upgrades *upgrade.Handler
	drainer  *drainer.Drainer
	slots    *slot.Client
	steerer  *steer.Steerer
	downlink *downlink.Service
	internal *rpc.Server
	public   *front
	drains   *telemetry.Counter

	phase      atomic.Int32 // gatewayv1.Phase; SERVING also while fenced
	fenced     atomic.Bool
	leaving    atomic.Bool   // the lease is being given back
	superseded chan struct{} // closed when it happens
	evacuation evacuation
	stopBy     time.Time // when the sessions have to be gone; owned by Stop

	mu       sync.Mutex
	started  bool            // guarded by mu
	teardown lifecycle.Stack // guarded by mu
}

// New binds the listeners and wires everything; nothing runs until Start. Stop
// must be called also without Start. An invalid cfg wraps config.ErrInvalid.
func New(ctx context.Context, cfg Config) (_ *Gateway, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	g := &Gateway{cfg: cfg, superseded: make(chan struct{})}
	g.phase.Store(int32(gatewayv1.Phase_PHASE_SERVING))
	// Later starts have greater numbers, below 2^53: Redis scripts compare them.
	g.ref = &gatewayv1.GatewayRef{NodeId: cfg.NodeID, Incarnation: uint64(time.Now().UnixMicro())}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.teardown.Unwind(context.WithoutCancel(ctx)))
		}
	}()
	if g.tel, err = telemetry.New(ctx, cfg.Telemetry); err != nil {
		return nil, fmt.Errorf("start telemetry: %w", err)
	}
	g.teardown.Push("telemetry", stepBudget, g.tel.Shutdown)
	g.drains = g.tel.Counter("mics_shutdown_drain_total", "drains at a stop")
	cluster, err := trust.New(cfg.Cluster, g.tel)
	if err != nil {
		return nil, err
	}
	g.teardown.Push("cluster credentials", stepBudget, func(context.Context) error { return cluster.Close() })
	client := cluster.Client()
	g.teardown.Push("rpc client", stepBudget, func(context.Context) error { client.CloseIdleConnections(); return nil })

	internalListener, err := net.Listen("tcp", cfg.InternalListen)
	if err != nil {
		return nil, fmt.Errorf("INTERNAL_LISTEN: %w", err)
	}
	g.endpoint = cfg.endpoint(internalListener.Addr().String())
	mux := http.NewServeMux()
	g.internal = cluster.Server(internalListener, mux)
	g.teardown.Push("internal server", stepBudget, g.internal.Stop)

	routers, err := cfg.routers()
	if err != nil {
		return nil, fmt.Errorf("ROUTER_ENDPOINTS: %w: %w", config.ErrInvalid, err)
	}
	g.uplink = uplink.New(uplink.Options{
		Info: g.introduction, Sessions: func() uint64 { return uint64(g.sessions.Len()) },
		Endpoints: routers, Scheme: cfg.Cluster.Scheme(), HTTP: client, Telemetry: g.tel,
		OnFenced: g.fence, OnUnfenced: g.unfence, OnSuperseded: g.supersede, OnRouters: func() { g.orphans.Changed() },
	})
	g.sessions = registry.New(registry.Options{Session: session.Config{
		NodeID: cfg.NodeID, MaxMessageBytes: cfg.MaxMessageBytes, QueueFrames: cfg.QueueFrames, QueueBytes: cfg.QueueBytes,
		Keepalive: cfg.Keepalive, FloodPerSecond: cfg.FloodPerSecond, ResumeWindow: cfg.ResumeWindow, Uplink: g.uplink, Telemetry: g.tel,
		Trace: messageTrace(cfg.Telemetry, g.tel.Tracer),
	}})
	g.orphans = orphans.New(g.sessions, g.tel)
	proxies, err := cfg.proxies()
	if err != nil {
		return nil, fmt.Errorf("TRUSTED_PROXIES: %w: %w", config.ErrInvalid, err)
	}
	g.evacuation.after = g.uplink.Announce
	g.arrivals = arrival.New(g.tel)
	g.upgrades = upgrade.New(upgrade.Options{
		Registry: g.sessions, OpenSession: g.uplink.OpenSession, Gateway: g.ref, Closed: g.closed,
		AllowedOrigins: cfg.AllowedOrigins, TrustedProxies: proxies, AcceptRate: cfg.AcceptRate,
		AcceptRatePerAddress: cfg.AcceptRatePerAddress, MaxConnections: cfg.MaxConnections, Arrived: g.arrivals.Add, Telemetry: g.tel,
	})
	g.drainer = drainer.New(drainer.Options{
		Registry: g.sessions, Routers: g.uplink, Log: g.tel.Log, Timeout: cfg.DrainTimeout, Refuse: g.evacuating, OnPhase: g.setPhase,
	})
	g.steerer = steer.New(steer.Options{
		Registry: g.sessions, Mover: drainer.NewMover(g.uplink, g.tel.Log), Track: cfg.Track, Telemetry: g.tel,
		Quiet: func() bool { return g.closed() != "" },
	})
	if err := g.connectControlPlane(client); err != nil {
		return nil, err
	}
	g.downlink = downlink.New(downlink.Options{
		Registry: g.sessions, Telemetry: g.tel, Info: g.info,
		RoutersLinked: g.uplink.Linked, RefusedHandshakes: g.upgrades.Refused, Complete: g.complete, Drainer: g.drainer, Steerer: g.steerer,
	})
	mux.Handle(gatewayv1connect.NewGatewayServiceHandler(g.downlink, rpc.HandlerOptions()...))
	rpc.Operate(mux, g.tel.Metrics(), g.notReady)
	if err := g.listen(); err != nil {
		return nil, err
	}
	return g, nil
}

// connectControlPlane prepares the asking for a slot.
func (g *Gateway) connectControlPlane(client *http.Client) error {
	endpoints, err := rpc.ParseEndpoints(g.cfg.ControlPlaneEndpoints)
	if err != nil {
		return fmt.Errorf("CONTROLPLANE_ENDPOINTS: %w: %w", config.ErrInvalid, err)
	}
	g.slots = slot.New(slot.Options{Endpoints: endpoints, Scheme: g.cfg.Cluster.Scheme(), Lookup: net.DefaultResolver.LookupHost, HTTP: client, Log: g.tel.Log})
	return nil
}

// listen binds the clients' listener.
func (g *Gateway) listen() error {
	ln, err := net.Listen("tcp", g.cfg.Listen)
	if err != nil {
		return fmt.Errorf("LISTEN: %w", err)
	}
	g.public = newFront(ln, g.upgrades, g.tel.Log)
	g.teardown.Push("clients' server", stepBudget, g.public.stop)
	if g.cfg.TLSCert == "" {
		return nil
	}
	files, err := tlsfile.New(g.cfg.TLSCert, g.cfg.TLSKey, g.tel.Log)
	if err != nil {
		return fmt.Errorf("TLS_CERT_FILE, TLS_KEY_FILE: %w", err)
	}
	g.teardown.Push("certificate", stepBudget, func(context.Context) error { return files.Close() })
	g.public.ln = newTLSListener(ws.CountListener{Listener: ln}, files.Config())
	return nil
}

// Start begins to serve. It returns at once; the first router may be a moment
// away (/readyz tells). Call it once.
func (g *Gateway) Start(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.started {
		return errors.New("gateway started twice")
	}
	g.started = true
	g.sessions.Start()
	g.orphans.Start(g.uplink)
	g.steerer.Start()
	g.uplink.Start()
	g.internal.Start()
	g.public.start()
	g.pushStop()
	g.tel.Log.InfoContext(ctx, "started", "listen", g.Addr(), "internal_listen", g.InternalAddr(), "endpoint", g.endpoint,
		"version", g.cfg.Version, "track", g.cfg.Track, "incarnation", g.ref.GetIncarnation())
	return nil
}

// Addr is where clients connect, host:port.
func (g *Gateway) Addr() string { return g.public.addr }

// InternalAddr is where routers and the control plane connect, host:port.
func (g *Gateway) InternalAddr() string { return g.internal.Addr() }

// Run starts, waits for ctx to end, and stops. It ends early, with
// ErrSuperseded, when this process is not the node any more.
func (g *Gateway) Run(ctx context.Context) error {
	if err := g.Start(ctx); err != nil {
		return errors.Join(err, g.Stop(context.WithoutCancel(ctx)))
	}
	var err error
	select {
	case <-ctx.Done():
	case <-g.superseded:
		err = ErrSuperseded
	}
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.cfg.DrainTimeout+stopBudget)
	defer cancel()
	return errors.Join(err, g.Stop(stopCtx))
}

// info is how the gateway introduces itself now.
func (g *Gateway) info() *gatewayv1.GatewayInfo {
	phase := gatewayv1.Phase(g.phase.Load())
	if phase == gatewayv1.Phase_PHASE_SERVING && g.isFenced() {
		phase = gatewayv1.Phase_PHASE_FENCED
	}
	return &gatewayv1.GatewayInfo{
		NodeId: g.ref.GetNodeId(), Incarnation: g.ref.GetIncarnation(), Endpoint: g.endpoint,
		Track: g.cfg.Track, Version: g.cfg.Version, Phase: phase, ClientUrl: g.cfg.ClientURL,
	}
}

// introduction is info for routers: for them a gateway has drained when it goes,
// because they take its lease away then; one that has drained and waits may be asked
// to serve again.
func (g *Gateway) introduction() *gatewayv1.GatewayInfo {
	i := g.info()
	if i.Phase == gatewayv1.Phase_PHASE_DRAINED && !g.leaving.Load() {
		i.Phase = gatewayv1.Phase_PHASE_DRAINING
	}
	return i
}

// closed says why no connection is taken, empty: they are.
func (g *Gateway) closed() string {
	switch {
	case g.phase.Load() == int32(gatewayv1.Phase_PHASE_DRAINED):
		return "drained"
	case g.phase.Load() != int32(gatewayv1.Phase_PHASE_SERVING):
		return "draining"
	case g.isSuperseded():
		return "superseded"
	case g.isFenced():
		return "fenced"
	case !g.uplink.HasLease():
		return "no router"
	}
	return ""
}

func (g *Gateway) notReady() []string {
	if why := g.closed(); why != "" {
		return []string{why}
	}
	if g.uplink.Linked() == 0 {
		return []string{"no router"}
	}
	return nil
}

func (g *Gateway) isSuperseded() bool {
	select {
	case <-g.superseded:
		return true
	default:
		return false
	}
}
