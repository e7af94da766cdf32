package scenario

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"github.com/mics-im/mics/sdk/go/hook"
	"github.com/mics-im/mics/tests/harness"
)

func TestHandshakesAreRefused(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 3, NoRedis: true, Env: map[string][]string{
		"gw1": {"ALLOWED_ORIGINS=https://im.example.com"},
		"gw2": {"ACCEPT_RATE_PER_ADDRESS=1"},
		"gw3": {"MAX_CONNECTIONS=1"},
	}})
	check := func(gateway string, h http.Header, want int, retry bool) {
		t.Helper()
		if status, after, body := handshake(t, c, gateway, h); status != want || retry != (after != "") {
			t.Errorf("%s: %d, Retry-After %q: %s; want %d", gateway, status, after, body, want)
		}
	}
	check("gw1", http.Header{}, http.StatusBadRequest, false)
	check("gw1", upgrade("Origin", "https://evil.example.com"), http.StatusForbidden, false)
	check("gw1", upgrade("Origin", "https://im.example.com"), http.StatusSwitchingProtocols, false)
	for range 2 { // one of two within a second is one too many
		if status, after, _ := handshake(t, c, "gw2", upgrade()); status == http.StatusTooManyRequests && after != "" {
			break
		}
	}
	dialBare(t, c, "ann", "gw3")
	check("gw3", upgrade(), http.StatusTooManyRequests, true)
}

func TestConnectionsAreRefused(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 1, Routers: 2})
	c.Try("ann", harness.Token("nonsense")).WantsClose(4001, "no such token")
	c.Try("ann", harness.Of("nobody")).WantsClose(4002, "invalid tenant")
	c.Try("ann", harness.Of(" ")).WantsClose(4002, "invalid tenant")
	c.Tenant().Hangs(hook.NameAuth)
	c.Try("ann").WantsClose(4001, "auth unavailable")
	c.Tenant().Breaks(hook.NameAuth, http.StatusInternalServerError)
	c.Try("ann").WantsClose(4001, "auth unavailable")
	c.Tenant().Garbage(hook.NameAuth)
	c.Try("ann").WantsClose(4001, "auth unavailable")
	c.Tenant().Works(hook.NameAuth)
	c.Client("ann") // all is well again
}

func TestConnectionLimits(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
	c.Tenant().Configure(func(cfg *hook.RuntimeConfig) { cfg.UserMaxConnections, cfg.TenantMaxConnections = 1, 3 })
	ann := c.V1("ann", harness.On("gw1"))
	c.Try("ann", harness.Called("laptop"), harness.On("gw2")).WantsClose(4429, "user connection limit")
	c.Client("bob", harness.On("gw2"))
	c.Client("cat", harness.On("gw1"))
	c.Try("dan", harness.On("gw2")).WantsClose(4429, "tenant connection limit")
	ann.Leaves()
	c.V1("dan", harness.On("gw2")) // her place is free
}

func TestNewerConnectionReplacesTheOlder(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
	first := c.V1("ann", harness.On("gw1"))
	first.V1().StaysAway()
	second := c.Client("ann", harness.On("gw2"))
	first.WantsClose(4201, "replaced")
	third := c.V1("ann", harness.On("gw2"))
	second.WantsClose(4201, "replaced")
	if err := second.Ends(); err == nil {
		t.Error("the SDK goes on")
	}
	third.Sends("still here").To("ann")
	third.Wants("still here")
}

func TestKick(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2, ControlPlane: true})
	phone := c.Client("bob", harness.On("gw1"))
	laptop := c.V1("bob", harness.Called("laptop"), harness.On("gw2"))
	laptop.V1().StaysAway()
	other := c.V1("ann")
	if n := kick(t, c, "bob", "enough"); n != 2 {
		t.Errorf("%d kicked, want 2", n)
	}
	phone.WantsClose(4409, "enough")
	laptop.WantsClose(4409, "enough")
	other.Sends("still here").To("ann")
	other.Wants("still here")
}

func TestSilenceEndsAConnection(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{NoRedis: true})
	c.Tenant().Configure(func(cfg *hook.RuntimeConfig) { cfg.HeartbeatTimeoutSeconds = 2 })
	alive := c.V1("ann") // sends heartbeats
	dialBare(t, c, "bob", "gw1").closed(4100)
	if got := c.Gateway("gw1").Metrics().Sum("mics_ws_heartbeat_timeouts_total"); got != 1 {
		t.Errorf("mics_ws_heartbeat_timeouts_total is %v", got)
	}
	if alive.Connects() != 1 {
		t.Errorf("the client with heartbeats connected %d times", alive.Connects())
	}
	alive.Sends("nobody there").To("bob") // the route is gone: it is kept
	c.Client("bob", harness.Called("bare")).Wants("nobody there")
}

func TestTextFrameEndsAConnection(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{NoRedis: true})
	ann := c.V1("ann")
	ann.V1().StaysAway()
	if err := ann.V1().Text("hello"); err != nil {
		t.Fatal(err)
	}
	ann.WantsClose(1003, "")
}

