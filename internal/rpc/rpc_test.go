package rpc

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
)

func TestQueueBatchesWhatQueuedUp(t *testing.T) {
	q := NewQueue[int](3)
	if !q.Push(1) || !q.Push(2) || !q.Push(3) || q.Push(4) {
		t.Fatal("a queue of 3 takes exactly 3")
	}
	got, ok := q.Take(t.Context(), nil)
	if !ok || !slices.Equal(got, []int{1, 2, 3}) {
		t.Fatalf("took %v", got)
	}
	q.Push(5)
	q.Close()
	if q.Push(6) {
		t.Fatal("a closed queue took something")
	}
	if got, ok = q.Take(t.Context(), got); !ok || !slices.Equal(got, []int{5}) {
		t.Fatalf("what was queued before Close is lost: %v", got)
	}
	if _, ok = q.Take(t.Context(), nil); ok {
		t.Fatal("closed and empty")
	}
}

func TestQueueWaitsAndGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue[int](10)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() { time.Sleep(time.Millisecond); q.Push(1) }() // fake time
		if got, ok := q.Take(ctx, nil); !ok || got[0] != 1 {
			t.Fatal("missed a push")
		}
		if _, ok := q.Take(ctx, nil); ok {
			t.Fatal("took from an empty queue")
		}
	})
}

func TestQueueLosesNothingUnderConcurrency(t *testing.T) {
	q := NewQueue[int](1 << 20)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 1000 {
				q.Push(i)
			}
		})
	}
	go func() { wg.Wait(); q.Close() }()
	n := 0
	var batch []int
	for {
		var ok bool
		if batch, ok = q.Take(t.Context(), batch); !ok {
			break
		}
		n += len(batch)
	}
	if n != 8000 {
		t.Fatalf("took %d of 8000", n)
	}
}

type echoGateway struct {
	gatewayv1connect.UnimplementedGatewayServiceHandler
}

func (echoGateway) Kick(context.Context, *connect.Request[gatewayv1.KickRequest]) (*connect.Response[gatewayv1.KickResponse], error) {
	return nil, &fault.Error{Kind: fault.Exhausted, Detail: "slow down", RetryAfter: 3 * time.Second, Err: io.ErrUnexpectedEOF}
}

func (echoGateway) Deliver(_ context.Context, s *connect.BidiStream[gatewayv1.DeliverRequest, gatewayv1.DeliverResponse]) error {
	for {
		req, err := s.Receive()
		if err != nil {
			return nil
		}
		if err := s.Send(&gatewayv1.DeliverResponse{AnsweredThrough: req.Deliveries[0].Id}); err != nil {
			return err
		}
	}
}

func TestStreamsAndErrorsOverCleartextHTTP2(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(gatewayv1connect.NewGatewayServiceHandler(echoGateway{}, HandlerOptions()...))
	var reasons []string
	Operate(mux, http.NotFoundHandler(), func() []string { return reasons })
	srv := NewServer(ln, mux, nil, slog.New(slog.DiscardHandler))
	srv.Start()
	t.Cleanup(func() { _ = srv.Stop(context.Background()) })
	hc := NewClient()
	t.Cleanup(hc.CloseIdleConnections)
	c := gatewayv1connect.NewGatewayServiceClient(hc, "http://"+srv.Addr(), ClientOptions()...)

	s := c.Deliver(t.Context())
	for id := range uint64(3) {
		if err := s.Send(&gatewayv1.DeliverRequest{Deliveries: []*gatewayv1.Delivery{{Id: id, Message: make([]byte, 2<<20)}}}); err != nil {
			t.Fatal(err)
		}
		if res, err := s.Receive(); err != nil || res.AnsweredThrough != id {
			t.Fatalf("answer %v, %v", res, err)
		}
	}
	_ = s.CloseRequest()
	_ = s.CloseResponse()

	_, err = c.Kick(t.Context(), connect.NewRequest(&gatewayv1.KickRequest{}))
	f, ok := err.(*fault.Error) //nolint:errorlint // the interceptor returns exactly this type
	if !ok || f.Kind != fault.Exhausted || f.Detail != "slow down" || f.RetryAfter != 3*time.Second {
		t.Fatalf("got %#v", err)
	}
	if strings.Contains(err.Error(), "unexpected EOF") {
		t.Fatal("the cause crossed the wire")
	}

	for _, want := range []int{200, 503} {
		res, err := http.Get("http://" + srv.Addr() + "/readyz") // HTTP/1.1, as a kubelet does
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Fatalf("readyz %d, want %d", res.StatusCode, want)
		}
		reasons = []string{"draining"}
	}
}

func BenchmarkQueue(b *testing.B) {
	q := NewQueue[int](1 << 30)
	go func() {
		for range b.N {
			q.Push(1)
		}
		q.Close()
	}()
	var batch []int
	for ok := true; ok; {
		batch, ok = q.Take(b.Context(), batch)
	}
}
