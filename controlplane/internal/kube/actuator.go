package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"

	"github.com/mics-im/mics/controlplane/internal/canary/actuate"
)

// HTTPRoutes are read as they come: two fields of them do not earn the whole API's
// types.
var routes = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "httproutes"}

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
	api := k.cfg.Dynamic.Resource(routes).Namespace(k.cfg.Namespace)
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
	if !found {
		return false, fmt.Errorf("no rule has both backends %s and %s: canary.enabled of the chart", stable, canary)
	}
	return changed, unstructured.SetNestedSlice(route.Object, rules, "spec", "rules")
}

// Promote implements actuate.Promoter: the stable Deployment gets the image and the
// version of the canary's. The rollout that follows is Kubernetes', and so is its
// undoing.
func (k *Kube) Promote(ctx context.Context, version string) error {
	api := k.cfg.Client.AppsV1().Deployments(k.cfg.Namespace)
	canary, err := api.Get(ctx, k.canary(), metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read Deployment %s: %w", k.canary(), err)
	}
	stable, err := api.Get(ctx, k.cfg.Deployment, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read Deployment %s: %w", k.cfg.Deployment, err)
	}
	from, err := gatewayOf(canary.Spec.Template.Spec.Containers)
	if err != nil {
		return fmt.Errorf("Deployment %s: %w", k.canary(), err)
	}
	to, err := gatewayOf(stable.Spec.Template.Spec.Containers)
	if err != nil {
		return fmt.Errorf("Deployment %s: %w", k.cfg.Deployment, err)
	}
	if v := versionOf(from); v != version {
		return fmt.Errorf("Deployment %s is at version %q by now, and %q was tried: not promoted", k.canary(), v, version)
	}
	if to.Image == from.Image && versionOf(to) == version {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{
		"containers": []any{map[string]any{
			"name": container, "image": from.Image, "env": []any{map[string]any{"name": "VERSION", "value": version}},
		}},
	}}}})
	if err != nil {
		return err
	}
	if _, err := api.Patch(ctx, k.cfg.Deployment, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: manager}); err != nil {
		return fmt.Errorf("patch Deployment %s: %w", k.cfg.Deployment, err)
	}
	k.log.InfoContext(ctx, "stable_image_set", "deployment", k.cfg.Deployment, "image", from.Image, "version", version)
	k.event(ctx, reference{"apps/v1", "Deployment", k.cfg.Deployment}, "CanaryPromoted", "runs "+from.Image+" from now on")
	return nil
}

func gatewayOf(containers []corev1.Container) (corev1.Container, error) {
	for _, c := range containers {
		if c.Name == container {
			return c, nil
		}
	}
	return corev1.Container{}, errors.New("it has no container " + container)
}

func versionOf(c corev1.Container) string {
	for _, e := range c.Env {
		if e.Name == "VERSION" {
			return e.Value
		}
	}
	return ""
}
