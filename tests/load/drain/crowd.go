package drain

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/mics-im/mics/tests/load"
)

// order is what a crowd is.
type order struct {
	URLs []string
	// Place are the URLs of first connects, by pairs; none: any of URLs.
	Place []string
	// First and Count number its clients; both are even.
	First, Count int
	V1           bool
	// Sample is every how many pairs a V1 client is none of the SDK's; Silence every
	// how many pairs fall silent when told. 0: none.
	Sample, Silence int
	// Delay is half of the emulated round trip.
	Delay time.Duration
	// Rate is messages per second of this crowd, Body bytes each.
	Rate, Body int
	Parallel   int
}

func (o order) sampled(n int) bool  { return o.V1 && o.Sample > 0 && n/2%o.Sample == 0 }
func (o order) silences(n int) bool { return o.Silence > 0 && n/2%o.Silence == o.Silence-1 }

// Seen is what clients saw in one phase of a run.
type Seen struct {
	// Latency of all messages that were due in it, Moving of those whose recipient
	// moved while they were under way.
	Latency load.Histogram `json:"latency"`
	Moving  load.Histogram `json:"moving"`
	// Moves are all of them; Hole is, of those whose first connection ended before the
	// second had its ConnectAck, the time between.
	Moves []Move         `json:"moves,omitempty"`
	Hole  load.Histogram `json:"hole"`
	// Away is the time from a disconnect to the next connect; Returns counts those
	// by second of the phase.
	Away    load.Histogram `json:"away"`
	Returns map[int]int    `json:"returns,omitempty"`
	// Disconnects by close code, as applications see them; 1006: no close frame.
	Disconnects map[int]int `json:"disconnects,omitempty"`
	// Late is how much later than due messages were handed to the client.
	Late load.Histogram `json:"late"`
}

func (s *Seen) merge(o *Seen) {
	s.Latency.Merge(&o.Latency)
	s.Moving.Merge(&o.Moving)
	s.Moves = append(s.Moves, o.Moves...)
	s.Hole.Merge(&o.Hole)
	s.Away.Merge(&o.Away)
	s.Late.Merge(&o.Late)
	s.Returns = sum(s.Returns, o.Returns)
	s.Disconnects = sum(s.Disconnects, o.Disconnects)
}

func sum(a, b map[int]int) map[int]int {
	for k, v := range b {
		if a == nil {
			a = map[int]int{}
		}
		a[k] += v
	}
	return a
}

type phase struct {
	Seen
	name string
	from time.Time
}

// crowd is clients in this process.
type crowd struct {
	order   order
	epoch   time.Time
	clients []*client
	wg      sync.WaitGroup
	stop    context.CancelFunc // of the traffic; nil: there is none
	traffic sync.WaitGroup

	mu       sync.Mutex
	phases   []*phase   // guarded by mu, their maps and moves too; the last one is now
	kept     []net.Conn // guarded by mu
	oddities []string   // guarded by mu
	muted    time.Time  // guarded by mu
}

// openTimeout bounds the time until the last client is connected.
const openTimeout = 3 * time.Minute

// openCrowd connects all clients, o.Parallel at once.
func openCrowd(ctx context.Context, o order) (*crowd, error) {
	c := &crowd{order: o, epoch: time.Now()}
	c.mark("connect")
	for i := range o.Count {
		c.clients = append(c.clients, &client{n: o.First + i, crowd: c})
	}
	began := 0
	var err error
	for deadline := time.Now().Add(openTimeout); ; {
		up := c.count(began, func(d *client) bool { return d.connected })
		for began < o.Count && began-up < o.Parallel && err == nil {
			if err = c.clients[began].start(o); err == nil {
				began++
			}
		}
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err == nil && time.Now().After(deadline) {
			err = fmt.Errorf("%d of %d clients are connected after %v", up, o.Count, openTimeout)
		}
		if err != nil {
			c.clients = c.clients[:began]
			c.close()
			return nil, err
		}
		if up == o.Count {
			return c, nil
		}
		time.Sleep(2 * time.Millisecond) // polling
	}
}

func (c *crowd) count(n int, is func(*client) bool) (sum int) {
	for _, d := range c.clients[:n] {
		d.mu.Lock()
		if is(d) {
			sum++
		}
		d.mu.Unlock()
	}
	return sum
}

// mark begins a phase. One of the same name goes on.
func (c *crowd) mark(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phases = append(c.phases, &phase{name: name, from: time.Now()})
}

// phaseAt is the phase of that time.
func (c *crowd) phaseAt(t time.Time) *phase {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at(t)
}

func (c *crowd) at(t time.Time) *phase {
	for i := len(c.phases) - 1; i > 0; i-- {
		if !t.Before(c.phases[i].from) {
			return c.phases[i]
		}
	}
	return c.phases[0]
}

