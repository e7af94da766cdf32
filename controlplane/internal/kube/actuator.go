package kube

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/retry"

	"github.com/mics-im/mics/controlplane/internal/canary/actuate"
)

// container is the gateways' in their Deployments.
const container = "gateway"

// Name implements actuate.Actuator.
func (k *Kube) Name() string {
	if k.cfg.Route == "" {
		return "none"
	}
	return "httproute"
}

// Apply implements actuate.Actuator: it sets the weights of the rule that has both
// tracks. Without a route it does nothing.
func (k *Kube) Apply(ctx context.Context, w actuate.Weights) error {
	if k.cfg.Route == "" {
		return nil
	}
	api := k.cfg.Client.Resource(routes).Namespace(k.cfg.Namespace)
	changed := false
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		o, err := api.Get(ctx, k.cfg.Route, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if changed, err = setWeights(o, k.cfg.Deployment, k.canary(), w); err != nil || !changed {
			return err
		}
		_, err = api.Update(ctx, o, metav1.UpdateOptions{})
		return err
	})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("HTTPRoute %s/%s: there is none", k.cfg.Namespace, k.cfg.Route)
	case err != nil:
		return fmt.Errorf("HTTPRoute %s/%s: %w", k.cfg.Namespace, k.cfg.Route, err)
	case changed:
		k.log.InfoContext(ctx, "route_weights_set", "route", k.cfg.Route, "stable", w.Stable, "canary", w.Canary)
		k.event(ctx, reference{"gateway.networking.k8s.io/v1", "HTTPRoute", k.cfg.Route}, "CanaryWeight",
			fmt.Sprintf("new connections: %s stable, %s canary", percent(w.Stable), percent(w.Canary)))
	}
	return nil
}

func percent(w uint32) string { return fmt.Sprintf("%g %%", float64(w)/100) }

// canary is the name of the twin, Deployment and Service.
func (k *Kube) canary() string { return k.cfg.Deployment + "-canary" }

// setWeights changes the rule that leads to both tracks and tells whether it had to.
// A chart without a canary has no such rule, and all clients reach stable.
func setWeights(route *unstructured.Unstructured, stable, canary string, w actuate.Weights) (changed bool, err error) {
	weights := map[string]int64{stable: int64(w.Stable), canary: int64(w.Canary)}
	// Whole per cents where they will do: people read them.
	if w.Stable%100 == 0 && w.Canary%100 == 0 {
		weights[stable], weights[canary] = weights[stable]/100, weights[canary]/100
	}
	rules, _, err := unstructured.NestedSlice(route.Object, "spec", "rules")
	if err != nil {
		return false, err
	}
	found := false
	for _, r := range rules {
		rule, ok := r.(map[string]any)
		if !ok {
			continue
		}
		refs, _, err := unstructured.NestedSlice(rule, "backendRefs")
		if err != nil {
			return false, err
		}
		here := 0
		for _, b := range refs {
			ref, ok := b.(map[string]any)
			if _, ours := weights[fmt.Sprint(ref["name"])]; ok && ours {
				here++
			}
		}
		if here != len(weights) { // a rule of one track: ?track=…
			continue
		}
		found = true
		for _, b := range refs {
			ref := b.(map[string]any)
			want, ours := weights[fmt.Sprint(ref["name"])]
			if now, set := ref["weight"].(int64); ours && (!set || now != want) {
				ref["weight"], changed = want, true
			}
		}
		rule["backendRefs"] = refs
	}
	if !found && w.Canary == 0 {
		return false, nil
	}
	if !found {
		return false, fmt.Errorf("no rule has both backends %s and %s: canary.enabled of the chart", stable, canary)
	}
	return changed, unstructured.SetNestedSlice(route.Object, rules, "spec", "rules")
}

// Promote implements actuate.Promoter: the stable Deployment gets the image and the
// version of the canary's. The rollout that follows is Kubernetes', and so is its
// undoing.
func (k *Kube) Promote(ctx context.Context, version string) error {
	api := k.cfg.Client.Resource(deployments).Namespace(k.cfg.Namespace)
	canary, err := api.Get(ctx, k.canary(), metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read Deployment %s: %w", k.canary(), err)
	}
	_, from, err := gatewayOf(canary)
	if err != nil {
		return fmt.Errorf("read Deployment %s: %w", k.canary(), err)
	}
	if v := versionOf(from); v != version {
		return fmt.Errorf("not promoted: Deployment %s is at version %q by now, and %q was tried", k.canary(), v, version)
	}
	changed := false
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		stable, err := api.Get(ctx, k.cfg.Deployment, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if changed, err = setVersion(stable, from["image"], version); err != nil || !changed {
			return err
		}
		_, err = api.Update(ctx, stable, metav1.UpdateOptions{FieldManager: manager})
		return err
	})
	if err != nil {
		return fmt.Errorf("change Deployment %s: %w", k.cfg.Deployment, err)
	}
	if changed {
		k.log.InfoContext(ctx, "stable_image_set", "deployment", k.cfg.Deployment, "image", from["image"], "version", version)
		k.event(ctx, reference{"apps/v1", "Deployment", k.cfg.Deployment}, "CanaryPromoted", fmt.Sprintf("runs %v from now on", from["image"]))
	}
	return nil
}

// containersAt is where a Deployment has its containers.
var containersAt = []string{"spec", "template", "spec", "containers"}

// gatewayOf returns a copy of a Deployment's containers and, in it, the gateway's.
func gatewayOf(d *unstructured.Unstructured) (all []any, gateway map[string]any, err error) {
	all, _, err = unstructured.NestedSlice(d.Object, containersAt...)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range all {
		if c, ok := c.(map[string]any); ok && c["name"] == container {
			return all, c, nil
		}
	}
	return nil, nil, errors.New("it has no container " + container)
}

// versionEnv is the entry of VERSION in a container's environment; nil: none.
func versionEnv(container map[string]any) map[string]any {
	env, _ := container["env"].([]any)
	for _, e := range env {
		if e, ok := e.(map[string]any); ok && e["name"] == "VERSION" {
			return e
		}
	}
	return nil
}

func versionOf(container map[string]any) string {
	v, _ := versionEnv(container)["value"].(string)
	return v
}

// setVersion changes the gateway of a Deployment and tells whether it had to.
func setVersion(d *unstructured.Unstructured, image any, version string) (changed bool, err error) {
	all, gateway, err := gatewayOf(d)
	if err != nil {
		return false, err
	}
	if gateway["image"] == image && versionOf(gateway) == version {
		return false, nil
	}
	gateway["image"] = image
	if e := versionEnv(gateway); e != nil {
		e["value"] = version
	} else {
		env, _ := gateway["env"].([]any)
		gateway["env"] = append(env, map[string]any{"name": "VERSION", "value": version})
	}
	return true, unstructured.SetNestedSlice(d.Object, all, containersAt...)
}
