package k8s

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const root = "../.."

// kube is a cluster. Its methods fail the test unless said otherwise.
type kube struct {
	tool    string   // the one-node cluster's; empty: none
	prefix  []string // before every command that talks to the API
	own     bool     // the tool's own cluster
	started bool     // by us
}

// reach finds a cluster, or skips the test.
func reach(t *testing.T) *kube {
	t.Helper()
	if os.Getenv("MICS_K8S") == "" {
		t.Skip("SKIPPED: needs a Kubernetes cluster: make test-k8s")
	}
	k := &kube{tool: os.Getenv("MICS_K8S_CLUSTER")}
	if k.tool == "" {
		k.tool, _ = filepath.Abs(filepath.Join(root, "../shared/k8s/cluster"))
	}
	if _, err := os.Stat(k.tool); err != nil {
		t.Skipf("SKIPPED, NOTHING WAS TESTED: no %s, which makes images and clusters: see tests/k8s/doc.go", k.tool)
	}
	if os.Getenv("KUBECONFIG") != "" {
		return k
	}
	k.own, k.prefix = true, []string{k.tool, "run"}
	if err := exec.CommandContext(t.Context(), k.tool, "status").Run(); err == nil {
		return k
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED, NOTHING WAS TESTED: the one-node cluster needs root, and KUBECONFIG names no other")
	}
	k.command(t, 40*time.Minute, nil, k.tool, "install")
	// A part of Kubernetes that is there before the API server answers gives up.
	if _, err := k.try(t.Context(), 3*time.Minute, nil, k.tool, "up"); err != nil {
		t.Log(err)
		k.command(t, 3*time.Minute, nil, k.tool, "up")
	}
	k.started = true
	return k
}

// leave stops the cluster if reach started it, unless MICS_K8S_KEEP is set.
func (k *kube) leave(t *testing.T) {
	if k.started && os.Getenv("MICS_K8S_KEEP") == "" {
		k.command(t, time.Minute, nil, k.tool, "down")
	}
}

// try runs a command and returns what it printed, also when it fails.
func (k *kube) try(ctx context.Context, within time.Duration, stdin []byte, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = bytes.NewReader(stdin)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(problems.String()))
	}
	return out.String(), nil
}

func (k *kube) command(t *testing.T, within time.Duration, stdin []byte, args ...string) string {
	t.Helper()
	out, err := k.try(t.Context(), within, stdin, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// run is command, in reach of the API.
func (k *kube) run(t *testing.T, within time.Duration, stdin []byte, args ...string) string {
	t.Helper()
	return k.command(t, within, stdin, append(k.prefix, args...)...)
}

// kubectl runs in the test's namespace.
func (k *kube) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return k.run(t, time.Minute, nil, append([]string{"kubectl", "--namespace", namespace}, args...)...)
}

func (k *kube) helm(t *testing.T, args ...string) string {
	t.Helper()
	return k.run(t, 6*time.Minute, nil, append([]string{"helm", "--namespace", namespace}, args...)...)
}

// load brings an image archive to the nodes.
func (k *kube) load(t *testing.T, archive string) {
	t.Helper()
	if k.own {
		k.command(t, time.Minute, nil, k.tool, "load", archive)
		return
	}
	load := strings.Fields(os.Getenv("MICS_K8S_LOAD"))
	if len(load) == 0 {
		t.Fatal("KUBECONFIG names a cluster: MICS_K8S_LOAD must say how images get there, e.g. kind load image-archive")
	}
	k.command(t, 5*time.Minute, nil, append(load, archive)...)
}

// pod is what a test wants to know of one.
type pod struct {
	Metadata struct {
		Name, DeletionTimestamp string
		Labels, Annotations     map[string]string
	}
	Spec   struct{ NodeName string }
	Status struct {
		Phase, PodIP      string
		ContainerStatuses []struct {
			Ready        bool
			RestartCount int
		}
	}
}

func (p pod) ready() bool {
	return p.Metadata.DeletionTimestamp == "" && len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].Ready
}

func (k *kube) pods(t *testing.T, selector string) []pod {
	t.Helper()
	var list struct{ Items []pod }
	if err := json.Unmarshal([]byte(k.kubectl(t, "get", "pods", "--selector", selector, "--output", "json")), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// settled waits until there are exactly n pods, all ready.
func (k *kube) settled(t *testing.T, selector string, n int) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for {
		pods := k.pods(t, selector)
		ready := 0
		for _, p := range pods {
			if p.ready() {
				ready++
			}
		}
		if len(pods) == n && ready == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d of %d pods are ready, want %d\n%s", selector, ready, len(pods), n, k.kubectl(t, "get", "pods", "--output", "wide"))
		}
		time.Sleep(time.Second) // polling a real system
	}
}

// raw is a request to a pod or Service through the API server; with a body, a POST.
func (k *kube) raw(t *testing.T, within time.Duration, target, path string, body any) (string, error) {
	t.Helper()
	url := fmt.Sprintf("/api/v1/namespaces/%s/%s/proxy%s", namespace, target, path)
	if body == nil {
		return k.try(t.Context(), within, nil, append(k.prefix, "kubectl", "get", "--raw", url)...)
	}
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return k.try(t.Context(), within, text, append(k.prefix, "kubectl", "create", "--raw", url, "--filename", "-")...)
}

// forget makes the kernel forget connections to gateways that are gone: what a
// rollout that went wrong leaves there would be held against the next one. All of
// them cannot be flushed, because those of clients that stay are among them. Only a
// cluster of our own can be asked.
func (r *release) forget(t *testing.T) {
	t.Helper()
	if !r.own {
		return
	}
	here := map[string]bool{}
	for _, p := range r.pods(t, "app.kubernetes.io/component=gateway") {
		here[p.Status.PodIP] = true
	}
	for ip := range r.known {
		if !here[ip] {
			// It fails when there is nothing to forget.
			_, _ = r.try(t.Context(), 10*time.Second, nil, append(r.prefix, "conntrack", "-D", "--reply-src", ip)...)
			delete(r.known, ip)
		}
	}
	for ip := range here {
		r.known[ip] = true
	}
}
