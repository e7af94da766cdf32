package canary

import (
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mics-im/mics/sdk/go/hook"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
)

// faulty stands between the clients and the canary's gateway.
type faulty struct {
	ln     net.Listener
	target string // set before the first client comes
	// late is the share of small writes of clients, heartbeats most of them, that
	// arrive after hold; resets is the share of the connections that is reset every
	// second.
	late, resets float64
	hold         time.Duration

	wg  sync.WaitGroup
	end chan struct{}

	mu    sync.Mutex
	conns map[*net.TCPConn]struct{} // of clients; guarded by mu
}

func newFaulty(t *testing.T) *faulty {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &faulty{ln: ln, end: make(chan struct{}), conns: map[*net.TCPConn]struct{}{}}
	t.Cleanup(func() {
		close(p.end)
		_ = ln.Close()
		p.reset(1)
		p.wg.Wait()
	})
	return p
}

// serve begins, once the target is known.
func (p *faulty) serve(target string) {
	p.target = target
	p.wg.Go(func() {
		for {
			c, err := p.ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.pipe(c.(*net.TCPConn)) })
		}
	})
	p.wg.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-p.end:
				return
			case <-tick.C:
				p.reset(p.resets)
			}
		}
	})
}

// reset resets a share of the connections.
func (p *faulty) reset(share float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if rand.Float64() < share {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
}

func (p *faulty) pipe(client *net.TCPConn) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		_ = client.Close()
		return
	}
	p.mu.Lock()
	p.conns[client] = struct{}{}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { // to the client
		p.copy(client, server, 0)
		_ = client.Close()
	})
	p.copy(server, client, p.late)
	// A reset goes on as one: the gateway is to see what its client's network did.
	_ = server.(*net.TCPConn).SetLinger(0)
	_ = server.Close()
	both.Wait()
	p.mu.Lock()
	delete(p.conns, client)
	p.mu.Unlock()
}

// small is what a heartbeat's frame is below.
const small = 48

func (p *faulty) copy(to, from net.Conn, late float64) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && n < small && rand.Float64() < late {
			select {
			case <-time.After(p.hold):
			case <-p.end:
			}
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// rolledBack begins a canary and waits until it was aborted by itself, for one of
// the reasons.
func (f *fleet) rolledBack(reasons ...string) {
	f.t.Helper()
	began := time.Now()
	f.begin(&controlv1.CanarySpec{Steps: []uint32{5000, 10000}, BakeMs: 120_000, Analysis: quick})
	c := f.until("aborted", in(aborted))
	known := false
	for _, r := range reasons {
		known = known || strings.HasPrefix(c.GetReason(), r)
	}
	if !known {
		f.t.Errorf("aborted for %q, want one of %v", c.GetReason(), reasons)
	}
	for who, gw := range f.where() {
		if gw == "gw3" {
			f.t.Errorf("%s is still on the canary", who)
		}
	}
	f.t.Logf("aborted and everybody back after %v: %s", time.Since(began).Round(time.Second), c.GetReason())
}

func TestABadCanaryIsRolledBack(t *testing.T) {
	t.Run("late heartbeats", func(t *testing.T) {
		onlyLong(t)
		p := newFaulty(t)
		p.late, p.hold = 0.05, 5*time.Second
		f := start(t, "", "CLIENT_URL=ws://"+p.ln.Addr().String()+"/ws")
		f.c.Tenant().Configure(func(c *hook.RuntimeConfig) { c.HeartbeatTimeoutSeconds = 2 })
		p.serve(f.c.Gateway("gw3").Public)
		f.gather(100)
		f.rolledBack("heartbeat_timeouts", "abnormal_closes", "resume_failures")
	})
	t.Run("abnormal closes", func(t *testing.T) {
		p := newFaulty(t)
		p.resets = 0.05
		f := start(t, "", "CLIENT_URL=ws://"+p.ln.Addr().String()+"/ws")
		p.serve(f.c.Gateway("gw3").Public)
		f.gather(100)
		f.rolledBack("abnormal_closes")
	})
	t.Run("memory", func(t *testing.T) {
		onlyLong(t)
		leaky := filepath.Join(t.TempDir(), "leaky")
		if out, err := exec.Command("go", "build", "-o", leaky, "./leaky").CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
		f := start(t, leaky)
		f.gather(100)
		f.talk(50)
		f.rolledBack("memory")
		f.complete()
	})
}
