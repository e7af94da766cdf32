package scenario

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/ring"
	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/tests/harness"
)

func TestKilledGatewaysMessagesComeElsewhere(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
	bob := c.V1("bob")
	home, other := bob.Node(), "gw1"
	if home == other {
		other = "gw2"
	}
	ann := c.Client("ann", harness.On(other))
	c.Gateway(home).Pause() // it takes what comes and does nothing with it
	var sends []*harness.Sending
	var want []string
	for i := range 10 {
		want = append(want, fmt.Sprint(i))
		sends = append(sends, ann.Sends(want[i]).Submit(harness.Outgoing{To: "bob"}))
	}
	c.Gateway(home).Kill()
	for i, s := range sends {
		if a := s.Answer(); !a.Sent {
			t.Errorf("message %d was answered %+v", i, a)
		}
	}
	bob.Wants(want...)
	c.Gateway(home).Start()
	ann.Sends("last").To("bob")
	bob.Wants("last")
	bob.HasNothing()
}

func TestMessagingSurvivesARedisThatIsFlushed(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
	ann, bob := c.Client("ann", harness.On("gw1")), c.V1("bob", harness.On("gw2"))
	ann.Sends("before").To("bob")
	c.FlushRedis()
	ann.Sends("after").To("bob")
	bob.Wants("before", "after")
	bob.HasNothing()
}

func TestMessagingGoesOnWithoutRedis(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
	ann, bob := c.Client("ann", harness.On("gw1")), c.V1("bob", harness.On("gw2"))
	ann.Sends("before").To("bob")
	c.Redis().Kill()
	ann.Sends("during").To("bob")
	c.Redis().Start()
	ann.Sends("after").To("bob")
	bob.Wants("before", "during", "after")
	bob.HasNothing()
}

// Somebody's phone is off when all routers are rolled, and later Redis is away: what is sent
// then is for the phone, too.
func TestARedisThatDiesAfterADeploy(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
	ann := c.Client("ann")
	desk, phone := c.Client("bob", harness.Called("desk")), c.Client("bob", harness.Called("phone"))
	phone.Leaves()
	for _, name := range []string{"r1", "r2"} {
		c.Router(name).Stop()
		c.Router(name).Start()
		c.Router(name).AwaitReady()
	}
	c.Redis().Kill()
	ann.Sends("during").To("bob")
	desk.Wants("during")
	c.Redis().Start()
	phone.Joins()
	phone.Wants("during")
	desk.HasNothing()
	phone.HasNothing()
}

func TestOfflineMessagesSurviveARouter(t *testing.T) {
	t.Parallel()
	for i, end := range []string{"r1", "r2"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
			ann := c.Client("ann")
			bob := c.V1("bob")
			bob.Leaves()
			ann.Sends("kept").To("bob")
			if i == 0 {
				c.Router(end).Kill()
			} else {
				c.Router(end).Stop()
			}
			bob.Joins()
			bob.Wants("kept")
			bob.HasNothing()
			c.Router(end).Start()
			ann.Sends("live").To("bob")
			bob.Wants("live")
		})
	}
}

// What the old connection had not confirmed is with nobody but the user's home router for a
// moment, while that lets the next one in; here for longer, because it asks the other router
// first whether it keeps something.
func TestARouterThatDiesWhileItMovesADevice(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2, Proxied: true, Env: map[string][]string{"gateway": {"LOG_LEVEL=debug"}}})
	user := "bob"
	for ring.Pick([]string{"r1", "r2"}, c.Tenant().Name, user) != 1 {
		user += "b"
	}
	bob := c.Client(user, harness.Called("bare"), harness.On("gw2"))
	bob.Leaves()
	dialBareVersion(t, c, user, "gw1", "2") // it reads nothing, and so acknowledges nothing
	c.Client("ann").Sends("held").To(user)
	c.Net.Set("r2", "r1", harness.Condition{Delay: 400 * time.Millisecond})
	bob.Joins()
	testkit.Eventually(t, "the old session is handed over", func() bool { return strings.Contains(c.Gateway("gw1").Log(), "session_frozen") })
	c.Router("r2").Kill()
	c.Net.Heal()
	bob.Connected()
	bob.Wants("held")
	bob.HasNothing()
}

// A router that is cut off from everybody for longer than a lease hears of no
// gateway. What it knows of routes must do no harm when it is back.
func TestARouterThatWasCutOffForgetsNobody(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2, Proxied: true})
	names := []string{"ann", "bob", "cat", "dan"} // of both routers, all but surely
	var everybody []*harness.Device
	for _, name := range names {
		everybody = append(everybody, c.Client(name))
	}
	c.Net.Isolate("r1", harness.Condition{Cut: true})
	time.Sleep(4 * time.Second) // the lease is 3 s of real time, in other processes
	c.Net.Isolate("r1", harness.Condition{})
	c.Router("r1").AwaitReady()
	for i, from := range everybody {
		for k, to := range names {
			text := fmt.Sprint(names[i], " to ", to)
			from.Sends(text).To(to)
			everybody[k].Wants(text)
		}
	}
	for i, one := range everybody {
		one.HasNothing()
		if one.Connects() != 1 {
			t.Errorf("%s connected %d times", names[i], one.Connects())
		}
	}
}
