package drainer

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/ring"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// directed is a gateway that is drained from outside.
type directed struct {
	*world
	*Drainer
	refuse string

	mu     sync.Mutex
	phases []gatewayv1.Phase
}

func direct(t *testing.T, f func(t *testing.T, d *directed)) {
	t.Helper()
	inTime(t, func(t *testing.T, w *world) {
		d := &directed{world: w}
		w.up.moves = true
		d.Drainer = New(Options{
			Registry: w.reg, Routers: w.up, Log: w.tel.Log, Timeout: 10 * time.Second, Refuse: func() string { return d.refuse },
			OnPhase: func(p gatewayv1.Phase) {
				d.mu.Lock()
				defer d.mu.Unlock()
				if n := len(d.phases); n == 0 || d.phases[n-1] != p {
					d.phases = append(d.phases, p)
				}
			},
		})
		f(t, d)
		d.Close()
	})
}

func (d *directed) went(want ...gatewayv1.Phase) {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.phases, want) {
		d.t.Errorf("phases %v, want %v", d.phases, want)
	}
}

const (
	serving  = gatewayv1.Phase_PHASE_SERVING
	draining = gatewayv1.Phase_PHASE_DRAINING
	drained  = gatewayv1.Phase_PHASE_DRAINED
)

// order is the operation "op".
func order(pace float64, timeout time.Duration, targets ...*gatewayv1.Target) *gatewayv1.DrainRequest {
	return &gatewayv1.DrainRequest{OperationId: "op", SessionsPerSecond: pace, TimeoutMs: uint64(timeout.Milliseconds()), Targets: targets}
}

