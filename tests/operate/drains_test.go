package operate

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/controlplane"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
)

// emptier is a double that loses step sessions whenever it is told to drain.
type emptier struct {
	gatewayv1connect.UnimplementedGatewayServiceHandler
	id, endpoint string

	mu     sync.Mutex
	phase  gatewayv1.Phase // guarded by mu, like the rest
	op     string
	left   uint64
	step   uint64
	paused bool
}

func (e *emptier) info() *gatewayv1.GatewayInfo {
	return &gatewayv1.GatewayInfo{NodeId: e.id, Incarnation: 5, Endpoint: e.endpoint, Track: "stable", Version: "v1", Phase: e.phase}
}

func (e *emptier) progress() *gatewayv1.DrainProgress {
	if e.op == "" {
		return nil
	}
	return &gatewayv1.DrainProgress{OperationId: e.op, Sessions: 50, Left: e.left, Moved: 50 - e.left, Done: e.left == 0}
}

func (e *emptier) Status(context.Context, *connect.Request[gatewayv1.StatusRequest]) (*connect.Response[gatewayv1.StatusResponse], error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return connect.NewResponse(&gatewayv1.StatusResponse{Gateway: e.info(), Sessions: e.left, RoutersLinked: 1, SessionsMax: 60, Drain: e.progress()}), nil
}

func (e *emptier) Drain(_ context.Context, r *connect.Request[gatewayv1.DrainRequest]) (*connect.Response[gatewayv1.DrainResponse], error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.op != "" && e.op != r.Msg.GetOperationId() {
		return nil, fault.New(fault.FailedPrecondition, "another operation drains the gateway")
	}
	e.op, e.phase, e.paused = r.Msg.GetOperationId(), gatewayv1.Phase_PHASE_DRAINING, r.Msg.GetPaused()
	if !e.paused {
		e.left -= min(e.left, e.step)
	}
	if e.left == 0 {
		e.phase = gatewayv1.Phase_PHASE_DRAINED
	}
	return connect.NewResponse(&gatewayv1.DrainResponse{Progress: e.progress()}), nil
}

func (e *emptier) Undrain(context.Context, *connect.Request[gatewayv1.UndrainRequest]) (*connect.Response[gatewayv1.UndrainResponse], error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.progress()
	e.op, e.phase, e.left = "", gatewayv1.Phase_PHASE_SERVING, 50
	return connect.NewResponse(&gatewayv1.UndrainResponse{Progress: p}), nil
}

// directory is a router that names the doubles.
type directory struct {
	routerv1connect.UnimplementedRouterServiceHandler
	gateways []*emptier
}

func (d *directory) Directory(context.Context, *connect.Request[routerv1.DirectoryRequest]) (*connect.Response[routerv1.DirectoryResponse], error) {
	res := &routerv1.DirectoryResponse{}
	for _, e := range d.gateways {
		e.mu.Lock()
		res.Gateways = append(res.Gateways, e.info())
		e.mu.Unlock()
	}
	return connect.NewResponse(res), nil
}

func TestAnOperatorDrains(t *testing.T) {
	d := &directory{}
	for _, id := range []string{"g1", "g2"} {
		e := &emptier{id: id, phase: gatewayv1.Phase_PHASE_SERVING, left: 50}
		path, h := gatewayv1connect.NewGatewayServiceHandler(e, rpc.HandlerOptions()...)
		e.endpoint, _ = serve(t, path, h)
		d.gateways = append(d.gateways, e)
	}
	g1, g2 := d.gateways[0], d.gateways[1]
	path, h := routerv1connect.NewRouterServiceHandler(d, rpc.HandlerOptions()...)
	routerURL, _ := serve(t, path, h)
	cp, err := controlplane.New(t.Context(), controlplane.Config{
		NodeID: "cp", Listen: "127.0.0.1:0", InternalListen: "127.0.0.1:0", RouterEndpoints: []string{routerURL},
		Telemetry: telemetry.Config{LogWriter: io.Discard},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cp.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cp.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	at := "http://" + cp.Addr()
	testkit.Eventually(t, "the gateways are known", func() bool {
		out, _ := micsctl(t, at, "nodes")
		return strings.Contains(out, "g1") && strings.Contains(out, "g2")
	})

	if out, code := micsctl(t, at, "drain", "g1"); code != 1 || !strings.Contains(out, "50 sessions need a place and there are 10 (g2 has 10 of 60 free)") {
		t.Fatalf("without room: exit %d\n%s", code, out)
	}
	if out, code := micsctl(t, at, "rehearse", "drain", "g1"); code != 1 || !strings.Contains(out, "would be refused") {
		t.Fatalf("rehearsal: exit %d\n%s", code, out)
	}
	out, code := micsctl(t, at, "drain", "g1", "--force", "-o", "json")
	var op struct {
		ID string `json:"operationId"`
	}
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&op); code != 0 || err != nil { // warnings follow the document
		t.Fatalf("forced: exit %d, %v\n%s", code, err, out)
	}
	if out, code := micsctl(t, at, "drain", "g2"); code != 1 || !strings.Contains(out, "last gateway") {
		t.Fatalf("the last: exit %d\n%s", code, out)
	}
	testkit.Eventually(t, "it can be paused", func() bool {
		_, code := micsctl(t, at, "drains", "pause", op.ID)
		return code == 0
	})
	testkit.Eventually(t, "the gateway has heard it", func() bool {
		g1.mu.Lock()
		defer g1.mu.Unlock()
		return g1.paused
	})
	if out, code := micsctl(t, at, "drains"); code != 0 || !strings.Contains(out, "paused") {
		t.Fatalf("drains: exit %d\n%s", code, out)
	}
	if out, code := micsctl(t, at, "undrain", "g1"); code != 0 {
		t.Fatalf("undrain: exit %d\n%s", code, out)
	}
	testkit.Eventually(t, "it is cancelled and serves", func() bool {
		out, _ := micsctl(t, at, "drains")
		g1.mu.Lock()
		defer g1.mu.Unlock()
		return strings.Contains(out, "cancelled") && g1.op == ""
	})
	g2.mu.Lock()
	g2.left = 0 // now there is room
	g2.mu.Unlock()
	g1.mu.Lock()
	g1.step = 10
	g1.mu.Unlock()
	testkit.Eventually(t, "the inventory knows", func() bool {
		out, code := micsctl(t, at, "rehearse", "drain", "g1")
		return code == 0 && strings.Contains(out, "60 free places")
	})
	if out, code := micsctl(t, at, "drain", "g1", "--wait"); code != 0 || !strings.Contains(out, "done") || !strings.Contains(out, "Moved") {
		t.Fatalf("drain --wait: exit %d\n%s", code, out)
	}
	if out, code := micsctl(t, at, "drain", "g1"); code != 1 || !strings.Contains(out, "drained already") {
		t.Fatalf("twice: exit %d\n%s", code, out)
	}
	if out, code := micsctl(t, at, "undrain", "g1"); code != 0 || !strings.Contains(out, "serves again") {
		t.Fatalf("undrain: exit %d\n%s", code, out)
	}
}
