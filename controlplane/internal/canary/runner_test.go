package canary

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/controlplane/internal/canary/actuate"
	"github.com/mics-im/mics/controlplane/internal/canary/plan"
	"github.com/mics-im/mics/internal/fault"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

func TestPromotion(t *testing.T) {
	inTime(t, func(t *testing.T, c *cluster) {
		l := c.lead("a")
		defer l.stop()
		start(t, l.Runner, spec)
		if _, err := l.Start(t.Context(), spec, "ben"); fault.KindOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "one at a time") {
			t.Errorf("a second canary: %v", err)
		}
		until(t, l.Runner, "ready", in(plan.Ready))
		if s := c.share(); s < 0.49 || s > 0.51 {
			t.Errorf("share %.3f", s)
		}
		if _, err := l.Change(t.Context(), "", plan.Command{Change: plan.Promote, Actor: "ann"}); err != nil {
			t.Fatal(err)
		}
		v := until(t, l.Runner, "promoted", in(plan.Promoted))
		time.Sleep(3 * time.Second) // fake time
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.version != "2" {
			t.Errorf("stable is %q", c.version)
		}
		if len(c.drained) != 0 {
			t.Errorf("%v were drained beside the rollout that replaces them one by one", c.drained)
		}
		want := []actuate.Weights{actuate.Of(1000), actuate.Of(5000), actuate.Of(10000), actuate.Of(0)}
		if fmt.Sprint(c.weights) != fmt.Sprint(want) {
			t.Errorf("weights %v, want %v", c.weights, want)
		}
		p := v.Proto()
		if p.GetPhase() != controlv1.CanaryPhase_CANARY_PHASE_PROMOTED || p.GetActuator() != "test" || len(p.GetEvents()) < 6 || p.GetCanary().GetSessions() != 0 {
			t.Errorf("%v", p)
		}
		if past, err := c.store.Tail(t.Context(), log, time.Time{}, 10); err != nil || len(past) != 1 {
			t.Errorf("%d canaries in the log, %v", len(past), err)
		}
	})
}

// Where nothing replaces the old gateways, people do: they find them empty.
func TestPromotionByHand(t *testing.T) {
	inTime(t, func(t *testing.T, c *cluster) {
		l := c.leadWith("a", bare{c})
		defer l.stop()
		s := spec
		s.AutoPromote = true
		start(t, l.Runner, s)
		until(t, l.Runner, "replacing", in(plan.Replacing))
		time.Sleep(3 * time.Second) // fake time
		c.mu.Lock()
		if !c.drained["s0"] || !c.drained["s1"] || c.drained["c0"] || c.version != "" {
			t.Errorf("drained %v, version %q", c.drained, c.version)
		}
		for _, n := range c.nodes {
			n.version = "2"
		}
		c.mu.Unlock()
		until(t, l.Runner, "promoted", in(plan.Promoted))
	})
}

func TestABadCanaryIsRolledBackByItself(t *testing.T) {
	inTime(t, func(t *testing.T, c *cluster) {
		l := c.lead("a")
		defer l.stop()
		start(t, l.Runner, spec)
		until(t, l.Runner, "baking", in(plan.Baking))
		c.mu.Lock()
		c.bad = true
		c.mu.Unlock()
		began := time.Now()
		v := until(t, l.Runner, "aborted", in(plan.Aborted))
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("took %v", took)
		}
		if !strings.HasPrefix(v.State.Reason, "hook_failures") || c.share() != 0 {
			t.Errorf("reason %q, share %.2f", v.State.Reason, c.share())
		}
		if l.aborts.Value() != 1 {
			t.Errorf("counted %d", l.aborts.Value())
		}
		sig := v.Proto().GetSignals()
		if len(sig) == 0 || sig[0].GetName() != "hook_failures" || sig[0].GetOutcome() != "degraded" || len(sig[0].GetCanaryTrend()) == 0 {
			t.Errorf("%v", sig)
		}
		// The next one has a rule of its own, newer for every gateway.
		c.mu.Lock()
		c.bad = false
		c.mu.Unlock()
		start(t, l.Runner, spec)
		until(t, l.Runner, "ready", in(plan.Ready))
	})
}

