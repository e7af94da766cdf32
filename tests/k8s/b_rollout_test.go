package k8s

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mics-im/mics/tests/k8s/verify"
)

// TestBRelease is a release's life. The control is last: it leaves entries in the
// kernel that would be held against what follows.
func TestBRelease(t *testing.T) {
	k := reach(t)
	defer k.leave(t)
	r := install(t, k)
	t.Run("rollouts", r.rollouts)
	t.Run("canary", r.canary)
	t.Run("promotion", r.promotion)
	t.Run("node", r.node)
	t.Run("stuck", r.stuck)
	t.Run("control", r.control)
}

// rollouts: what operators do to a release, under verified traffic.
func (r *release) rollouts(t *testing.T) {
	rolled := func(n int) func() {
		return func() { r.settled(t, gateways, n) }
	}
	all := func() { // an image for all three
		r.settled(t, gateways, 3)
		r.settled(t, routers, 2)
		r.settled(t, planes, 2)
	}
	t.Run("helm test", func(t *testing.T) { t.Log(r.helm(t, "test", "mics", "--logs")) })
	for _, s := range []struct {
		name string
		do   func()
		gone int // gateways that end
		wait func()
	}{
		{"restart", func() { r.kubectl(t, "rollout", "restart", "deployment/mics-gateway") }, 3, rolled(3)},
		{"upgrade", func() { r.helm(t, append([]string{"upgrade", "mics"}, r.args("--set", "image.tag=v2")...)...) }, 3, all},
		{"undo", func() { r.kubectl(t, "rollout", "undo", "deployment/mics-gateway") }, 3, rolled(3)},
		{"evict", func() { r.evict(t, r.pods(t, gateways)[0].Metadata.Name) }, 1, rolled(3)},
		{"scale to 2", func() { r.kubectl(t, "scale", "deployment/mics-gateway", "--replicas=2") }, 1, rolled(2)},
		{"scale to 4", func() { r.kubectl(t, "scale", "deployment/mics-gateway", "--replicas=4") }, 0, rolled(4)},
		{"rollback", func() { r.helm(t, "rollback", "mics", "1", "--wait", "--timeout", "4m") }, -1, all},
		{"routers", func() { r.kubectl(t, "rollout", "restart", "deployment/mics-router") }, 0, func() { r.settled(t, routers, 2) }},
		{"control planes", func() { r.kubectl(t, "rollout", "restart", "deployment/mics-controlplane") }, 0, func() { r.settled(t, planes, 2) }},
		{"Redis", func() {
			r.kubectl(t, "delete", "pod", "--selector", "app.kubernetes.io/component=redis", "--wait=false")
		}, 0, func() {
			r.settled(t, "app.kubernetes.io/component=redis", 1)
		}},
	} {
		if s.name == "Redis" { // where receipts are kept, for a trial's Redis keeps nothing
			t.Run("receipts", r.receipts)
		}
		t.Run(s.name, func(t *testing.T) {
			failed := func() float64 { return r.metric(t, routers, "mics_grpc_forward_failed_total") }
			before := failed()
			logs := r.follow(t, r.pods(t, gateways))
			report := r.under(t, strings.ReplaceAll(s.name, " ", "-"), func() { s.do(); s.wait() }, 3*time.Second)
			unharmed(t, report)
			toldOnce(t, report)
			drains := logs.drains(t)
			for _, d := range drains {
				t.Log(d)
			}
			if s.gone >= 0 && len(drains) != s.gone {
				t.Errorf("%d gateways drained, want %d", len(drains), s.gone)
			}
			if s.name == "routers" || s.name == "rollback" { // their counters began anew
				return
			}
			if after := failed(); after != before {
				t.Errorf("mics_grpc_forward_failed_total rose by %v", after-before)
			}
		})
	}
}

// toldOnce: a V1 client is told once in a rollout, not once by each gateway in turn:
// those that go next accept nobody. A few may reconnect before that is so.
func toldOnce(t *testing.T, r verify.Report) {
	t.Helper()
	if told := r.DisconnectsV1[4200]; told > users+users/4 {
		t.Errorf("%s: %d V1 clients were told 4200 %d times", r.Phase, users, told)
	}
}

// receipts prints what the control plane has to say of the drains.
func (r *release) receipts(t *testing.T) {
	out := r.micsctl(t, "drains")
	t.Logf("\n%s", out)
	if !strings.Contains(out, "done") {
		t.Error("no drain was done by the control plane: gateways did not ask for their turn")
	}
}

// evict does what `kubectl drain` does to one pod.
func (r *release) evict(t *testing.T, name string) {
	t.Helper()
	body := fmt.Sprintf(`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":%q,"namespace":%q}}`, name, namespace)
	url := fmt.Sprintf("/api/v1/namespaces/%s/pods/%s/eviction", namespace, name)
	r.run(t, time.Minute, []byte(body), "kubectl", "create", "--raw", url, "--filename", "-")
}

// logs are those of gateways until they end, or are asked for.
type logs struct {
	stop func()
	wg   sync.WaitGroup
	mu   sync.Mutex
	text []string // guarded by mu
}

// follow reads the pods' logs from now on.
func (r *release) follow(t *testing.T, pods []pod) *logs {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &logs{stop: cancel}
	for _, p := range pods {
		l.wg.Go(func() {
			out, _ := r.try(ctx, 10*time.Minute, nil, append(r.prefix, "kubectl", "--namespace", namespace, "logs", "--follow", "--tail=0", p.Metadata.Name)...)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.text = append(l.text, out)
		})
	}
	return l
}

// drains returns the drains that ended, with their sums.
func (l *logs) drains(t *testing.T) []string {
	t.Helper()
	time.Sleep(time.Second) // the last lines of the last pod
	l.stop()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for line := range strings.Lines(strings.Join(l.text, "\n")) {
		var e struct{ Msg string }
		if json.Unmarshal([]byte(line), &e) == nil && e.Msg == "shutdown_drain_done" {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}
