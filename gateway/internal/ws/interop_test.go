package ws

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/mics-im/mics/internal/testkit"
)

// transports are how the independent client reaches the server.
func transports(t *testing.T, f func(t *testing.T, listen func() net.Listener, client *http.Client, scheme string)) {
	t.Helper()
	t.Run("tcp", func(t *testing.T) {
		f(t, func() net.Listener { return listen(t) }, http.DefaultClient, "ws")
	})
	t.Run("tls", func(t *testing.T) {
		// httptest has a certificate for 127.0.0.1.
		ts := httptest.NewUnstartedServer(nil)
		ts.StartTLS()
		t.Cleanup(ts.Close)
		pool := x509.NewCertPool()
		pool.AddCert(ts.Certificate())
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
		t.Cleanup(transport.CloseIdleConnections)
		config := &tls.Config{Certificates: ts.TLS.Certificates, MinVersion: tls.VersionTLS12}
		f(t, func() net.Listener { return tls.NewListener(CountListener{listen(t)}, config) }, &http.Client{Transport: transport}, "wss")
	})
}

// answer is a server loop as a gateway has: it echoes messages, answers pings,
// ends with a violation's code, and completes either side's closing.
type answer struct {
	violation atomic.Pointer[ProtocolError]
	closed    atomic.Pointer[string] // the close frame that came
}

func (a *answer) handle(c *Conn) {
	defer func() { _ = c.Close() }()
	for {
		f, err := c.Next(wide)
		if err != nil {
			if pe, ok := err.(*ProtocolError); ok { //nolint:errorlint // it comes bare
				a.violation.Store(pe)
				_ = c.Write(net.Buffers{AppendClose(nil, pe.Code, pe.Reason)})
			}
			return
		}
		var out []byte
		switch f.Op {
		case Binary:
			if string(f.Payload) == "close me" {
				out = AppendClose(nil, 4200, "server draining")
				break
			}
			// As a fan-out does: header and body apart.
			if err := c.Write(net.Buffers{AppendHeader(nil, Binary, len(f.Payload)), f.Payload}); err != nil {
				return
			}
			continue
		case Ping:
			out = AppendFrame(nil, Pong, f.Payload)
		case Close:
			got := string(f.Payload)
			code, reason, _ := ParseClose(f.Payload)
			if a.closed.Swap(&got) == nil && code != 4200 {
				_ = c.Write(net.Buffers{AppendClose(nil, code, reason)})
			}
			c.Done()
			return
		}
		if out != nil {
			if err := c.Write(net.Buffers{out}); err != nil {
				return
			}
		}
	}
}

