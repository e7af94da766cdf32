package mics

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

func deliveryFrame(t *testing.T, n int) []byte {
	t.Helper()
	b, err := proto.Marshal(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Delivery{
		Delivery: &messagev1.MessageDelivery{Message: &messagev1.MessageRequest{MsgId: fmt.Sprint(n)}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestResend: what a connection left unanswered goes out on the next one, the
// same bytes in the same order, before anything new; what was answered does not.
func TestResend(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var first, second []*messagev1.MessageRequest
		g := newGateway(t, connected(30, func(p *peer) {
			for range 5 {
				first = append(first, p.message())
			}
			_ = p.ack(&messagev1.MessageAck{MsgId: first[1].GetMsgId()})
			time.Sleep(time.Second)
			p.close(4200, "server draining")
		}), connected(30, func(p *peer) {
			for range 5 {
				m := p.message()
				second = append(second, m)
				_ = p.ack(&messagev1.MessageAck{MsgId: m.GetMsgId(), Reason: "duplicate"})
			}
			p.ackAll()
		}))
		var pending []*Pending
		o := g.options()
		c := connect(t, o)
		for i := range 5 {
			p, err := c.Submit(t.Context(), Message{To: "bob", Body: fmt.Append(nil, i)})
			if err != nil {
				t.Fatal(err)
			}
			pending = append(pending, p)
			time.Sleep(time.Millisecond) // timestamps differ, and must not change
		}
		time.Sleep(2 * time.Second)
		if _, err := c.Send(t.Context(), Message{To: "bob", Body: []byte("new")}); err != nil {
			t.Error(err)
		}
		for i, p := range pending {
			ack, err := p.Wait()
			if err != nil || ack.ID != p.ID() || ack.Duplicate != (i != 1) {
				t.Errorf("message %d: %+v, %v", i, ack, err)
			}
		}
		want := append(append([]*messagev1.MessageRequest{}, first[0]), first[2:]...)
		for i, w := range want {
			if !proto.Equal(second[i], w) {
				t.Errorf("resent %v, want %v", second[i], w)
			}
		}
		if string(second[4].GetMsgBody()) != "new" || c.Stats().Resends != 4 {
			t.Errorf("then came %v; stats %+v", second[4], c.Stats())
		}
	})
}

func TestSendFailed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGateway(t, connected(30, func(p *peer) {
			for m := p.message(); m != nil; m = p.message() {
				_ = p.ack(&messagev1.MessageAck{MsgId: m.GetMsgId(), Status: messagev1.AckStatus_FAILED, Reason: "group members empty"})
			}
		}))
		c := connect(t, g.options())
		ack, err := c.Send(t.Context(), Message{Group: "g", ID: "mine"})
		se, ok := errors.AsType[*SendError](err)
		if !ok || se.Reason != "group members empty" || se.ID != "mine" || ack.ID != "mine" {
			t.Errorf("got %+v, %v", ack, err)
		}
	})
}

func TestSendMistakes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGateway(t, connected(30, func(p *peer) {
			for p.message() != nil { // never an answer
			}
		}))
		o := g.options()
		o.MaxBodyBytes = 10
		c := connect(t, o)
		for _, m := range []Message{{}, {To: "a", Group: "b"}} {
			if _, err := c.Send(t.Context(), m); !errors.Is(err, ErrRecipient) {
				t.Errorf("%+v: %v", m, err)
			}
		}
		if _, err := c.Send(t.Context(), Message{To: "bob\xff"}); err == nil {
			t.Error("a recipient that is no UTF-8 was sent")
		}
		_, err := c.Send(t.Context(), Message{To: "bob", Body: make([]byte, 11)})
		if se, ok := errors.AsType[*SendError](err); !ok || se.Reason != "msg_body_too_large" {
			t.Errorf("too large: %v", err)
		}
		if _, err := c.Submit(t.Context(), Message{To: "bob", ID: "x"}); err != nil {
			t.Error(err)
		}
		if _, err := c.Send(t.Context(), Message{To: "bob", ID: "x"}); !errors.Is(err, ErrInFlight) {
			t.Errorf("same id twice: %v", err)
		}
	})
}

