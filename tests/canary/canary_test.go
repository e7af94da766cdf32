package canary

import (
	"strings"
	"testing"
	"time"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// quick makes looks every second, and says something of few samples: the test has
// no time for more.
const quick = `
interval: 1s
signals:
  heartbeat_timeouts: {min_samples: 10}
  abnormal_closes: {min_samples: 10}
  accept_ms: {off: true}
  slow_accepts: {off: true}
  ack_ms: {off: true}
  slow_acks: {off: true}
`

const (
	moving    = controlv1.CanaryPhase_CANARY_PHASE_MOVING
	baking    = controlv1.CanaryPhase_CANARY_PHASE_BAKING
	ready     = controlv1.CanaryPhase_CANARY_PHASE_READY
	aborting  = controlv1.CanaryPhase_CANARY_PHASE_ABORTING
	aborted   = controlv1.CanaryPhase_CANARY_PHASE_ABORTED
	promoted  = controlv1.CanaryPhase_CANARY_PHASE_PROMOTED
	replacing = controlv1.CanaryPhase_CANARY_PHASE_REPLACING
)

// TestSessionsFollowTheWeight: 0 → 5 → 50 → abort → (5 → 50 →) 100, under traffic.
func TestSessionsFollowTheWeight(t *testing.T) {
	f := start(t, "")
	f.gather(sessions(t))
	f.talk(200)
	at := f.mark()
	spec := &controlv1.CanarySpec{Steps: []uint32{500, 5000, 10000}, BakeMs: 2000, Analysis: quick}
	reach := func(step int32, weight float64) {
		t.Helper()
		f.until("settled", func(c *controlv1.Canary) bool {
			return c.GetStep() == step && c.GetPhase() != moving && c.GetCanary().GetMisplaced()+c.GetStable().GetMisplaced() == 0
		})
		at = f.check(weight, at)
	}
	f.begin(spec)
	pause := func() {
		f.change(&controlv1.ChangeCanaryRequest{Change: controlv1.ChangeCanaryRequest_CHANGE_PAUSE})
	}
	resume := func() {
		f.change(&controlv1.ChangeCanaryRequest{Change: controlv1.ChangeCanaryRequest_CHANGE_RESUME})
	}
	hold := func(step int32) { // so that nothing goes on while the test looks
		t.Helper()
		f.until("baking", func(c *controlv1.Canary) bool { return c.GetStep() == step && c.GetPhase() == baking })
		pause()
	}
	hold(0)
	reach(0, 5)
	resume()
	hold(1)
	reach(1, 50)
	resume()
	f.change(&controlv1.ChangeCanaryRequest{Change: controlv1.ChangeCanaryRequest_CHANGE_ABORT, Reason: "drill"})
	c := f.until("aborted", in(aborted))
	if !strings.HasPrefix(c.GetReason(), "drill") {
		t.Errorf("reason %q", c.GetReason())
	}
	at = f.check(0, at)

	if !long() {
		spec.Steps = spec.Steps[2:]
	}
	f.begin(spec)
	last := int32(len(spec.Steps)) - 1
	if long() {
		hold(0)
		reach(0, 5)
		resume()
		hold(1)
		reach(1, 50)
		resume()
	}
	f.until("ready", in(ready))
	reach(last, 100)
	f.complete()
	for _, p := range f.people {
		if p.breaks != 0 {
			t.Errorf("%s/%s was disconnected %d times", p.user, p.device, p.breaks)
		}
	}
}

// TestPromotion: everybody on the canary, the stable gateways replaced one after
// another, everybody back.
func TestPromotion(t *testing.T) {
	onlyLong(t)
	f := start(t, "")
	f.gather(60)
	f.talk(50)
	f.begin(&controlv1.CanarySpec{Steps: []uint32{5000}, BakeMs: 2000, Analysis: quick, AutoPromote: true})
	c := f.until("replacing", in(replacing))
	if len(c.GetNodesToReplace()) == 0 {
		t.Errorf("does not say whom to replace: %v", c)
	}
	for _, name := range []string{"gw1", "gw2"} {
		p := f.c.Gateway(name)
		if code, _ := p.Stop(); code != 0 {
			t.Errorf("%s ended with %d", name, code)
		}
		p.Set("VERSION=2")
		p.Start()
	}
	f.until("promoted", in(promoted))
	for who, gw := range f.where() {
		if gw == "gw3" {
			t.Errorf("%s is still on the canary", who)
		}
	}
	f.complete()
}

// TestTheControlPlaneDiesInEveryPhase: what it was doing goes on when it is back,
// and nothing is undone meanwhile.
func TestTheControlPlaneDiesInEveryPhase(t *testing.T) {
	f := start(t, "")
	f.gather(100)
	f.talk(50)
	cp := f.c.ControlPlane()
	f.begin(&controlv1.CanarySpec{Steps: []uint32{3000, 6000}, BakeMs: 3000, Analysis: quick, SessionsPerSecond: 20})
	before := f.mark()
	for _, phase := range []controlv1.CanaryPhase{moving, baking} {
		f.until("there", in(phase))
		cp.Kill()
		time.Sleep(time.Second) // nobody looks
		cp.Start()
	}
	f.until("ready", in(ready))
	before = f.check(60, before)
	f.change(&controlv1.ChangeCanaryRequest{Change: controlv1.ChangeCanaryRequest_CHANGE_ABORT, Reason: "drill"})
	f.until("aborting", func(c *controlv1.Canary) bool { return c.GetPhase() == aborting || c.GetPhase() == aborted })
	cp.Kill()
	cp.Start()
	f.until("aborted", in(aborted))
	f.check(0, before)
	f.complete()
}