func TestAnIndependentClient(t *testing.T) {
	transports(t, func(t *testing.T, listen func() net.Listener, client *http.Client, scheme string) {
		open := func(t *testing.T, protocol string) (*websocket.Conn, *answer, context.Context) {
			a := new(answer)
			addr := serve(t, listen(), protocol, a.handle)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // a hang shall fail
			t.Cleanup(cancel)
			c, _, err := websocket.Dial(ctx, scheme+"://"+addr+"/ws", &websocket.DialOptions{ //nolint:bodyclose // the library closes it
				HTTPClient: client, Subprotocols: []string{"mics.v2", "mics.token.abc"},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.CloseNow() })
			c.SetReadLimit(-1)
			return c, a, ctx
		}

		t.Run("subprotocol", func(t *testing.T) {
			for _, p := range []string{"", "mics.v2"} {
				if c, _, _ := open(t, p); c.Subprotocol() != p {
					t.Fatalf("%q, want %q", c.Subprotocol(), p)
				}
			}
		})
		t.Run("messages", func(t *testing.T) {
			c, _, ctx := open(t, "")
			for _, n := range []int{0, 1, 125, 126, 4095, 4096, 4097, 65535, 65536, 1 << 20, 3} {
				want := pattern(n)
				if err := c.Write(ctx, websocket.MessageBinary, want); err != nil {
					t.Fatal(err)
				}
				typ, got, err := c.Read(ctx)
				if err != nil || typ != websocket.MessageBinary || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes: %v, %d came back, %v", n, typ, len(got), err)
				}
			}
		})
		t.Run("fragments", func(t *testing.T) {
			c, _, ctx := open(t, "")
			w, err := c.Writer(ctx, websocket.MessageBinary)
			if err != nil {
				t.Fatal(err)
			}
			want := pattern(100_000)
			for rest := want; len(rest) > 0; {
				n := min(len(rest), 7000)
				if _, err := w.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if _, got, err := c.Read(ctx); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes came back, %v", len(got), err)
			}
		})
		t.Run("ping", func(t *testing.T) {
			c, _, ctx := open(t, "")
			readCtx := c.CloseRead(ctx)
			for range 3 {
				if err := c.Ping(readCtx); err != nil {
					t.Fatal(err)
				}
			}
		})
		t.Run("too large is survived", func(t *testing.T) {
			c, _, ctx := open(t, "")
			if err := c.Write(ctx, websocket.MessageBinary, make([]byte, wide.Message+1)); err != nil {
				t.Fatal(err)
			}
			if _, got, err := c.Read(ctx); err != nil || len(got) != 0 {
				t.Fatal(len(got), err)
			}
		})
		t.Run("text is refused", func(t *testing.T) {
			c, a, ctx := open(t, "")
			if err := c.Write(ctx, websocket.MessageText, []byte("hi")); err != nil {
				t.Fatal(err)
			}
			_, _, err := c.Read(ctx)
			if websocket.CloseStatus(err) != CodeUnsupported {
				t.Fatal(err)
			}
			if pe := a.violation.Load(); pe == nil || pe.Code != CodeUnsupported {
				t.Fatal(pe)
			}
		})
		t.Run("client closes", func(t *testing.T) {
			c, a, _ := open(t, "")
			if err := c.Close(4000, "bye é"); err != nil { // waits for the echo
				t.Fatal(err)
			}
			if got := a.closed.Load(); got == nil || *got != "\x0f\xa0bye é" {
				t.Fatalf("the close frame was not seen as it was sent: %v", got)
			}
		})
		t.Run("server closes", func(t *testing.T) {
			c, a, ctx := open(t, "")
			if err := c.Write(ctx, websocket.MessageBinary, []byte("close me")); err != nil {
				t.Fatal(err)
			}
			_, _, err := c.Read(ctx) // echoes by itself
			if websocket.CloseStatus(err) != 4200 {
				t.Fatal(err)
			}
			testkit.Eventually(t, "the echo comes", func() bool { return a.closed.Load() != nil })
			if got := *a.closed.Load(); got != "\x10\x68server draining" {
				t.Fatalf("%q", got)
			}
		})
	})
}

// Below TLS the counts are of records; they still meet when the peer has all.
func TestAcknowledgedOverTLS(t *testing.T) {
	transports(t, func(t *testing.T, listen func() net.Listener, client *http.Client, scheme string) {
		conns := make(chan *Conn, 1)
		addr := serve(t, listen(), "", func(c *Conn) {
			conns <- c
			for {
				if _, err := c.Next(wide); err != nil {
					return
				}
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		cl, _, err := websocket.Dial(ctx, scheme+"://"+addr+"/ws", &websocket.DialOptions{HTTPClient: client}) //nolint:bodyclose // the library closes it
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cl.CloseNow() }()
		cl.SetReadLimit(-1)
		c := <-conns
		if c.Exact() != (scheme == "ws") {
			t.Fatalf("Exact is %v", c.Exact())
		}
		payload := pattern(100_000)
		for i := range 5 {
			before := c.Written()
			if err := c.Write(net.Buffers{AppendHeader(nil, Binary, len(payload)), payload, AppendFrame(nil, Binary, []byte("x"))}); err != nil {
				t.Fatal(err)
			}
			if grown := c.Written() - before; grown < int64(len(payload)) || c.Exact() && grown != int64(len(payload)+10+3) {
				t.Fatalf("round %d: Written advanced by %d", i, grown)
			}
			for range 2 {
				if _, _, err := cl.Read(ctx); err != nil {
					t.Fatal(err)
				}
			}
			testkit.Eventually(t, "all is acknowledged", func() bool {
				n, ok := c.Acknowledged()
				if !ok && canReadRaw {
					t.Fatal("not known")
				}
				return !ok || n == c.Written()
			})
		}
	})
}
