package scenario

import (
	"testing"

	"github.com/mics-im/mics/tests/harness"
)

func TestRepeatsAreAnsweredAndNotDelivered(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
	bob := c.V1("bob")
	ann := c.Client("ann", harness.On("gw1"))
	if a := ann.Sends("hi").As("id-1").To("bob"); a.Reason != "" {
		t.Errorf("%+v", a)
	}
	if a := ann.Sends("hi").As("id-1").To("bob"); a.Reason != "duplicate" {
		t.Errorf("a repeat was answered %+v", a)
	}
	ann.Leaves()
	again := c.Client("ann", harness.On("gw2")) // the same device elsewhere
	if a := again.Sends("hi").As("id-1").To("bob"); a.Reason != "duplicate" {
		t.Errorf("a repeat over another gateway was answered %+v", a)
	}
	if a := again.Sends("other content").As("id-1").To("bob"); a.Reason != "" {
		t.Errorf("another message of the same id was answered %+v", a)
	}
	bob.Wants("hi", "other content")
	bob.HasNothing()
}

func TestV1InstancesNumberTheirMessagesAnew(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
	bob, ann := c.Client("bob"), c.V1("ann")
	ann.Sends("first instance, 1").To("bob")
	ann.Sends("first instance, 2").To("bob")
	ann.Leaves()
	ann.Returns()
	ann.Sends("second instance, 1").To("bob")
	ann.Sends("second instance, 2").To("bob")
	bob.Wants("first instance, 1", "first instance, 2", "second instance, 1", "second instance, 2")
	bob.HasNothing()
}

func TestRefusedMessageCanBeSentAgain(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 1, Routers: 2})
	ann := c.Client("ann")
	c.Tenant().Deny("not now")
	ann.Sends("hi").As("id-1").FailsTo("ann", "not now")
	c.Tenant().Deny("")
	if a := ann.Sends("hi").As("id-1").To("ann"); a.Reason != "" {
		t.Errorf("%+v", a)
	}
	ann.Wants("hi")
	ann.HasNothing()
}
