package rebalance

import (
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func node(id, track string, sessions uint64) Node {
	return Node{ID: id, Track: track, Sessions: sessions, Movable: sessions, ClientURL: "ws://" + id}
}

func TestPlan(t *testing.T) {
	blind := node("c", "stable", 0)
	blind.ClientURL = ""
	old := node("a", "stable", 1000)
	old.Movable = 100
	for name, c := range map[string]struct {
		nodes []Node
		th    Threshold
		gives map[string]uint64
		why   string
	}{
		"a new one":        {[]Node{node("a", "stable", 6000), node("b", "stable", 6000), node("c", "stable", 0)}, automatic, map[string]uint64{"a": 2000, "b": 2000}, ""},
		"even":             {[]Node{node("a", "stable", 100), node("b", "stable", 100)}, manual, nil, "the sessions are even"},
		"below 1,000":      {[]Node{node("a", "stable", 1500), node("b", "stable", 500)}, automatic, nil, "the sessions are even"},
		"below 1.1":        {[]Node{node("a", "stable", 52000), node("b", "stable", 48000)}, automatic, nil, "the sessions are even"},
		"an operator":      {[]Node{node("a", "stable", 1500), node("b", "stable", 500)}, manual, map[string]uint64{"a": 500}, ""},
		"tracks by itself": {[]Node{node("a", "stable", 5000), node("b", "canary", 0)}, manual, nil, "the sessions are even"},
		"no URL":           {[]Node{node("a", "stable", 100), blind}, manual, nil, "CLIENT_URL is not set): c"},
		"V1":               {[]Node{old, node("b", "stable", 0)}, manual, map[string]uint64{"a": 100}, ""},
		"nobody":           {nil, manual, nil, "the sessions are even"},
	} {
		shares, why := Plan(c.nodes, c.th)
		if c.why == "" && why != "" || !strings.Contains(why, c.why) {
			t.Errorf("%s: %q, want %q", name, why, c.why)
		}
		for _, s := range shares {
			if why == "" && s.Gives != c.gives[s.ID] {
				t.Errorf("%s: %s gives %d, want %d", name, s.ID, s.Gives, c.gives[s.ID])
			}
		}
	}
}

// Whatever there is, what is given fits where it goes, and afterwards nobody has
// more than before.
func TestPlanConserves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []Node
		for range rapid.IntRange(0, 8).Draw(t, "n") {
			nodes = append(nodes, node(rapid.StringMatching(`[a-z]{6}`).Draw(t, "id"), rapid.SampledFrom([]string{"stable", "canary"}).Draw(t, "track"), rapid.Uint64Range(0, 100_000).Draw(t, "sessions")))
		}
		shares, _ := Plan(nodes, manual)
		for _, track := range []string{"stable", "canary"} {
			var gives, gets, n uint64
			for _, s := range shares {
				if s.Track != track {
					continue
				}
				n++
				gives += s.Gives
				gets += s.Gets
				if s.Gives > s.Sessions || s.Gives > 0 && s.Gets > 0 {
					t.Fatalf("%+v", s)
				}
			}
			// The mean is rounded down: that many more are given than got.
			if gives < gets || gives > gets+n {
				t.Fatalf("%s: %d given, %d got", track, gives, gets)
			}
		}
	})
}

// cluster is gateways that shed as they are told, in fake time.
type cluster struct {
	mu    sync.Mutex
	nodes []fleet.Node // guarded by mu, like what follows
	sheds map[string]*gatewayv1.ShedResponse
	stops int
	busy  string
}

func (c *cluster) Next(context.Context, uint64) (*fleet.Snapshot, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &fleet.Snapshot{Seq: 1, At: time.Now(), Nodes: append([]fleet.Node(nil), c.nodes...)}, nil
}

func (c *cluster) shed(_ context.Context, n fleet.Node, req *gatewayv1.ShedRequest) (*gatewayv1.ShedResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := n.ID + req.GetOperationId()
	p := c.sheds[k]
	switch {
	case req.GetCancel() && p == nil:
		return &gatewayv1.ShedResponse{Done: true}, nil // it does not remember
	case req.GetCancel():
		c.stops++
		p.Done = true
		return proto.CloneOf(p), nil
	case len(req.GetTargets()) == 0:
		return nil, fault.New(fault.Invalid, "no targets")
	case p == nil:
		p = &gatewayv1.ShedResponse{}
		c.sheds[k] = p
	case p.GetDone():
		return proto.CloneOf(p), nil
	}
	for range min(uint64(req.GetSessionsPerSecond()), req.GetSessions()-p.Moved) {
		p.Moved++
		for i := range c.nodes {
			switch c.nodes[i].ID {
			case n.ID:
				c.nodes[i].Sessions--
			case req.GetTargets()[0].GetNodeId():
				c.nodes[i].Sessions++
			}
		}
	}
	p.Done = p.Moved == req.GetSessions()
	return proto.CloneOf(p), nil
}

