package chart

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

// typed converts an object strictly: a field that the API does not know fails.
func typed[T any](t *testing.T, o object) T {
	t.Helper()
	var out T
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, &out, true); err != nil {
		t.Fatalf("%s/%s: %v", o.GetKind(), o.GetName(), err)
	}
	return out
}

func TestStructure(t *testing.T) {
	for name, vals := range variants(t) {
		t.Run(name, func(t *testing.T) {
			r, _ := mustRender(t, vals)
			pods := podsOf(t, r)
			typesAreKnown(t, r)
			secured(t, pods)
			referred(t, r, pods)
			protected(t, r, pods)
			served(t, r, pods)
			routed(t, r)
		})
	}
}

// podsOf returns the pod templates by owner.
func podsOf(t *testing.T, r rendered) map[string]corev1.PodTemplateSpec {
	out := map[string]corev1.PodTemplateSpec{}
	for _, o := range r.kind("Deployment") {
		d := typed[appsv1.Deployment](t, o)
		if !labels.SelectorFromSet(d.Spec.Selector.MatchLabels).Matches(labels.Set(d.Spec.Template.Labels)) {
			t.Errorf("%s does not select its own pods", d.Name)
		}
		out["Deployment/"+d.Name] = d.Spec.Template
	}
	for _, o := range r.kind("Pod") {
		p := typed[corev1.Pod](t, o)
		out["Pod/"+p.Name] = corev1.PodTemplateSpec{ObjectMeta: p.ObjectMeta, Spec: p.Spec}
	}
	return out
}

func typesAreKnown(t *testing.T, r rendered) {
	for _, o := range r.kind("HorizontalPodAutoscaler") {
		typed[autoscalingv2.HorizontalPodAutoscaler](t, o)
	}
	for _, o := range r.kind("Ingress") {
		typed[networkingv1.Ingress](t, o)
	}
	for _, kind := range []string{"Role", "ClusterRole"} {
		for _, o := range r.kind(kind) {
			for _, rule := range typed[rbacv1.ClusterRole](t, o).Rules {
				if slices.Contains(rule.Verbs, "*") || slices.Contains(rule.Resources, "*") || slices.Contains(rule.Resources, "secrets") {
					t.Errorf("%s %s: too much: %v", kind, o.GetName(), rule)
				}
			}
		}
	}
	for key, o := range r {
		if o.GetLabels()["app.kubernetes.io/instance"] != "mics" {
			t.Errorf("%s has no instance label", key)
		}
		if ns := o.GetNamespace(); ns != "" {
			t.Errorf("%s names namespace %q: helm's is meant", key, ns)
		}
	}
}

// secured: what the restricted Pod Security Standard asks for, and a little more.
func secured(t *testing.T, pods map[string]corev1.PodTemplateSpec) {
	for name, p := range pods {
		s := p.Spec.SecurityContext
		if s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("%s: security context %+v", name, s)
		}
		if mounts := p.Spec.AutomountServiceAccountToken; mounts == nil || *mounts != strings.HasSuffix(name, "-controlplane") {
			t.Errorf("%s: an API token is for the control plane only", name)
		}
		if p.Spec.EnableServiceLinks == nil || *p.Spec.EnableServiceLinks {
			t.Errorf("%s: Services would write into the environment", name)
		}
		for _, c := range p.Spec.Containers {
			s := c.SecurityContext
			if s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
				s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
				t.Errorf("%s: container security context %+v", name, s)
			}
			if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
				t.Errorf("%s: resources %+v", name, c.Resources)
			}
			if strings.HasPrefix(name, "Deployment/") && (c.ReadinessProbe == nil || c.LivenessProbe == nil || c.StartupProbe == nil) {
				t.Errorf("%s has no probes", name)
			}
			seen := map[string]bool{}
			for _, e := range c.Env {
				if seen[e.Name] {
					t.Errorf("%s: %s is set twice", name, e.Name)
				}
				seen[e.Name] = true
			}
		}
	}
}

// theirs are the Secrets of the variants that an operator brings.
var theirs = []string{"c", "k", "p", "t", "mics-redis-connection"}

