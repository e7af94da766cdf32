package k8s

import (
	"testing"
	"time"
)

// without takes away what the chart does for a rollout: no pause before the end, no
// drain, no time.
const without = `{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":1,"containers":[{
  "name":"gateway","image":"mics:deaf","command":["/mics-verify","deaf","/mics-gateway"],"lifecycle":null}]}}}}`

// control: the same restart, unprotected, must be seen by the same verifier, or its
// silence above means nothing.
func (r *release) control(t *testing.T) {
	r.kubectl(t, "patch", "deployment", "mics-gateway", "--type=strategic", "--patch", without)
	r.settled(t, gateways, 3)
	r.join(t)
	report := r.under(t, "control", func() {
		r.kubectl(t, "rollout", "restart", "deployment/mics-gateway")
		r.settled(t, gateways, 3)
	}, 5*time.Second)
	for _, d := range report.DisconnectsV2 {
		t.Log("V2:", d)
	}
	for _, v := range report.Others {
		t.Log(v)
	}
	if len(report.DisconnectsV2) == 0 && report.Lost == 0 {
		t.Error("gateways were killed in the middle, and nobody noticed: this test cannot see")
	}
}
