package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/mics-im/mics/tests/chaos/history"
	"github.com/mics-im/mics/tests/harness"
)

// workload is users who talk. Names carry the seed, so that runs on one cluster
// do not meet.
type workload struct {
	cluster *harness.Cluster
	history *history.History
	phones  []*phone
	groups  map[string][]group // by tenant
	users   map[string][]string
	rate    float64 // messages per second and device
	rest    float64 // share of steps at which a device leaves for a while
}

type group struct {
	name    string
	members []string
}

// answerWithin is when a client gives up: longer than any run's quiet end.
const answerWithin = 45 * time.Second

// newWorkload lays out users: usersPerTenant in each tenant, one to three devices
// each, every other device of a V1 client.
func newWorkload(c *harness.Cluster, tenants []string, seed uint64, usersPerTenant int, rate float64) *workload {
	w := &workload{cluster: c, history: history.New(), groups: map[string][]group{}, users: map[string][]string{}, rest: 0.02}
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, tenant := range tenants {
		for i := range usersPerTenant {
			user := fmt.Sprintf("u%d-%d", i, seed)
			w.users[tenant] = append(w.users[tenant], user)
			for d := range 1 + rng.IntN(3) {
				w.phones = append(w.phones, &phone{
					w: w, id: history.Device{Tenant: tenant, User: user, Name: fmt.Sprintf("d%d", d)},
					v1: rng.IntN(2) == 0, rng: rand.New(rand.NewPCG(seed, uint64(len(w.phones)+2))),
				})
			}
		}
		for i := range 3 {
			g := group{name: fmt.Sprintf("g%d-%d", i, seed)}
			for _, j := range rng.Perm(usersPerTenant)[:min(3+i, usersPerTenant)] {
				g.members = append(g.members, w.users[tenant][j])
			}
			c.Tenant(tenant).Group(g.name, g.members...)
			w.groups[tenant] = append(w.groups[tenant], g)
		}
	}
	w.rate = rate / float64(len(w.phones))
	return w
}

// join connects every device and waits for all of them; false: not in time.
func (w *workload) join(within time.Duration) bool {
	for _, p := range w.phones {
		p.join()
	}
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if !w.anyAway() {
			return true
		}
	}
	return false
}

func (w *workload) anyAway() bool {
	for _, p := range w.phones {
		if !p.connected() {
			return true
		}
	}
	return false
}

// run has everybody talk until ctx ends.
func (w *workload) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, p := range w.phones {
		wg.Go(func() { p.live(ctx) })
	}
	wg.Wait()
}

func (w *workload) close() {
	var wg sync.WaitGroup
	for _, p := range w.phones {
		wg.Go(p.leave)
	}
	wg.Wait()
}

// phone is a device and its owner's habits.
type phone struct {
	w   *workload
	id  history.Device
	v1  bool
	rng *rand.Rand // owned by live
	n   int        // messages sent; owned by live

	mu    sync.Mutex
	end   harness.Endpoint // guarded by mu; nil: away
	conns int              // guarded by mu; so far
	conn  int              // guarded by mu; 0: none
	start int              // guarded by mu: counts the clients, one after the other
	ended bool             // guarded by mu: the client stopped for good
}

func (p *phone) join() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end != nil {
		return
	}
	if p.conns == 0 {
		p.w.history.Add(history.Event{Kind: history.Join, Device: p.id, V1: p.v1})
	}
	p.ended = false
	p.start++
	d := harness.Dialing{
		URLs: p.w.cluster.URLs(), Tenant: p.id.Tenant, User: p.id.User, Device: p.id.Name,
		Observer: p, AnswerWithin: answerWithin,
	}
	if p.v1 {
		p.end = harness.DialV1(d)
		return
	}
	e, err := harness.DialSDK(d)
	if err != nil {
		panic(err) // the options are ours
	}
	p.end = e
}

func (p *phone) leave() {
	p.mu.Lock()
	e := p.end
	p.end = nil
	p.mu.Unlock()
	if e != nil {
		e.Close()
	}
}

func (p *phone) connected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn != 0
}

// live is one device's time until ctx ends; then it is there.
func (p *phone) live(ctx context.Context) {
	for pause(ctx, time.Duration(p.rng.ExpFloat64()/p.w.rate*float64(time.Second))) {
		p.mu.Lock()
		ended := p.ended
		p.mu.Unlock()
		if ended || p.rng.Float64() < p.w.rest {
			p.leave()
			pause(ctx, time.Duration(p.rng.IntN(1500))*time.Millisecond)
			p.join()
			continue
		}
		p.send()
	}
	p.join()
}

// pause reports whether ctx is still on afterwards.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// send sends one message; its key is the beginning of its body.
func (p *phone) send() {
	p.n++
	key := fmt.Sprintf("%s#%d", p.id, p.n)
	m := harness.Outgoing{Body: append([]byte(key+" "), bytes.Repeat([]byte{'.'}, p.rng.IntN(300))...)}
	e := history.Event{Kind: history.Send, Device: p.id, Msg: key}
	if g := p.w.groups[p.id.Tenant]; p.rng.IntN(100) < 15 {
		to := g[p.rng.IntN(len(g))]
		m.Group, e.Group, e.Recipients = to.name, to.name, to.members
	} else {
		users := p.w.users[p.id.Tenant]
		m.To = users[p.rng.IntN(len(users))]
		e.Recipients = []string{m.To}
	}
	p.mu.Lock()
	end := p.end
	e.Conn = p.conn
	p.mu.Unlock()
	p.w.history.Add(e)
	if end == nil || !end.Submit(m, func(a harness.Answer) { p.answered(key, a) }) {
		p.answered(key, harness.Answer{Err: harness.ErrLeft})
	}
}

func (p *phone) answered(key string, a harness.Answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := history.Event{Kind: history.Answer, Device: p.id, Msg: key, Conn: p.conn, Attempts: a.Attempts, Reason: a.Reason, Partial: a.Partial}
	switch {
	case errors.Is(a.Err, harness.ErrLeft):
		e.Status = history.Abandoned
	case a.Err != nil:
		e.Status, e.Reason = history.Unknown, a.Err.Error()
	case a.Sent:
		e.Status = history.Sent
	default:
		e.Status = history.Failed
	}
	p.w.history.Add(e)
}

// Connected implements harness.Observer, as the next three do.
func (p *phone) Connected(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns++
	p.conn = p.conns
	p.w.history.Add(history.Event{Kind: history.Connect, Device: p.id, Conn: p.conn, Node: node, Start: p.start})
}

// Moved implements harness.MoveObserver.
func (p *phone) Moved(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != 0 {
		p.w.history.Add(history.Event{Kind: history.Move, Device: p.id, Conn: p.conn, Node: node})
	}
}

// Disconnected implements harness.Observer.
func (p *phone) Disconnected(code int, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != 0 {
		p.w.history.Add(history.Event{Kind: history.Disconnect, Device: p.id, Conn: p.conn, Code: code, Reason: reason})
	}
	p.conn = 0
}

// Delivered implements harness.Observer.
func (p *phone) Delivered(m harness.Incoming) {
	key, _, _ := bytes.Cut(m.Body, []byte{' '})
	p.w.history.Add(history.Event{Kind: history.Deliver, Device: p.id, Msg: string(key)})
}

// Ended implements harness.Observer.
func (p *phone) Ended(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn, p.ended = 0, true
	p.w.history.Add(history.Event{Kind: history.Gone, Device: p.id, Reason: err.Error()})
}
