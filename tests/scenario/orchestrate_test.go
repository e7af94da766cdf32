package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/ctl"
	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/tests/harness"
)

// micsctl runs one command against a control plane.
func micsctl(t *testing.T, p *harness.Process, args ...string) (out, errs string, code int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	code = ctl.Run(ctx, ctl.IO{
		In: strings.NewReader(""), Out: &stdout, Err: &stderr, Getenv: func(string) string { return "" }, Now: time.Now,
	}, append(args, "--endpoint", "http://"+p.Public))
	return stdout.String(), stderr.String(), code
}

// drained is what micsctl prints of a drain.
type drained struct {
	ID      string `json:"operationId"`
	Node    string `json:"nodeId"`
	State   string `json:"state"`
	Reason  string `json:"reason"`
	Receipt struct {
		Sessions, Moved, Lost, Repeated, NotTakenBack, Gaps uint64
		Incomplete                                          []string
	} `json:"receipt"`
}

func parseDrained(t *testing.T, text string) (d drained) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return d
}

// knows waits until a control plane knows all gateways, and how full gw1 is.
func knows(t *testing.T, c *harness.Cluster, plane string, sessions int) {
	t.Helper()
	testkit.Eventually(t, plane+" knows the gateways", func() bool {
		out, _, code := micsctl(t, c.Process(plane), "nodes", "-o", "json")
		var doc struct {
			Nodes []struct {
				ID      string `json:"nodeId"`
				Gateway *struct{ Sessions int }
			}
		}
		if code != 0 || json.Unmarshal([]byte(out), &doc) != nil {
			return false
		}
		gateways, full := 0, false
		for _, n := range doc.Nodes {
			if n.Gateway != nil {
				gateways++
				full = full || n.ID == "gw1" && n.Gateway.Sessions == sessions
			}
		}
		return gateways == len(c.Names("gw")) && full
	})
}

func TestAnOperatorDrainsAGateway(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 3, Routers: 2, ControlPlanes: 2})
	const sessions = 30
	var all []*harness.Device
	for i := range sessions {
		all = append(all, c.Client(fmt.Sprintf("u%d", i), harness.On("gw1")))
	}
	ann := c.Client("ann", harness.On("gw2"))
	knows(t, c, "cp", sessions)
	knows(t, c, "cp2", sessions)

	if out, _, code := micsctl(t, c.Process("cp2"), "rehearse", "drain", "gw1"); code != 0 || !strings.Contains(out, "30 sessions") || !strings.Contains(out, "gw3") {
		t.Errorf("rehearsal: exit %d\n%s", code, out)
	}
	if _, errs, code := micsctl(t, c.Process("cp"), "drain", "gw9"); code != 1 || !strings.Contains(errs, `no gateway "gw9" is known`) {
		t.Errorf("an unknown one: exit %d\n%s", code, errs)
	}
	done := make(chan struct{})
	sent := 0
	go func() { // goes on all the while; ended by done
		defer close(done)
		for ; sent < 20; sent++ {
			for i := range sessions {
				ann.Sends(fmt.Sprintf("m%d", sent)).To(fmt.Sprintf("u%d", i))
			}
			time.Sleep(50 * time.Millisecond) // traffic has a pace
		}
	}()
	// Either control plane takes it, whichever leads.
	out, errs, code := micsctl(t, c.Process("cp2"), "drain", "gw1", "--wait", "--rate", "20/s", "--max-lost", "0", "-o", "json")
	if code != 0 {
		t.Fatalf("exit %d\n%s\n%s", code, out, errs)
	}
	<-done
	d := parseDrained(t, out)
	if r := d.Receipt; d.State != "done" || r.Sessions != sessions || r.Moved != sessions || r.Lost+r.Repeated+r.NotTakenBack != 0 || r.Gaps != sessions || len(r.Incomplete) != 0 {
		t.Errorf("%s", out)
	}
	if n := c.Gateway("gw1").Metrics().Sum("mics_ws_connections"); n != 0 {
		t.Errorf("%v are still at gw1", n)
	}
	for _, u := range all {
		var want []string
		for i := range sent {
			want = append(want, fmt.Sprintf("m%d", i))
		}
		u.Wants(want...)
	}
	if _, errs, code := micsctl(t, c.Process("cp"), "drain", "gw1"); code != 1 || !strings.Contains(errs, "drained already") {
		t.Errorf("twice: exit %d\n%s", code, errs)
	}
	if out, _, code := micsctl(t, c.Process("cp"), "undrain", "gw1"); code != 0 || !strings.Contains(out, "serves again") {
		t.Errorf("undrain: exit %d\n%s", code, out)
	}
	late := c.Client("late", harness.On("gw1"))
	ann.Sends("hi").To("late")
	late.Wants("hi")
}