// Killed in every phase: the next leader goes on where the last one stopped.
func TestAnotherLeaderGoesOn(t *testing.T) {
	inTime(t, func(t *testing.T, c *cluster) {
		l := c.lead("0")
		s := spec
		s.AutoPromote, s.Rate = true, 20
		start(t, l.Runner, s)
		for i, p := range []plan.Phase{plan.Moving, plan.Baking, plan.Promoting, plan.Returning} {
			until(t, l.Runner, string(p), in(p))
			l.stop()
			time.Sleep(7 * time.Second) // fake time
			l = c.lead(fmt.Sprint(i + 1))
		}
		until(t, l.Runner, "promoted", in(plan.Promoted))
		if c.share() != 0 {
			t.Errorf("share %.2f", c.share())
		}
		l.stop()
	})
}

func TestNothingHappensThatIsNotDurable(t *testing.T) {
	inTime(t, func(t *testing.T, c *cluster) {
		l := c.lead("a")
		defer l.stop()
		start(t, l.Runner, spec)
		until(t, l.Runner, "baking", in(plan.Baking))
		c.store.set(true)
		if _, err := l.Change(t.Context(), "", plan.Command{Change: plan.SetWeight, Weight: 9000}); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("accepted without a store: %v", err)
		}
		time.Sleep(time.Minute) // fake time
		if v, err := l.Get(t.Context()); err != nil || v.State.Step != 0 || v.State.Phase != plan.Baking {
			t.Errorf("went on: %s, step %d, %v", v.State.Phase, v.State.Step, err)
		}
		c.store.set(false)
		until(t, l.Runner, "ready", in(plan.Ready))
	})
}

func TestWithoutACanary(t *testing.T) {
	inTime(t, func(t *testing.T, c *cluster) {
		l := c.lead("a")
		defer l.stop()
		time.Sleep(5 * time.Second) // fake time
		if _, err := l.Get(t.Context()); fault.KindOf(err) != fault.NotFound {
			t.Errorf("%v", err)
		}
		if _, err := l.Change(t.Context(), "", plan.Command{Change: plan.Pause}); fault.KindOf(err) != fault.FailedPrecondition {
			t.Errorf("%v", err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.kept != nil || len(c.weights) != 0 {
			t.Error("gateways or the actuator were told something")
		}
	})
}

func TestChangeNamesTheCanary(t *testing.T) {
	inTime(t, func(t *testing.T, c *cluster) {
		l := c.lead("a")
		defer l.stop()
		start(t, l.Runner, spec)
		if _, err := l.Change(t.Context(), "c-other", plan.Command{Change: plan.Pause}); err == nil || !strings.Contains(err.Error(), "not the one that runs") {
			t.Errorf("%v", err)
		}
		if _, err := l.Start(t.Context(), plan.Spec{}, ""); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%v", err)
		}
	})
}

// Connects that take long where sessions move to slow them; those elsewhere do not.
func TestThePaceFollowsWhoTakes(t *testing.T) {
	for _, slow := range []bool{false, true} {
		inTime(t, func(t *testing.T, c *cluster) {
			c.mu.Lock()
			c.slow = slow
			c.mu.Unlock()
			l := c.lead("a")
			defer l.stop()
			s := spec
			s.Steps = []uint32{9000}
			start(t, l.Runner, s)
			v := until(t, l.Runner, "baking", in(plan.Baking))
			if p := v.State.Pace; slow && (p.Rate >= 100 || !strings.Contains(p.Why, "at c0")) || !slow && p.Rate <= 100 {
				t.Errorf("slow %v: %+v", slow, p)
			}
			p := v.Proto()
			if p.GetPace() != v.State.Pace.Rate || p.GetPaceReason() != v.State.Pace.Why {
				t.Errorf("%v", p)
			}
			if _, err := l.Change(t.Context(), "", plan.Command{Change: plan.Abort, Reason: "drill"}); err != nil {
				t.Fatal(err)
			}
			v = until(t, l.Runner, "aborted", in(plan.Aborted))
			if p := v.State.Pace; p.Rate <= 200 { // two gateways take them, and are not slow
				t.Errorf("back: %+v", p)
			}
		})
	}
}
