// Package controlplane operates a MICS cluster: it knows every gateway and
// router, and answers operators. It is never in the way of a message or a
// connect: with it gone, everything goes on.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/access"
	"github.com/mics-im/mics/controlplane/internal/canary"
	"github.com/mics-im/mics/controlplane/internal/drain"
	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/controlplane/internal/kube"
	"github.com/mics-im/mics/controlplane/internal/rebalance"
	"github.com/mics-im/mics/controlplane/internal/service"
	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/internal/buildinfo"
	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/lifecycle"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/trust"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
)

// Budgets of the steps of a stop. A server's covers the fan-out that may be
// under way (3 s); together they stay below a pod's usual 30 s.
const (
	serverBudget = 5 * time.Second
	stepBudget   = 3 * time.Second
	stopBudget   = 20 * time.Second
)

// ControlPlane is one control plane. Several can live in one process.
type ControlPlane struct {
	scheme             string // of the operators' listener
	tel                *telemetry.Telemetry
	operator, internal *rpc.Server
	fleet              *fleet.Fleet
	elector            *store.Elector
	kube               *kube.Kube // nil: not in Kubernetes
	// duties are what the leader does.
	duties []func(context.Context, *store.Tenure)

	mu       sync.Mutex
	started  bool            // guarded by mu
	teardown lifecycle.Stack // guarded by mu
}

// New binds the listeners and wires everything; nothing runs until Start. Stop
// must be called also without Start. An invalid cfg wraps config.ErrInvalid.
func New(ctx context.Context, cfg Config) (_ *ControlPlane, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	seeds, err := cfg.routers()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	c := &ControlPlane{scheme: cfg.Access.Scheme()}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.teardown.Unwind(context.WithoutCancel(ctx)))
		}
	}()
	if c.tel, err = telemetry.New(ctx, cfg.Telemetry); err != nil {
		return nil, fmt.Errorf("start telemetry: %w", err)
	}
	c.teardown.Push("telemetry", stepBudget, c.tel.Shutdown)

	st, err := cfg.openStore(c.tel.Log)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	c.teardown.Push("store", stepBudget, func(context.Context) error { st.Close(); return nil })

	cluster, err := trust.New(cfg.Cluster, c.tel)
	if err != nil {
		return nil, err
	}
	c.teardown.Push("cluster credentials", stepBudget, func(context.Context) error { return cluster.Close() })
	client := cluster.Client()
	c.teardown.Push("rpc client", stepBudget, func(context.Context) error { client.CloseIdleConnections(); return nil })
	c.fleet = fleet.New(fleet.Config{
		Source: fleet.NewRPC(client, seeds, cfg.Cluster.Scheme()), Interval: cfg.PollInterval, ForgetAfter: cfg.ForgetAfter, Telemetry: c.tel,
	})

	internalMux := http.NewServeMux()
	rpc.Operate(internalMux, c.tel.Metrics(), c.fleet.NotReady)
	if c.internal, err = c.listen("internal server", cfg.InternalListen, func(ln net.Listener) *rpc.Server {
		return cluster.Server(ln, internalMux)
	}); err != nil {
		return nil, fmt.Errorf("INTERNAL_LISTEN: %w", err)
	}
	c.elector = store.NewElector(store.ElectorConfig{
		Store: st, Name: cfg.NodeID, Address: cfg.endpoint(c.internal.Addr()), Telemetry: c.tel,
	})
	drains := drain.New(drain.Config{
		Rules: cfg.rules(), Store: st, Inventory: c.fleet, HTTP: client, Telemetry: c.tel,
	})
	actuator, err := cfg.Weights.actuator()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	if c.kube, err = c.kubernetes(cfg.Kubernetes, drains); err != nil {
		return nil, err
	}
	if c.kube != nil {
		c.duties = append(c.duties, c.kube.Duty)
		if !cfg.Weights.set() {
			actuator = c.kube
		}
	}
	canaries := canary.New(canary.Config{
		Store: st, Inventory: c.fleet, Actuator: actuator, Drainer: promoted{drains}, HTTP: client, Telemetry: c.tel,
	})
	rebalances := rebalance.New(rebalance.Config{
		Store: st, Inventory: c.fleet, Automatic: cfg.Rebalance, Busy: canaries.Busy, HTTP: client, Telemetry: c.tel,
	})
	c.duties = append(c.duties, drains.Duty, canaries.Duty, rebalances.Duty)
	audit := access.NewAudit(cfg.NodeID, st, c.tel)
	guard, err := access.New(access.Options{Config: cfg.Access, Audit: audit, As: service.WithOperator, Telemetry: c.tel})
	if err != nil {
		return nil, err
	}
	c.teardown.Push("operators", stepBudget, func(context.Context) error { return guard.Close() })
	var placed func(string) string
	if c.kube != nil {
		placed = c.kube.NodeOf
	}
	svc := service.New(service.Config{
		Placed: placed, NodeID: cfg.NodeID, Version: buildinfo.Version(), Inventory: c.fleet, Leadership: c.elector, Drains: drains, Canaries: canaries, Rebalances: rebalances, Audit: audit, HTTP: client, Telemetry: c.tel,
	})
	svc.HandleInternal(internalMux, rpc.HandlerOptions()...)
	operatorMux := http.NewServeMux()
	operatorMux.Handle(controlv1connect.NewControlServiceHandler(svc, append(rpc.HandlerOptions(), connect.WithInterceptors(guard.Interceptor()))...))
	operatorMux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	if c.operator, err = c.listen("operator server", cfg.Listen, func(ln net.Listener) *rpc.Server {
		return guard.Server(ln, operatorMux)
	}); err != nil {
		return nil, fmt.Errorf("LISTEN: %w", err)
	}
	// Before the server that carries them, which waits for its streams.
	c.teardown.Push("watches", stepBudget, func(context.Context) error { svc.Close(); return nil })
	return c, nil
}

