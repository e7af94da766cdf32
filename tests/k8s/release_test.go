package k8s

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/mics-im/mics/tests/k8s/verify"
)

const (
	namespace = "mics-test"
	users     = 20 // of each version
	gateways  = "app.kubernetes.io/component=gateway,mics.io/track=stable"
	canaries  = "app.kubernetes.io/component=gateway,mics.io/track=canary"
	routers   = "app.kubernetes.io/component=router"
	planes    = "app.kubernetes.io/component=controlplane"
	chartDir  = root + "/charts/mics"
)

// values are small, so that all of it and a surge fit one node.
const values = `
drainTimeout: 20
image: {repository: mics, tag: v1, pullPolicy: Never}
tenants:
  verify: {auth_url: "http://verify:8090/hooks", secret: verify-secret}
gateway:
  clientURL: ws://$(POD_IP):8080/ws
  resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {memory: 256Mi}}
router:
  resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {memory: 512Mi}}
controlplane:
  resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {memory: 256Mi}}
redis:
  embedded:
    image: %s
    resources: {requests: {cpu: 20m, memory: 32Mi}, limits: {memory: 128Mi}}
httpRoute: {enabled: true, parentRefs: [{name: public}], hostnames: [im.example.com]}
`

// verifier is mics-verify as a pod, with micsctl beside it.
const verifier = `
apiVersion: v1
kind: Pod
metadata: {name: verify, labels: {app: verify, app.kubernetes.io/name: mics, app.kubernetes.io/instance: mics, app.kubernetes.io/component: test}}
spec:
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
    - name: verify
      image: mics-verify:test
      imagePullPolicy: Never
      ports: [{containerPort: 8090}]
      env:
        - {name: MICS_ENDPOINT, value: "http://mics-controlplane:8070"}
        - {name: MICS_TOKEN_FILE, value: /etc/mics/operator-token}
      readinessProbe: {httpGet: {path: /healthz, port: 8090}, periodSeconds: 1}
      resources: {requests: {cpu: 20m, memory: 64Mi}}
      volumeMounts: [{name: token, mountPath: /etc/mics}]
  volumes: [{name: token, secret: {secretName: mics-generated, items: [{key: operator-token, path: operator-token}], optional: true}}]
---
apiVersion: v1
kind: Service
metadata: {name: verify}
spec:
  selector: {app: verify}
  ports: [{port: 8090}]
`

// images builds the programs and brings the images to the cluster; it returns
// the name of Redis'.
func images(t *testing.T, k *kube) string {
	t.Helper()
	dir := t.TempDir()
	fs, archive := filepath.Join(dir, "mics"), filepath.Join(dir, "image.tar")
	k.command(t, 20*time.Minute, nil, "make", "-C", root, "rootfs", "ROOTFS="+fs, "VERSION=v1")
	for _, tag := range []string{"v1", "v2"} {
		k.command(t, time.Minute, nil, k.tool, "image", "mics:"+tag, archive, fs, "/mics-gateway")
		k.load(t, archive)
	}
	verify := filepath.Join(dir, "verify")
	if err := os.MkdirAll(verify, 0o755); err != nil {
		t.Fatal(err)
	}
	k.command(t, 10*time.Minute, nil, "env", "CGO_ENABLED=0", "go", "build", "-o", filepath.Join(verify, "mics-verify"), "./cmd/mics-verify")
	if err := os.Link(filepath.Join(fs, "micsctl"), filepath.Join(verify, "micsctl")); err != nil {
		t.Fatal(err)
	}
	k.command(t, time.Minute, nil, k.tool, "image", "mics-verify:test", archive, verify, "/mics-verify")
	k.load(t, archive)
	// For the control: a gateway that does not hear SIGTERM.
	if err := os.Link(filepath.Join(verify, "mics-verify"), filepath.Join(fs, "mics-verify")); err != nil {
		t.Fatal(err)
	}
	k.command(t, time.Minute, nil, k.tool, "image", "mics:deaf", archive, fs, "/mics-verify")
	k.load(t, archive)
	if image := os.Getenv("MICS_K8S_REDIS"); image != "" {
		return image
	}
	redis, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal(err)
	}
	k.command(t, time.Minute, nil, k.tool, "debimage", "mics-redis:test", archive, redis)
	k.load(t, archive)
	return "mics-redis:test"
}

// release is the installed chart and what talks through it.
type release struct {
	*kube
	values string          // file
	known  map[string]bool // addresses of gateways, of which some are gone
}

