package verify

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/mics-im/mics/tests/chaos/history"
)

const (
	// settle bounds the wait for what is under way when a phase ends: longer than
	// any lease, retry or grace in the cluster.
	settle = 40 * time.Second
	// echo is for repeats that come when all has come.
	echo = 2 * time.Second
	// answerWithin is when a client gives up.
	answerWithin = 30 * time.Second
)

// crowd is the users, who stay connected from phase to phase.
type crowd struct {
	phones []*phone
	groups map[string][]string
	pause  time.Duration // between two messages of one device

	mu      sync.Mutex
	phase   string             // guarded by mu; empty: between phases
	history *history.History   // guarded by mu; of the phase
	stop    context.CancelFunc // guarded by mu
	began   time.Time          // guarded by mu
	talk    sync.WaitGroup
}

func newCrowd(spec Spec) *crowd {
	c := &crowd{groups: map[string][]string{}, history: history.New()}
	for i := range spec.V1 + spec.V2 {
		v1 := i < spec.V1
		name := fmt.Sprintf("v2-%d", i)
		if v1 {
			name = fmt.Sprintf("v1-%d", i)
		}
		c.phones = append(c.phones, &phone{crowd: c, url: spec.URL, v1: v1, id: history.Device{Tenant: Tenant, User: name, Name: "phone"}})
	}
	// Each group has users of both versions.
	for g := range 4 {
		name := fmt.Sprintf("g%d", g)
		for i := g; i < len(c.phones); i += 4 {
			c.groups[name] = append(c.groups[name], c.phones[i].id.User)
		}
	}
	c.pause = time.Duration(float64(len(c.phones)) / max(spec.Rate, 1) * float64(time.Second))
	return c
}

func (c *crowd) join() {
	for _, p := range c.phones {
		p.dial()
	}
}

func (c *crowd) leave() {
	c.mu.Lock()
	if c.stop != nil {
		c.stop()
	}
	c.mu.Unlock()
	c.talk.Wait()
	var wg sync.WaitGroup
	for _, p := range c.phones {
		wg.Go(p.end.Close)
	}
	wg.Wait()
}

// await waits until everybody is connected; else it says who is not.
func (c *crowd) await(ctx context.Context, within time.Duration) string {
	deadline := time.Now().Add(within)
	for {
		away := ""
		for _, p := range c.phones {
			if p.node() == "" {
				away = fmt.Sprintf("%s is not connected", p.id)
			}
		}
		if away == "" || time.Now().After(deadline) || ctx.Err() != nil {
			return away
		}
		time.Sleep(50 * time.Millisecond) // polling a real system
	}
}

// begin starts a history and has everybody talk.
func (c *crowd) begin(phase string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != "" {
		return fmt.Errorf("phase %s has not ended", c.phase)
	}
	c.phase, c.history, c.began = phase, history.New(), time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	for _, p := range c.phones {
		p.present(c.history)
	}
	for i, p := range c.phones {
		c.talk.Go(func() { p.live(ctx, phase, rand.New(rand.NewPCG(uint64(i), 7))) })
	}
	return nil
}

// finish ends the talk, waits for what is under way, and judges.
func (c *crowd) finish(ctx context.Context, phase string) (Report, error) {
	c.mu.Lock()
	if c.phase != phase || phase == "" {
		defer c.mu.Unlock()
		return Report{}, fmt.Errorf("the phase is %q", c.phase)
	}
	c.stop()
	h, began := c.history, c.began
	c.mu.Unlock()
	c.talk.Wait()
	talked := time.Since(began)
	c.await(ctx, settle)
	for deadline := time.Now().Add(settle); open(history.Check(h.Events())) && time.Now().Before(deadline) && ctx.Err() == nil; {
		time.Sleep(200 * time.Millisecond) // polling a real system
	}
	time.Sleep(echo) // a real time for what should not come
	r := judge(phase, h.Events(), c.phones)
	r.Seconds = talked.Seconds()
	c.mu.Lock()
	c.phase = ""
	c.mu.Unlock()
	return r, nil
}

// open: there is a violation that time may heal.
func open(r history.Report) bool {
	for _, v := range r.Violations {
		if v.Rule == history.Lost || v.Rule == history.Unanswered || v.Rule == history.Ended {
			return true
		}
	}
	return false
}

// examples bounds what a report tells one by one.
const examples = 20

func judge(phase string, events []history.Event, phones []*phone) Report {
	checked := history.Check(events)
	r := Report{
		Phase: phase, Messages: checked.Messages, Sent: checked.Sent, Failed: checked.Failed, Deliveries: checked.Deliveries,
		DisconnectsV1: map[int]int{}, LongestDelivery: checked.LongestUndelivery, LongestGapV1: checked.LongestGap,
		FailedWithReasons: checked.FailedReasons,
	}
	for _, v := range checked.Violations {
		switch v.Rule {
		case history.Lost:
			r.Lost++
		case history.Repeated:
			r.Repeated++
		}
		if len(r.Others) < examples {
			r.Others = append(r.Others, v.String())
		}
	}
	v1 := map[history.Device]bool{}
	for _, p := range phones {
		v1[p.id] = p.v1
	}
	for _, e := range events {
		switch {
		case e.Kind == history.Disconnect && v1[e.Device]:
			r.DisconnectsV1[e.Code]++
		case e.Kind == history.Disconnect:
			r.DisconnectsV2 = append(r.DisconnectsV2, fmt.Sprintf("%s: %d %s at %.1fs", e.Device.User, e.Code, e.Reason, e.At.Seconds()))
		}
	}
	return r
}
