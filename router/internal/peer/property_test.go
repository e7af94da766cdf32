package peer

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/router/internal/dedup"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/route"
)

// seeds is how many histories are tried; goroutines differ from run to run.
const seeds = 12

// heal is how long the cluster gets between two deaths.
const heal = 12 * time.Second

// TestWhatIsStoredArrivesWhateverHappens is the property that copies exist for:
// while routers come, leave and die, one at a time, every message that the cluster
// has taken is got by its device, once and in its sender's order, and a repeat of
// what was SENT is recognised.
func TestWhatIsStoredArrivesWhateverHappens(t *testing.T) {
	for seed := range uint64(seeds) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { history(t, seed) })
		})
	}
}

func history(t *testing.T, seed uint64) {
	lossy, loses := seed%4 == 3, never
	if lossy {
		loses = func(w *world, _ string) bool { return w.random(20) == 0 }
	}
	w := newWorld(t, seed, 2+int(seed%3), loses)
	defer w.close()
	stop := make(chan struct{})
	var senders sync.WaitGroup
	for s := range 3 {
		senders.Go(func() { w.sender(s, stop) })
	}
	for _, p := range w.phones() {
		senders.Go(func() { w.comeAndGo(p, stop) })
	}
	for range 12 {
		w.event()
	}
	close(stop)
	senders.Wait()
	time.Sleep(heal) // fake time
	w.remembers()
	for _, p := range w.phones() {
		w.leave(p)
	}
	time.Sleep(heal) // fake time
	for _, p := range w.phones() {
		for range 20 {
			w.connect(p)
		}
	}
	time.Sleep(40 * time.Second) // fake time: what was lent comes by itself
	w.judge(lossy)
}

func (w *world) phones() (out []*handset) {
	for _, p := range w.devices {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *handset) int { return compare(a.key.User, b.key.User) })
	return out
}

// event lets some time pass and something happen to the routers.
func (w *world) event() {
	w.mu.Lock()
	n := len(w.members)
	w.mu.Unlock()
	switch what := w.random(7); {
	case what == 6:
		w.forget(w.someone(), time.Second, w.restart)
		time.Sleep(heal) // fake time
	case what < 2 && n > 2 || n > 5:
		w.forget(w.someone(), time.Second, w.kill)
		time.Sleep(heal) // fake time
	case what < 3 && n > 2:
		w.shut(w.someone())
		w.pause(2000)
	case n < 5:
		w.join()
		time.Sleep(2 * lag) // fake time: nobody leaves before everybody has seen him
		w.pause(3000)
	default:
		w.pause(1000)
	}
}

// forget has a router die. What was SENT there in the last moment has not been
// passed on: a repeat of it is not recognised.
func (w *world) forget(m *member, moment time.Duration, die func(*member)) {
	w.mu.Lock()
	m.done = slices.DeleteFunc(m.done, func(f finished) bool { return time.Since(f.at) < moment })
	w.mu.Unlock()
	die(m)
}

// sender sends one message after the other.
func (w *world) sender(s int, stop <-chan struct{}) {
	phones := w.phones()
	from := route.UserKey{Tenant: "t", User: fmt.Sprint("sender", s)}
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		p := phones[w.random(len(phones))]
		key := dedup.Key{1, byte(s), byte(n), byte(n >> 8)}
		w.send(p, &dispatch.Message{Bytes: fmt.Appendf(nil, "%s %d %d", p.key.User, s, n), Key: key})
		if at := w.homeOf(from); !at.dead.Load() && !at.frozen.Load() {
			at.sents.FinishOf(dedup.Record{Key: key, User: UserHash(from.Tenant, from.User), Window: time.Hour}, true, "")
			w.mu.Lock()
			at.done = append(at.done, finished{key, from, time.Now()})
			w.mu.Unlock()
		}
		w.mu.Lock()
		p.want(fmt.Sprintf("%s %d %d", p.key.User, s, n))
		w.mu.Unlock()
		w.pause(200)
	}
}

// want notes that the phone is to get it.
func (p *handset) want(text string) { p.wants = append(p.wants, text) }

func (w *world) comeAndGo(p *handset, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		w.pause(2000)
		w.connect(p)
		w.pause(500)
		w.leave(p)
	}
}

// remembers asks the senders' homes for what was SENT.
func (w *world) remembers() {
	for _, m := range w.all {
		for _, f := range m.done {
			if home := w.homeOf(f.sender); home.sents.Begin(f.key, nil) != dedup.Sent {
				w.t.Errorf("a repeat of what %s sent at %s is not recognised at %s", f.sender.User, m.self.ID, home.self.ID)
				return
			}
		}
	}
}

// judge compares what the phones have got with what they were to get. A lost
// answer may cost the order of what has to be moved, not more.
func (w *world) judge(lossy bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.lost) > 0 {
		w.t.Errorf("not taken: %q", w.lost)
	}
	for _, p := range w.devices {
		for _, text := range p.wants {
			if !slices.Contains(p.got, text) {
				w.t.Errorf("%s has not got %q (of %d)", p.key.User, text, len(p.wants))
			}
		}
		last := map[string]int{}
		for _, text := range p.got {
			f := strings.Fields(text)
			n, err := strconv.Atoi(f[2])
			if err != nil {
				w.t.Fatal(err)
			}
			if before, ok := last[f[1]]; ok && n < before && !lossy {
				w.t.Errorf("%s got %d of sender %s after %d", p.key.User, n, f[1], before)
			}
			last[f[1]] = n
		}
	}
}
