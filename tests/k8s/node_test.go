package k8s

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// node: the gateways of a node that is cordoned are drained, as those that are named
// by --k8s-node are, except the last gateway of all; and serve again afterwards.
func (r *release) node(t *testing.T) {
	r.helm(t, append([]string{"upgrade", "mics"}, r.args()...)...) // without the canary
	r.settled(t, canaries, 0)
	r.settled(t, gateways, 3)
	all := r.pods(t, gateways)
	name := all[0].Spec.NodeName
	here := 0
	for _, p := range all {
		if p.Spec.NodeName == name {
			here++
		}
	}
	empty := min(here, len(all)-1) // gateways that can be drained
	defer r.kubectl(t, "uncordon", name)

	report := r.under(t, "cordon", func() {
		r.kubectl(t, "cordon", name)
		r.emptied(t, empty)
		if here == len(all) {
			r.refused(t)
		}
		r.kubectl(t, "uncordon", name)
		r.emptied(t, 0)
		r.settled(t, gateways, 3)
	}, 5*time.Second)
	unharmed(t, report)

	report = r.under(t, "k8s-node", func() {
		out, err := r.try(t.Context(), 3*time.Minute, nil, append(r.prefix, "kubectl", "--namespace", namespace, "exec", "verify", "--",
			"/micsctl", "drain", "--k8s-node", name, "--wait", "--max-lost", "0")...)
		t.Log(out, err)
		switch {
		case here < len(all) && err != nil:
			t.Error(err)
		case here == len(all) && (err == nil || !strings.Contains(err.Error(), "is the last gateway that serves and stays")):
			t.Errorf("the last gateway was to be refused: %v", err)
		}
		if n := strings.Count(out, ": done"); n != empty {
			t.Errorf("%d drains are done, want %d", n, empty)
		}
		for _, g := range r.emptied(t, empty) {
			t.Log(r.micsctl(t, "undrain", g))
		}
		r.emptied(t, 0)
		r.settled(t, gateways, 3)
	}, 5*time.Second)
	unharmed(t, report)
}

// emptied waits until n gateways are drained and all others serve, and names the
// former.
func (r *release) emptied(t *testing.T, n int) []string {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		text := r.micsctl(t, "nodes", "--output", "json")
		var list struct {
			Nodes []struct {
				NodeID  string
				Gateway *struct {
					Phase    string
					Sessions int
				}
			}
		}
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			t.Fatal(err)
		}
		var drained []string
		serving, sessions := 0, 0
		for _, g := range list.Nodes {
			switch {
			case g.Gateway == nil:
			case g.Gateway.Phase == "drained" && g.Gateway.Sessions == 0:
				drained = append(drained, g.NodeID)
			case g.Gateway.Phase == "serving":
				serving++
				sessions += g.Gateway.Sessions
			}
		}
		if len(drained) == n && serving == 3-n && sessions == 2*users {
			return drained
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d gateways are drained, want %d; %d serve, with %d sessions\n%s", len(drained), n, serving, sessions, text)
		}
		time.Sleep(time.Second) // polling a real system
	}
}

// refused waits until Kubernetes shows that a drain was refused, and why, and that the
// gateway still takes connections.
func (r *release) refused(t *testing.T) {
	t.Helper()
	var event struct {
		InvolvedObject struct{ Name string }
		Message        string
	}
	for deadline := time.Now().Add(time.Minute); ; {
		var list struct{ Items []json.RawMessage }
		text := r.kubectl(t, "get", "events", "--output", "json", "--field-selector", "reason=DrainRefused")
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Items) > 0 {
			if err := json.Unmarshal(list.Items[0], &event); err != nil {
				t.Fatal(err)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no event tells that the last gateway is not drained")
		}
		time.Sleep(time.Second) // polling a real system
	}
	t.Log(event.InvolvedObject.Name, event.Message)
	if !strings.Contains(event.Message, "is the last gateway that serves and stays") {
		t.Errorf("event %q", event.Message)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		var ready []string
		for _, p := range r.pods(t, gateways) {
			if p.ready() {
				ready = append(ready, p.Metadata.Name)
			}
		}
		if len(ready) == 1 && ready[0] == event.InvolvedObject.Name {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("ready are %v, and not only %s", ready, event.InvolvedObject.Name)
		}
		time.Sleep(time.Second) // polling a real system
	}
}
