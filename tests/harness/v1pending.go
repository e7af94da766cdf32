package harness

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// due returns what to write now: raw frames, messages not written yet, and those
// whose answer is late.
func (c *V1) due() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	frames := c.raw
	c.raw = nil
	now := time.Now()
	for _, p := range c.pending {
		if p.settled || !p.written.IsZero() && now.Sub(p.written) < ackTimeout {
			continue
		}
		p.written = now
		p.attempts++
		p.request.TimestampMs = now.UnixMilli()
		frames = append(frames, clientFrame(&messagev1.ClientFrame{Payload: &messagev1.ClientFrame_Message{Message: p.request}}))
	}
	return frames
}

func clientFrame(f *messagev1.ClientFrame) []byte {
	b, err := proto.Marshal(f)
	if err != nil {
		panic(err) // strings that are no UTF-8: a mistake in the test
	}
	return b
}

// answer hands an answer on. A message that was written more than once stays
// known until it is given up on: more answers may come.
func (c *V1) answer(a *messagev1.MessageAck) {
	c.mu.Lock()
	i := slices.IndexFunc(c.pending, func(p *v1Message) bool { return p.id == a.GetMsgId() })
	if i < 0 {
		c.mu.Unlock()
		return
	}
	p := c.pending[i]
	first := !p.settled
	p.settled = true
	if p.attempts == 1 {
		c.pending = slices.Delete(c.pending, i, i+1)
	}
	attempts := p.attempts
	c.mu.Unlock()
	if first {
		<-c.slots
	}
	p.answered(Answer{
		Sent: a.GetStatus() == messagev1.AckStatus_SENT, Reason: a.GetReason(), Partial: a.GetPartialDelivery(),
		Buffered: a.GetOfflineBufferedUsers(), Attempts: attempts,
	})
}

// giveUp ends the wait for what is unanswered for too long.
func (c *V1) giveUp() {
	var over []*v1Message
	c.mu.Lock()
	c.pending = slices.DeleteFunc(c.pending, func(p *v1Message) bool {
		old := time.Since(p.began) > c.d.AnswerWithin
		if old && !p.settled {
			over = append(over, p)
		}
		return old
	})
	c.mu.Unlock()
	for _, p := range over {
		<-c.slots
		p.answered(Answer{Err: errNoAnswer, Attempts: p.attempts})
	}
}
