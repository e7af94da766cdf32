package slot

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/testkit"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// control is a control plane that answers by script; the last answer stays.
type control struct {
	controlv1connect.UnimplementedNodeServiceHandler
	mu      sync.Mutex
	answers []func() (*controlv1.TerminateResponse, error)
	asked   []*controlv1.TerminateRequest
}

func (c *control) Terminate(_ context.Context, req *connect.Request[controlv1.TerminateRequest]) (*connect.Response[controlv1.TerminateResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, req.Msg)
	answer := c.answers[0]
	if len(c.answers) > 1 {
		c.answers = c.answers[1:]
	}
	res, err := answer()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

func granted() (*controlv1.TerminateResponse, error) {
	return &controlv1.TerminateResponse{Granted: true, OperationId: "op", SessionsPerSecond: 7}, nil
}

func notYet() (*controlv1.TerminateResponse, error) {
	return &controlv1.TerminateResponse{Reason: "gw2 drains"}, nil
}

func electing() (*controlv1.TerminateResponse, error) {
	return nil, fault.New(fault.Unavailable, "no leader")
}

// client asks these, and somebody who is not there.
func client(t *testing.T, c *control) *Client {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewNodeServiceHandler(c, rpc.HandlerOptions()...))
	srv := rpc.NewServer(ln, mux, nil, slog.New(slog.DiscardHandler))
	srv.Start()
	hc := rpc.NewClient()
	t.Cleanup(func() {
		hc.CloseIdleConnections()
		_ = srv.Stop(context.Background())
	})
	_, port, err := net.SplitHostPort(srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	return New(Options{
		Endpoints: endpoints(t, "http://127.0.0.1:1", "dns://control:"+port), Scheme: "http", HTTP: hc, Log: slog.New(slog.DiscardHandler),
		Lookup: func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil },
	})
}

func endpoints(t *testing.T, list ...string) []rpc.Endpoint {
	t.Helper()
	e, err := rpc.ParseEndpoints(list)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func request() *controlv1.TerminateRequest {
	return &controlv1.TerminateRequest{NodeId: "gw1", Incarnation: 5, Sessions: 9}
}

type answers = []func() (*controlv1.TerminateResponse, error)

func TestAwait(t *testing.T) {
	never := make(chan struct{})
	c := &control{answers: answers{electing, notYet, granted}}
	res := client(t, c).Await(t.Context(), never, request)
	if res.GetOperationId() != "op" || res.GetSessionsPerSecond() != 7 || len(c.asked) != 3 || c.asked[0].GetNodeId() != "gw1" {
		t.Errorf("%v after %v", res, c.asked)
	}
	// It has waited for long enough.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if res := client(t, &control{answers: answers{notYet}}).Await(ctx, never, request); res != nil {
		t.Errorf("%v", res)
	}
	// It is drained in the meantime.
	begun := make(chan struct{})
	c = &control{answers: answers{func() (*controlv1.TerminateResponse, error) { close(begun); return notYet() }}}
	if res := client(t, c).Await(t.Context(), begun, request); res != nil || len(c.asked) != 1 {
		t.Errorf("%v after %v", res, c.asked)
	}
}

func TestNobodyToAsk(t *testing.T) {
	hc := rpc.NewClient()
	defer hc.CloseIdleConnections()
	o := Options{Scheme: "http", HTTP: hc, Log: slog.New(slog.DiscardHandler), Lookup: net.DefaultResolver.LookupHost}
	if res := New(o).Await(t.Context(), nil, request); res != nil {
		t.Errorf("%v", res)
	}
	o.Endpoints = endpoints(t, "http://127.0.0.1:1")
	if res := New(o).Await(t.Context(), make(chan struct{}), request); res != nil {
		t.Errorf("%v", res)
	}
}