func (d *directed) drains(req *gatewayv1.DrainRequest) *gatewayv1.DrainProgress {
	d.t.Helper()
	p, err := d.Drain(req)
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

// after lets fake time pass and returns how far the drain is then.
func (d *directed) after(wait time.Duration) *gatewayv1.DrainProgress {
	time.Sleep(wait) // fake time
	synctest.Wait()
	return d.Progress()
}

// crowd is V2 clients that move when they are asked to.
type crowd struct {
	mu    sync.Mutex
	asked map[int][]string // URLs, by client
	moved int
}

func (d *directed) crowd(n int) *crowd {
	c := &crowd{asked: map[int][]string{}}
	for i := range n {
		s, client := d.connect(2)
		go func() {
			m := migrate(client)
			if m == nil {
				return
			}
			c.mu.Lock()
			url := m.GetUrl()
			if at, ok := strings.CutSuffix(url, "home="+ring.Hint(ring.Hash("t", s.Identity().User))); ok {
				url = at[:len(at)-1]
			} else if url != "" {
				d.t.Errorf("%q does not tell the home", url)
			}
			c.asked[i] = append(c.asked[i], url)
			c.mu.Unlock()
			time.Sleep(time.Duration(m.GetDelayMs()) * time.Millisecond) // fake time
			if _, ok := s.Freeze(context.Background(), session.Takeover{Code: session.CodeReplaced, Reason: "replaced", Resume: true}); ok {
				c.mu.Lock()
				c.moved++
				c.mu.Unlock()
			}
		}()
	}
	return c
}

// near reports whether n is what is wanted, but for what a tick may make of it.
func near(n, want uint64) bool { return n+6 >= want && n <= want+6 }

func TestADirectedDrainKeepsItsPaceAndAsksV2First(t *testing.T) {
	direct(t, func(t *testing.T, d *directed) {
		c := d.crowd(100)
		for range 100 {
			d.connect(1)
		}
		p := d.drains(order(20, time.Minute))
		if p.Sessions != 200 || p.Left != 200 || p.LeftV2 != 100 || p.Done || p.OperationId != "op" || p.SessionsPerSecond != 20 {
			t.Errorf("%v", p)
		}
		d.went(draining)
		if p = d.after(2500 * time.Millisecond); !near(p.Moved, 50) || p.Closed != 0 {
			t.Errorf("after 2.5 s: %v", p)
		}
		if p = d.drains(order(40, time.Minute)); p.SessionsPerSecond != 40 {
			t.Errorf("%v", p)
		}
		if p = d.after(2500 * time.Millisecond); p.Moved != 100 || !near(p.Closed, 50) {
			t.Errorf("after 5 s: %v", p)
		}
		p = d.after(2 * time.Second)
		if p.Moved != 100 || p.Closed != 100 || p.Echoed != 100 || p.Left != 0 || p.LeftV2 != 0 || p.NotTakenBack != 0 || p.GaveUp != 0 || !p.Done {
			t.Errorf("at the end: %v", p)
		}
		for i, urls := range c.asked {
			if len(urls) != 1 {
				t.Errorf("client %d was asked %d times", i, len(urls))
			}
		}
		d.went(draining, drained)
		// It stays as it is, also for one that was being opened when it began.
		_, late := d.connect(1)
		if p = d.after(5 * time.Second); p.Sessions != 201 || !p.Done {
			t.Errorf("%v", p)
		}
		if code, _ := late.Closed(); code != 4200 {
			t.Errorf("closed with %d", code)
		}
		start := time.Now()
		if sum := d.Finish(t.Context(), 10*time.Second, Order{}); sum.Sessions != 201 || sum.Left != 0 || time.Since(start) != 0 {
			t.Errorf("%+v after %v", sum, time.Since(start))
		}
	})
}

func TestAPausedDrainStandsStillAndSoDoesItsTime(t *testing.T) {
	direct(t, func(t *testing.T, d *directed) {
		d.crowd(50)
		for range 50 {
			d.connect(1)
		}
		_, lost := d.connect(2)
		stop := order(10, 20*time.Second)
		stop.Paused = true
		d.drains(stop)
		_ = lost.Conn.Close()
		if p := d.after(time.Minute); p.Moved+p.Closed+p.Suspended != 0 || !p.Paused || p.Left != 101 {
			t.Errorf("paused from the start: %v", p)
		}
		d.drains(order(10, 20*time.Second))
		before := d.after(3 * time.Second)
		if !near(before.Moved, 30) || before.Paused {
			t.Errorf("%v", before)
		}
		d.drains(stop)
		p := d.after(2 * time.Second) // so long the socket of who has moved is kept
		if q := d.after(10 * time.Minute); q.Moved != p.Moved || q.Closed != p.Closed || q.Left != p.Left {
			t.Errorf("paused at %v, it went on to %v", p, q)
		}
		d.drains(order(10, 20*time.Second))
		if p := d.after(3500 * time.Millisecond); p.Done || p.GaveUp != 0 || p.Moved != 50 {
			t.Errorf("%v", p)
		}
		if p := d.after(6 * time.Second); !p.Done || p.GaveUp != 0 {
			t.Errorf("%v", p)
		}
	})
}

func TestWhatIsLeftAtTheTimeoutIsClosedAtOnce(t *testing.T) {
	direct(t, func(t *testing.T, d *directed) {
		for i := range 100 {
			_, c := d.connect(uint32(i%2) + 1)
			c.Echo(i%5 != 0)
		}
		d.drains(order(1, 20*time.Second)) // far too slow
		if p := d.after(19 * time.Second); p.Left < 60 {
			t.Errorf("before the timeout: %v", p)
		}
		p := d.after(2 * time.Second)
		if p.Closed != 100 || p.GaveUp != 0 {
			t.Errorf("at the timeout: %v", p)
		}
		if p = d.after(3 * time.Second); !p.Done || p.Echoed != 80 {
			t.Errorf("after it: %v", p)
		}
	})
}

func TestUndrain(t *testing.T) {
	direct(t, func(t *testing.T, d *directed) {
		c := d.crowd(100)
		if p, err := d.Undrain(""); p != nil || err != nil {
			t.Errorf("nothing to undo: %v, %v", p, err)
		}
		overtaken := order(20, time.Minute)
		overtaken.OperationId = "op0"
		if p, err := d.Undrain("op0"); p != nil || err != nil {
			t.Errorf("not begun yet: %v, %v", p, err)
		}
		if _, err := d.Drain(overtaken); fault.KindOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "undone") {
			t.Errorf("it comes after its end: %v", err)
		}
		d.drains(order(20, time.Minute))
		d.after(2 * time.Second)
		if _, err := d.Undrain("another"); fault.KindOf(err) != fault.FailedPrecondition {
			t.Errorf("another's: %v", err)
		}
		begun := d.Begun()
		p, err := d.Undrain("op")
		if err != nil || !near(p.GetMoved(), 40) || d.Progress() != nil {
			t.Fatalf("%v, %v", p, err)
		}
		select {
		case <-begun:
		default:
			t.Error("it had begun")
		}
		d.went(draining, serving)
		time.Sleep(time.Minute) // fake time
		if n := d.reg.Len(); !near(uint64(n), 60) {
			t.Errorf("%d sessions are left", n)
		}
		if _, err := d.Drain(order(20, time.Minute)); fault.KindOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "undone") {
			t.Errorf("a late repeat: %v", err)
		}
		if p, err := d.Undrain("op"); p != nil || err != nil {
			t.Errorf("again: %v, %v", p, err)
		}
		again := order(0, 10*time.Second)
		again.OperationId = "op2"
		d.drains(again)
		if p := d.after(10 * time.Second); !p.Done || !near(p.Moved, 60) || c.moved != 100 {
			t.Errorf("%v; %d have moved", p, c.moved)
		}
		d.went(draining, serving, draining, drained)
		if _, err := d.Undrain("op2"); err != nil {
			t.Error(err)
		}
		d.went(draining, serving, draining, drained, serving)
	})
}

