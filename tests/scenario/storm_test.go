package scenario

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/tests/harness"
)

// balancer is a load balancer that has been told of two gateways. Not one of
// harness.Network: that looks up whose each connection is, which makes storms mild.
type balancer struct {
	ln      net.Listener
	targets []string
	wg      sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn // guarded by mu
	taken int        // guarded by mu
}

func balance(t *testing.T, targets ...string) *balancer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{ln: ln, targets: targets}
	b.wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return // closed
			}
			b.serve(client)
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		b.cut()
		b.wg.Wait()
	})
	return b
}

func (b *balancer) serve(client net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken++
	gateway, err := net.Dial("tcp", b.targets[b.taken%len(b.targets)])
	if err != nil {
		_ = client.Close()
		return
	}
	b.conns = append(b.conns, client, gateway)
	for _, way := range [][2]net.Conn{{client, gateway}, {gateway, client}} {
		b.wg.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			_ = way[0].Close()
		})
	}
}

// cut ends all connections, as a restart does.
func (b *balancer) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		_ = c.Close()
	}
	b.conns = nil
}

// away is an observer that does not look.
type away struct{}

func (away) Connected(string)           {}
func (away) Disconnected(int, string)   {}
func (away) Delivered(harness.Incoming) {}
func (away) Ended(error)                {}

// TestReconnectStorm walks through "Reconnect storms" of the runbook: what it says to
// look at tells the causes apart, ACCEPT_RATE bounds each, and everybody comes back.
func TestReconnectStorm(t *testing.T) {
	const users = 30
	// The timeout leaves those that ACCEPT_RATE refuses at first the time to come again
	// before their Migrate has expired.
	c := harness.New(t, harness.Options{
		Gateways: 2, Routers: 1, ControlPlane: true, Env: map[string][]string{"gateway": {"ACCEPT_RATE=10", "DRAIN_TIMEOUT_SECONDS=30"}},
	})
	b := balance(t, c.Gateway("gw1").Public, c.Gateway("gw2").Public)
	for i := range users {
		e, err := harness.DialSDK(harness.Dialing{
			URLs: []string{"ws://" + b.ln.Addr().String() + "/ws"}, Tenant: c.Tenant().Name, User: fmt.Sprint("u", i), Device: "phone", Observer: away{},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(e.Close)
	}
	back := func() {
		t.Helper()
		testkit.Eventually(t, "everybody is connected", func() bool { return c.Sum("gw", "mics_ws_connections") == users })
	}
	back()
	type signs struct{ connects, refused, deaths, auths float64 }
	look := func() signs {
		return signs{
			c.Sum("gw", "mics_ws_connected_total"), c.Sum("gw", "mics_ws_handshakes_refused_total"),
			c.Sum("r", "mics_dead_node_cleanups_total"), float64(c.Tenant().Calls("auth")),
		}
	}
	on := func(name string) float64 { return c.Gateway(name).Metrics().Sum("mics_ws_connections") }

	// A load balancer cuts them: neither a death nor a drain, and everybody is asked
	// for at /auth again, also who resumes a session.
	before := look()
	b.cut()
	testkit.Eventually(t, "they connect again", func() bool { return look().connects-before.connects >= users })
	back()
	now := look()
	t.Logf("cut by a balancer: %+v, before %+v", now, before)
	if now.deaths != before.deaths || now.auths-before.auths < users {
		t.Errorf("cut by a balancer: %+v, before %+v", now, before)
	}
	if now.refused == before.refused {
		t.Error("ACCEPT_RATE refused nobody")
	}
	if got := c.Gateway("gw1").Metrics().With("mics_ws_handshakes_refused_total", "reason", "accept_rate") + c.Gateway("gw2").Metrics().With("mics_ws_handshakes_refused_total", "reason", "accept_rate"); got == 0 {
		t.Error("not because of ACCEPT_RATE")
	}

	// A gateway is told to go: clients bring the token of their Migrate and ask no
	// /auth; its log has the drain, whose counter ends with it.
	before, moved := look(), on("gw2")
	c.Gateway("gw2").Stop()
	back()
	now = look()
	t.Logf("told to go with %.0f: %+v, before %+v", moved, now, before)
	if moved == 0 || now.deaths != before.deaths || now.auths != before.auths {
		t.Errorf("told to go with %.0f: %+v, before %+v", moved, now, before)
	}
	if log := c.Gateway("gw2").Log(); !strings.Contains(log, "shutdown_drain_done") {
		t.Error("its log has no drain")
	}
	c.Gateway("gw2").Start()
	c.AwaitSettled()

	// A gateway dies: the routers clean up after it, and micsctl does not show it.
	before, moved = look(), on("gw1")
	c.Gateway("gw1").Kill()
	testkit.Eventually(t, "a router cleans up", func() bool { return look().deaths == before.deaths+1 })
	back()
	now = look()
	t.Logf("killed with %.0f: %+v, before %+v", moved, now, before)
	if now.auths-before.auths < moved {
		t.Errorf("killed with %.0f: %+v, before %+v", moved, now, before)
	}
	testkit.Eventually(t, "micsctl shows that it is gone", func() bool {
		out, _, _ := micsctl(t, c.ControlPlane(), "nodes")
		for line := range strings.Lines(out) {
			if strings.Contains(line, "gw1") && !strings.Contains(line, "unreachable") {
				return false
			}
		}
		return strings.Contains(out, "gw2")
	})
}
