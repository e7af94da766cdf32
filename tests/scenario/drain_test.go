package scenario

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	"github.com/mics-im/mics/tests/harness"
)

// operated is a gateway as the control plane sees it.
type operated struct {
	t  *testing.T
	p  *harness.Process
	rp gatewayv1connect.GatewayServiceClient
}

func operate(t *testing.T, c *harness.Cluster, name string) *operated {
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: within}
	p := c.Gateway(name)
	return &operated{t, p, gatewayv1connect.NewGatewayServiceClient(hc, "http://"+p.Internal)}
}

func (o *operated) status() *gatewayv1.StatusResponse {
	o.t.Helper()
	res, err := o.rp.Status(context.Background(), connect.NewRequest(&gatewayv1.StatusRequest{}))
	if err != nil {
		o.t.Fatal(err)
	}
	return res.Msg
}

// drain directs the operation "op".
func (o *operated) drain(pace float64, paused bool, to ...*operated) *gatewayv1.DrainProgress {
	o.t.Helper()
	req := &gatewayv1.DrainRequest{OperationId: "op", TimeoutMs: 120_000, SessionsPerSecond: pace, Paused: paused}
	for _, g := range to {
		i := g.status().GetGateway()
		req.Targets = append(req.Targets, &gatewayv1.Target{NodeId: i.GetNodeId(), Url: i.GetClientUrl(), Weight: 1})
	}
	res, err := o.rp.Drain(context.Background(), connect.NewRequest(req))
	if err != nil {
		o.t.Fatal(err)
	}
	return res.Msg.GetProgress()
}

// crowd is V1 and SDK clients at a gateway, and somebody elsewhere who writes to all
// of them.
type crowd struct {
	t       *testing.T
	v1, sdk []*harness.Device
	ann     *harness.Device
	written []string
	sends   []*harness.Sending
}

func newCrowd(t *testing.T, c *harness.Cluster, v1, sdk int) *crowd {
	w := &crowd{t: t, ann: c.Client("ann", harness.On("gw2"))}
	for i := range v1 {
		w.v1 = append(w.v1, c.V1(fmt.Sprint("old", i), harness.On("gw1", "gw2")))
	}
	for i := range sdk {
		// The drain alone leads it elsewhere.
		w.sdk = append(w.sdk, c.Client(fmt.Sprint("new", i), harness.On("gw1")))
	}
	return w
}

func (w *crowd) all() []*harness.Device {
	return append(append([]*harness.Device(nil), w.v1...), w.sdk...)
}

// at are the V1 clients that are connected to the gateway.
func (w *crowd) at(gateway string) (n uint64) {
	for _, d := range w.v1 {
		if d.Node() == gateway {
			n++
		}
	}
	return n
}

// writes sends one more message to everybody.
func (w *crowd) writes() {
	body := fmt.Sprint("m", len(w.written))
	w.written = append(w.written, body)
	for _, d := range w.all() {
		w.sends = append(w.sends, w.ann.Sends(body).Submit(harness.Outgoing{To: d.User}))
	}
}

// hasAll checks that everybody has got everything, once and in order, and that no SDK
// client has noticed anything.
func (w *crowd) hasAll() {
	w.t.Helper()
	w.writes() // what comes after everything
	for _, s := range w.sends {
		if a := s.Answer(); !a.Sent {
			w.t.Errorf("answered %+v", a)
		}
	}
	for _, d := range w.all() {
		d.Wants(w.written...)
		d.HasNothing()
	}
	for _, d := range w.sdk {
		if n := d.Connects(); n != 1 {
			w.t.Errorf("%s was connected %d times", d, n)
		}
	}
	w.written, w.sends = nil, nil
}