// referred: what a pod refers to exists.
func referred(t *testing.T, r rendered, pods map[string]corev1.PodTemplateSpec) {
	secret := func(pod, name, key string) {
		if slices.Contains(theirs, name) {
			return
		}
		if strings.HasSuffix(name, "-internal-tls") {
			if o := r.want(t, "Certificate/mics-internal"); o.at("spec", "secretName") != name {
				t.Errorf("%s mounts %s, the certificate is in %v", pod, name, o.at("spec", "secretName"))
			}
			return
		}
		data := typed[corev1.Secret](t, r.want(t, "Secret/"+name)).StringData
		if _, found := data[key]; key != "" && !found {
			t.Errorf("%s wants key %s of %s, which has %v", pod, key, name, slices.Sorted(maps.Keys(data)))
		}
	}
	for pod, p := range pods {
		if a := p.Spec.ServiceAccountName; a != "" {
			r.want(t, "ServiceAccount/"+a)
		}
		volumes := map[string]bool{}
		for _, v := range p.Spec.Volumes {
			volumes[v.Name] = true
			if v.Secret == nil {
				continue
			}
			secret(pod, v.Secret.SecretName, "")
			for _, item := range v.Secret.Items {
				secret(pod, v.Secret.SecretName, item.Key)
			}
		}
		for _, c := range p.Spec.Containers {
			for _, m := range c.VolumeMounts {
				if !volumes[m.Name] {
					t.Errorf("%s mounts %s, which is no volume of it", pod, m.Name)
				}
			}
			for _, e := range c.Env {
				if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
					secret(pod, e.ValueFrom.SecretKeyRef.Name, e.ValueFrom.SecretKeyRef.Key)
				}
				// A file that a setting names is in a folder that is mounted.
				if strings.HasPrefix(e.Value, "/etc/") && !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return strings.HasPrefix(e.Value, m.MountPath+"/") }) {
					t.Errorf("%s: %s=%s is not mounted", pod, e.Name, e.Value)
				}
			}
		}
	}
}

// protected: every pod is under one network policy, every replicated one in one budget.
func protected(t *testing.T, r rendered, pods map[string]corev1.PodTemplateSpec) {
	matching := func(kind string, pod corev1.PodTemplateSpec) (n int) {
		for _, o := range r.kind(kind) {
			var s *metav1.LabelSelector
			if kind == "NetworkPolicy" {
				s = &[]networkingv1.NetworkPolicy{typed[networkingv1.NetworkPolicy](t, o)}[0].Spec.PodSelector
			} else {
				s = typed[policyv1.PodDisruptionBudget](t, o).Spec.Selector
			}
			if labels.SelectorFromSet(s.MatchLabels).Matches(labels.Set(pod.Labels)) {
				n++
			}
		}
		return n
	}
	for name, pod := range pods {
		if strings.HasPrefix(name, "Pod/") {
			continue
		}
		if n := matching("NetworkPolicy", pod); n != 1 {
			t.Errorf("%s is under %d network policies", name, n)
		}
		want := 1
		if strings.HasSuffix(name, "-redis") { // there is one, and it may go
			want = 0
		}
		if n := matching("PodDisruptionBudget", pod); n != want {
			t.Errorf("%s is in %d budgets, want %d", name, n, want)
		}
	}
}

// served: a Service selects pods, all of one component, which have its ports; and
// addresses in the environment are those of Services.
func served(t *testing.T, r rendered, pods map[string]corev1.PodTemplateSpec) {
	for _, o := range r.kind("Service") {
		s := typed[corev1.Service](t, o)
		components := map[string]bool{}
		for name, p := range pods {
			if !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(p.Labels)) {
				continue
			}
			components[p.Labels["app.kubernetes.io/component"]] = true
			for _, port := range s.Spec.Ports {
				if !slices.ContainsFunc(p.Spec.Containers[0].Ports, func(c corev1.ContainerPort) bool { return c.Name == port.TargetPort.String() }) {
					t.Errorf("Service %s: %s has no port %s", s.Name, name, port.TargetPort.String())
				}
			}
		}
		if len(components) != 1 {
			t.Errorf("Service %s selects the components %v", s.Name, components)
		}
	}
	for _, p := range pods {
		for _, e := range p.Spec.Containers[0].Env {
			if m := ourHost.FindStringSubmatch(e.Value); m != nil {
				r.want(t, "Service/"+m[1])
			}
		}
	}
}

// ourHost is an address in the environment that a Service of the release answers.
var ourHost = regexp.MustCompile(`^(?:dns|https?)://((?:mics|im)-[a-z-]+):`)

// routed: routes lead to Services that exist, and shares add up.
func routed(t *testing.T, r rendered) {
	for _, o := range r.kind("HTTPRoute") {
		rules, _ := o.at("spec", "rules").([]any)
		if len(rules) == 0 {
			t.Fatal("a route without rules")
		}
		for i, rule := range rules {
			var sum float64
			for _, ref := range rule.(map[string]any)["backendRefs"].([]any) {
				b := ref.(map[string]any)
				svc := typed[corev1.Service](t, r.want(t, fmt.Sprint("Service/", b["name"])))
				if fmt.Sprint(svc.Spec.Ports[0].Port) != fmt.Sprint(b["port"]) {
					t.Errorf("rule %d: port %v of %s", i, b["port"], svc.Name)
				}
				if w, weighted := b["weight"].(float64); weighted {
					sum += w
				} else {
					sum += 100
				}
			}
			if sum != 100 {
				t.Errorf("rule %d: weights add up to %v", i, sum)
			}
		}
	}
	for _, o := range r.kind("Ingress") {
		ing := typed[networkingv1.Ingress](t, o)
		for _, rule := range ing.Spec.Rules {
			for _, p := range rule.HTTP.Paths {
				r.want(t, "Service/"+p.Backend.Service.Name)
			}
		}
	}
}
