package admit

import (
	"testing"
	"testing/synctest"

	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func TestConnectionsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 5, "ann", "phone")
		n.opens(1, 6, "ann", "pad")
		same(t, "events", c.happened(), "CONNECT_ONLINE phone of ann on g1, 1", "CONNECT_ONLINE pad of ann on g1, 1")
		c.events = nil

		// The route goes before the socket, and the gateway may say it twice: the
		// device is offline once.
		n.closes(1, closed(5, 1, routerv1.ClosedSession_STAGE_RELEASE))
		n.closes(1, closed(5, 1, final))
		n.closes(1, closed(5, 1, final))
		same(t, "events", c.happened(), "CONNECT_OFFLINE phone of ann on g1, 1")
	})
}

func TestAReplacedConnectionEndsBeforeTheNewOneBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 5, "ann", "phone")
		n.opens(2, 6, "ann", "phone")
		n.closes(1, closed(5, 1, final))
		same(t, "events", c.happened(),
			"CONNECT_ONLINE phone of ann on g1, 1", "CONNECT_OFFLINE phone of ann on g1, 1", "CONNECT_ONLINE phone of ann on g2, 2")
	})
}

func TestAConnectionAskedForTwiceIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.opens(1, 5, "ann", "phone")
		n.opens(1, 5, "ann", "phone")
		same(t, "events", c.happened(), "CONNECT_ONLINE phone of ann on g1, 1")
	})
}

func TestARefusedConnectionIsNoEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		n.store.fail = func(string) error { return errDown }
		n.refused(1, 5, "ann", "phone", codeAuth, textUnavailable)
		same(t, "events", c.happened())
	})
}

func TestASessionThatGoesOnElsewhereWasNeverOffline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		token := n.opens(1, 5, "ann", "phone").ResumeToken
		c.holds(1, 5, 3)
		if res := n.resumes(2, 6, token, 3); !res.Resumed {
			t.Fatalf("not resumed: %v", res)
		}
		n.closes(2, closed(6, 2, final))
		same(t, "events", c.happened(), "CONNECT_ONLINE phone of ann on g1, 1", "CONNECT_OFFLINE phone of ann on g2, 2")
	})
}
