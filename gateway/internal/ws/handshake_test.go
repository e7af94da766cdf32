package ws

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// goodRequest is RFC 6455, section 1.3.
func goodRequest() *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/ws?tenantId=t", nil)
	r.Header.Set("Connection", "keep-alive, Upgrade")
	r.Header.Set("Upgrade", "websocket")
	r.Header.Set("Sec-WebSocket-Version", "13")
	r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
	return r
}

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*http.Request)
		says   string // "" for a good one
	}{
		"as it is":            {func(*http.Request) {}, ""},
		"other case":          {func(r *http.Request) { r.Header["Connection"] = []string{"x", " UPGRADE ,y"} }, ""},
		"upgrade among other": {func(r *http.Request) { r.Header.Set("Upgrade", "h2c, WebSocket") }, ""},
		"spaces around key":   {func(r *http.Request) { r.Header.Set("Sec-WebSocket-Key", " dGhlIHNhbXBsZSBub25jZQ== ") }, ""},
		"POST":                {func(r *http.Request) { r.Method = http.MethodPost }, "GET"},
		"HTTP/1.0":            {func(r *http.Request) { r.ProtoMinor = 0 }, "HTTP/1.1"},
		"HTTP/2":              {func(r *http.Request) { r.ProtoMajor, r.ProtoMinor = 2, 0 }, "HTTP/1.1"},
		"no Connection":       {func(r *http.Request) { r.Header.Del("Connection") }, "Connection"},
		"other Connection":    {func(r *http.Request) { r.Header.Set("Connection", "upgraded") }, "Connection"},
		"no Upgrade":          {func(r *http.Request) { r.Header.Del("Upgrade") }, "Upgrade"},
		"other Upgrade":       {func(r *http.Request) { r.Header.Set("Upgrade", "h2c") }, "Upgrade"},
		"no version":          {func(r *http.Request) { r.Header.Del("Sec-WebSocket-Version") }, "Version"},
		"version 8":           {func(r *http.Request) { r.Header.Set("Sec-WebSocket-Version", "8") }, "Version"},
		"no key":              {func(r *http.Request) { r.Header.Del("Sec-WebSocket-Key") }, "Key"},
		"two keys":            {func(r *http.Request) { r.Header.Add("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==") }, "Key"},
		"short key":           {func(r *http.Request) { r.Header.Set("Sec-WebSocket-Key", "dGhl") }, "Key"},
		"key not base64":      {func(r *http.Request) { r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZ!==") }, "Key"},
		"a body":              {func(r *http.Request) { r.ContentLength = 4 }, "body"},
		"a chunked body":      {func(r *http.Request) { r.ContentLength = -1 }, "body"},
	} {
		t.Run(name, func(t *testing.T) {
			r := goodRequest()
			tc.change(r)
			err := Check(r)
			if tc.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, ErrNotWebSocket) || !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("%v, want something about %s", err, tc.says)
			}
		})
	}
}

// serve upgrades every connection to a server on ln and gives it to handle, in a
// fresh goroutine; protocol is what to select.
func serve(t testing.TB, ln net.Listener, protocol string, handle func(*Conn)) string {
	t.Helper()
	var (
		mu     sync.Mutex // guards the next two
		conns  []*Conn
		closed bool
		wg     sync.WaitGroup
	)
	srv := &http.Server{
		ReadHeaderTimeout: 30 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := Check(r); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			c, err := Upgrade(w, r, protocol)
			if err != nil {
				return // the client sees it
			}
			mu.Lock()
			defer mu.Unlock()
			if closed {
				_ = c.Close()
				return
			}
			conns = append(conns, c)
			wg.Go(func() { handle(c) })
		}),
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-served
		mu.Lock()
		closed = true
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// dial opens a socket and writes the handshake and what shall come right behind.
func dial(t testing.TB, addr, headers string, behind []byte) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
	req := "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + headers + "\r\n"
	if _, err := nc.Write(append([]byte(req), behind...)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(nc)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return nc, r, res
}

// echo sends every message back.
func echo(c *Conn) {
	for {
		f, err := c.Next(wide)
		if err != nil {
			return
		}
		if err := c.Write(net.Buffers{AppendFrame(nil, f.Op, f.Payload)}); err != nil {
			return
		}
	}
}

