package drain

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
)

// double is a gateway behind the real RPC that empties itself by steps of 10 a call.
type double struct {
	gatewayv1connect.UnimplementedGatewayServiceHandler
	node fleet.Node

	mu       sync.Mutex
	left     uint64
	op       string
	requests []*gatewayv1.DrainRequest
	undrains int
}

func (d *double) Drain(_ context.Context, req *connect.Request[gatewayv1.DrainRequest]) (*connect.Response[gatewayv1.DrainResponse], error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests = append(d.requests, req.Msg)
	if d.op != "" && d.op != req.Msg.GetOperationId() {
		return nil, fault.New(fault.FailedPrecondition, "operation "+d.op+" drains it")
	}
	d.op = req.Msg.GetOperationId()
	if !req.Msg.GetPaused() {
		d.left -= min(d.left, 10)
	}
	return connect.NewResponse(&gatewayv1.DrainResponse{Progress: &gatewayv1.DrainProgress{
		OperationId: d.op, Sessions: 50, Left: d.left, Moved: 50 - d.left, Done: d.left == 0,
	}}), nil
}

func (d *double) Undrain(context.Context, *connect.Request[gatewayv1.UndrainRequest]) (*connect.Response[gatewayv1.UndrainResponse], error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.undrains++
	d.op = ""
	return connect.NewResponse(&gatewayv1.UndrainResponse{}), nil
}

// inventory is a fleet that is what the test says, renewed whenever it is asked.
type inventory struct {
	mu    sync.Mutex
	seq   uint64
	nodes []fleet.Node
}

func (i *inventory) Next(context.Context, uint64) (*fleet.Snapshot, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.seq++
	return &fleet.Snapshot{Seq: i.seq, At: time.Now(), Nodes: i.nodes, Directory: true}, nil
}

func serveDouble(t *testing.T, id string) *double {
	t.Helper()
	d := &double{left: 50}
	mux := http.NewServeMux()
	mux.Handle(gatewayv1connect.NewGatewayServiceHandler(d, rpc.HandlerOptions()...))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tel := newTelemetry(t)
	s := rpc.NewServer(ln, mux, nil, tel.Log)
	s.Start()
	t.Cleanup(func() { _ = s.Stop(context.Background()) })
	d.node = fleet.Node{
		Kind: fleet.Gateway, ID: id, Incarnation: 3, Endpoint: "http://" + s.Addr(), Phase: serving, Sessions: 50, Track: "stable",
		Status: &gatewayv1.StatusResponse{SessionsMax: 1000}, StatusAt: time.Now(), ClientURL: "ws://" + id,
	}
	return d
}

func newTelemetry(t *testing.T) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
	return tel
}

// newRunner returns a runner on s and what makes it lead.
func newRunner(t *testing.T, s store.Store, inv Inventory, name string) (*Runner, func() (stop func())) {
	t.Helper()
	client := rpc.NewClient()
	t.Cleanup(client.CloseIdleConnections)
	tel := newTelemetry(t)
	r := New(Config{Rules: Rules{Budget: 1, MaxRate: 1000}, Store: s, Inventory: inv, HTTP: client, Telemetry: tel})
	e := store.NewElector(store.ElectorConfig{Store: s, Name: name, Telemetry: tel})
	return r, func() func() {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			e.Run(ctx, r.Duty)
		}()
		stop := sync.OnceFunc(func() {
			cancel()
			<-done
		})
		t.Cleanup(stop)
		if _, _, err := e.Await(t.Context()); err != nil {
			t.Fatal(err)
		}
		return stop
	}
}

func leads(r *Runner) func() bool {
	return func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.tenure != nil
	}
}

func all(*Operation) bool { return true }

