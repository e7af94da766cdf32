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
	"strconv"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/internal/telemetry"
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

	Client    kubernetes.Interface
	Dynamic   dynamic.Interface
	Inventory Inventory
	Drains    Drains
	Telemetry *telemetry.Telemetry
}

// InCluster fills in the clients of the pod that this process runs in.
func (c *Config) InCluster() error {
	r, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	r.UserAgent = manager
	client, err := kubernetes.NewForConfig(r)
	if err != nil {
		return err
	}
	c.Client = client
	c.Dynamic, err = dynamic.NewForConfig(r)
	return err
}

// Kube is safe for concurrent use.
type Kube struct {
	cfg     Config
	log     *slog.Logger
	factory informers.SharedInformerFactory
	nodes   informers.SharedInformerFactory
	pods    corelisters.PodLister
	sets    appslisters.ReplicaSetLister
	node    corelisters.NodeLister
	synced  []cache.InformerSynced
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
	k.factory = informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, informers.WithNamespace(cfg.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = cfg.Selector }), informers.WithTransform(slim))
	pods, sets := k.factory.Core().V1().Pods(), k.factory.Apps().V1().ReplicaSets()
	k.nodes = informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, informers.WithTransform(slim))
	nodes := k.nodes.Core().V1().Nodes()
	k.pods, k.sets, k.node = pods.Lister(), sets.Lister(), nodes.Lister()
	k.synced = []cache.InformerSynced{pods.Informer().HasSynced, sets.Informer().HasSynced, nodes.Informer().HasSynced}
	return k, nil
}

// slim drops what nobody here reads: a cluster may have thousands of nodes.
func slim(o any) (any, error) {
	switch o := o.(type) {
	case *corev1.Pod:
		o.ManagedFields, o.Spec = nil, corev1.PodSpec{NodeName: o.Spec.NodeName}
	case *appsv1.ReplicaSet:
		o.ManagedFields, o.Spec = nil, appsv1.ReplicaSetSpec{}
	case *corev1.Node:
		o.ManagedFields, o.Status, o.Annotations = nil, corev1.NodeStatus{}, nil
	}
	return o, nil
}

// Run watches until ctx ends.
func (k *Kube) Run(ctx context.Context) {
	k.factory.Start(ctx.Done())
	k.nodes.Start(ctx.Done())
	<-ctx.Done()
	k.factory.Shutdown()
	k.nodes.Shutdown()
}

func (k *Kube) ready() bool {
	for _, s := range k.synced {
		if !s() {
			return false
		}
	}
	return true
}

// NodeOf returns the Kubernetes node that a gateway runs on; empty: not known.
func (k *Kube) NodeOf(gateway string) string {
	p, err := k.pods.Pods(k.cfg.Namespace).Get(gateway)
	if err != nil {
		return ""
	}
	return p.Spec.NodeName
}

// view is what is known now.
func (k *Kube) view(gateways map[string]fleet.Node, at time.Time) (View, error) {
	v := View{At: at, Newest: map[string]string{}, Cordoned: map[string]bool{}}
	nodes, err := k.node.List(labels.Everything())
	if err != nil {
		return v, err
	}
	for _, n := range nodes {
		if n.Spec.Unschedulable {
			v.Cordoned[n.Name] = true
		}
	}
	sets, err := k.sets.List(labels.Everything())
	if err != nil {
		return v, err
	}
	newest := map[string]int{}
	for _, s := range sets {
		track := s.Labels[trackLabel]
		if n, err := strconv.Atoi(s.Annotations[revision]); err == nil && n > newest[track] {
			newest[track], v.Newest[track] = n, s.Labels[hashLabel]
		}
	}
	pods, err := k.pods.List(labels.Everything())
	if err != nil {
		return v, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	here := map[string]bool{}
	for _, p := range pods {
		here[p.Name] = true
		v.Pods = append(v.Pods, k.seen(p, gateways))
	}
	for name := range k.written {
		if !here[name] {
			delete(k.written, name)
		}
	}
	for name := range k.refused {
		if !here[name] {
			delete(k.refused, name)
		}
	}
	return v, nil
}
