// Package allinone is a whole MICS cluster in one process: gateways, a router,
// the control plane, and a tenant to try it with. It composes the services
// through their public constructors only, so what runs is what runs elsewhere.
package allinone

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mics-im/mics/allinone/internal/demo"
	"github.com/mics-im/mics/allinone/internal/playground"
	"github.com/mics-im/mics/internal/lifecycle"
	"github.com/mics-im/mics/internal/rpc"
)

// stopBudget is what each tier has for stopping, beyond a gateway's drain: the
// longest of what services take for their own steps.
const stopBudget = 25 * time.Second

// loopback is where listens what only this process needs to reach.
const loopback = "127.0.0.1:0"

// Dev is one running (or startable) cluster. Several live in one process.
type Dev struct {
	demo     *demo.Tenant // nil when the tenants are somebody else's
	router   service
	control  service
	gateways []gatewayService

	page *rpc.Server // nil: no playground

	urls                      []string
	controlURL, playgroundURL string
	teardown                  lifecycle.Stack
}

// New binds all listeners and wires the services; nothing is served before
// Start. Errors about settings wrap config.ErrInvalid. If it fails nothing is
// left behind.
func New(ctx context.Context, cfg Config) (*Dev, error) {
	d := &Dev{}
	if err := d.wire(ctx, cfg); err != nil {
		return nil, errors.Join(err, d.teardown.Unwind(context.WithoutCancel(ctx)))
	}
	return d, nil
}

// wire builds from the inside out; the teardown, last in first out, stops the
// gateways first, then the control plane, the router, the demo tenant.
func (d *Dev) wire(ctx context.Context, cfg Config) error {
	set := cfg.settings
	if set == nil {
		return errors.New("allinone.Config was not made by LoadConfig")
	}
	if cfg.LogWriter == nil {
		cfg.LogWriter = os.Stderr
	}
	tenants := map[string]string{}
	if auth, _ := set.get("TENANT_AUTH_MAP"); strings.TrimSpace(auth) == "" {
		secret := rand.Text()
		t, err := demo.New(demo.Config{Listen: loopback, Secret: secret, LogWriter: cfg.LogWriter})
		if err != nil {
			return fmt.Errorf("demo tenant: %w", err)
		}
		d.demo = t
		d.teardown.Push("demo tenant", stopBudget, t.Stop)
		tenants, err = demoSettings(t.URL(), secret)
		if err != nil {
			return err
		}
	}

	tenants["NODE_ID"] = "router-1"
	tenants["INTERNAL_LISTEN"] = loopback
	router, routerURL, err := newRouter(ctx, set.with(tenants), cfg.LogWriter)
	if err != nil {
		return fmt.Errorf("router: %w", err)
	}
	d.router = router
	d.teardown.Push("router", stopBudget, router.Stop)

	control, controlURL, err := newControlPlane(ctx, set.with(map[string]string{
		"NODE_ID": "controlplane-1", "LISTEN": net.JoinHostPort(cfg.Host, strconv.Itoa(cfg.ControlPort)),
		"INTERNAL_LISTEN": loopback, "ROUTER_ENDPOINTS": routerURL,
	}), cfg.LogWriter)
	if err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	d.control = control
	scheme, addr, _ := strings.Cut(controlURL, "://")
	d.controlURL = scheme + "://" + reachable(addr)
	d.teardown.Push("control plane", stopBudget, control.Stop)

	// One step for all gateways, so that they drain side by side.
	longest := stopBudget
	for i := range cfg.Gateways {
		port := 0
		if cfg.BasePort != 0 {
			port = cfg.BasePort + i
		}
		decisions := map[string]string{
			"NODE_ID": fmt.Sprintf("gw-%d", i+1), "LISTEN": net.JoinHostPort(cfg.Host, strconv.Itoa(port)),
			"INTERNAL_LISTEN": loopback, "ROUTER_ENDPOINTS": routerURL,
		}
		if port != 0 {
			decisions["CLIENT_URL"] = clientURL(set.with(nil), decisions["LISTEN"])
		}
		g, err := newGateway(ctx, set.with(decisions), cfg.LogWriter)
		if err != nil {
			return errors.Join(fmt.Errorf("gateway %d: %w", i+1, err), d.stopGateways(context.WithoutCancel(ctx)))
		}
		longest = max(longest, g.drain+stopBudget)
		d.gateways = append(d.gateways, g)
		d.urls = append(d.urls, g.url)
	}
	d.teardown.Push("gateways", longest, d.stopGateways)
	if err := set.unknown(); err != nil {
		return err
	}
	return d.wirePlayground(cfg)
}

