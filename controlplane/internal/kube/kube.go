// Package kube is what the control plane knows of Kubernetes and does there: it tells
// it which pod to end first, keeps new connections from pods that go next, drains the
// gateways of a cordoned node, and is the canary's actuator. Nothing else depends on
// it: without a cluster, or with the API away, all goes on as without it.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/internal/telemetry"
)

// All objects are read and written as they come: a few fields of them do not earn the
// typed clients, which would take longer to build than the rest of the control plane.
var (
	pods        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	nodes       = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	events      = schema.GroupVersionResource{Version: "v1", Resource: "events"}
	replicaSets = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}
	deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	routes      = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "httproutes"}
)

const (
	// manager names this program's changes to objects.
	manager = "mics-controlplane"
	// revision orders the ReplicaSets of a Deployment.
	revision = "deployment.kubernetes.io/revision"
	// callTimeout bounds a change of one object.
	callTimeout = 5 * time.Second
)

// Inventory is where the gateways are known.
type Inventory interface {
	// Next waits for a snapshot newer than after and returns the newest.
	Next(ctx context.Context, after uint64) (*fleet.Snapshot, error)
}

// Drains empties gateways.
type Drains interface {
	// Drain begins to drain a gateway, if that is not under way already.
	Drain(ctx context.Context, node, reason string) error
	// Undrain has it serve again.
	Undrain(ctx context.Context, node string) error
}

// Config is what a Kube needs.
type Config struct {
	// Namespace and Selector find the gateways' pods.
	Namespace, Selector string
	// Deployment is the stable one's name; its twin ends in -canary, and Services
	// have the same names. Route is the HTTPRoute's; empty: there is none.
	Deployment, Route string

	Client    dynamic.Interface
	Inventory Inventory
	Drains    Drains
	Telemetry *telemetry.Telemetry
}

// InCluster fills in the client of the pod that this process runs in.
func (c *Config) InCluster() error {
	r, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	r.UserAgent = manager
	c.Client, err = dynamic.NewForConfig(r)
	return err
}

// Kube is safe for concurrent use.
type Kube struct {
	cfg     Config
	log     *slog.Logger
	pods    cache.SharedIndexInformer
	sets    cache.SharedIndexInformer
	nodes   cache.SharedIndexInformer
	actions *telemetry.CounterVec
	failed  *telemetry.CounterVec

	mu      sync.Mutex
	written map[string]time.Time // by pod; of its cost; guarded by mu
	refused map[string]time.Time // by pod; of its drain; guarded by mu
}

// New returns a Kube; Run makes it know.
func New(cfg Config) (*Kube, error) {
	if cfg.Namespace == "" || cfg.Deployment == "" {
		return nil, errors.New("namespace and Deployment are required")
	}
	if _, err := labels.Parse(cfg.Selector); err != nil {
		return nil, fmt.Errorf("selector: %w", err)
	}
	k := &Kube{
		cfg: cfg, log: cfg.Telemetry.Log, written: map[string]time.Time{}, refused: map[string]time.Time{},
		actions: cfg.Telemetry.CounterVec("mics_controlplane_kube_actions_total", "Changes made in Kubernetes.", "verb"),
		failed:  cfg.Telemetry.CounterVec("mics_controlplane_kube_failed_total", "Changes that Kubernetes refused.", "verb"),
	}
	for _, v := range []Verb{Accept, Cost, Drain, Undrain} {
		k.actions.With(string(v))
		k.failed.With(string(v))
	}
	var err error
	for _, i := range []struct {
		to   *cache.SharedIndexInformer
		of   dynamic.ResourceInterface
		only string
	}{
		{&k.pods, cfg.Client.Resource(pods).Namespace(cfg.Namespace), cfg.Selector},
		{&k.sets, cfg.Client.Resource(replicaSets).Namespace(cfg.Namespace), cfg.Selector},
		{&k.nodes, cfg.Client.Resource(nodes), ""},
	} {
		if *i.to, err = informer(cfg.Client, i.of, i.only); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// informer follows the objects of a resource that a selector names.
func informer(client dynamic.Interface, of dynamic.ResourceInterface, selector string) (cache.SharedIndexInformer, error) {
	i := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = selector
			return of.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = selector
			return of.Watch(ctx, o)
		},
	}, client), &unstructured.Unstructured{}, 0, cache.Indexers{})
	return i, i.SetTransform(slim)
}

