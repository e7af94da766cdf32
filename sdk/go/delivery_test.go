package mics

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
)

// TestEverythingBeforeTheCloseIsHandedOver: the gateway takes the echo of its
// close frame as the receipt of all deliveries before it, so the echo must not
// overtake them on their way to a slow application.
func TestEverythingBeforeTheCloseIsHandedOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const n = 50
		echoed := make(chan time.Time, 1)
		g := newGateway(t, connected(30, func(p *peer) {
			for i := range n {
				_ = p.deliver(i)
			}
			p.close(4200, "server draining")
			echoed <- time.Now()
		}), connected(30, (*peer).ackAll))
		o := g.options()
		o.QueueSize = 4
		var handed atomic.Int32
		o.OnDelivery = func(*Delivery) {
			time.Sleep(10 * time.Millisecond)
			handed.Add(1)
		}
		began := time.Now()
		c := connect(t, o)
		at := <-echoed
		// 4 in the queue, one in the handler: the others have been through.
		if k := int(at.Sub(began) / (10 * time.Millisecond)); k < n-o.QueueSize-1 {
			t.Errorf("echoed when only about %d deliveries had been handed over", k)
		}
		if got := c.Stats().Deliveries; got != n {
			t.Errorf("%d deliveries received before the echo, want %d", got, n)
		}
		time.Sleep(time.Second)
		if k := handed.Load(); k != n {
			t.Errorf("%d deliveries handed over, want %d", k, n)
		}
	})
}

// TestCloseHandsOverWhatIsUnderWay: deliveries that the gateway wrote before it
// saw our close frame are the application's.
func TestCloseHandsOverWhatIsUnderWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const n = 100
		go1 := make(chan struct{})
		saw := make(chan websocket.StatusCode, 1)
		g := newGateway(t, connected(30, func(p *peer) {
			<-go1
			for i := range n {
				if p.deliver(i) != nil {
					t.Errorf("delivery %d could not be written", i)
					return
				}
			}
			_, _, err := p.ws.Read(context.Background()) // reads and echoes the close
			saw <- websocket.CloseStatus(err)
		}))
		o := g.options()
		o.OnDelivery = nil
		c := connect(t, o)
		got := make(chan int, 1)
		go func() {
			k := 0
			for _, err := range c.Deliveries(context.Background()) {
				if err != nil {
					t.Errorf("deliveries ended with %v", err)
				}
				k++
			}
			got <- k
		}()
		time.AfterFunc(time.Second, func() { close(go1) })
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if k := <-got; k != n {
			t.Errorf("%d deliveries, want %d", k, n)
		}
		if code := <-saw; code != websocket.StatusNormalClosure {
			t.Errorf("the gateway saw %d", code)
		}
	})
}

func TestBackpressureReachesTheGateway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		written := make(chan int, 1)
		g := newGateway(t, connected(5, func(p *peer) {
			go func() { // the client's heartbeats go on while it does not read
				for p.read() != nil {
				}
			}()
			i := 0
			for ; i < 100; i++ {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				err := p.ws.Write(ctx, websocket.MessageBinary, deliveryFrame(t, i))
				cancel()
				if err != nil {
					break
				}
			}
			written <- i
		}), connected(5, (*peer).ackAll))
		o := g.options()
		o.QueueSize = 3
		c := connect(t, o)
		// Nobody takes: three in the queue, one in the reader's hand, nothing
		// beyond is read, and the gateway's patience ends.
		if i := <-written; i != 4 {
			t.Errorf("%d frames went through, want 4", i)
		}
		if s := c.Stats(); s.Connects != 1 {
			t.Errorf("the client took its own slowness for the gateway's silence: %+v", s)
		}
		k := 0
		for d, err := range c.Deliveries(t.Context()) {
			if err != nil || d.ID != strconv.Itoa(k) {
				t.Fatalf("delivery %d: %+v, %v", k, d, err)
			}
			if k++; k == 4 {
				break
			}
		}
		synctest.Wait()
		if s := c.Stats(); s.DroppedDeliveries != 0 || s.Deliveries != 4 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestDropOldest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGateway(t, connected(30, func(p *peer) {
			for i := range 10 {
				_ = p.deliver(i)
			}
			p.ackAll()
		}))
		o := g.options()
		o.QueueSize, o.Overflow = 3, DropOldest
		c := connect(t, o)
		synctest.Wait()
		if s := c.Stats(); s.DroppedDeliveries != 7 || s.Deliveries != 10 {
			t.Errorf("stats %+v", s)
		}
		want := 7
		for d := range c.Deliveries(t.Context()) {
			if d.ID != strconv.Itoa(want) {
				t.Errorf("got %s, want %d", d.ID, want)
			}
			if want++; want == 10 {
				break
			}
		}
	})
}

