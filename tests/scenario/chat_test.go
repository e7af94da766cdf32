package scenario

import (
	"fmt"
	"testing"

	"github.com/mics-im/mics/tests/harness"
)

func TestSingleAndGroupChat(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
	ann := c.Client("ann", harness.On("gw1"))
	bob := c.V1("bob", harness.On("gw2"))
	laptop := c.Client("bob", harness.Called("laptop"), harness.On("gw1"))
	cat := c.V1("cat", harness.On("gw1"))

	ann.Sends("hi").To("bob")
	for _, d := range []*harness.Device{bob, laptop} {
		if m := d.Next(); string(m.Body) != "hi" || m.From != "ann" || m.FromDevice != "phone" || m.To != "bob" {
			t.Errorf("%s got %+v", d, m)
		}
	}
	bob.Sends("hello").To("ann")
	ann.Wants("hello")

	c.Tenant().Group("team", "ann", "bob", "cat", "dan")
	if a := cat.Sends("all").ToGroup("team"); a.Partial || a.Buffered != 1 {
		t.Errorf("answer %+v, want one member buffered", a)
	}
	for _, d := range []*harness.Device{ann, bob, laptop, cat} {
		d.Wants("all") // the sender is listed too
	}
	dan := c.Client("dan")
	dan.Wants("all")
	for _, d := range []*harness.Device{ann, bob, laptop, cat, dan} {
		d.HasNothing()
	}
}

func TestOfflineMessagesComeInOrderAndBeforeLiveOnes(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
	ann := c.Client("ann")
	for name, bob := range map[string]*harness.Device{"SDK": c.Client("bob"), "V1": c.V1("bea")} {
		bob.Leaves()
		var want []string
		for i := range 20 {
			body := fmt.Sprintf("%s %d", name, i)
			if a := ann.Sends(body).To(bob.User); a.Buffered != 1 {
				t.Errorf("answer %+v, want buffered", a)
			}
			want = append(want, body)
		}
		bob.Joins()
		for i := range 20 {
			body := fmt.Sprintf("%s live %d", name, i)
			ann.Sends(body).To(bob.User)
			want = append(want, body)
		}
		bob.Wants(want...)
		bob.HasNothing()
	}
}

func TestDeviceThatIsAwayGetsWhatOthersGot(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
	ann, phone := c.Client("ann"), c.Client("bob")
	laptop := c.V1("bob", harness.Called("laptop"))
	laptop.Leaves()
	ann.Sends("1").To("bob")
	ann.Sends("2").To("bob")
	phone.Wants("1", "2")
	laptop.Joins()
	laptop.Wants("1", "2")
}

func TestTenantsDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 1, Routers: 2, Tenants: []string{"acme", "other"}})
	ann, bob := c.Client("ann"), c.Client("bob")
	eve, otherBob := c.V1("eve", harness.Of("other")), c.V1("bob", harness.Of("other"))
	c.Tenant("acme").Group("team", "ann", "bob")
	c.Tenant("other").Group("team", "eve")
	ann.Sends("acme only").To("bob")
	ann.Sends("acme team").ToGroup("team")
	eve.Sends("other only").To("bob")
	eve.Sends("other team").ToGroup("team")
	bob.Wants("acme only", "acme team")
	ann.Wants("acme team")
	otherBob.Wants("other only")
	eve.Wants("other team")
	for _, d := range []*harness.Device{ann, bob, eve, otherBob} {
		d.HasNothing()
	}
}
