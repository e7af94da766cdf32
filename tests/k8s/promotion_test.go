package k8s

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// promotion: a canary's version becomes the stable one by a rolling update like any
// other, and `rollout undo` goes back from it, also in the middle.
func (r *release) promotion(t *testing.T) {
	t.Run("given up", r.promotionGivenUp)
	t.Run("to its end", r.promoted)
}

// promotionGivenUp: an abort while gateways are replaced, and `rollout undo`.
func (r *release) promotionGivenUp(t *testing.T) {
	report := r.under(t, "promotion-given-up", func() {
		t.Log(r.micsctl(t, "canary", "start", "--steps", "50", "--bake", "10m"))
		r.weighs(t, 50, 50)
		t.Log(r.micsctl(t, "canary", "promote"))
		r.reaches(t, "replacing")
		r.accepting(t, func(accept, refuse int) bool { return accept > 0 && refuse > 0 }) // a new one is ready
		t.Log(r.micsctl(t, "canary", "abort", "--reason", "a test"))
		r.kubectl(t, "rollout", "undo", "deployment/mics-gateway")
		r.rolled(t)
		r.reaches(t, "aborted")
		r.weighs(t, 100, 0)
	}, 5*time.Second)
	unharmed(t, report)
	r.runs(t, "mics:v1")
	if c := r.trial(t); c.Stable.Sessions != 2*users || fmt.Sprint(c.Stable.Versions) != "[v1]" {
		t.Errorf("not everybody is back on a stable v1: %+v", c)
	}
}

// promoted: the whole way.
func (r *release) promoted(t *testing.T) {
	before := r.metric(t, routers, "mics_grpc_forward_failed_total")
	logs := r.follow(t, r.pods(t, gateways))
	least := 0 // stable gateways that were available at a time
	report := r.under(t, "promotion", func() {
		t.Log(r.micsctl(t, "canary", "start", "--steps", "50", "--bake", "10m"))
		r.weighs(t, 50, 50)
		t.Log(r.micsctl(t, "canary", "promote"))
		r.weighs(t, 0, 100)
		least = r.replaced(t)
		r.weighs(t, 100, 0)
		r.settled(t, gateways, 3)
	}, 5*time.Second)
	unharmed(t, report)
	toldOnce(t, report)
	t.Log(r.micsctl(t, "canary", "status"))
	c := r.trial(t)
	if c.Stable.Sessions != 2*users || c.Canary.Sessions != 0 || fmt.Sprint(c.Stable.Versions) != "[v2]" {
		t.Errorf("not everybody is back on a stable v2: %+v", c)
	}
	// The rollout drains each gateway when its turn comes. If the control plane did so
	// too none of the old ones would be left before the first new one is ready.
	if least < 3 {
		t.Errorf("only %d of 3 stable gateways were available at a time", least)
	}
	if drains := logs.drains(t); len(drains) != 3 {
		t.Errorf("%d gateways drained, want 3: %v", len(drains), drains)
	}
	if after := r.metric(t, routers, "mics_grpc_forward_failed_total"); after != before {
		t.Errorf("mics_grpc_forward_failed_total rose by %v", after-before)
	}
	r.runs(t, "mics:v2")

	logs = r.follow(t, r.pods(t, gateways))
	report = r.under(t, "undo-of-the-promotion", func() {
		r.kubectl(t, "rollout", "undo", "deployment/mics-gateway")
		r.rolled(t)
	}, 5*time.Second)
	unharmed(t, report)
	toldOnce(t, report)
	if drains := logs.drains(t); len(drains) != 3 {
		t.Errorf("%d gateways drained, want 3: %v", len(drains), drains)
	}
	r.runs(t, "mics:v1")
	r.weighs(t, 100, 0)
	if c := r.trial(t); c.Phase != "promoted" || c.Stable.Sessions != 2*users || fmt.Sprint(c.Stable.Versions) != "[v1]" {
		t.Errorf("after the undo: %+v", c)
	}
}

// trial is what `micsctl canary status` says.
type trial struct {
	Phase, Reason, ActuatorError string
	Stable, Canary               struct {
		Versions []string
		Sessions int
	}
}

func (r *release) trial(t *testing.T) trial {
	t.Helper()
	// It exits with 1 when the canary was aborted.
	out, failed := r.try(t.Context(), time.Minute, nil, append(r.prefix, "kubectl", "--namespace", namespace, "exec", "verify", "--",
		"/micsctl", "canary", "status", "--output", "json")...)
	var c trial
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		t.Fatal(err, failed)
	}
	return c
}

// reaches waits until the canary is in a phase.
func (r *release) reaches(t *testing.T, phase string) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		c := r.trial(t)
		if c.Phase == phase {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not %s: %+v", phase, c)
		}
		time.Sleep(500 * time.Millisecond) // polling a real system
	}
}

// replaced waits until the canary is promoted, and returns the least number of stable
// gateways that were available at a time.
func (r *release) replaced(t *testing.T) int {
	t.Helper()
	least, phase := 1000, ""
	for deadline := time.Now().Add(5 * time.Minute); ; {
		var d struct {
			Status struct{ AvailableReplicas int }
		}
		if err := json.Unmarshal([]byte(r.kubectl(t, "get", "deployment", "mics-gateway", "--output", "json")), &d); err != nil {
			t.Fatal(err)
		}
		least = min(least, d.Status.AvailableReplicas)
		c := r.trial(t)
		if c.Phase != phase {
			phase = c.Phase
			t.Logf("%s; %d on stable %v, %d on canary", phase, c.Stable.Sessions, c.Stable.Versions, c.Canary.Sessions)
		}
		switch {
		case phase == "promoted":
			return least
		case phase == "aborting" || phase == "aborted" || time.Now().After(deadline):
			t.Fatalf("not promoted: %+v", c)
		}
		time.Sleep(500 * time.Millisecond) // polling a real system
	}
}

// rolled waits until a rollout of the stable gateways is over.
func (r *release) rolled(t *testing.T) {
	t.Helper()
	r.run(t, 5*time.Minute, nil, "kubectl", "--namespace", namespace, "rollout", "status", "deployment/mics-gateway", "--timeout=4m")
	r.settled(t, gateways, 3)
}

// runs tells which image the stable Deployment is to have.
func (r *release) runs(t *testing.T, image string) {
	t.Helper()
	if got := r.kubectl(t, "get", "deployment", "mics-gateway", "--output", "jsonpath={.spec.template.spec.containers[0].image}"); strings.TrimSpace(got) != image {
		t.Errorf("the stable Deployment runs %s, want %s", got, image)
	}
}
