package scenario

import (
	"net/http"
	"testing"
	"time"

	"github.com/mics-im/mics/sdk/go/hook"
	"github.com/mics-im/mics/tests/harness"
)

func TestBrokenChecksLetMessagesPassMarked(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 1, Routers: 2, Tenants: []string{"acme", "other"}})
	ann := c.Client("ann")
	eve := c.V1("eve", harness.Of("other"))
	acme := c.Tenant()
	for name, misbehave := range map[string]func(){
		"hangs":   func() { acme.Hangs(hook.NameCheckMessage) },
		"garbage": func() { acme.Garbage(hook.NameCheckMessage) },
		"breaks":  func() { acme.Breaks(hook.NameCheckMessage, http.StatusBadGateway) },
		"slow":    func() { acme.Slow(hook.NameCheckMessage, time.Minute) },
	} {
		misbehave()
		ann.Sends(name).To("ann")
		if m := ann.Next(); string(m.Body) != name || !m.Unmoderated {
			t.Errorf("got %+v, want it marked", m)
		}
		eve.Sends(name).To("eve")
		if m := eve.Next(); string(m.Body) != name || m.Unmoderated {
			t.Errorf("another tenant got %+v", m)
		}
	}
	acme.Works(hook.NameCheckMessage)
	acme.Deny("no")
	ann.Sends("denied").FailsTo("ann", "no")
	acme.Deny("")
	ann.Sends("fine").To("ann")
	if m := ann.Next(); string(m.Body) != "fine" || m.Unmoderated {
		t.Errorf("got %+v", m)
	}
}

func TestBrokenMemberListsFailMessages(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{NoRedis: true})
	ann := c.Client("ann")
	c.Tenant().Group("team", "ann")
	c.Tenant().Hangs(hook.NameGroupMembers)
	ann.Sends("1").FailsToGroup("team", "group members unavailable")
	c.Tenant().Garbage(hook.NameGroupMembers)
	ann.Sends("2").FailsToGroup("team", "group members unavailable")
	c.Tenant().Works(hook.NameGroupMembers)
	ann.Sends("3").ToGroup("team")
	ann.Wants("3")
}