func inTime(t *testing.T, auto bool, f func(t *testing.T, c *cluster, r *Runner)) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{sheds: map[string]*gatewayv1.ShedResponse{}}
		for id, n := range map[string]uint64{"a": 5000, "b": 1000} {
			c.nodes = append(c.nodes, fleet.Node{
				Kind: fleet.Gateway, ID: id, Incarnation: 1, Track: "stable", Phase: gatewayv1.Phase_PHASE_SERVING, Sessions: n, SessionsV2: n,
				ClientURL: "ws://" + id, Status: &gatewayv1.StatusResponse{},
			})
		}
		tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		st := store.NewMemory()
		r := New(Config{Store: st, Inventory: c, Automatic: auto, Telemetry: tel, Busy: func() string {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.busy
		}})
		r.shed = c.shed
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		e := store.NewElector(store.ElectorConfig{Store: st, Name: "a", Telemetry: tel})
		wg.Go(func() { e.Run(ctx, r.Duty) })
		time.Sleep(3 * time.Second) // fake time
		f(t, c, r)
		cancel()
		wg.Wait()
		_ = tel.Shutdown(context.Background())
	})
}

func (c *cluster) sessions(id string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		if n.ID == id {
			return n.Sessions
		}
	}
	return 0
}

// stopped is whether every gateway that was asked for sessions was told to stop.
func (c *cluster) stopped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.sheds {
		if !p.GetDone() {
			return false
		}
	}
	return c.stops > 0
}

func ask(t *testing.T, r *Runner, req *controlv1.RebalanceRequest) *controlv1.RebalanceResponse {
	t.Helper()
	res, err := r.Rebalance(t.Context(), req, "ann")
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestAnOperatorEvensOut(t *testing.T) {
	inTime(t, false, func(t *testing.T, c *cluster, r *Runner) {
		if res := ask(t, r, &controlv1.RebalanceRequest{Preview: true}); res.GetRunning() || len(res.GetNodes()) != 2 || res.GetNodes()[0].GetGives() != 2000 || res.GetNodes()[1].GetGets() != 2000 {
			t.Errorf("preview: %v", res)
		}
		if res := ask(t, r, &controlv1.RebalanceRequest{SessionsPerSecond: 200}); !res.GetRunning() {
			t.Fatalf("%v", res)
		}
		time.Sleep(5 * time.Second) // fake time
		if res := ask(t, r, &controlv1.RebalanceRequest{}); !res.GetRunning() || res.GetNodes()[0].GetMoved() == 0 || res.GetNodes()[0].GetGives() != 2000 {
			t.Errorf("under way: %v", res)
		}
		time.Sleep(10 * time.Second) // fake time
		if a, b := c.sessions("a"), c.sessions("b"); a != 3000 || b != 3000 {
			t.Errorf("%d and %d", a, b)
		}
		if res := ask(t, r, &controlv1.RebalanceRequest{}); res.GetRunning() || res.GetReason() != "the sessions are even" {
			t.Errorf("%v", res)
		}
	})
}

func TestStop(t *testing.T) {
	inTime(t, false, func(t *testing.T, c *cluster, r *Runner) {
		ask(t, r, &controlv1.RebalanceRequest{SessionsPerSecond: 10})
		time.Sleep(5 * time.Second) // fake time
		if res := ask(t, r, &controlv1.RebalanceRequest{Cancel: true}); res.GetRunning() || !c.stopped() {
			t.Errorf("%v, the gateway was not told", res)
		}
		at := c.sessions("a")
		time.Sleep(10 * time.Second) // fake time
		if c.sessions("a") != at || at < 4900 {
			t.Errorf("goes on: %d, then %d", at, c.sessions("a"))
		}
		if _, err := r.Rebalance(t.Context(), &controlv1.RebalanceRequest{SessionsPerSecond: -1}, ""); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%v", err)
		}
	})
}

func TestAutomatic(t *testing.T) {
	inTime(t, true, func(t *testing.T, c *cluster, _ *Runner) {
		time.Sleep(time.Minute) // fake time
		if a := c.sessions("a"); a != 3000 {
			t.Errorf("%d", a)
		}
	})
	inTime(t, false, func(t *testing.T, c *cluster, _ *Runner) {
		time.Sleep(time.Minute) // fake time
		if a := c.sessions("a"); a != 5000 {
			t.Errorf("moved without being told: %d", a)
		}
	})
}

func TestAGatewayThatGoesEndsItsPart(t *testing.T) {
	inTime(t, false, func(t *testing.T, c *cluster, r *Runner) {
		ask(t, r, &controlv1.RebalanceRequest{SessionsPerSecond: 10})
		time.Sleep(3 * time.Second) // fake time
		c.mu.Lock()
		for i := range c.nodes {
			c.nodes[i].Phase = gatewayv1.Phase_PHASE_DRAINING
		}
		c.mu.Unlock()
		time.Sleep(3 * time.Second) // fake time
		if res := ask(t, r, &controlv1.RebalanceRequest{Preview: true}); res.GetRunning() {
			t.Errorf("%v", res)
		}
	})
}

// What is cancelled at once stops also where the first request comes after the last.
func TestAStopThatOvertakesTheFirstRequest(t *testing.T) {
	inTime(t, false, func(t *testing.T, c *cluster, r *Runner) {
		r.shed = func(ctx context.Context, n fleet.Node, req *gatewayv1.ShedRequest) (*gatewayv1.ShedResponse, error) {
			if !req.GetCancel() {
				time.Sleep(callTimeout / 2) // fake time
			}
			return c.shed(ctx, n, req)
		}
		ask(t, r, &controlv1.RebalanceRequest{SessionsPerSecond: 10})
		time.Sleep(interval + callTimeout/4) // fake time
		ask(t, r, &controlv1.RebalanceRequest{Cancel: true})
		time.Sleep(2 * interval) // fake time
		if c.sessions("a") != 4990 || !c.stopped() {
			t.Errorf("%d sessions left, and it goes on", c.sessions("a"))
		}
	})
}
