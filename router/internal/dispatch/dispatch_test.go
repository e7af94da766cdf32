package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/router/internal/route"
)

// world is a cluster of one user's devices: gateways that hold sessions, the
// true routes, and an offline buffer. Everything is in memory.
type world struct {
	mu       sync.Mutex
	records  []route.Record
	sessions map[route.NodeRef]map[uint64]string // open sessions → device
	got      map[string][]string                 // device → messages
	kept     map[string][]string                 // device → buffered
	last     map[[2]uint64]uint64                // gateway, session → last id taken
	breaks   func() bool                         // whether a stream is cut before its answer
	latency  func() time.Duration
	pmu      sync.Mutex
	putting  chan struct{} // guarded by pmu: closed when the last Put is done
}

var ann = route.UserKey{Tenant: "t", User: "ann"}

func newWorld() *world {
	return &world{sessions: map[route.NodeRef]map[uint64]string{}, got: map[string][]string{}, kept: map[string][]string{}, last: map[[2]uint64]uint64{}, latency: func() time.Duration { return 0 }}
}

func node(i int) route.NodeRef { return route.NodeRef{ID: fmt.Sprint("g", i), Incarnation: uint64(i)} }

func (w *world) Alive(r route.NodeRef) bool { return r.Incarnation != 666 }
func (w *world) Gateway(r route.NodeRef) (route.Node, bool) {
	return route.Node{NodeRef: r}, w.Alive(r)
}

func (w *world) LookupFresh(context.Context, route.UserKey) ([]route.Record, error) {
	time.Sleep(w.latency()) // fake time
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.records), nil
}

func (w *world) Change(_ context.Context, changes []route.Change) ([]bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range changes {
		for i, r := range w.records {
			if r.Device == c.Key.Device && r.Epoch == c.Epoch && r.Node == c.Node {
				w.records[i].State = c.To
			}
		}
	}
	return make([]bool, len(changes)), nil
}

// bind moves the device to a new session; what was kept for it comes first.
func (w *world) bind(device string, n route.NodeRef, session uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	epoch := uint64(1)
	for i, r := range w.records {
		if r.Device == device {
			delete(w.sessions[r.Node], r.Session)
			epoch = r.Epoch + 1
			w.records = slices.Delete(w.records, i, i+1)
			break
		}
	}
	w.records = append(w.records, route.Record{Device: device, State: route.Live, Node: n, Session: session, Epoch: epoch})
	if w.sessions[n] == nil {
		w.sessions[n] = map[uint64]string{}
	}
	w.sessions[n][session] = device
	for _, from := range []string{device, ""} {
		w.got[device] = append(w.got[device], w.kept[from]...)
		delete(w.kept, from)
	}
}

func (w *world) leave(device string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, r := range w.records {
		if r.Device == device {
			delete(w.sessions[r.Node], r.Session)
			w.records[i].State = route.Ghost
		}
	}
}

// Put implements Buffer with insert-then-check.
func (w *world) Put(e BufferEntry) {
	mine := make(chan struct{})
	w.pmu.Lock()
	before := w.putting
	w.putting = mine
	w.pmu.Unlock()
	go func() {
		defer close(mine)
		if before != nil {
			<-before // entries of one user are taken in order
		}
		time.Sleep(w.latency()) // fake time
		w.mu.Lock()
		plan := route.PlanFor(w.records, "", w.Alive, time.Now())
		online := len(e.Devices) == 0 && !plan.Nobody()
		for _, r := range plan.Live {
			online = online || slices.Contains(e.Devices, r.Device)
		}
		if !online {
			devices := e.Devices
			if len(devices) == 0 {
				devices = []string{""}
			}
			for _, d := range devices {
				w.kept[d] = append(w.kept[d], string(e.Message.Bytes))
			}
		}
		w.mu.Unlock()
		if online {
			e.Done(Online)
		} else {
			e.Done(Stored)
		}
	}()
}

// stream is a Deliver stream to one gateway of the world.
type stream struct {
	w       *world
	ctx     context.Context
	node    route.NodeRef
	answers chan *gatewayv1.DeliverResponse
}

func (w *world) dial(ctx context.Context, n route.Node) Stream {
	return &stream{w: w, ctx: ctx, node: n.NodeRef, answers: make(chan *gatewayv1.DeliverResponse, 1000)}
}

func (s *stream) Send(req *gatewayv1.DeliverRequest) error {
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	time.Sleep(s.w.latency()) // fake time
	res := &gatewayv1.DeliverResponse{}
	s.w.mu.Lock()
	for _, d := range req.Deliveries {
		res.AnsweredThrough = d.Id
		for _, id := range d.SessionIds {
			device, ok := s.w.sessions[s.node][id]
			if !ok {
				res.Refusals = append(res.Refusals, &gatewayv1.Refusal{Id: d.Id, SessionId: id, Reason: gatewayv1.Refusal_REASON_UNKNOWN})
				continue
			}
			at := [2]uint64{s.node.Incarnation, id}
			if d.Id > s.w.last[at] {
				s.w.last[at] = d.Id
				s.w.got[device] = append(s.w.got[device], string(d.Message))
			}
		}
	}
	broken := s.w.breaks != nil && len(req.Deliveries) > 0 && s.w.breaks()
	s.w.mu.Unlock()
	if broken {
		return errors.New("stream broke before its answer")
	}
	if res.AnsweredThrough > 0 {
		s.answers <- res
	}
	return nil
}

