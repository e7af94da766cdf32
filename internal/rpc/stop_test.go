package rpc

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
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