func TestDeliveriesEnd(t *testing.T) {
	t.Run("with the final error, after what was received", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			g := newGateway(t, connected(30, func(p *peer) { _ = p.deliver(1); p.close(4409, "kicked") }))
			c := start(t, g.options())
			_ = c.Connect(t.Context()) // connected or kicked already, as it comes
			<-c.Done()
			var got []string
			for d, err := range c.Deliveries(t.Context()) {
				if err != nil {
					got = append(got, err.Error())
					continue
				}
				got = append(got, d.ID)
			}
			if len(got) != 2 || got[0] != "1" || got[1] != c.Err().Error() {
				t.Errorf("got %v", got)
			}
		})
	})
	t.Run("with their context", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			g := newGateway(t, connected(30, (*peer).ackAll))
			c := connect(t, g.options())
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			for _, err := range c.Deliveries(ctx) {
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v", err)
				}
			}
		})
	})
}

// TestCloseCutsAStuckHandler: Close returns although OnDelivery does not.
func TestCloseCutsAStuckHandler(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGateway(t, connected(30, func(p *peer) { _ = p.deliver(1); p.ackAll() }))
		o := g.options()
		release := make(chan struct{})
		o.OnDelivery = func(*Delivery) { <-release }
		c, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := c.Close(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v", err)
		}
		close(release)
	})
}

// recorder is the stream under a tap.
type recorder struct {
	bytes.Buffer
	fail error
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.fail != nil {
		return 0, r.fail
	}
	return r.Buffer.Write(p)
}
func (*recorder) Close() error { return nil }

func TestTapClose(t *testing.T) {
	r := &recorder{}
	tp := &tap{ReadWriteCloser: r}
	if err := tp.sendClose(4321); err != nil {
		t.Fatal(err)
	}
	f := r.Bytes()
	if len(f) != 8 || f[0] != 0x88 || f[1] != 0x82 {
		t.Fatalf("frame % x", f)
	}
	if code := binary.BigEndian.Uint16([]byte{f[6] ^ f[2], f[7] ^ f[3]}); code != 4321 {
		t.Errorf("code %d", code)
	}
	if n, err := tp.Write([]byte("late")); n != 4 || err != nil || r.Len() != 8 {
		t.Errorf("something followed the close frame: %d, %v", n, err)
	}
	if err := tp.sendClose(1000); err != nil || r.Len() != 8 {
		t.Errorf("a second close frame: %v", err)
	}
	broken := &tap{ReadWriteCloser: &recorder{fail: io.ErrClosedPipe}}
	if err := broken.sendClose(1000); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, "-1": 0, "x": 0, "99999999999": 0,
		now.Add(time.Minute).Format(http.TimeFormat):  time.Minute,
		now.Add(-time.Minute).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {in}}, now); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
	if v := judge(&HandshakeError{Status: 503, RetryAfter: 24 * time.Hour}, true); v.atLeast != maxRetryAfter {
		t.Errorf("a day is waited for: %v", v.atLeast)
	}
}

func TestPacer(t *testing.T) {
	p := newPacer(100*time.Millisecond, time.Second)
	ceilings := []time.Duration{100, 200, 400, 800, 1000, 1000, 1000}
	var longest time.Duration
	for range 200 {
		p.reset()
		for i, c := range ceilings {
			d := p.next(verdict{})
			if limit := c*time.Millisecond + 1; d < 0 || d > limit {
				t.Fatalf("attempt %d waits %v, over %v", i, d, limit)
			}
			longest = max(longest, d)
		}
	}
	if longest < 900*time.Millisecond {
		t.Errorf("never above %v: that is no full jitter", longest)
	}
	p.reset()
	if d := p.next(verdict{atOnce: true}); d != 0 {
		t.Errorf("at once took %v", d)
	}
	p.reset()
	if d := p.next(verdict{slow: true, atLeast: time.Minute}); d < time.Minute || d > time.Minute+400*time.Millisecond+1 {
		t.Errorf("slow took %v", d)
	}
}
