package controlplane

import (
	"context"
	"errors"
	"fmt"

	"github.com/mics-im/mics/controlplane/internal/drain"
	"github.com/mics-im/mics/controlplane/internal/kube"
	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/fault"
)

// KubeConfig says where the gateways are in Kubernetes. The zero value: they are not,
// or it is no business of this process.
type KubeConfig struct {
	// Namespace and Selector find their pods; an empty Namespace turns all off.
	Namespace, Selector string
	// Deployment is the stable one's name; its twin ends in -canary, and Services
	// have the same names. Route is the HTTPRoute's that leads to both; empty: none.
	Deployment, Route string
}

func (k *KubeConfig) register(s *config.Set) {
	s.String(&k.Namespace, "KUBERNETES_NAMESPACE", "", "namespace of the gateways' pods, from within the same Kubernetes: sets deletion costs, keeps clients from pods that go next, drains cordoned nodes; empty: off")
	s.String(&k.Selector, "KUBERNETES_SELECTOR", "app.kubernetes.io/component=gateway", "label selector of the gateways' pods")
	s.String(&k.Deployment, "KUBERNETES_DEPLOYMENT", "mics-gateway", "Deployment of the stable gateways, which a promotion changes; the canary's ends in -canary")
	s.String(&k.Route, "KUBERNETES_HTTPROUTE", "", "HTTPRoute whose weights are a canary's; empty: none")
	s.Check(func() error {
		if k.Route != "" && k.Namespace == "" {
			return errors.New("KUBERNETES_HTTPROUTE: of no use without KUBERNETES_NAMESPACE")
		}
		return nil
	})
}

// kubernetes makes the configured Kube; nil without one.
func (c *ControlPlane) kubernetes(cfg KubeConfig, drains *drain.Runner) (*kube.Kube, error) {
	if cfg.Namespace == "" {
		return nil, nil
	}
	k := kube.Config{
		Namespace: cfg.Namespace, Selector: cfg.Selector, Deployment: cfg.Deployment, Route: cfg.Route,
		Inventory: c.fleet, Drains: evacuated{promoted{drains}}, Telemetry: c.tel,
	}
	if err := k.InCluster(); err != nil {
		return nil, fmt.Errorf("KUBERNETES_NAMESPACE: %w: this process runs in no pod that may use the API: %w", config.ErrInvalid, err)
	}
	return kube.New(k)
}

// evacuated drains the gateways of cordoned nodes, as promoted does old ones, but is
// told of refusals.
type evacuated struct{ promoted }

// Drain implements kube.Drains.
func (e evacuated) Drain(ctx context.Context, node, reason string) error {
	_, err := e.drains.Drain(ctx, drain.Request{Node: node, Timeout: promotionDrain, By: reason})
	return err
}

// Undrain implements kube.Drains. A gateway that serves already is as it should be.
func (e evacuated) Undrain(ctx context.Context, node string) error {
	_, _, err := e.drains.Undrain(ctx, node)
	if k := fault.KindOf(err); k == fault.FailedPrecondition || k == fault.NotFound {
		return nil
	}
	return err
}
