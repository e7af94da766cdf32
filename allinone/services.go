package allinone

import (
	"context"
	"io"
	"time"

	"github.com/mics-im/mics/controlplane"
	"github.com/mics-im/mics/gateway"
	"github.com/mics-im/mics/router"
)

// service is what gateway, router and control plane have in common. New has
// bound its listeners already, and Stop must be called also without Start.
type service interface {
	Start(ctx context.Context) error
	Stop(ctx context.Context) error
}

// gatewayService is a gateway, how long its drain may take, and its client
// address.
type gatewayService struct {
	service
	drain time.Duration
	url   string // without parameters
}

// lookup is where a service's settings come from.
type lookup = func(name string) (string, bool)

// newRouter returns the service and its base URL.
func newRouter(ctx context.Context, l lookup, log io.Writer) (service, string, error) {
	cfg, err := router.LoadConfig(nil, l)
	if err != nil {
		return nil, "", err
	}
	cfg.Telemetry.LogWriter = log
	r, err := router.New(ctx, cfg)
	if err != nil {
		return nil, "", err
	}
	return r, r.Endpoint(), nil
}

// newControlPlane returns the service and its operators' base URL.
func newControlPlane(ctx context.Context, l lookup, log io.Writer) (service, string, error) {
	cfg, err := controlplane.LoadConfig(nil, l)
	if err != nil {
		return nil, "", err
	}
	cfg.Telemetry.LogWriter = log
	c, err := controlplane.New(ctx, cfg)
	if err != nil {
		return nil, "", err
	}
	return c, c.URL(), nil
}

func newGateway(ctx context.Context, l lookup, log io.Writer) (gatewayService, error) {
	cfg, err := gateway.LoadConfig(nil, l)
	if err != nil {
		return gatewayService{}, err
	}
	cfg.Telemetry.LogWriter = log
	g, err := gateway.New(ctx, cfg)
	if err != nil {
		return gatewayService{}, err
	}
	return gatewayService{service: g, drain: cfg.DrainTimeout, url: clientURL(l, g.Addr())}, nil
}

// clientURL is where clients reach a gateway with these settings that listens there.
func clientURL(l lookup, addr string) string {
	scheme := "ws"
	if cert, ok := l("TLS_CERT_FILE"); ok && cert != "" {
		scheme = "wss"
	}
	return scheme + "://" + reachable(addr) + "/ws"
}
