package k8s

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// canary: its weights are those of the HTTPRoute, an abort restores them, and
// Kubernetes knows of it. Nothing here splits new connections: what moves are
// sessions, by their Migrate to a gateway of the other track.
func (r *release) canary(t *testing.T) {
	r.helm(t, append([]string{"upgrade", "mics"}, r.args("--set", "canary.enabled=true,canary.tag=v2")...)...)
	r.settled(t, gateways, 3)
	r.settled(t, canaries, 1)
	r.join(t)
	report := r.under(t, "canary", func() {
		t.Log(r.micsctl(t, "canary", "start", "--steps", "20,50", "--bake", "10m"))
		r.weighs(t, 80, 20)
		t.Log(r.micsctl(t, "canary", "set-weight", "50"))
		r.weighs(t, 50, 50)
		t.Log(r.micsctl(t, "canary", "status"))
		t.Log(r.micsctl(t, "canary", "abort", "--reason", "a test"))
		r.weighs(t, 100, 0)
	}, 5*time.Second)
	unharmed(t, report)

	for _, p := range append(r.pods(t, gateways), r.pods(t, canaries)...) {
		if cost := p.Metadata.Annotations["controller.kubernetes.io/pod-deletion-cost"]; cost == "" {
			t.Errorf("%s has no deletion cost", p.Metadata.Name)
		}
	}
	events := r.kubectl(t, "get", "events", "--output", "custom-columns=REASON:.reason,ON:.involvedObject.name,TEXT:.message", "--field-selector", "source=mics-controlplane")
	t.Logf("\n%s", events)
	for _, want := range []string{"CanaryWeight", "NoAccept"} {
		if !strings.Contains(events, want) {
			t.Errorf("no event %s", want)
		}
	}
}

// weighs waits for the weights of the route's last rule.
func (r *release) weighs(t *testing.T, stable, canary int) {
	t.Helper()
	want := fmt.Sprintf("mics-gateway=%d mics-gateway-canary=%d", stable, canary)
	deadline := time.Now().Add(time.Minute)
	for {
		var route struct {
			Spec struct {
				Rules []struct {
					BackendRefs []struct {
						Name   string
						Weight int
					}
				}
			}
		}
		if err := json.Unmarshal([]byte(r.kubectl(t, "get", "httproute", "mics-gateway", "--output", "json")), &route); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, b := range route.Spec.Rules[len(route.Spec.Rules)-1].BackendRefs {
			got = append(got, fmt.Sprintf("%s=%d", b.Name, b.Weight))
		}
		if strings.Join(got, " ") == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("weights are %v, want %s", got, want)
		}
		time.Sleep(500 * time.Millisecond) // polling a real system
	}
}