// TestFrameTooLarge: the gateway's error names no message; the largest is it.
func TestFrameTooLarge(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGateway(t, connected(30, func(p *peer) {
			for range 3 {
				p.message()
			}
			_ = p.send(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Error{
				Error: &messagev1.ServerError{Code: 4413, Message: "frame too large"}}})
			p.ackAll()
		}))
		c := connect(t, g.options())
		var ps []*Pending
		for _, size := range []int{10, 3000, 20} {
			p, err := c.Submit(t.Context(), Message{To: "bob", Body: make([]byte, size)})
			if err != nil {
				t.Fatal(err)
			}
			ps = append(ps, p)
		}
		synctest.Wait()
		if _, err := ps[1].Wait(); err == nil || !strings.Contains(err.Error(), "msg_body_too_large") {
			t.Errorf("the large one: %v", err)
		}
		for _, i := range []int{0, 2} {
			select {
			case <-ps[i].Done():
				t.Errorf("message %d was settled as well", i)
			default:
			}
		}
	})
}

// TestSendBounded: beyond MaxPending a Send waits, an abandoned one gives its
// place back, and its late ack disturbs nobody.
func TestSendBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		hold := make(chan struct{})
		var reached []string
		g := newGateway(t, connected(30, func(p *peer) {
			var held []*messagev1.MessageRequest
			for len(held) < 2 {
				m := p.message()
				reached = append(reached, m.GetMsgId())
				held = append(held, m)
			}
			<-hold
			for _, m := range held {
				_ = p.ack(&messagev1.MessageAck{MsgId: m.GetMsgId()})
			}
			p.ackAll()
		}))
		o := g.options()
		o.MaxPending = 2
		c := connect(t, o)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		a, err := c.Submit(short, Message{To: "bob", ID: "a"})
		if err != nil {
			t.Fatal(err)
		}
		b, err := c.Submit(t.Context(), Message{To: "bob", ID: "b"})
		if err != nil {
			t.Fatal(err)
		}
		tiny, cancel2 := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel2()
		if ack, err := c.Send(tiny, Message{To: "bob", ID: "c"}); !errors.Is(err, context.DeadlineExceeded) || ack.ID != "c" {
			t.Errorf("a third at once: %+v, %v", ack, err)
		}
		if ack, err := a.Wait(); !errors.Is(err, context.DeadlineExceeded) || ack.ID != "a" {
			t.Errorf("the abandoned one: %+v, %v", ack, err)
		}
		d, err := c.Submit(t.Context(), Message{To: "bob", ID: "d"})
		if err != nil {
			t.Fatal(err)
		}
		close(hold)
		for _, p := range []*Pending{b, d} {
			if _, err := p.Wait(); err != nil {
				t.Error(err)
			}
		}
		if fmt.Sprint(reached) != "[a b]" {
			t.Errorf("reached the gateway: %v", reached)
		}
	})
}

// TestSendBeforeConnectAndAcrossOutage: Send only needs its context to live.
func TestSendBeforeConnectAndAcrossOutage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newGateway(t, status(503), status(503), connected(30, (*peer).ackAll))
		c := start(t, g.options())
		p, err := c.Submit(t.Context(), Message{To: "bob"})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestConcurrentSenders(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := 0
		g := newGateway(t, connected(30, func(p *peer) { // every connection breaks in the middle
			n++
			for range 40 * n {
				m := p.message()
				if m == nil {
					return
				}
				_ = p.ack(&messagev1.MessageAck{MsgId: m.GetMsgId()})
			}
		}))
		o := g.options()
		o.MaxPending = 8
		c := connect(t, o)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for k := range 10 {
					if _, err := c.Send(t.Context(), Message{To: "bob", Body: fmt.Append(nil, i, k)}); err != nil {
						t.Errorf("sender %d message %d: %v", i, k, err)
					}
					_ = c.Stats()
					_ = c.State()
				}
			})
		}
		wg.Wait()
		if c.Stats().Connects < 2 {
			t.Error("nothing broke")
		}
	})
}