// listen binds addr and has a server made of it that Stop stops.
func (c *ControlPlane) listen(name, addr string, serve func(net.Listener) *rpc.Server) (*rpc.Server, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := serve(ln)
	c.teardown.Push(name, serverBudget, s.Stop)
	return s, nil
}

// Start begins to serve and to read the inventory. It returns at once; the
// first inventory may be a second away (/readyz tells). Call it once.
func (c *ControlPlane) Start(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.started {
		return errors.New("control plane started twice")
	}
	c.started = true
	c.background(ctx, "inventory", c.fleet.Run)
	if c.kube != nil {
		c.background(ctx, "Kubernetes", c.kube.Run)
	}
	c.background(ctx, "election", func(ctx context.Context) { c.elector.Run(ctx, c.duties...) })
	c.internal.Start()
	c.operator.Start()
	c.tel.Log.InfoContext(ctx, "started", "listen", c.Addr(), "internal_listen", c.InternalAddr(), "version", buildinfo.Version())
	return nil
}

// background runs f until Stop.
func (c *ControlPlane) background(ctx context.Context, name string, f func(context.Context)) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	c.teardown.Push(name, stepBudget, func(ctx context.Context) error {
		cancel()
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// URL is where operators connect: the scheme and Addr.
func (c *ControlPlane) URL() string { return c.scheme + "://" + c.Addr() }

// Addr is where operators connect, host:port.
func (c *ControlPlane) Addr() string { return c.operator.Addr() }

// InternalAddr is where /healthz, /readyz and /metrics are, host:port.
func (c *ControlPlane) InternalAddr() string { return c.internal.Addr() }

// Stop ends everything in reverse order. A second call does nothing.
func (c *ControlPlane) Stop(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.teardown.Unwind(ctx)
}

// Run starts, waits for ctx to end, and stops.
func (c *ControlPlane) Run(ctx context.Context) error {
	if err := c.Start(ctx); err != nil {
		return errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
	}
	<-ctx.Done()
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopBudget)
	defer cancel()
	return c.Stop(stopCtx)
}
