package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func serve(t *testing.T, h http.HandlerFunc, log *slog.Logger) (*Server, *http.Client) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer(ln, h, nil, log)
	srv.Start()
	t.Cleanup(func() { _ = srv.Stop(context.Background()) })
	hc := NewClient()
	t.Cleanup(hc.CloseIdleConnections)
	return srv, hc
}

func get(t *testing.T, srv *Server, hc *http.Client) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+srv.Addr(), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := hc.Do(req)
	if err == nil {
		_ = res.Body.Close()
	}
	return err
}

func TestForcedStopSaysSoAndWaitsForHandlers(t *testing.T) {
	entered := make(chan struct{})
	var left atomic.Bool
	srv, hc := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done() // the call is cut off
		left.Store(true)
	}, slog.New(slog.DiscardHandler))
	var wg sync.WaitGroup
	wg.Go(func() { _ = get(t, srv, hc) })
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := srv.Stop(ctx)
	if !left.Load() {
		t.Error("Stop returned while a handler was running")
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a forced stop looks orderly: %v", err)
	}
	wg.Wait()
}

// A connection that begins to speak after the others were told to go away is told
// as well: nobody waits for it until the context ends.
func TestStopTellsWhoIsLate(t *testing.T) {
	srv, _ := serve(t, func(http.ResponseWriter, *http.Request) {}, slog.New(slog.DiscardHandler))
	var conns []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", srv.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		conns = append(conns, c)
	}
	const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	hello := func(c net.Conn) {
		if _, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+settings); err != nil {
			t.Error(err)
		}
	}
	late, first := conns[0], conns[1]
	hello(first)
	if _, err := io.ReadFull(first, make([]byte, len(settings))); err != nil {
		t.Fatal(err) // the server knows it, and whoever came before it
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- srv.Stop(ctx) }()
	// The first one is told, and closed after that.
	if _, err := io.Copy(io.Discard, first); err != nil {
		t.Fatal(err)
	}
	hello(late)
	var wg sync.WaitGroup
	wg.Go(func() { answerPings(late) })
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// answerPings is all that a peer without calls does (RFC 9113, sections 4.1 and
// 6.7), until the connection ends.
func answerPings(c net.Conn) {
	const ping, ack = 6, 1
	var head [9]byte
	for {
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(c, payload); err != nil {
			return
		}
		if head[3] != ping || head[4] == ack {
			continue
		}
		head[4] = ack
		if _, err := c.Write(append(head[:], payload...)); err != nil {
			return
		}
	}
}

func TestPanicsAreErrorsInTheLog(t *testing.T) {
	var log bytes.Buffer
	srv, hc := serve(t, func(http.ResponseWriter, *http.Request) { panic("boom") },
		slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelError})))
	if get(t, srv, hc) == nil {
		t.Error("the client saw success")
	}
	if err := srv.Stop(t.Context()); err != nil { // and so the log is complete
		t.Error(err)
	}
	if !strings.Contains(log.String(), "handler_panic") || !strings.Contains(log.String(), "boom") {
		t.Errorf("log %q", log.String())
	}
}

func TestSpareIsClearedAndReused(t *testing.T) {
	q := NewQueue[*int](8)
	one := 1
	q.Push(&one)
	first, _ := q.Take(t.Context(), nil)
	q.Push(&one)
	if _, ok := q.Take(t.Context(), first); !ok || first[0] != nil {
		t.Error("a batch given back keeps what it held alive")
	}
}

// One large burst must not make every later batch pay for its size.
func BenchmarkQueueAfterBurst(b *testing.B) {
	q := NewQueue[[6]uint64](1 << 20)
	for range 100_000 {
		q.Push([6]uint64{})
	}
	batch, _ := q.Take(b.Context(), nil)
	for b.Loop() {
		q.Push([6]uint64{})
		batch, _ = q.Take(b.Context(), batch)
	}
}
