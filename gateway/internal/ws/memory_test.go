package ws

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/mics-im/mics/internal/testkit"
)

// idleConns opens n connections that have exchanged one message and now wait.
// Their clients are bare descriptors, so that what is on the heap is the
// server's.
func idleConns(t testing.TB, n int, config *tls.Config) {
	t.Helper()
	ln := listen(t)
	if config != nil {
		ln = tls.NewListener(CountListener{ln}, config)
	}
	var ready atomic.Int64
	addr := serve(t, ln, "", func(c *Conn) {
		for {
			f, err := c.Next(wide)
			if err != nil {
				return
			}
			if err := c.Write(net.Buffers{AppendFrame(nil, Binary, f.Payload)}); err != nil {
				return
			}
			ready.Add(1)
		}
	})
	req := "GET /ws HTTP/1.1\r\nHost: gateway.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
		"User-Agent: " + strings.Repeat("x", 200) + "\r\n\r\n"
	message := binaryFrame(pattern(300))
	for range n {
		tcp, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		nc := tcp
		if config != nil {
			nc = tls.Client(tcp, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the client is not what is measured
		}
		if _, err := nc.Write([]byte(req)); err != nil {
			t.Fatal(err)
		}
		for got := ""; !strings.Contains(got, "\r\n\r\n"); {
			var b [512]byte
			k, err := nc.Read(b[:])
			if err != nil {
				t.Fatal(err)
			}
			got += string(b[:k])
		}
		if _, err := nc.Write(message); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(nc, make([]byte, 304)); err != nil {
			t.Fatal(err)
		}
		// A second descriptor keeps the connection open without any Go object.
		raw, err := tcp.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var fd int
		if cerr := raw.Control(func(old uintptr) { fd, err = syscall.Dup(int(old)) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		t.Cleanup(func() { _ = syscall.Close(fd) })
		_ = tcp.Close()
	}
	testkit.Eventually(t, "all are idle", func() bool { return ready.Load() == int64(n) })
}

// testTLS is a server's configuration with a certificate of httptest.
func testTLS() *tls.Config {
	ts := httptest.NewUnstartedServer(http.NotFoundHandler())
	ts.StartTLS()
	defer ts.Close()
	return &tls.Config{Certificates: ts.TLS.Certificates, MinVersion: tls.VersionTLS12}
}

// resident is live heap and stacks.
func resident() (heap, stack int64) {
	for range 3 { // pools are emptied by the second
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc), int64(m.StackInuse)
}

func idleCost(t testing.TB, n int, config *tls.Config) (heap, stack int64) {
	t.Helper()
	idleConns(t, 20, config) // what is allocated once
	h0, s0 := resident()
	idleConns(t, n, config)
	h1, s1 := resident()
	return (h1 - h0) / int64(n), (s1 - s0) / int64(n)
}

func BenchmarkIdleConnection(b *testing.B) {
	for name, config := range map[string]*tls.Config{"tcp": nil, "tls": testTLS()} {
		b.Run(name, func(b *testing.B) {
			const n = 5000
			for b.Loop() {
				heap, stack := idleCost(b, n, config)
				b.ReportMetric(float64(heap), "heap-B/conn")
				b.ReportMetric(float64(stack), "stack-B/conn")
			}
		})
	}
}

// The bounds leave room for the race detector's larger frames and none for a
// buffer. What the test itself keeps of each connection is 0.5 KiB of it.
func TestIdleConnectionsAreSmall(t *testing.T) {
	if !canReadRaw {
		t.Skip("SKIPPED: the raw way needs Linux")
	}
	heap, stack := idleCost(t, 1000, nil)
	t.Logf("%d bytes of heap, %d of stack", heap, stack)
	if heap > 2<<10 {
		t.Errorf("%d bytes of heap for an idle connection", heap)
	}
	if heap+stack > 10_000 {
		t.Errorf("%d bytes for an idle connection", heap+stack)
	}
}

// Nothing that net/http made for the handshake stays with the connection.
func TestNothingOfTheHandshakeStays(t *testing.T) {
	old := runtime.MemProfileRate
	runtime.MemProfileRate = 1
	defer func() { runtime.MemProfileRate = old }()
	before := handshakeBytes(t)
	const n = 300
	idleConns(t, n, nil)
	if kept := handshakeBytes(t) - before; kept > 16*n {
		t.Errorf("%d bytes of net/http for each connection", kept/n)
	}
}

// handshakeBytes is what is reachable of all that net/http and what it builds on
// have allocated.
func handshakeBytes(t *testing.T) (sum int64) {
	t.Helper()
	resident()
	n, _ := runtime.MemProfile(nil, false)
	records := make([]runtime.MemProfileRecord, n+1000)
	n, ok := runtime.MemProfile(records, false)
	if !ok {
		t.Fatal("the profile grew meanwhile")
	}
	for _, r := range records[:n] {
		frames := runtime.CallersFrames(r.Stack())
		for f, more := frames.Next(); more; f, more = frames.Next() {
			if strings.HasPrefix(f.Function, "runtime.") {
				continue
			}
			for _, p := range []string{"net/http.", "net/textproto.", "net/url.", "bufio.", "context.", "strings.", "bytes.", "slices."} {
				if strings.HasPrefix(f.Function, p) {
					sum += r.InUseBytes()
				}
			}
			break
		}
	}
	return sum
}
