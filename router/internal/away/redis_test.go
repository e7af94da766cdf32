package away

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/directory"
	"github.com/mics-im/mics/router/internal/redisstore"
	"github.com/mics-im/mics/router/internal/route"
)

// onRedis is a world on a real Redis, when all routers are up.
func onRedis(t testing.TB, routers, gateways int) (*world, *testkit.RedisServer) {
	redis := testkit.StartRedis(t)
	w := makeWorld(t, routers, gateways, func(*member) route.Store {
		s, err := redisstore.Open(context.Background(), redisstore.Options{Connection: redis.Addr})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
	w.settle()
	testkit.Eventually(t, "all know each other", func() bool {
		for _, m := range w.routers {
			if len(m.dir.Routers()) != routers || len(m.dir.Gateways()) != gateways {
				return false
			}
		}
		return true
	})
	return w, redis
}

// settle waits until all routers are up again.
func (w *world) settle() {
	w.t.Helper()
	for _, m := range w.routers {
		testkit.Eventually(w.t, m.opts.Self.ID+" is up", func() bool { return m.phase() == up && m.Reached() })
	}
}

func TestOnRedis(t *testing.T) {
	for name, fault := range map[string]struct {
		begin, end func(*testing.T, *testkit.RedisServer)
		lasts      time.Duration
	}{
		"killed and restarted empty": {
			func(_ *testing.T, s *testkit.RedisServer) { s.Kill() }, func(t *testing.T, s *testkit.RedisServer) { s.Restart(t) }, 0,
		},
		"killed for longer than a lease": {
			func(_ *testing.T, s *testkit.RedisServer) { s.Kill() }, func(t *testing.T, s *testkit.RedisServer) { s.Restart(t) }, directory.Lease + time.Second,
		},
		"paused": {
			func(t *testing.T, s *testkit.RedisServer) { s.Pause(t) }, func(t *testing.T, s *testkit.RedisServer) { s.Resume(t) }, directory.Lease + time.Second,
		},
		"flushed": {
			func(t *testing.T, s *testkit.RedisServer) {
				if _, err := s.Do("FLUSHALL"); err != nil {
					t.Error(err)
				}
			}, func(*testing.T, *testkit.RedisServer) {}, 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, redis := onRedis(t, 2, 2)
			defer w.end()
			var all []*device
			for u := range 20 {
				all = append(all, &device{key: key(fmt.Sprint("user", u), "phone")}, &device{key: key(fmt.Sprint("user", u), "desk")})
			}
			turn := 0
			// round moves a third of the devices, ends a few and looks for all.
			round := func() {
				for i, d := range all {
					switch {
					case (i+turn)%3 == 0:
						loc, epoch, _ := w.connect(d.key, w.gateways[(i+turn)%2])
						if epoch <= d.epoch {
							t.Errorf("%v: epoch %d after %d", d.key, epoch, d.epoch)
						}
						if d.loc != nil {
							w.at(d.loc.Node).drop(d.loc.Session)
						}
						d.loc, d.epoch = &loc, epoch
					case (i+turn)%11 == 0 && d.loc != nil:
						w.leave(d.key, *d.loc, d.epoch)
						d.loc = nil
					}
				}
				turn++
				w.find(all)
			}
			round()
			round()
			fault.begin(t, redis)
			for began := time.Now(); ; time.Sleep(20 * time.Millisecond) { // a running system
				round()
				if time.Since(began) >= fault.lasts {
					break
				}
			}
			fault.end(t, redis)
			for range 10 {
				round()
			}
			w.settle()
			w.clearMirrors()
			w.find(all) // the store alone must do
		})
	}
}

// find looks for every live device at every router, past every cache.
func (w *world) find(all []*device) {
	w.t.Helper()
	for _, m := range w.routers {
		for _, d := range all {
			records, err := m.LookupFresh(context.Background(), d.key.UserKey)
			i, found := find(records, d.key.Device)
			switch {
			case err != nil:
				w.t.Errorf("%s, %v: %v", m.opts.Self.ID, d.key, err)
			case d.loc != nil && (!found || records[i].State != route.Live || records[i].Location() != *d.loc):
				w.t.Errorf("%s: %v is at %v, epoch %d, and found %+v", m.opts.Self.ID, d.key, *d.loc, d.epoch, records)
			case d.loc == nil && found && records[i].State != route.Ghost:
				w.t.Errorf("%s: %v is absent, and found %+v", m.opts.Self.ID, d.key, records)
			}
		}
	}
}

// BenchmarkRebuild writes the routes of 100,000 sessions anew.
func BenchmarkRebuild(b *testing.B) {
	const sessions = 100_000
	w, redis := onRedis(b, 2, 4)
	defer w.end()
	for i := range sessions {
		g := w.gateways[i%len(w.gateways)]
		g.hold(key(fmt.Sprint("user", i/2), fmt.Sprint("device", i%2)), g.next(), 1)
	}
	for b.Loop() {
		if _, err := redis.Do("FLUSHALL"); err != nil {
			b.Fatal(err)
		}
		for _, m := range w.routers {
			m.verify()
		}
		w.settle()
	}
	b.StopTimer()
	n, err := redis.Do("DBSIZE")
	b.Logf("%v keys, %v", n, err)
}
