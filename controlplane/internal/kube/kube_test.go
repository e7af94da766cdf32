package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"

	"github.com/mics-im/mics/controlplane/internal/canary/actuate"
	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// client-go's watches end by themselves, a moment after they were told to.
func TestMain(m *testing.M) { testkit.MainWithin(m, 10*time.Second) }

const ns = "ns"

func deployment(name, image, version string) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns},
		Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Name: "sidecar", Image: "other:1"},
			{Name: "gateway", Image: image, Env: []corev1.EnvVar{{Name: "TRACK", Value: "x"}, {Name: "VERSION", Value: version}}},
		}}}},
	}
}

func route(t *testing.T) *unstructured.Unstructured {
	t.Helper()
	ref := func(name string, weight any) map[string]any {
		r := map[string]any{"name": name, "port": int64(80)}
		if weight != nil {
			r["weight"] = weight
		}
		return r
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
		"metadata": map[string]any{"name": "gw", "namespace": ns},
		"spec": map[string]any{"rules": []any{
			map[string]any{"backendRefs": []any{ref("gw-canary", nil)}},
			map[string]any{"backendRefs": []any{ref("gw", nil)}},
			map[string]any{"backendRefs": []any{ref("gw", int64(100)), ref("gw-canary", int64(0)), ref("mirror", int64(7))}},
		}},
	}}
}

// world is an API and a control plane for a Kube.
type world struct {
	*Kube
	dyn *dynamicfake.FakeDynamicClient

	mu     sync.Mutex
	seq    uint64
	nodes  []fleet.Node
	asked  []string
	refuse bool
}

func (w *world) Next(ctx context.Context, _ uint64) (*fleet.Snapshot, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(5 * time.Millisecond):
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seq++
	return &fleet.Snapshot{Seq: w.seq, Nodes: w.nodes}, nil
}

func (w *world) Drain(_ context.Context, node, why string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, "drain "+node+": "+why)
	if w.refuse {
		return errors.New("no room")
	}
	return nil
}

func (w *world) Undrain(_ context.Context, node string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, "undrain "+node)
	return nil
}

func newWorld(t *testing.T, objects ...runtime.Object) *world {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
	w := &world{}
	kinds := map[schema.GroupVersionResource]string{
		routes: "HTTPRouteList", pods: "PodList", nodes: "NodeList", events: "EventList", replicaSets: "ReplicaSetList", deployments: "DeploymentList",
	}
	raw := []runtime.Object{route(t)}
	for _, o := range objects {
		raw = append(raw, plain(t, o))
	}
	w.dyn = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds, raw...)
	w.Kube, err = New(Config{
		Namespace: ns, Selector: "app=gw", Deployment: "gw", Route: "gw", Client: w.dyn, Inventory: w, Drains: w, Telemetry: tel,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// plain is an object as the API sends it.
func plain(t *testing.T, o runtime.Object) *unstructured.Unstructured {
	t.Helper()
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: m}
	switch o.(type) {
	case *corev1.Pod:
		u.SetGroupVersionKind(schema.GroupVersionKind{Version: "v1", Kind: "Pod"})
	case *corev1.Node:
		u.SetGroupVersionKind(schema.GroupVersionKind{Version: "v1", Kind: "Node"})
	case *appsv1.ReplicaSet:
		u.SetGroupVersionKind(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "ReplicaSet"})
	case *appsv1.Deployment:
		u.SetGroupVersionKind(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"})
	default:
		t.Fatalf("no kind for %T", o)
	}
	return u
}

// get reads an object back.
func get[T any](t *testing.T, w *world, of schema.GroupVersionResource, name string) T {
	t.Helper()
	var out T
	u, err := w.dyn.Resource(of).Namespace(ns).Get(t.Context(), name, metav1.GetOptions{})
	if err == nil {
		err = runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &out)
	}
	if err != nil {
		t.Error(err)
	}
	return out
}

// weights are those of the route, rule by rule.
func (w *world) weights(t *testing.T) string {
	t.Helper()
	o, err := w.dyn.Resource(routes).Namespace(ns).Get(t.Context(), "gw", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rules, _, _ := unstructured.NestedSlice(o.Object, "spec", "rules")
	var out []string
	for _, r := range rules {
		for _, b := range r.(map[string]any)["backendRefs"].([]any) {
			b := b.(map[string]any)
			out = append(out, fmt.Sprint(b["name"], "=", b["weight"]))
		}
	}
	return strings.Join(out, " ")
}

func TestApply(t *testing.T) {
	w := newWorld(t)
	for canary, want := range map[uint32]string{
		0:     "gw=100 gw-canary=0",
		500:   "gw=95 gw-canary=5",
		10000: "gw=0 gw-canary=100",
		1234:  "gw=8766 gw-canary=1234",
	} {
		for range 2 { // again and again
			if err := w.Apply(t.Context(), actuate.Of(canary)); err != nil {
				t.Fatal(err)
			}
		}
		if got := w.weights(t); got != "gw-canary=<nil> gw=<nil> "+want+" mirror=7" {
			t.Errorf("%d: %s", canary, got)
		}
	}
	updates := 0
	for _, a := range w.dyn.Actions() {
		if a.GetVerb() == "update" {
			updates++
		}
	}
	if updates > 4 {
		t.Errorf("%d updates: what is so already was written again", updates)
	}
}

func TestApplyWithoutBackends(t *testing.T) {
	w := newWorld(t)
	w.cfg.Deployment = "other"
	if err := w.Apply(t.Context(), actuate.Of(500)); err == nil || !strings.Contains(err.Error(), "no rule has both backends other and other-canary") {
		t.Error(err)
	}
	if err := w.Apply(t.Context(), actuate.Of(0)); err != nil {
		t.Errorf("all are to reach stable, and do: %v", err)
	}
	w.cfg.Route = "gone"
	if err := w.Apply(t.Context(), actuate.Of(500)); err == nil || !strings.Contains(err.Error(), "there is none") {
		t.Error(err)
	}
	w.cfg.Route = ""
	if err := w.Apply(t.Context(), actuate.Of(500)); err != nil || w.Name() != "none" {
		t.Error(err, w.Name())
	}
}

func TestPromote(t *testing.T) {
	w := newWorld(t, deployment("gw", "mics:v1", "v1"), deployment("gw-canary", "mics@sha256:abc", "v2"))
	if err := w.Promote(t.Context(), "v3"); err == nil || !strings.Contains(err.Error(), `at version "v2"`) {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Promote(t.Context(), "v2"); err != nil {
			t.Fatal(err)
		}
	}
	d := get[appsv1.Deployment](t, w, deployments, "gw")
	c := d.Spec.Template.Spec.Containers
	if c[0].Image != "other:1" || c[1].Image != "mics@sha256:abc" || c[1].Env[1].Value != "v2" || len(c[1].Env) != 2 {
		t.Errorf("%+v", c)
	}
	updates := 0
	for _, a := range w.dyn.Actions() {
		if a.GetVerb() == "update" {
			updates++
		}
	}
	if updates != 1 {
		t.Errorf("%d updates: what is so already was written again", updates)
	}
}

func gatewayPod(name, node, hash string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, Labels: map[string]string{"app": "gw", trackLabel: "stable", hashLabel: hash, acceptLabel: "true"}},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

func replicaSet(hash, rev string) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{
		Name: "gw-" + hash, Namespace: ns, Labels: map[string]string{"app": "gw", trackLabel: "stable", hashLabel: hash}, Annotations: map[string]string{revision: rev},
	}}
}