func TestADrainSurvivesItsLeader(t *testing.T) {
	a, b := serveDouble(t, "a"), serveDouble(t, "b")
	inv := &inventory{nodes: []fleet.Node{a.node, b.node}}
	s := store.NewMemory()
	first, lead := newRunner(t, s, inv, "one")
	stop := lead()
	testkit.Eventually(t, "it leads", leads(first))
	op, err := first.Drain(t.Context(), Request{Node: "a", Rate: 100, By: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Drain(t.Context(), Request{Node: "a"}); fault.KindOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), op.ID) {
		t.Errorf("twice: %v", err)
	}
	if _, err := first.Drain(t.Context(), Request{Node: "b"}); fault.KindOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "last gateway") {
		t.Errorf("the last: %v", err)
	}
	if _, err := first.Drain(t.Context(), Request{Node: "x"}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("unknown: %v", err)
	}
	testkit.Eventually(t, "it drains", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.left < 50
	})
	stop()
	if _, err := first.Drain(t.Context(), Request{Node: "b", Force: true}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("deposed: %v", err)
	}
	second, lead := newRunner(t, s, inv, "two")
	lead()
	testkit.Eventually(t, "the second finishes it", func() bool {
		past, err := second.Ended(t.Context(), 10, all)
		return err == nil && len(past) == 1
	})
	past, _ := first.Ended(t.Context(), 10, all) // who does not lead knows too
	got := past[0]
	if got.ID != op.ID || got.State != Done || got.By != "ann" || got.Receipt.Moved != 50 {
		t.Errorf("%+v, receipt %+v", got, got.Receipt)
	}
	if active, err := second.Active(t.Context()); err != nil || len(active) != 0 {
		t.Errorf("under way: %v, %v", active, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, req := range a.requests {
		if req.GetOperationId() != op.ID || req.GetGatewayIncarnation() != 3 || req.GetSessionsPerSecond() != 100 ||
			len(req.GetTargets()) != 1 || req.GetTargets()[0].GetNodeId() != "b" || req.GetTimeoutMs() > 300_000 {
			t.Errorf("told %v", req)
		}
	}
}

func TestUndrainCancels(t *testing.T) {
	a, b := serveDouble(t, "a"), serveDouble(t, "b")
	inv := &inventory{nodes: []fleet.Node{a.node, b.node}}
	r, lead := newRunner(t, store.NewMemory(), inv, "one")
	lead()
	testkit.Eventually(t, "it leads", leads(r))
	if _, _, err := r.Undrain(t.Context(), "a"); fault.KindOf(err) != fault.FailedPrecondition {
		t.Errorf("one that serves: %v", err)
	}
	if _, err := r.Drain(t.Context(), Request{Node: "a", Rate: 1}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "it drains", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.left < 50
	})
	op, found, err := r.Undrain(t.Context(), "a")
	if err != nil || !found || op.State != Cancelling {
		t.Fatalf("%+v, %t, %v", op, found, err)
	}
	testkit.Eventually(t, "it is cancelled", func() bool {
		past, err := r.Ended(t.Context(), 1, all)
		return err == nil && len(past) == 1 && past[0].State == Cancelled
	})
	for _, what := range []string{Pause, Resume, Cancel} {
		if _, err := r.Change(t.Context(), op.ID, what); fault.KindOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "has ended: cancelled") {
			t.Errorf("%s when it has ended: %v", what, err)
		}
	}
	if _, err := r.Change(t.Context(), "d-unknown", Cancel); fault.KindOf(err) != fault.NotFound || !strings.Contains(err.Error(), `operation_id: no drain "d-unknown"`) {
		t.Errorf("one that never was: %v", err)
	}
	inv.mu.Lock()
	inv.nodes[0].Phase = drained // by hand, without an operation
	inv.mu.Unlock()
	if _, found, err := r.Undrain(t.Context(), "a"); err != nil || found {
		t.Errorf("%t, %v", found, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.undrains != 2 {
		t.Errorf("undrained %d times", a.undrains)
	}
}

func TestTurnsOfGatewaysThatEnd(t *testing.T) {
	a, b, c := serveDouble(t, "a"), serveDouble(t, "b"), serveDouble(t, "c")
	inv := &inventory{nodes: []fleet.Node{a.node, b.node, c.node}}
	r, lead := newRunner(t, store.NewMemory(), inv, "one")
	lead()
	testkit.Eventually(t, "it leads", leads(r))
	ask := func(node string) Turn {
		t.Helper()
		turn, err := r.Terminate(t.Context(), node, 3, 50, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return turn
	}
	var first Turn
	testkit.Eventually(t, "a has its turn", func() bool { first = ask("a"); return first.Granted })
	if turn := ask("b"); turn.Granted || !strings.Contains(turn.Reason, "a") {
		t.Errorf("b too: %+v", turn)
	}
	if again := ask("a"); again.Op.ID != first.Op.ID || !again.Granted || again.Op.Pace.Rate <= 0 {
		t.Errorf("asked again: %+v", again)
	}
	// What it says at its end counts, whatever it had answered before.
	last := &gatewayv1.DrainProgress{OperationId: first.Op.ID, Sessions: 50, Moved: 20, Closed: 30, Echoed: 29, Done: true}
	if err := r.Drained(t.Context(), "a", 3, last); err != nil {
		t.Error(err)
	}
	inv.mu.Lock()
	inv.nodes = inv.nodes[1:] // a has ended
	inv.mu.Unlock()
	testkit.Eventually(t, "b has its turn", func() bool { return ask("b").Granted })
	var past []Operation
	testkit.Eventually(t, "a's receipt is there", func() bool {
		past, _ = r.Ended(t.Context(), 1, func(op *Operation) bool { return op.ID == first.Op.ID })
		return len(past) == 1
	})
	if x := past[0].Receipt; past[0].State != Done || x.Sessions != 50 || x.Moved != 20 || x.Closed != 30 || x.Echoed != 29 || x.Unaccounted != 0 {
		t.Errorf("a's receipt: %+v", x)
	}
	if err := r.Drained(t.Context(), "a", 3, last); fault.KindOf(err) != fault.NotFound {
		t.Errorf("told when it is over: %v", err)
	}
	if _, err := r.Terminate(t.Context(), "b", 0, 0, 0); fault.KindOf(err) != fault.Invalid {
		t.Errorf("no incarnation: %v", err)
	}
}

func TestAnEmptiedStoreIsWrittenAnew(t *testing.T) {
	a, b := serveDouble(t, "a"), serveDouble(t, "b")
	a.left = 1 << 40 // it is not done before the store is
	inv := &inventory{nodes: []fleet.Node{a.node, b.node}}
	s := store.NewMemory()
	r, lead := newRunner(t, s, inv, "one")
	lead()
	testkit.Eventually(t, "it leads", leads(r))
	op, err := r.Drain(t.Context(), Request{Node: "a", Rate: 1})
	if err != nil {
		t.Fatal(err)
	}
	it, err := s.Get(t.Context(), prefix+op.ID)
	if err != nil || it.Version == 0 {
		t.Fatal(it, err)
	}
	for { // a flush: what is there goes away, not by its writer's hand
		l, _ := s.Leader(t.Context())
		it, _ = s.Get(t.Context(), prefix+op.ID)
		if _, err := s.Commit(t.Context(), l.Term, store.Batch{Changes: []store.Change{{Key: it.Key, Version: it.Version, Delete: true}}}); err == nil {
			break
		}
	}
	testkit.Eventually(t, "the operation is there again", func() bool {
		it, err := s.Get(t.Context(), prefix+op.ID)
		return err == nil && it.Version != 0
	})
}