// slim drops what nobody here reads: a cluster may have thousands of nodes.
func slim(o any) (any, error) {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return o, nil
	}
	metadata, _ := u.Object["metadata"].(map[string]any)
	spec, status := map[string]any{}, map[string]any{}
	for _, field := range []string{"nodeName", "unschedulable"} {
		if v, found, _ := unstructured.NestedFieldNoCopy(u.Object, "spec", field); found {
			spec[field] = v
		}
	}
	if v, found, _ := unstructured.NestedFieldNoCopy(u.Object, "status", "conditions"); found && u.GetKind() == "Pod" {
		status["conditions"] = v
	}
	out := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": u.GetAPIVersion(), "kind": u.GetKind(), "metadata": maps.Clone(metadata), "spec": spec, "status": status,
	}}
	out.SetManagedFields(nil)
	return out, nil
}

// Run watches until ctx ends.
func (k *Kube) Run(ctx context.Context) {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(k.log.Handler()))
	var wg sync.WaitGroup
	for _, i := range k.informers() {
		wg.Go(func() { i.RunWithContext(ctx) })
	}
	wg.Wait()
}

func (k *Kube) informers() []cache.SharedIndexInformer {
	return []cache.SharedIndexInformer{k.pods, k.sets, k.nodes}
}

func (k *Kube) ready() bool {
	for _, i := range k.informers() {
		if !i.HasSynced() {
			return false
		}
	}
	return true
}

// objects are those that an informer knows. They are shared: not to be changed.
func objects(i cache.SharedIndexInformer) []*unstructured.Unstructured {
	var out []*unstructured.Unstructured
	for _, o := range i.GetStore().List() {
		if u, ok := o.(*unstructured.Unstructured); ok {
			out = append(out, u)
		}
	}
	return out
}

func placeOf(pod *unstructured.Unstructured) string {
	node, _, _ := unstructured.NestedString(pod.Object, "spec", "nodeName")
	return node
}

// NodeOf returns the Kubernetes node that a gateway runs on; empty: not known.
func (k *Kube) NodeOf(gateway string) string {
	o, found, err := k.pods.GetStore().GetByKey(k.cfg.Namespace + "/" + gateway)
	u, ok := o.(*unstructured.Unstructured)
	if err != nil || !found || !ok {
		return ""
	}
	return placeOf(u)
}

// view is what is known now.
func (k *Kube) view(gateways map[string]fleet.Node, at time.Time) View {
	v := View{At: at, Newest: map[string]string{}, Cordoned: map[string]bool{}}
	for _, n := range objects(k.nodes) {
		if off, _, _ := unstructured.NestedBool(n.Object, "spec", "unschedulable"); off {
			v.Cordoned[n.GetName()] = true
		}
	}
	newest := map[string]int{}
	for _, s := range objects(k.sets) {
		track := s.GetLabels()[trackLabel]
		if n, err := strconv.Atoi(s.GetAnnotations()[revision]); err == nil && n > newest[track] {
			newest[track], v.Newest[track] = n, s.GetLabels()[hashLabel]
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	here := map[string]bool{}
	for _, p := range objects(k.pods) {
		here[p.GetName()] = true
		v.Pods = append(v.Pods, k.seen(p, gateways))
	}
	for _, known := range []map[string]time.Time{k.written, k.refused} {
		for name := range known {
			if !here[name] {
				delete(known, name)
			}
		}
	}
	return v
}