func TestSlowConsumerIsClosedAndLosesNothing(t *testing.T) {
	t.Parallel()
	const size = 60_000
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2, Env: map[string][]string{
		"gateway": {"MAX_MESSAGE_BYTES=65536", "SESSION_QUEUE_BYTES=65536", "SESSION_QUEUE_FRAMES=16"},
		"router":  {"OFFLINE_BUFFER_MAX_MESSAGES_PER_USER=2000", "OFFLINE_BUFFER_MAX_BYTES_PER_USER=200000000"},
	}})
	ann, slow := c.Client("ann", harness.On("gw2")), dialBare(t, c, "bob", "gw1")
	const n = 200
	for i := range n {
		ann.Sends(fmt.Sprintf("%04d%s", i, strings.Repeat(".", size))).To("bob")
	}
	slow.closed(4408)
	// What it did not get waits for the device; where that begins is up to the
	// kernel's buffers.
	bob := c.V1("bob", harness.Called("bare"))
	ann.Sends("last").To("bob")
	next := -1
	for {
		m := bob.Next()
		if string(m.Body) == "last" {
			break
		}
		var i int
		if _, err := fmt.Sscanf(string(m.Body[:4]), "%d", &i); err != nil {
			t.Fatal(err)
		}
		if next >= 0 && i != next {
			t.Fatalf("message %d, want %d", i, next)
		}
		next = i + 1
	}
	if next != n {
		t.Errorf("the last one was %d of %d", next-1, n)
	}
}

func TestFramesAreRejectedAndTheConnectionStays(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{NoRedis: true, Env: map[string][]string{"gateway": {"MAX_MESSAGE_BYTES=1000", "SESSION_QUEUE_BYTES=65536"}, "router": {"MAX_MESSAGE_BYTES=1000"}}})
	ann := c.V1("ann")
	ann.V1().Raw([]byte("\xff\xff\xff"))
	ann.WantsError(4400)
	ann.V1().Raw(make([]byte, 1<<20))
	ann.WantsError(4413)
	ann.Sends(strings.Repeat("x", 1001)).FailsTo("ann", "msg_body_too_large")
	ann.Sends(strings.Repeat("x", 1000)).To("ann")
	if ann.Connects() != 1 {
		t.Errorf("connected %d times", ann.Connects())
	}
}

func TestMessageFlood(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{NoRedis: true, Env: map[string][]string{"gateway": {"FLOOD_MESSAGES_PER_SECOND=20"}}})
	ann := c.V1("ann")
	ann.V1().StaysAway()
	done := make(chan struct{})
	go func() { // until the connection is gone
		defer close(done)
		for ann.Node() != "" {
			for range 20 {
				ann.V1().Raw([]byte{0x12, 0x02, 0x08, 0x01}) // heartbeat_ping
			}
			time.Sleep(50 * time.Millisecond) // a flood has a rate
		}
	}()
	ann.WantsError(4429)
	ann.WantsClose(4429, "message flood")
	<-done
}

func TestMessagesFail(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 1, Routers: 1, NoRedis: true, Env: map[string][]string{
		"router": {"GROUP_MEMBERS_MAX_USERS=3", "OFFLINE_BUFFER_MAX_MESSAGES_PER_USER=0"},
	}})
	ann := c.V1("ann")
	raw := func(r *messagev1.MessageRequest, want string) {
		t.Helper()
		got := make(chan harness.Answer, 1)
		ann.V1().Request(r, func(a harness.Answer) { got <- a })
		if a := <-got; a.Sent || a.Reason != want {
			t.Errorf("%v was answered %+v, want FAILED %s", r, a, want)
		}
	}
	raw(&messagev1.MessageRequest{MsgBody: []byte("x")}, "missing to_user_id")
	raw(&messagev1.MessageRequest{MsgType: messagev1.MessageType_GROUP_CHAT}, "missing group_id")
	raw(&messagev1.MessageRequest{MsgType: 7, ToUserId: "ann"}, "invalid msg_type")
	ann.Sends("x").FailsTo("nobody", "delivery failed")
	ann.Sends("x").FailsToGroup("none", "group members empty")
	c.Tenant().Group("crowd", "ann", "b", "c", "d")
	ann.Sends("x").FailsToGroup("crowd", "group too large")
	c.Tenant().Deny("mind your language")
	ann.Sends("x").FailsTo("ann", "mind your language")
	c.Tenant().Deny("")
	ann.Sends("fine").To("ann")
	ann.Wants("fine")
	ann.HasNothing()

	c.Tenant().Configure(func(cfg *hook.RuntimeConfig) { cfg.TenantMaxMessageQps = 1 })
	ann.Leaves()
	ann.Returns() // what a login says holds from then on
	var limited bool
	for i := range 20 {
		a := ann.Sends(fmt.Sprint(i)).Submit(harness.Outgoing{To: "ann"}).Answer()
		limited = limited || a.Reason == "tenant qps limited"
	}
	if !limited {
		t.Error("20 messages at once within a rate of 1/s")
	}
}