func (s *stream) Receive() (*gatewayv1.DeliverResponse, error) {
	select {
	case r := <-s.answers:
		time.Sleep(s.w.latency()) // fake time
		return r, nil
	case <-s.ctx.Done():
		return nil, io.EOF
	}
}
func (s *stream) CloseRequest() error  { return nil }
func (s *stream) CloseResponse() error { return nil }

func newDispatcher(w *world) *Dispatcher {
	return New(Options{
		Directory: w, Routes: w, Buffer: w, Dial: w.dial,
		Hooks:    Hooks{Refused: func(string) {}, Forwarded: func(time.Duration, int) {}, ForwardFailed: func() {}},
		GhostTTL: func(string) time.Duration { return time.Hour },
	})
}

func (w *world) cached() []route.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.records)
}

func send(d *Dispatcher, text string, records []route.Record, done func(Result)) {
	d.Send(Job{Message: &Message{Bytes: []byte(text)}, Recipients: []Recipient{{Key: ann, Records: records}}, Done: done})
}

func TestEveryDeviceGetsItAndTheAbsentOneLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.bind("phone", node(1), 1)
		w.bind("desk", node(2), 1)
		w.bind("pad", node(2), 2)
		w.leave("pad")
		d := newDispatcher(w)
		defer d.Close()
		var res Result
		send(d, "hi", w.cached(), func(r Result) { res = r })
		time.Sleep(time.Second) // fake time
		synctest.Wait()
		if res != (Result{Delivered: 1}) || len(w.got["phone"]) != 1 || len(w.got["desk"]) != 1 || len(w.kept["pad"]) != 1 {
			t.Fatalf("%+v got %v kept %v", res, w.got, w.kept)
		}
	})
}

func TestWrongRouteOfALivingGatewayEndsInTheBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.records = []route.Record{{Device: "phone", State: route.Live, Node: node(1), Session: 9, Epoch: 4}}
		d := newDispatcher(w)
		defer d.Close()
		var res Result
		send(d, "hi", w.cached(), func(r Result) { res = r })
		time.Sleep(10 * time.Second) // fake time
		synctest.Wait()
		if res != (Result{Buffered: 1}) || !slices.Equal(w.kept["phone"], []string{"hi"}) || w.records[0].State != route.Ghost {
			t.Fatalf("%+v kept %v records %v", res, w.kept, w.records)
		}
	})
}

func TestBufferedUsersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDispatcher(newWorld())
		defer d.Close()
		var job Job
		for i := range 10 {
			job.Recipients = append(job.Recipients, Recipient{Key: route.UserKey{Tenant: "t", User: fmt.Sprint(i)}})
		}
		var res Result
		job.Message, job.MaxBuffered, job.Done = &Message{}, 4, func(r Result) { res = r }
		d.Send(job)
		time.Sleep(time.Second) // fake time
		synctest.Wait()
		if res != (Result{Buffered: 4, Skipped: 6}) {
			t.Fatalf("%+v", res)
		}
	})
}

// TestOrderAndOnceWhileTheDeviceMoves is the property that a flow exists for: a
// sender's messages arrive exactly once and in order, whatever the route does,
// with stale caches and slow answers; and, where the device stays, with streams
// that break after the gateway took a delivery and before it answered.
func TestOrderAndOnceWhileTheDeviceMoves(t *testing.T) {
	for seed := range uint64(200) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			w := newWorld()
			var rmu sync.Mutex
			w.latency = func() time.Duration {
				rmu.Lock()
				defer rmu.Unlock()
				return time.Duration(rng.IntN(20)) * time.Millisecond
			}
			if seed%3 == 0 {
				w.breaks = func() bool {
					rmu.Lock()
					defer rmu.Unlock()
					return rng.IntN(6) == 0
				}
			}
			d := newDispatcher(w)
			defer d.Close()
			var want []string
			answers := 0
			var amu sync.Mutex
			stale := w.cached()
			session := uint64(0)
			for i := range 120 {
				rmu.Lock()
				step, where := rng.IntN(8), 1+rng.IntN(3)
				gap := time.Duration(rng.IntN(6)) * time.Millisecond
				rmu.Unlock()
				if w.breaks != nil && session > 0 {
					step = max(step, 2) // stays
				}
				switch step {
				case 0:
					session++
					w.bind("phone", node(where), session)
				case 1:
					w.leave("phone")
				case 2, 3:
					stale = w.cached()
				}
				text := fmt.Sprint(i)
				want = append(want, text)
				send(d, text, stale, func(r Result) {
					amu.Lock()
					defer amu.Unlock()
					answers++
					if r.Skipped > 0 {
						t.Errorf("seed %d: %s skipped", seed, text)
					}
				})
				time.Sleep(gap) // fake time
			}
			time.Sleep(time.Minute) // fake time
			synctest.Wait()
			w.bind("phone", node(4), session+1)
			if answers != len(want) {
				t.Errorf("seed %d: %d of %d answered", seed, answers, len(want))
			}
			if !slices.Equal(w.got["phone"], want) {
				t.Fatalf("seed %d:\ngot  %v\nwant %v", seed, w.got["phone"], want)
			}
			for i := range d.shards {
				if n := len(d.shards[i].users); n != 0 {
					t.Errorf("seed %d: %d flows left", seed, n)
				}
			}
		})
	}
}
