package admit

import (
	"testing"
	"testing/synctest"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/route"
)

func TestTheTenantsConnectionsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		c.auth = func(token, _ string) (*hookv1.AuthResponse, error) {
			return &hookv1.AuthResponse{Ok: true, UserId: token, Config: &hookv1.TenantRuntimeConfig{TenantMaxConnections: 2}}, nil
		}
		n.opens(1, 1, "ann", "phone")
		n.opens(2, 1, "ben", "phone")
		n.refused(1, 2, "cid", "phone", 4429, "tenant connection limit")
		again := n.opens(2, 3, "ann", "phone") // replaces its own
		if n.stats.RateLimited.With("connection_limit").Value() != 1 {
			t.Error("not counted")
		}
		// However often its end is said, its place is given back once.
		final := closed(3, again.Epoch, routerv1.ClosedSession_STAGE_FINAL)
		n.closes(2, closed(3, again.Epoch, routerv1.ClosedSession_STAGE_RELEASE))
		if r := c.record(phone); r.State != route.Closing || c.conns(2) != 2 {
			t.Errorf("released: %+v, %d connections", r, c.conns(2))
		}
		n.closes(2, final, final)
		n.closes(2, final)
		if r := c.record(phone); r.State != route.Ghost || c.conns(2) != 1 || c.conns(1) != 0 {
			t.Errorf("ended: %+v, %d and %d connections", r, c.conns(1), c.conns(2))
		}
		n.opens(1, 4, "cid", "phone")
		n.refused(1, 5, "ann", "phone", 4429, "tenant connection limit")
	})
}

func TestAnAbsentDevicesPlaceIsNotGivenBackTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 1, "ben", "phone")
		ann := n.opens(1, 2, "ann", "phone")
		n.closes(1, closed(2, ann.Epoch, routerv1.ClosedSession_STAGE_FINAL))
		n.opens(2, 1, "ann", "phone")
		if c.conns(1) != 1 || c.conns(2) != 1 {
			t.Errorf("%d and %d connections are counted", c.conns(1), c.conns(2))
		}
	})
}

func TestAUsersConnectionsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		c.auth = func(token, _ string) (*hookv1.AuthResponse, error) {
			return &hookv1.AuthResponse{Ok: true, UserId: token, Config: &hookv1.TenantRuntimeConfig{UserMaxConnections: 2}}, nil
		}
		n.opens(1, 1, "ann", "phone")
		n.opens(2, 1, "ann", "desk")
		n.refused(1, 2, "ann", "pad", 4429, "user connection limit")
		n.opens(1, 3, "ann", "desk")
		n.opens(1, 4, "ben", "pad")
		c.mu.Lock()
		c.dead[g(1)] = true // with both of ann's
		c.mu.Unlock()
		n.opens(2, 5, "ann", "pad")
		if n.stats.RateLimited.With("user_connection_limit").Value() != 1 {
			t.Error("not counted")
		}
	})
}
