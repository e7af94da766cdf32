package service

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/route"
)

func TestRegister(t *testing.T) {
	f, _, c, _ := serve(t)
	s := c.Register(t.Context())
	res, err := ask(s, info(1))
	if err != nil || res.LeaseMs != 3000 || len(res.Routers) != 1 || res.Routers[0].Endpoint != "http://r1" || res.Routers[0].Incarnation != 3 {
		t.Fatalf("%v, %v", res, err)
	}
	dir, err := c.Directory(t.Context(), connect.NewRequest(&routerv1.DirectoryRequest{}))
	if err != nil || len(dir.Msg.Gateways) != 1 || dir.Msg.Gateways[0].String() != info(1).String() || len(dir.Msg.Routers) != 1 {
		t.Errorf("%v, %v", dir, err)
	}
	// With the store away a gateway in the picture keeps its lease; another one
	// gets none.
	f.mu.Lock()
	f.fail = route.ErrUnavailable
	f.mu.Unlock()
	if _, err := ask(s, info(1)); err != nil {
		t.Error(err)
	}
	other := c.Register(t.Context())
	if _, err := ask(other, &gatewayv1.GatewayInfo{NodeId: "h", Incarnation: 1, Endpoint: "http://h:1"}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("%v", err)
	}
	end(other)
	f.mu.Lock()
	f.fail = route.ErrSuperseded
	f.mu.Unlock()
	if _, err := ask(s, info(1)); fault.KindOf(err) != fault.FailedPrecondition {
		t.Errorf("superseded: %v", err)
	}
	end(s)
	if len(f.removed) != 0 {
		t.Error("a gateway that did not drain was removed")
	}
}

func TestARouterWithoutAPictureTakesNoGateways(t *testing.T) {
	f, _, c, _ := serve(t)
	reach := func(yes bool) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.unread = !yes
	}
	reach(false)
	early := c.Register(t.Context())
	if _, err := ask(early, info(1)); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("%v", err)
	}
	end(early)
	reach(true)
	s := c.Register(t.Context())
	if _, err := ask(s, info(1)); err != nil {
		t.Error(err)
	}
	end(s)
}

func TestADrainedGatewayIsRemoved(t *testing.T) {
	f, _, c, _ := serve(t)
	s := c.Register(t.Context())
	if _, err := ask(s, info(1)); err != nil {
		t.Fatal(err)
	}
	drained := info(1)
	drained.Phase = gatewayv1.Phase_PHASE_DRAINED
	if _, err := ask(s, drained); err != nil {
		t.Fatal(err)
	}
	if f.Alive(route.NodeRef{ID: "g", Incarnation: 1}) {
		t.Error("still there")
	}
	end(s)
}

func TestRegistrationsThatAreRefused(t *testing.T) {
	_, _, c, _ := serve(t)
	for name, g := range map[string]*gatewayv1.GatewayInfo{
		"nobody": nil, "no incarnation": {NodeId: "g", Endpoint: "http://g"}, "no endpoint": {NodeId: "g", Incarnation: 1}, "odd endpoint": {NodeId: "g", Incarnation: 1, Endpoint: "g:1"},
	} {
		s := c.Register(t.Context())
		if _, err := ask(s, g); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		end(s)
	}
	s := c.Register(t.Context())
	if _, err := ask(s, info(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(s, info(2)); fault.KindOf(err) != fault.Invalid {
		t.Errorf("two gateways on one stream: %v", err)
	}
	end(s)
}

// publishes opens a Publish stream of a living gateway and has it take messages.
func publishes(t *testing.T, f *fakes, c routerv1connect.RouterServiceClient, n int) *connect.BidiStreamForClient[routerv1.PublishRequest, routerv1.PublishResponse] {
	t.Helper()
	if err := f.Renew(t.Context(), route.Node{NodeRef: route.NodeRef{ID: "g", Incarnation: 1}}); err != nil {
		t.Fatal(err)
	}
	p := c.Publish(t.Context())
	req := &routerv1.PublishRequest{Gateway: gw}
	for i := range n {
		req.Messages = append(req.Messages, &routerv1.Inbound{Ref: uint64(i + 1)})
	}
	if err := p.Send(req); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "taken", func() bool { return f.taken() == n })
	return p
}

func TestPublish(t *testing.T) {
	f, _, c, _ := serve(t)
	p := publishes(t, f, c, 3)
	for ref := range uint64(3) {
		f.answer(3-ref, []byte{byte(ref)})
	}
	got := map[uint64]byte{}
	for len(got) < 3 {
		res, err := p.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range res.Outcomes {
			got[o.Ref] = o.Ack[0]
		}
	}
	if got[1] != 2 || got[3] != 0 {
		t.Errorf("%v", got)
	}
	// Once its lease is gone nothing more is taken from it.
	if err := f.Remove(t.Context(), route.NodeRef{ID: "g", Incarnation: 1}); err != nil {
		t.Fatal(err)
	}
	_ = p.Send(&routerv1.PublishRequest{Messages: []*routerv1.Inbound{{Ref: 4}}}) // fails if the answer is faster
	if _, err := p.Receive(); fault.KindOf(err) != fault.FailedPrecondition || f.taken() != 3 {
		t.Errorf("%v, %d taken", err, f.taken())
	}
	end(p)
	nameless := c.Publish(t.Context())
	_ = nameless.Send(&routerv1.PublishRequest{}) // fails if the answer is faster
	if _, err := nameless.Receive(); fault.KindOf(err) != fault.Invalid {
		t.Errorf("nameless: %v", err)
	}
	end(nameless)
}

func TestCloseLetsMessagesFinish(t *testing.T) {
	f, s, c, _ := serve(t)
	p := publishes(t, f, c, 2)
	r := c.Register(t.Context())
	if _, err := ask(r, info(1)); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close(context.Background()) }()
	if _, err := r.Receive(); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("a registration ended with %v", err)
	}
	end(r)
	f.answer(1, nil)
	if _, err := p.Receive(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-closed:
		t.Fatalf("closed with a message under way: %v", err)
	default:
	}
	if err := p.Send(&routerv1.PublishRequest{Messages: []*routerv1.Inbound{{Ref: 3}}}); err != nil {
		t.Fatal(err)
	}
	f.answer(2, []byte{9})
	res, err := p.Receive()
	if err != nil || res.Outcomes[0].Ref != 2 {
		t.Fatalf("%v, %v", res, err)
	}
	if _, err := p.Receive(); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	end(p)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if f.taken() != 2 {
		t.Error("a message was taken while stopping")
	}
	late := c.Publish(t.Context())
	_ = late.Send(&routerv1.PublishRequest{Gateway: gw}) // fails if the answer is faster
	if _, err := late.Receive(); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("a new stream: %v", err)
	}
	end(late)
}