func TestADrainGoesOnWithoutItsLeader(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2, ControlPlanes: 2})
	const sessions = 40
	for i := range sessions {
		c.Client(fmt.Sprintf("u%d", i), harness.On("gw1"))
	}
	knows(t, c, "cp", sessions)
	knows(t, c, "cp2", sessions)
	out, errs, code := micsctl(t, c.Process("cp"), "drain", "gw1", "--rate", "5/s", "-o", "json")
	if code != 0 {
		t.Fatalf("exit %d\n%s", code, errs)
	}
	id := parseDrained(t, out).ID
	leader, other := "cp", "cp2"
	if !leads(c, leader) {
		leader, other = other, leader
	}
	testkit.Eventually(t, "it has begun", func() bool { return c.Sum("gw", "mics_ws_connections") > 0 && left(t, c, id) < sessions })
	c.Process(leader).Kill()
	testkit.Eventually(t, "another one has finished it", func() bool {
		d, ok := find(t, c.Process(other), id)
		return ok && d.State == "done"
	})
	d, _ := find(t, c.Process(other), id)
	if r := d.Receipt; r.Moved != sessions || r.Lost+r.Repeated+r.NotTakenBack != 0 || r.Gaps != sessions {
		t.Errorf("%+v", d)
	}
}

func leads(c *harness.Cluster, name string) bool {
	return c.Process(name).Metrics().Sum("mics_controlplane_leader") == 1
}

func left(t *testing.T, c *harness.Cluster, id string) uint64 {
	t.Helper()
	out, _, _ := micsctl(t, c.Process("cp"), "drains", "-o", "json")
	var doc struct {
		Drains []struct {
			ID    string `json:"operationId"`
			State string
			Left  uint64
		}
	}
	if json.Unmarshal([]byte(out), &doc) == nil {
		for _, d := range doc.Drains {
			if d.ID == id && d.State == "draining" {
				return d.Left
			}
		}
	}
	return 1 << 60
}

func find(t *testing.T, p *harness.Process, id string) (drained, bool) {
	t.Helper()
	out, _, code := micsctl(t, p, "drains", "-o", "json")
	var doc struct{ Drains []drained }
	if code != 0 || json.Unmarshal([]byte(out), &doc) != nil {
		return drained{}, false
	}
	for _, d := range doc.Drains {
		if d.ID == id {
			return d, true
		}
	}
	return drained{}, false
}

func TestGatewaysThatEndTakeTurns(t *testing.T) {
	t.Parallel()
	c := harness.New(t, harness.Options{
		Gateways: 3, ControlPlane: true, Env: map[string][]string{"gateway": {"DRAIN_TIMEOUT_SECONDS=20"}},
	})
	for i := range 20 {
		c.Client(fmt.Sprintf("u%d", i), harness.On("gw1"))
	}
	knows(t, c, "cp", 20)
	c.Gateway("gw1").Stop()
	if n := c.Sum("gw", "mics_ws_connections"); n != 20 { // gw1 is gone
		t.Errorf("%v are connected", n)
	}
	var d drained
	testkit.Eventually(t, "there is a receipt", func() bool {
		out, _, _ := micsctl(t, c.ControlPlane(), "drains", "-o", "json")
		var doc struct{ Drains []drained }
		if json.Unmarshal([]byte(out), &doc) != nil || len(doc.Drains) != 1 {
			return false
		}
		d = doc.Drains[0]
		return d.State == "done"
	})
	if r := d.Receipt; d.Node != "gw1" || d.Reason != "" || r.Sessions != 20 || r.Moved != 20 || r.Lost+r.Repeated+r.NotTakenBack != 0 || r.Gaps != 20 {
		t.Errorf("%+v", d)
	}
}
