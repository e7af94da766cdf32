package harness

import (
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// echo serves its input back.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func testNetwork(t *testing.T) (n *Network, addr string) {
	t.Helper()
	n = newNetwork(func(net.Conn) string { return "a" })
	addr, err := n.proxy("b", echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.close)
	return n, addr
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("%q, %v", b, err)
	}
}

// silent: nothing arrives. It waits a moment of real time, the network's.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n > 0 || !os.IsTimeout(err) {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

func TestProxyForwardsAndEnds(t *testing.T) {
	_, addr := testNetwork(t)
	c := dial(t, addr)
	write(t, c, "hello")
	read(t, c, "hello")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestBlackholeHoldsWhatIsOnTheWay(t *testing.T) {
	n, addr := testNetwork(t)
	c := dial(t, addr)
	write(t, c, "1")
	read(t, c, "1")
	n.Isolate("b", Condition{Blackhole: true})
	write(t, c, "2")
	silent(t, c)
	late := dial(t, addr)
	write(t, late, "x")
	silent(t, late)
	n.Heal()
	read(t, c, "2")
	read(t, late, "x")
}

func TestCutResetsConnectionsOldAndNew(t *testing.T) {
	n, addr := testNetwork(t)
	c := dial(t, addr)
	write(t, c, "1")
	read(t, c, "1")
	n.Set("a", "b", Condition{Cut: true})
	for _, c := range []net.Conn{c, dial(t, addr)} {
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Fatalf("not reset: %v", err)
		}
	}
	n.Set("a", "b", Condition{})
	c = dial(t, addr)
	write(t, c, "2")
	read(t, c, "2")
}

func TestRulesAreForTheirLinks(t *testing.T) {
	n, addr := testNetwork(t)
	n.Set("x", "b", Condition{Cut: true})
	n.Set("b", "a", Condition{Blackhole: true})
	n.Isolate("x", Condition{Blackhole: true})
	c := dial(t, addr)
	write(t, c, "1")
	read(t, c, "1")
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rules[link{Any, "b"}] = Condition{Delay: time.Second}
	if got, want := n.condition(link{"x", "b"}), (Condition{Cut: true, Blackhole: true, Delay: time.Second}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := n.condition(link{"y", "z"}); got != (Condition{}) {
		t.Errorf("%+v", got)
	}
}

func TestDelayKeepsOrder(t *testing.T) {
	n, addr := testNetwork(t)
	n.Set("a", Any, Condition{Delay: 20 * time.Millisecond})
	c := dial(t, addr)
	began := time.Now()
	write(t, c, "1")
	write(t, c, "2")
	write(t, c, "3")
	read(t, c, "123")
	// A lower bound holds however busy the machine is.
	if took := time.Since(began); took < 40*time.Millisecond {
		t.Errorf("there and back in %v", took)
	}
}

func TestTheOwnerOfAConnectionIsFound(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	dial(t, ln.Addr().String())
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if got := peerPID(c, []int{1 << 30, os.Getpid()}); got != os.Getpid() {
		t.Errorf("%d, want %d", got, os.Getpid())
	}
	if got := peerPID(c, nil); got != 0 {
		t.Errorf("%d of nobody", got)
	}
}