func TestCloseIsBounded(t *testing.T) {
	f, s, c, _ := serve(t)
	p := publishes(t, f, c, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); err == nil {
		t.Error("nothing was left behind")
	}
	f.answer(1, nil)
	for {
		if _, err := p.Receive(); err != nil {
			break
		}
	}
	end(p)
}

func TestAPeerThatBreaksOffLeavesNothing(t *testing.T) {
	f, s, c, _ := serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	if err := f.Renew(ctx, route.Node{NodeRef: route.NodeRef{ID: "g", Incarnation: 1}}); err != nil {
		t.Fatal(err)
	}
	p := c.Publish(ctx)
	if err := p.Send(&routerv1.PublishRequest{Gateway: gw, Messages: []*routerv1.Inbound{{Ref: 1}}}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "taken", func() bool { return f.taken() == 1 })
	cancel()
	end(p)
	s.streams.Wait() // although a message is unanswered
	f.answer(1, nil)
}

func TestUnaryCalls(t *testing.T) {
	f, _, c, p := serve(t)
	_, err := c.OpenSession(t.Context(), connect.NewRequest(&routerv1.OpenSessionRequest{Gateway: gw}))
	if e := (*fault.Error)(nil); !errors.As(err, &e) || e.Kind != fault.Unavailable || e.Detail != "home away" {
		t.Errorf("%v", err)
	}
	if res, err := p.Admit(t.Context(), connect.NewRequest(&routerv1.AdmitRequest{Gateway: gw})); err != nil || res.Msg.Epoch != 4 {
		t.Errorf("%v, %v", res, err)
	}
	if res, err := p.Buffer(t.Context(), connect.NewRequest(&routerv1.BufferRequest{Entries: []*routerv1.BufferEntry{{}, {}}})); err != nil || len(res.Msg.Results) != 2 {
		t.Errorf("%v, %v", res, err)
	}
	if _, err := p.Leave(t.Context(), connect.NewRequest(&routerv1.LeaveRequest{Router: &routerv1.RouterRef{NodeId: "r2", Incarnation: 7}})); err != nil || !slices.Equal(f.removed, []route.NodeRef{{ID: "r2", Incarnation: 7}}) {
		t.Errorf("left %v, %v", f.removed, err)
	}
	req := connect.NewRequest(&routerv1.CloseSessionsRequest{Gateway: gw, Sessions: []*routerv1.ClosedSession{{}}})
	if _, err := c.CloseSessions(t.Context(), req); err != nil {
		t.Error(err)
	}
	for name, call := range map[string]func() error{
		"open": func() error {
			_, err := c.OpenSession(t.Context(), connect.NewRequest(&routerv1.OpenSessionRequest{}))
			return err
		},
		"close": func() error {
			_, err := c.CloseSessions(t.Context(), connect.NewRequest(&routerv1.CloseSessionsRequest{}))
			return err
		},
		"leave": func() error { _, err := p.Leave(t.Context(), connect.NewRequest(&routerv1.LeaveRequest{})); return err },
		"admit": func() error { _, err := p.Admit(t.Context(), connect.NewRequest(&routerv1.AdmitRequest{})); return err },
	} {
		if err := call(); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s by nobody: %v", name, err)
		}
	}
}

func TestOutcomesThatAreNotReadEndTheStream(t *testing.T) {
	p := &publishing{outcomes: rpc.NewQueue[*routerv1.Outcome](1), overflow: make(chan struct{}), quiet: make(chan struct{})}
	p.begin(3)
	p.answer(1, nil)
	select {
	case <-p.overflow:
		t.Fatal("there was room")
	default:
	}
	p.answer(2, nil)
	p.answer(3, nil)
	<-p.overflow
	p.drain(t.Context())
}

func TestSignals(t *testing.T) {
	f, s, router, _ := serve(t)
	f.mu.Lock()
	f.gateways[route.NodeRef{ID: "g", Incarnation: 1}] = route.Node{}
	f.mu.Unlock()
	s.opts.Signals.Of(route.NodeRef{ID: "g", Incarnation: 1}).Message()
	res, err := router.Signals(t.Context(), connect.NewRequest(&routerv1.SignalsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if g := res.Msg.GetGateways(); len(g) != 1 || g[0].GetNodeId() != "g" || g[0].GetMessages() != 1 {
		t.Errorf("%v", res.Msg)
	}
}