func TestDrainErrors(t *testing.T) {
	direct(t, func(t *testing.T, d *directed) {
		d.connect(1)
		wants := func(what string, kind fault.Kind, req *gatewayv1.DrainRequest) {
			t.Helper()
			if _, err := d.Drain(req); fault.KindOf(err) != kind {
				t.Errorf("%s: %v", what, err)
			}
		}
		nan := 0.0
		nan /= nan
		wants("no id", fault.Invalid, &gatewayv1.DrainRequest{})
		wants("pace", fault.Invalid, order(-1, time.Second))
		wants("no pace", fault.Invalid, order(nan, time.Second))
		for _, u := range []string{"http://a/ws", "ws:///ws", "wss://u:p@a/ws", "%"} {
			wants(u, fault.Invalid, order(1, time.Second, &gatewayv1.Target{Url: u}))
		}
		d.refuse = "fenced"
		wants("fenced", fault.FailedPrecondition, order(1, time.Minute))
		d.refuse = ""
		slow := order(0.1, time.Hour)
		slow.Paused = true
		d.drains(slow)
		other := order(1, time.Minute)
		other.OperationId = "other"
		wants("another", fault.FailedPrecondition, other)
		if _, err := d.Shed(&gatewayv1.ShedRequest{OperationId: "s", Sessions: 1, SessionsPerSecond: 1}); fault.KindOf(err) != fault.FailedPrecondition {
			t.Errorf("shed: %v", err)
		}
		d.End()
		if _, err := d.Undrain("op"); fault.KindOf(err) != fault.FailedPrecondition {
			t.Errorf("undrain: %v", err)
		}
		wants("another, and ending", fault.FailedPrecondition, other)
		d.drains(slow) // its own goes on
		// The end does not wait for somebody to end the pause.
		start := time.Now()
		if sum := d.Finish(t.Context(), 8*time.Second, Order{Operation: "granted"}); sum != (Summary{Sessions: 1, Told: 1, Echoed: 1}) || time.Since(start) > 7*time.Second {
			t.Errorf("%+v after %v", sum, time.Since(start))
		}
		if p := d.Progress(); p.OperationId != "op" || !p.Done {
			t.Errorf("%v", p)
		}
		wants("it has ended", fault.FailedPrecondition, order(1, time.Minute))
	})
}

func TestFinishGoesByTheSlotAndHearsRepeats(t *testing.T) {
	direct(t, func(t *testing.T, d *directed) {
		c := d.crowd(60)
		d.End()
		go func() {
			time.Sleep(2 * time.Second) // fake time
			d.drains(order(20, time.Hour, &gatewayv1.Target{NodeId: "g3", Url: "ws://g3/ws"}))
		}()
		start := time.Now()
		sum := d.Finish(t.Context(), 20*time.Second, Order{Operation: "op", Pace: 5, Targets: []*gatewayv1.Target{{NodeId: "g2", Url: "?to=g2"}}})
		// 10 in two seconds, 50 in two and a half; the last sockets are kept for one more.
		if took := time.Since(start); sum.Moved != 60 || took < 5*time.Second || took > 6*time.Second {
			t.Errorf("%+v after %v", sum, took)
		}
		to := map[string]int{}
		for _, urls := range c.asked {
			to[urls[0]]++
		}
		if !near(uint64(to["?to=g2"]), 10) || to["?to=g2"]+to["ws://g3/ws"] != 60 {
			t.Errorf("sent to %v", to)
		}
		d.went(draining, drained)
	})
}

func TestFinishIsOverInTimeWhateverThePace(t *testing.T) {
	direct(t, func(t *testing.T, d *directed) {
		for range 50 {
			_, c := d.connect(1)
			c.Echo(false)
		}
		d.drains(order(1, time.Hour))
		d.after(3 * time.Second)
		start := time.Now()
		if sum := d.Finish(t.Context(), 5*time.Second, Order{}); sum.Told != 50 || sum.Left != 0 || time.Since(start) > 5*time.Second {
			t.Errorf("%+v after %v", sum, time.Since(start))
		}
	})
}