func TestDirectedDrain(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
	gw1, gw2 := operate(t, c, "gw1"), operate(t, c, "gw2")
	w := newCrowd(t, c, 10, 10)
	v1 := w.at("gw1")
	p := gw1.drain(8, false, gw2)
	if p.GetSessions() != v1+10 || p.GetLeftV2() != 10 {
		t.Errorf("%v with %d V1 clients", p, v1)
	}
	testkit.Eventually(t, "the gateway has drained", func() bool {
		w.writes()
		time.Sleep(50 * time.Millisecond) // paces what is written
		p = gw1.drain(8, false, gw2)
		return p.GetDone()
	})
	if p.GetMoved() != 10 || p.GetClosed() != v1 || p.GetEchoed() != v1 || p.GetGaveUp() != 0 || p.GetNotTakenBack() != 0 {
		t.Errorf("%v", p)
	}
	w.hasAll()
	if n := w.at("gw2"); n != 10 {
		t.Errorf("%d V1 clients are at gw2", n)
	}
	for _, d := range w.v1 {
		if d.Connects() > 1 {
			d.WantsClose(4200, "server draining")
		}
	}
	var moved, lost, repeated uint64
	for _, a := range gw2.status().GetArrivals() {
		if a.GetFromNodeId() == "gw1" {
			moved, lost, repeated = moved+a.GetMigrated(), lost+a.GetLost(), repeated+a.GetRepeatedDeliveries()
			t.Logf("gap of %d sessions: at most %.1f ms", a.GetMigrated(), a.GetGapMaxMs())
		}
	}
	if moved != 10 || lost != 0 || repeated != 0 {
		t.Errorf("%d moved, %d lost, %d repeated", moved, lost, repeated)
	}
	if s := gw1.status(); c.Gateway("gw1").Ready() || s.GetGateway().GetPhase() != gatewayv1.Phase_PHASE_DRAINED || s.GetSessions() != 0 {
		t.Errorf("gw1 is at %v", s)
	}
	if code, _ := c.Gateway("gw1").Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	w.hasAll()
}

func TestADrainIsPausedAndUndone(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
	gw1, gw2 := operate(t, c, "gw1"), operate(t, c, "gw2")
	w := newCrowd(t, c, 8, 12)
	gw1.drain(10, false, gw2)
	testkit.Eventually(t, "some have moved", func() bool {
		w.writes()
		return gw1.drain(10, false, gw2).GetMoved() >= 3
	})
	gw1.drain(10, true, gw2)
	var still *gatewayv1.DrainProgress
	testkit.Eventually(t, "those that were asked have moved", func() bool {
		before := gw1.drain(10, true, gw2)
		time.Sleep(time.Second) // longer than the progress is behind
		still = gw1.drain(10, true, gw2)
		return before.GetMoved() == still.GetMoved()
	})
	for range 20 {
		w.writes()
		w.sends[len(w.sends)-1].Answer()
	}
	if p := gw1.drain(10, true, gw2); p.GetMoved() != still.GetMoved() || p.GetClosed() != still.GetClosed() || !p.GetPaused() || p.GetDone() {
		t.Errorf("paused at %v, it is at %v", still, p)
	}
	if _, err := gw1.rp.Undrain(context.Background(), connect.NewRequest(&gatewayv1.UndrainRequest{OperationId: "op"})); err != nil {
		t.Fatal(err)
	}
	c.Gateway("gw1").AwaitReady()
	w.hasAll()
	if n := gw1.status().GetSessionsV2(); n != 12-still.GetMoved() {
		t.Errorf("%d V2 sessions are left of 12, %d have moved", n, still.GetMoved())
	}
	late := c.Client("late", harness.On("gw1"))
	w.ann.Sends("welcome").To("late")
	late.Wants("welcome")
}

func TestASecondSignalEndsADrain(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2, Env: map[string][]string{"gateway": {"DRAIN_TIMEOUT_SECONDS=600"}}})
	gw1, gw2 := operate(t, c, "gw1"), operate(t, c, "gw2")
	w := newCrowd(t, c, 4, 0)
	gw1.drain(1, true, gw2)
	gw1.p.Terminate()
	testkit.Eventually(t, "it ends", func() bool { return gw1.p.Ready() == false && containsEvent(gw1.p.Log(), "shutdown_drain_begin") })
	if p := gw1.status().GetDrain(); !p.GetPaused() || p.GetOperationId() != "op" || p.GetClosed() != 0 {
		t.Errorf("%v", p)
	}
	w.writes()
	gw1.p.Terminate()
	if code, _ := gw1.p.Ended(); code == 0 {
		t.Errorf("exit code %d", code)
	}
	w.hasAll()
}

func containsEvent(log, event string) bool { return strings.Contains(log, `"msg":"`+event+`"`) }