func TestUpgradeAnswer(t *testing.T) {
	for _, protocol := range []string{"", "mics.v2"} {
		addr := serve(t, listen(t), protocol, echo)
		_, _, res := dial(t, addr, "Sec-WebSocket-Protocol: mics.v2, mics.token.abc\r\n", nil) //nolint:bodyclose // dial closes it
		if res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Upgrade") != "websocket" || res.Header.Get("Connection") != "Upgrade" {
			t.Fatalf("%s %v", res.Status, res.Header)
		}
		if got := res.Header.Get("Sec-WebSocket-Accept"); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" { // RFC 6455, section 1.3
			t.Fatalf("accept %q", got)
		}
		if got := res.Header.Values("Sec-WebSocket-Protocol"); strings.Join(got, "|") != protocol {
			t.Fatalf("selected %q, want %q", got, protocol)
		}
		for _, h := range []string{"Content-Length", "Transfer-Encoding", "Sec-WebSocket-Extensions"} {
			if res.Header.Get(h) != "" {
				t.Errorf("the answer has %s", h)
			}
		}
	}
}

func TestUpgradeRefuses(t *testing.T) {
	addr := serve(t, listen(t), "", echo)
	_, _, res := dial(t, addr, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", nil) //nolint:bodyclose // dial closes it; a second key
	if res.StatusCode != http.StatusBadRequest {
		t.Fatal(res.Status)
	}
	w := httptest.NewRecorder() // cannot be taken over
	if _, err := Upgrade(w, goodRequest(), ""); err == nil || w.Code != http.StatusInternalServerError {
		t.Fatalf("%v, %d", err, w.Code)
	}
}

// hijacker gives away a connection, as net/http does.
type hijacker struct {
	http.ResponseWriter
	nc net.Conn
	rw *bufio.ReadWriter
}

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) { return h.nc, h.rw, nil }

// The bound on the handshake does not end the connection later.
func TestUpgradeLeavesNoDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		go func() {
			r := bufio.NewReader(client)
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			_ = res.Body.Close()
			time.Sleep(time.Hour) // fake
			_, _ = client.Write(binaryFrame([]byte("late")))
			_, _ = io.ReadFull(r, make([]byte, 3))
			_ = client.Close()
		}()
		rw := bufio.NewReadWriter(bufio.NewReader(server), bufio.NewWriter(server))
		c, err := Upgrade(hijacker{nc: server, rw: rw}, goodRequest(), "")
		if err != nil {
			t.Fatal(err)
		}
		if f, err := c.Next(wide); err != nil || string(f.Payload) != "late" {
			t.Fatal(err)
		}
		if err := c.Write(net.Buffers{AppendFrame(nil, Binary, []byte("x"))}); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	})
}

func TestUpgradeFailsCleanly(t *testing.T) {
	t.Run("peer gone", func(t *testing.T) {
		client, server := net.Pipe()
		_ = client.Close()
		rw := bufio.NewReadWriter(bufio.NewReader(server), bufio.NewWriter(server))
		if _, err := Upgrade(hijacker{nc: server, rw: rw}, goodRequest(), ""); err == nil {
			t.Fatal("upgraded a dead connection")
		}
		if _, err := server.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Fatal("the connection is left open")
		}
	})
	t.Run("more early bytes than a buffer", func(t *testing.T) {
		_, server := net.Pipe()
		br := bufio.NewReaderSize(strings.NewReader(strings.Repeat("x", readBlock+1)), 2*readBlock)
		_, _ = br.Peek(readBlock + 1)
		if _, err := Upgrade(hijacker{nc: server, rw: bufio.NewReadWriter(br, nil)}, goodRequest(), ""); !errors.Is(err, errEarly) {
			t.Fatal(err)
		}
	})
}

// A client need not wait for the answer.
func TestBytesRightBehindTheHandshake(t *testing.T) {
	for _, n := range []int{0, 1, 100, 3000, 4096, 10_000, 300_000} {
		addr := serve(t, listen(t), "", echo)
		payload := pattern(n)
		frame := binaryFrame(payload)
		for _, cut := range []int{0, 1, 5, len(frame)} {
			cut = min(cut, len(frame))
			nc, r, res := dial(t, addr, "", frame[:cut]) //nolint:bodyclose // dial closes it
			if res.StatusCode != http.StatusSwitchingProtocols {
				t.Fatal(res.Status)
			}
			if _, err := nc.Write(frame[cut:]); err != nil {
				t.Fatal(err)
			}
			want := AppendFrame(nil, Binary, payload)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(r, got); err != nil || string(got) != string(want) {
				t.Fatalf("%d bytes, %d behind the handshake: %v", n, cut, err)
			}
			_ = nc.Close()
		}
	}
}
