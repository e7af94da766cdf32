package drainer

import (
	"testing"
	"time"

	"github.com/mics-im/mics/internal/fault"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

func (d *directed) sheds(req *gatewayv1.ShedRequest) *gatewayv1.ShedResponse {
	d.t.Helper()
	res, err := d.Shed(req)
	if err != nil {
		d.t.Fatal(err)
	}
	return res
}

func TestShedMovesSomeWhileTheGatewayServes(t *testing.T) {
	direct(t, func(t *testing.T, d *directed) {
		c := d.crowd(50)
		for range 20 {
			d.connect(2) // they do not move
			d.connect(1)
		}
		req := &gatewayv1.ShedRequest{OperationId: "s1", Sessions: 80, SessionsPerSecond: 20}
		d.sheds(req)
		d.after(2 * time.Second)
		if res := d.sheds(req); !near(res.Asked, 40) || res.Done {
			t.Errorf("%v", res)
		}
		req.Paused = true
		d.sheds(req)
		d.after(2 * time.Second)
		if res := d.sheds(req); !near(res.Asked, 40) || res.Done {
			t.Errorf("paused: %v", res)
		}
		req.Paused = false
		d.sheds(req)
		d.after(2*time.Second + MoveWithin)
		res := d.sheds(req)
		if res.Asked != 70 || res.Moved != 50 || res.Stayed != 20 || !res.Done || c.moved != 50 {
			t.Errorf("%v, %d have moved", res, c.moved)
		}
		if n := d.reg.Len(); n != 40 {
			t.Errorf("%d sessions are left", n)
		}
		d.went()
		// The next one closes V1 clients too, and asks the others once more.
		next := &gatewayv1.ShedRequest{OperationId: "s2", Sessions: 30, SessionsPerSecond: 1000, MoveV1: true}
		d.sheds(next)
		d.after(time.Second + MoveWithin)
		if res := d.sheds(next); res.Asked != 30 || res.Moved != 10 || res.Stayed != 20 || !res.Done {
			t.Errorf("%v", res)
		}
	})
}

func TestShedEnds(t *testing.T) {
	direct(t, func(t *testing.T, d *directed) {
		d.crowd(100)
		req := &gatewayv1.ShedRequest{OperationId: "s1", Sessions: 100, SessionsPerSecond: 10}
		d.sheds(req)
		d.after(time.Second)
		stop := &gatewayv1.ShedRequest{OperationId: "s1", Cancel: true, SessionsPerSecond: 10}
		if res := d.sheds(stop); !res.Done || !near(res.Moved, 10) {
			t.Errorf("%v", res)
		}
		d.after(time.Minute)
		if n := d.reg.Len(); !near(uint64(n), 90) {
			t.Errorf("%d sessions are left", n)
		}
		if res := d.sheds(req); !res.Done || !near(res.Asked, 10) {
			t.Errorf("a late repeat: %v", res)
		}
		d.sheds(&gatewayv1.ShedRequest{OperationId: "s2", Sessions: 100, SessionsPerSecond: 10})
		d.after(time.Second)
		// A drain takes over, and asks those that have not been.
		d.drains(order(100, time.Minute))
		if p := d.after(2 * time.Second); !p.Done || !near(p.Moved, 80) {
			t.Errorf("%v", p)
		}
		for what, r := range map[string]*gatewayv1.ShedRequest{
			"no id":   {Sessions: 1, SessionsPerSecond: 1},
			"no pace": {OperationId: "s3", Sessions: 1},
		} {
			if _, err := d.Shed(r); fault.KindOf(err) != fault.Invalid {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

func TestShedCannotAsk(t *testing.T) {
	direct(t, func(t *testing.T, d *directed) {
		d.up.moves = false
		for range 5 {
			d.connect(2)
		}
		req := &gatewayv1.ShedRequest{OperationId: "s1", Sessions: 3, SessionsPerSecond: 100}
		d.sheds(req)
		d.after(time.Second)
		if res := d.sheds(req); res.Asked != 3 || res.Stayed != 3 || res.Moved != 0 || !res.Done || d.reg.Len() != 5 {
			t.Errorf("%v, %d sessions are left", res, d.reg.Len())
		}
	})
}