// install installs the release afresh, with users of both versions connected.
func install(t *testing.T, k *kube) *release {
	t.Helper()
	redis := images(t, k)
	if k.own {
		k.command(t, time.Minute, nil, k.tool, "crds")
	}
	if _, err := k.try(t.Context(), 2*time.Minute, nil, append(k.prefix, "kubectl", "delete", "namespace", namespace, "--ignore-not-found", "--wait")...); err != nil {
		t.Fatal(err)
	}
	k.run(t, time.Minute, nil, "kubectl", "create", "namespace", namespace)
	r := &release{kube: k, known: map[string]bool{}, values: filepath.Join(t.TempDir(), "values.yaml")}
	if err := os.WriteFile(r.values, fmt.Appendf(nil, values, redis), 0o600); err != nil {
		t.Fatal(err)
	}
	r.run(t, time.Minute, []byte(verifier), "kubectl", "--namespace", namespace, "apply", "--filename", "-")
	r.helm(t, append([]string{"install", "mics"}, r.args()...)...)
	// Its token exists now.
	r.kubectl(t, "delete", "pod", "verify", "--now")
	r.run(t, time.Minute, []byte(verifier), "kubectl", "--namespace", namespace, "apply", "--filename", "-")
	r.kubectl(t, "wait", "--for=condition=Ready", "pod/verify", "--timeout=60s")
	r.join(t)
	return r
}

func (r *release) args(more ...string) []string {
	return append([]string{chartDir, "--values", r.values, "--wait", "--timeout", "4m"}, more...)
}

func (r *release) join(t *testing.T) {
	t.Helper()
	if _, err := r.raw(t, 2*time.Minute, "services/verify:8090", "/join", verify.Spec{URL: "ws://mics-gateway/ws", V1: users, V2: users, Rate: 100}); err != nil {
		t.Fatal(err)
	}
}

// under has users talk while something is done, and returns what they saw. calm is
// how long they go on afterwards.
func (r *release) under(t *testing.T, phase string, do func(), calm time.Duration) verify.Report {
	t.Helper()
	r.forget(t)
	if _, err := r.raw(t, 10*time.Second, "services/verify:8090", "/begin", verify.Phase{Name: phase}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // talk before anything happens
	do()
	time.Sleep(calm)
	out, err := r.raw(t, 3*time.Minute, "services/verify:8090", "/end", verify.Phase{Name: phase})
	if err != nil {
		t.Fatal(err)
	}
	var report verify.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%s: %.0f s, %d messages (%d SENT, %d FAILED), %d deliveries, lost %d, repeated %d; V2: %d disconnects; V1: disconnects %v, longest gap %v; longest delivery %v",
		phase, report.Seconds, report.Messages, report.Sent, report.Failed, report.Deliveries, report.Lost, report.Repeated,
		len(report.DisconnectsV2), report.DisconnectsV1, report.LongestGapV1.Round(time.Millisecond), report.LongestDelivery.Round(time.Millisecond))
	return report
}

// unharmed: nothing is lost or repeated, everything is answered, and V2 clients
// have seen no disconnect.
func unharmed(t *testing.T, r verify.Report) {
	t.Helper()
	if r.Messages < 50 || r.Deliveries < r.Messages/2 {
		t.Errorf("%s: too little to judge: %d messages, %d deliveries", r.Phase, r.Messages, r.Deliveries)
	}
	// The tenant's hook has 150 ms, on a machine that does everything else too.
	slow := r.FailedWithReasons["group members unavailable"]
	if r.Failed > slow || slow > r.Messages/20 {
		t.Errorf("%s: FAILED: %v of %d", r.Phase, r.FailedWithReasons, r.Messages)
	}
	for _, v := range r.Others {
		t.Errorf("%s: %s", r.Phase, v)
	}
	for _, d := range r.DisconnectsV2 {
		t.Errorf("%s: V2: %s", r.Phase, d)
	}
}

// metric sums a metric over the pods.
func (r *release) metric(t *testing.T, selector, name string) float64 {
	t.Helper()
	sample := regexp.MustCompile(`(?m)^` + name + `(?:\{[^}]*\})? (\S+)$`)
	var sum float64
	for _, p := range r.pods(t, selector) {
		text, err := r.raw(t, 10*time.Second, "pods/"+p.Metadata.Name+":9080", "/metrics", nil)
		for tries := 1; err != nil; tries++ {
			there := slices.ContainsFunc(r.pods(t, selector), func(o pod) bool { return o.Metadata.Name == p.Metadata.Name })
			if !there {
				break // it was ending
			}
			if tries == 3 {
				t.Fatal(err)
			}
			text, err = r.raw(t, 10*time.Second, "pods/"+p.Metadata.Name+":9080", "/metrics", nil)
		}
		if err != nil {
			continue
		}
		found := sample.FindAllStringSubmatch(text, -1)
		if len(found) == 0 {
			t.Fatalf("%s has no %s", p.Metadata.Name, name)
		}
		for _, m := range found {
			v, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}

// micsctl runs beside the verifier.
func (r *release) micsctl(t *testing.T, args ...string) string {
	t.Helper()
	return r.kubectl(t, append([]string{"exec", "verify", "--", "/micsctl"}, args...)...)
}