// TestDuty: what the watches see becomes labels, costs, events and drains, and is
// undone when its reason has gone.
func TestDuty(t *testing.T) {
	w := newWorld(t, gatewayPod("gw-a", "n1", "1"), gatewayPod("gw-b", "n2", "2"), replicaSet("1", "9"), replicaSet("2", "10"),
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}})
	w.nodes = []fleet.Node{
		{Kind: fleet.Gateway, ID: "gw-a", Phase: gatewayv1.Phase_PHASE_SERVING, Sessions: 41},
		{Kind: fleet.Gateway, ID: "gw-b", Phase: gatewayv1.Phase_PHASE_SERVING, Sessions: 7},
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(ctx) })
	wg.Go(func() { w.Duty(ctx, nil) })
	defer wg.Wait()
	defer cancel()

	pod := func(name string) corev1.Pod { return get[corev1.Pod](t, w, pods, name) }
	accepts := func(name string) string { return pod(name).Labels[acceptLabel] }
	testkit.Eventually(t, "the old one accepts no more and both have a cost", func() bool {
		return accepts("gw-a") == "false" && accepts("gw-b") == "true" && pod("gw-a").Annotations[costAnnotation] == "41" && pod("gw-b").Annotations[costAnnotation] == "7"
	})
	if n := w.NodeOf("gw-a"); n != "n1" {
		t.Errorf("gw-a is on %q", n)
	}
	list, err := w.dyn.Resource(events).Namespace(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) == 0 {
		t.Fatal("no events", err)
	}
	if reason, _, _ := unstructured.NestedString(list.Items[0].Object, "reason"); reason != "NoAccept" {
		t.Errorf("event %v", list.Items[0].Object)
	}

	// The rollout is over, and n2 is cordoned.
	cordon := func(on bool) {
		n := plain(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}, Spec: corev1.NodeSpec{Unschedulable: on}})
		if _, err := w.dyn.Resource(nodes).Update(t.Context(), n, metav1.UpdateOptions{}); err != nil {
			t.Error(err)
		}
	}
	if err := w.dyn.Resource(replicaSets).Namespace(ns).Delete(t.Context(), "gw-2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	cordon(true)
	testkit.Eventually(t, "gw-b is drained, once, and gw-a accepts", func() bool {
		return pod("gw-b").Annotations[cordonAnnotation] == "true" && accepts("gw-b") == "false" && accepts("gw-a") == "true"
	})
	cordon(false)
	testkit.Eventually(t, "gw-b serves again", func() bool {
		_, ours := pod("gw-b").Annotations[cordonAnnotation]
		w.mu.Lock()
		defer w.mu.Unlock()
		return !ours && len(w.asked) == 2
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := strings.Join(w.asked, "; "); got != "drain gw-b: node n2 is cordoned; undrain gw-b" {
		t.Error(got)
	}
}

// TestRefusedDrainIsNotAskedForAgainAtOnce: the control plane's log is for people.
func TestRefusedDrainIsNotAskedForAgainAtOnce(t *testing.T) {
	w := newWorld(t)
	w.refuse = true
	for range 5 {
		w.act(t.Context(), Action{Verb: Drain, Pod: "gw-a", Why: "test"})
	}
	if len(w.asked) != 1 {
		t.Errorf("asked %d times", len(w.asked))
	}
	// And the event is written once, however often it is asked for.
	w.refused["gw-a"] = time.Now().Add(-drainAgain)
	w.act(t.Context(), Action{Verb: Drain, Pod: "gw-a", Why: "test"})
	list, err := w.dyn.Resource(events).Namespace(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(w.asked) != 2 || len(list.Items) != 1 {
		t.Fatalf("asked %d times, %d events, %v", len(w.asked), len(list.Items), err)
	}
	if e := list.Items[0].Object; e["reason"] != "DrainRefused" || e["message"] != "not drained: test: no room" {
		t.Errorf("event %v", e)
	}
}
