package service

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
)

// router is a router with dead letters.
type router struct {
	routerv1connect.UnimplementedRouterServiceHandler
	letters int
	err     error
	hangs   bool
	asked   chan *routerv1.RedriveDLQRequest
	ended   chan struct{} // closed when a redrive that hangs has ended
}

func (r *router) ListDLQ(_ context.Context, req *connect.Request[routerv1.ListDLQRequest], out *connect.ServerStream[routerv1.ListDLQResponse]) error {
	for i := range r.letters {
		l := &routerv1.DeadLetter{Offset: int64(i), Key: req.Msg.GetTenantId()}
		if err := out.Send(&routerv1.ListDLQResponse{Letters: []*routerv1.DeadLetter{l}}); err != nil {
			return err
		}
	}
	return r.err
}

func (r *router) RedriveDLQ(ctx context.Context, req *connect.Request[routerv1.RedriveDLQRequest], out *connect.ServerStream[routerv1.RedriveDLQResponse]) error {
	r.asked <- req.Msg
	err := out.Send(&routerv1.RedriveDLQResponse{Progress: &routerv1.RedriveProgress{Total: 3, Read: 3, Sent: 3, Done: !r.hangs}})
	if r.hangs {
		<-ctx.Done()
		close(r.ended)
	}
	return err
}

// overRouters starts a Service that knows these routers; nil: one that is gone.
func overRouters(t *testing.T, routers ...*router) (controlv1connect.ControlServiceClient, *Service) {
	t.Helper()
	snap := &fleet.Snapshot{Seq: 1, Directory: true}
	for _, r := range routers {
		n := fleet.Node{Kind: fleet.Router, ID: "r", Endpoint: "http://127.0.0.1:1"}
		if r != nil {
			mux := http.NewServeMux()
			mux.Handle(routerv1connect.NewRouterServiceHandler(r, rpc.HandlerOptions()...))
			n.Endpoint = serveHTTP(t, mux)
		}
		snap.Nodes = append(snap.Nodes, n)
	}
	return start(t, newInventory(snap))
}

func listDLQ(t *testing.T, c controlv1connect.ControlServiceClient, tenant string) (offsets []int64, err error) {
	t.Helper()
	st, err := c.ListDLQ(t.Context(), connect.NewRequest(&controlv1.ListDLQRequest{Request: &routerv1.ListDLQRequest{TenantId: tenant}}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = st.Close() }()
	for st.Receive() {
		for _, l := range st.Msg().GetResponse().GetLetters() {
			if l.GetKey() != tenant {
				t.Errorf("asked for %q", l.GetKey())
			}
			offsets = append(offsets, l.GetOffset())
		}
	}
	return offsets, st.Err()
}

func TestDeadLettersComeFromWhicheverRouterAnswers(t *testing.T) {
	c, _ := overRouters(t, nil, &router{letters: 3})
	if got, err := listDLQ(t, c, "t"); err != nil || len(got) != 3 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestAnAnswerIsNotBegunTwice(t *testing.T) {
	c, _ := overRouters(t, &router{letters: 2, err: fault.New(fault.Unavailable, "cut off")}, &router{letters: 5})
	if got, err := listDLQ(t, c, "t"); len(got) != 2 || err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("%v, %v", got, err)
	}
}

func TestARoutersRefusalIsPassedOn(t *testing.T) {
	for kind, code := range map[fault.Kind]connect.Code{fault.NotFound: connect.CodeNotFound, fault.FailedPrecondition: connect.CodeFailedPrecondition} {
		c, _ := overRouters(t, &router{err: fault.New(kind, "no")}, &router{letters: 1})
		if got, err := listDLQ(t, c, "t"); len(got) != 0 || connect.CodeOf(err) != code {
			t.Errorf("%v, %v", got, err)
		}
	}
	c, _ := overRouters(t)
	if _, err := listDLQ(t, c, "t"); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("without a router: %v", err)
	}
	if _, err := listDLQ(t, c, ""); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("without a tenant: %v", err)
	}
}

func redrive(t *testing.T, c controlv1connect.ControlServiceClient) (last *routerv1.RedriveProgress, err error) {
	t.Helper()
	st, err := c.RedriveDLQ(t.Context(), connect.NewRequest(&controlv1.RedriveDLQRequest{Request: &routerv1.RedriveDLQRequest{TenantId: "t", SinceMs: 7, All: true}}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = st.Close() }()
	for st.Receive() {
		last = st.Msg().GetProgress()
	}
	return last, st.Err()
}

func TestRedrive(t *testing.T) {
	r := &router{asked: make(chan *routerv1.RedriveDLQRequest, 1)}
	c, _ := overRouters(t, r)
	last, err := redrive(t, c)
	if err != nil || !last.GetDone() || last.GetSent() != 3 {
		t.Errorf("%v, %v", last, err)
	}
	if ask := <-r.asked; ask.GetTenantId() != "t" || ask.GetSinceMs() != 7 || !ask.GetAll() {
		t.Errorf("asked %v", ask)
	}
}

func TestARedriveEndsWithThisProcess(t *testing.T) {
	r := &router{hangs: true, asked: make(chan *routerv1.RedriveDLQRequest, 1), ended: make(chan struct{})}
	c, s := overRouters(t, r)
	go func() {
		<-r.asked
		s.Close()
	}()
	if _, err := redrive(t, c); connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("%v", err)
	}
	<-r.ended
}