// begin has clients write, c.order.Rate messages a second in all, by turns.
func (c *crowd) begin() {
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	var senders []*client
	for _, d := range c.clients {
		if !c.order.silences(d.n) {
			senders = append(senders, d)
		}
	}
	if c.order.Rate == 0 || len(senders) == 0 {
		return
	}
	interval := time.Second / time.Duration(c.order.Rate)
	c.traffic.Go(func() { // ends with finish
		start := time.Now()
		for i := 0; ; i++ {
			due := start.Add(time.Duration(i) * interval)
			select {
			case <-time.After(time.Until(due)):
			case <-ctx.Done():
				return
			}
			c.phaseAt(due).Late.Add(time.Since(due))
			senders[i%len(senders)].send(context.Background(), due, c.order.Body)
		}
	})
}

// finish ends the traffic.
func (c *crowd) finish() {
	if c.stop != nil {
		c.stop()
	}
	c.traffic.Wait()
}

// settled: nothing is under way any more.
func (c *crowd) settled() bool {
	for i, d := range c.clients {
		d.mu.Lock()
		open, want := len(d.out.open), int(d.out.next)-len(d.out.failed)
		d.mu.Unlock()
		to := c.clients[i^1]
		to.mu.Lock()
		got := to.in.total
		to.mu.Unlock()
		if open > 0 || got < want {
			return false
		}
	}
	return true
}

// silence has those fall silent that are to.
func (c *crowd) silence() {
	for _, d := range c.clients {
		if c.order.silences(d.n) {
			d.mute.Store(true)
		}
	}
	c.mu.Lock()
	c.muted = time.Now()
	c.mu.Unlock()
}

func (c *crowd) keep(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = append(c.kept, conn)
}

func (c *crowd) oddity(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.oddities) < maxExamples {
		c.oddities = append(c.oddities, text)
	}
}

func (c *crowd) moved(at time.Time, m Move, hole time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.at(at)
	p.Moves = append(p.Moves, m)
	if hole > 0 {
		p.Hole.Add(hole)
	}
}

func (c *crowd) returned(at time.Time, away time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.at(at)
	p.Away.Add(away)
	p.Returns = sum(p.Returns, map[int]int{int(at.Sub(p.from) / time.Second): 1})
}

func (c *crowd) disconnected(at time.Time, who string, code int, reason string) {
	c.mu.Lock()
	p := c.at(at)
	p.Disconnects = sum(p.Disconnects, map[int]int{code: 1})
	phase := p.name
	c.mu.Unlock()
	if !c.order.V1 || code != codeDraining {
		c.oddity(fmt.Sprintf("%s was disconnected in %q with %d %s", who, phase, code, reason))
	}
}

// outcome is what a crowd saw, over all.
type outcome struct {
	Seen     map[string]*Seen
	Audit    Audit
	Ended    int
	Oddities []string
	// Responsive clients did not fall silent, Told of them were closed with 4200
	// after that time, the last one after ToldAfter.
	Responsive, Told int
	ToldAfter        time.Duration
}

func (c *crowd) outcome() outcome {
	o := outcome{Seen: map[string]*Seen{}}
	for i, d := range c.clients {
		to := c.clients[i^1]
		d.mu.Lock()
		told, ended := d.told, d.ended
		// Both sides at once; nobody else holds two.
		to.mu.Lock()
		o.Audit.add(audit(d.name()+" → "+to.name(), &d.out, &to.in))
		to.mu.Unlock()
		d.mu.Unlock()
		if ended != nil {
			o.Ended++
			o.Oddities = append(o.Oddities, fmt.Sprintf("%s ended: %v", d.name(), ended))
		}
		if !c.order.silences(d.n) {
			o.Responsive++
			if c.mu.Lock(); told.After(c.muted) && !c.muted.IsZero() {
				o.Told++
				o.ToldAfter = max(o.ToldAfter, told.Sub(c.muted))
			}
			c.mu.Unlock()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.phases {
		s := o.Seen[p.name]
		if s == nil {
			s = &Seen{}
			o.Seen[p.name] = s
		}
		s.merge(&p.Seen)
	}
	o.Oddities = append(o.Oddities, c.oddities...)
	if len(o.Oddities) > maxExamples {
		o.Oddities = o.Oddities[:maxExamples]
	}
	return o
}

// close ends all clients, many at once, and waits for them.
func (c *crowd) close() {
	c.finish()
	slots := make(chan struct{}, 256)
	var closing sync.WaitGroup
	for _, d := range c.clients {
		slots <- struct{}{}
		closing.Go(func() {
			d.close()
			<-slots
		})
	}
	closing.Wait()
	c.mu.Lock()
	for _, conn := range c.kept {
		_ = conn.Close()
	}
	c.mu.Unlock()
	c.wg.Wait()
}