// wirePlayground binds the page, if there is a tenant for it.
func (d *Dev) wirePlayground(cfg Config) error {
	if d.demo == nil || cfg.PlaygroundPort == 0 {
		return nil
	}
	h, err := playground.Handler(d.urls, demo.TenantID)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(cfg.PlaygroundPort)))
	if err != nil {
		return fmt.Errorf("playground: %w", err)
	}
	d.page = rpc.NewServer(ln, h, nil, slog.New(slog.DiscardHandler))
	d.playgroundURL = "http://" + ln.Addr().String() + "/"
	d.teardown.Push("playground", time.Second, d.page.Stop)
	return nil
}

// demoSettings are the router's settings for the demo tenant.
func demoSettings(url, secret string) (map[string]string, error) {
	auth, err := json.Marshal(map[string]string{demo.TenantID: url})
	if err != nil {
		return nil, fmt.Errorf("demo tenant: %w", err)
	}
	secrets, err := json.Marshal(map[string]string{demo.TenantID: secret})
	if err != nil {
		return nil, fmt.Errorf("demo tenant: %w", err)
	}
	return map[string]string{"TENANT_AUTH_MAP": string(auth), "TENANT_HOOK_SECRETS": string(secrets)}, nil
}

// reachable turns a bound address into one to dial on this machine.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// Start starts everything, inside out. If it fails what had been started is
// stopped.
func (d *Dev) Start(ctx context.Context) error {
	if err := d.start(ctx); err != nil {
		return errors.Join(err, d.Stop(context.WithoutCancel(ctx)))
	}
	return nil
}

func (d *Dev) start(ctx context.Context) error {
	if d.demo != nil {
		d.demo.Start()
	}
	if err := d.router.Start(ctx); err != nil {
		return fmt.Errorf("start router: %w", err)
	}
	if err := d.control.Start(ctx); err != nil {
		return fmt.Errorf("start control plane: %w", err)
	}
	for i, g := range d.gateways {
		if err := g.Start(ctx); err != nil {
			return fmt.Errorf("start gateway %d: %w", i+1, err)
		}
	}
	if d.page != nil {
		d.page.Start()
	}
	return nil
}

// Stop drains the gateways, all at once, then stops the control plane, the
// router and the demo tenant, in this order.
func (d *Dev) Stop(ctx context.Context) error { return d.teardown.Unwind(ctx) }

func (d *Dev) stopGateways(ctx context.Context) error {
	errs := make([]error, len(d.gateways))
	var wg sync.WaitGroup
	for i, g := range d.gateways {
		wg.Go(func() {
			if err := g.Stop(ctx); err != nil {
				errs[i] = fmt.Errorf("gateway %d: %w", i+1, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Run starts the cluster, calls started, and stops it in order when ctx ends.
func (d *Dev) Run(ctx context.Context, started func()) error {
	if err := d.Start(ctx); err != nil {
		return err
	}
	started()
	<-ctx.Done()
	return d.Stop(context.WithoutCancel(ctx))
}

// URLs are the gateways' WebSocket URLs, without parameters.
func (d *Dev) URLs() []string { return d.urls }

// ControlURL is the control plane's operator URL.
func (d *Dev) ControlURL() string { return d.controlURL }

// PlaygroundURL is the demo tenant's page; empty if there is none.
func (d *Dev) PlaygroundURL() string { return d.playgroundURL }

// Demo says whether the demo tenant is served.
func (d *Dev) Demo() bool { return d.demo != nil }
