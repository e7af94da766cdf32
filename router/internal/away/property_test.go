package away

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// device is what the model knows of one.
type device struct {
	key   route.DeviceKey
	loc   *route.Location // nil: absent
	epoch uint64
}

// TestNobodyIsMissed plays random connects, ends, look-ups and faults against a
// model: whoever asks finds every live device where it is, and every other one that has
// been here as absent, no epoch goes back, and afterwards the backend alone knows the same.
func TestNobodyIsMissed(t *testing.T) {
	seeds := 120
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { play(t, uint64(seed)) })
		})
	}
}

const steps = 150

func play(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	// Either the backend fails, or a router loses its way to it or is started anew.
	cuts := seed%2 == 1
	routers := 1 + r.IntN(3)
	if cuts {
		routers = 2 + r.IntN(2)
	}
	w := newWorld(t, routers, 1+r.IntN(4))
	var all []*device
	for u := range 6 {
		for d := range 2 {
			all = append(all, &device{key: key(fmt.Sprint("user", u), fmt.Sprint("device", d))})
		}
	}
	var said []string
	// anew is not for the first router, by which connect finds homes.
	anew := func(m *member) {
		m.kill()
		pass(time.Duration(r.IntN(8000)) * time.Millisecond)
		w.restart(m)
		said = append(said, fmt.Sprintf("%s was started anew", m.opts.Self.ID))
	}
	for range steps {
		d := all[r.IntN(len(all))]
		switch dice := r.IntN(100); {
		case dice < 30:
			g := w.gateways[r.IntN(len(w.gateways))]
			loc, epoch, prev := w.connect(d.key, g)
			said = append(said, fmt.Sprintf("%v at %v, epoch %d", d.key, loc, epoch))
			if epoch <= d.epoch {
				t.Errorf("%v: epoch %d after %d", d.key, epoch, d.epoch)
			}
			if d.loc != nil {
				if prev == nil || prev.Location() != *d.loc {
					t.Errorf("%v: replaces %v instead of %v", d.key, prev, *d.loc)
				}
				w.at(d.loc.Node).drop(d.loc.Session) // the home hands it over
			}
			d.loc, d.epoch = &loc, epoch
		case dice < 45:
			if d.loc == nil {
				continue
			}
			said = append(said, fmt.Sprintf("%v leaves", d.key))
			w.leave(d.key, *d.loc, d.epoch)
			d.loc = nil
		case dice < 75:
			if d.epoch == 0 {
				continue // it has never been here
			}
			said = append(said, fmt.Sprintf("%v is looked up", d.key))
			w.want(d.key, d.loc)
		case dice < 80 && cuts:
			for _, m := range w.routers {
				if m.cut.Swap(false) || m.hole.Swap(false) {
					said = append(said, fmt.Sprintf("%s reaches the backend again", m.opts.Self.ID))
					pass(10 * time.Second) // one fault at a time
				}
			}
			m := w.routers[r.IntN(len(w.routers))]
			switch kind := r.IntN(4); {
			case kind == 0:
				m.cut.Store(true)
				said = append(said, fmt.Sprintf("%s is cut off", m.opts.Self.ID))
			case kind == 1:
				m.hole.Store(true)
				said = append(said, fmt.Sprintf("%s gets no answers", m.opts.Self.ID))
			case kind == 2 && m != w.routers[0]:
				anew(m)
				pass(time.Duration(r.IntN(2)) * time.Second)
			}
		case dice < 78:
			said = append(said, "the backend is flushed")
			w.flush()
		case dice < 80:
			if m := w.routers[r.IntN(len(w.routers))]; m != w.routers[0] {
				w.down.Store(false)
				pass(20 * time.Second) // one fault at a time
				anew(m)
				pass(5 * time.Second)
			}
		case dice < 85 && !cuts:
			down := !w.down.Load()
			said = append(said, fmt.Sprint("the backend is away: ", down))
			w.down.Store(down)
		default:
			d := time.Duration(r.IntN(4000)) * time.Millisecond
			if r.IntN(5) == 0 {
				d *= 10
			}
			said = append(said, fmt.Sprint("time passes: ", d))
			pass(d)
		}
		if t.Failed() {
			break
		}
	}
	w.down.Store(false)
	for _, m := range w.routers {
		m.cut.Store(false)
		m.hole.Store(false)
	}
	pass(time.Minute)
	for _, d := range all {
		records, err := w.redis.Load().LookupFresh(t.Context(), d.key.UserKey)
		if err != nil {
			t.Fatal(err)
		}
		i, found := find(records, d.key.Device)
		switch {
		case d.loc == nil && found && records[i].State != route.Ghost:
			t.Errorf("%v is absent, and in the backend %+v", d.key, records[i])
		case d.loc != nil && (!found || records[i].Location() != *d.loc || records[i].State != route.Live || records[i].Epoch != d.epoch):
			t.Errorf("%v is at %v, epoch %d, and in the backend %+v", d.key, *d.loc, d.epoch, records)
		}
	}
	w.end()
	if t.Failed() {
		for _, s := range said {
			t.Log(s)
		}
	}
}
