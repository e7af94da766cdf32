package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/router/internal/route"
)

// world is a cluster of one user's devices: gateways that hold sessions, the
// true routes, and an offline buffer. Everything is in memory. What a session
// has accepted reaches its device a little later, and is confirmed later still.
// Devices recognise what they have got already, as sessions and clients do by
// their recent keys.
type world struct {
	d *Dispatcher

	mu       sync.Mutex
	records  []route.Record
	sessions map[route.Location]*session // open sessions
	ever     map[route.NodeRef][]uint64  // sessions that have ever been there
	dead     map[route.NodeRef]bool
	got      map[string][]string // device → messages
	kept     map[string][]string // device → buffered
	fronts   map[string]int      // device → how many of them came with Front
	front    map[string]bool     // message → BufferEntry.Front
	repeats  int                 // what a device had got already
	breaks   func() bool         // whether a stream is cut before its answer
	mute     bool                // whether streams bring no answers
	blind    int                 // so many looks at the routes fail
	takenAt  int64               // of what a gateway got last
	asked    []uint64            // sessions whose confirms were asked for
	latency  func() time.Duration
	pmu      sync.Mutex
	putting  chan struct{} // guarded by pmu: closed when the last Put is done
}

// session is guarded by its world's mu.
type session struct {
	device   string
	loc      route.Location
	opening  bool // its backlog is not there yet
	last     uint64
	backlog  uint64  // its last id
	accepted []taken // not at the device yet
}

type taken struct {
	id   uint64
	text string
}

var ann = route.UserKey{Tenant: "t", User: "ann"}

func newWorld() *world {
	w := &world{
		sessions: map[route.Location]*session{}, ever: map[route.NodeRef][]uint64{}, dead: map[route.NodeRef]bool{},
		got: map[string][]string{}, kept: map[string][]string{}, fronts: map[string]int{}, front: map[string]bool{}, latency: func() time.Duration { return 0 },
	}
	return w
}

func (w *world) dispatcher() *Dispatcher {
	w.d = New(Options{
		Directory: w, Routes: w, Buffer: w, Dial: w.dial,
		Hooks: Hooks{
			Refused: func(string) {}, Forwarded: func(route.NodeRef, time.Duration) {}, ForwardFailed: func(route.NodeRef) {},
			Recovered: func(int) {}, Settled: func(route.DeviceKey) {}, Lost: func() { panic("lost") },
		},
		GhostTTL: func(string) time.Duration { return time.Hour },
	})
	return w.d
}

func node(i int) route.NodeRef { return route.NodeRef{ID: fmt.Sprint("g", i), Incarnation: uint64(i)} }

func (w *world) Alive(r route.NodeRef) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.dead[r]
}

func (w *world) Gateway(r route.NodeRef) (route.Node, bool) {
	return route.Node{NodeRef: r}, w.Alive(r)
}

func (w *world) LookupFresh(context.Context, route.UserKey) ([]route.Record, error) {
	time.Sleep(w.latency()) // fake time
	w.mu.Lock()
	w.blind--
	blind := w.blind >= 0
	w.mu.Unlock()
	if blind {
		return nil, route.ErrUnavailable
	}
	return w.cached(), nil
}

func (w *world) cached() []route.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.records)
}

func (w *world) Change(_ context.Context, changes []route.Change) ([]bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range changes {
		for i, r := range w.records {
			if r.Device == c.Key.Device && c.Matches(r) {
				w.records[i].State = c.To
			}
		}
	}
	return make([]bool, len(changes)), nil
}

// reach gives the device a message; the world is locked.
func (w *world) reach(device, text string) {
	if slices.Contains(w.got[device], text) {
		w.repeats++
		return
	}
	w.got[device] = append(w.got[device], text)
}

// bind moves the device to a new session: what its old one had not brought and
// what was kept for it becomes the backlog.
func (w *world) bind(device string, n route.NodeRef, id uint64) {
	key := route.DeviceKey{UserKey: ann, Device: device}
	w.d.Gate(key)
	defer w.d.Ungate(key)
	w.mu.Lock()
	var backlog []string
	epoch := uint64(1)
	for i, r := range w.records {
		if r.Device == device {
			if old := w.sessions[r.Location()]; old != nil {
				for _, t := range old.accepted {
					backlog = append(backlog, t.text)
				}
				old.accepted = nil
				delete(w.sessions, r.Location())
			}
			epoch = r.Epoch + 1
			w.records = slices.Delete(w.records, i, i+1)
			break
		}
	}
	loc := route.Location{Node: n, Session: id}
	w.records = append(w.records, route.Record{Device: device, State: route.Live, Node: n, Session: id, Epoch: epoch})
	s := &session{device: device, loc: loc, opening: true}
	w.sessions[loc] = s
	w.ever[n] = append(w.ever[n], id)
	w.mu.Unlock()

	lost := func(l route.Location) bool { return !w.Alive(l.Node) }
	collect, err := w.d.Reclaim(context.Background(), key, lost)
	if err != nil {
		panic(err)
	}
	w.mu.Lock()
	backlog = append(backlog, w.kept[device][:w.fronts[device]]...)
	rest := slices.Concat(w.kept[device][w.fronts[device]:], w.kept[""])
	for _, from := range []string{device, ""} {
		delete(w.kept, from)
		delete(w.fronts, from)
	}
	w.mu.Unlock()
	for _, m := range collect() {
		backlog = append(backlog, string(m.Bytes))
	}
	backlog = append(backlog, rest...)

	msgs := make([]*Message, len(backlog))
	for i, text := range backlog {
		msgs[i] = &Message{Bytes: []byte(text)}
	}
	ids, ok := w.d.Hold(route.DeviceKey{UserKey: ann, Device: device}, loc, msgs)
	if !ok {
		panic("backlog not held")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var first []taken
	for i, text := range backlog {
		first = append(first, taken{ids[i], text})
		s.backlog = ids[i]
	}
	s.accepted = append(first, s.accepted...)
	s.opening = false
}

// leave ends the device's session; what it has not brought is handed back.
func (w *world) leave(device string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, r := range w.records {
		if r.Device == device && r.State == route.Live && !w.dead[r.Node] {
			s := w.sessions[r.Location()]
			for _, t := range s.accepted {
				w.kept[device] = slices.Insert(w.kept[device], w.fronts[device], t.text)
				w.fronts[device]++
			}
			s.accepted = nil
			delete(w.sessions, r.Location())
			w.records[i].State = route.Ghost
		}
	}
}

// kill ends a gateway without a word: what its sessions held is gone.
func (w *world) kill(n route.NodeRef) {
	w.mu.Lock()
	for loc := range w.sessions {
		if loc.Node == n {
			delete(w.sessions, loc)
		}
	}
	w.dead[n] = true
	w.mu.Unlock()
}

// bring lets every session's device get up to n of what was accepted.
func (w *world) bring(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.sessions {
		for i := 0; i < n && len(s.accepted) > 0 && !s.opening; i++ {
			w.reach(s.device, s.accepted[0].text)
			s.accepted = s.accepted[1:]
		}
	}
}

// confirms is what a gateway says of the sessions; an unknown one has nothing.
func (w *world) confirms(n route.NodeRef, ids []uint64) (out []*gatewayv1.Confirm) {
	for _, id := range ids {
		live, backlog := uint64(backlogIDs-1), uint64(1<<64-1)
		if s := w.sessions[route.Location{Node: n, Session: id}]; s != nil {
			live, backlog = s.last, max(s.backlog, backlogIDs)
			for _, t := range s.accepted {
				if t.id >= backlogIDs {
					backlog = min(backlog, max(t.id-1, backlogIDs))
				} else {
					live = min(live, t.id-1)
				}
			}
		}
		out = append(out, &gatewayv1.Confirm{SessionId: id, ThroughId: live}, &gatewayv1.Confirm{SessionId: id, ThroughId: backlog})
	}
	return out
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
		alive := func(r route.NodeRef) bool { return !w.dead[r] }
		plan := route.PlanFor(w.records, "", alive, time.Now())
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
				at := len(w.kept[d])
				w.front[string(e.Message.Bytes)] = e.Front
				if e.Front {
					at = w.fronts[d]
					w.fronts[d]++
				}
				w.kept[d] = slices.Insert(w.kept[d], at, string(e.Message.Bytes))
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
	defer s.w.mu.Unlock()
	if s.w.dead[s.node] {
		return errors.New("dead")
	}
	s.w.asked = append(s.w.asked, req.ConfirmSessions...)
	for _, d := range req.Deliveries {
		res.AnsweredThrough, s.w.takenAt = d.Id, d.TakenAt
		for _, id := range d.SessionIds {
			to := s.w.sessions[route.Location{Node: s.node, Session: id}]
			if to == nil {
				res.Refusals = append(res.Refusals, &gatewayv1.Refusal{Id: d.Id, SessionId: id, Reason: gatewayv1.Refusal_REASON_UNKNOWN})
				continue
			}
			if d.Id > to.last {
				to.last = d.Id
				to.accepted = append(to.accepted, taken{d.Id, string(d.Message)})
			}
		}
	}
	if s.w.breaks != nil && len(req.Deliveries) > 0 && s.w.breaks() {
		return errors.New("stream broke before its answer")
	}
	if res.AnsweredThrough > 0 {
		s.answers <- res
	}
	return nil
}

// confirmEvery is how often a gateway of the world confirms.
const confirmEvery = 15 * time.Millisecond

func (s *stream) Receive() (*gatewayv1.DeliverResponse, error) {
	for {
		tick := time.NewTimer(confirmEvery)
		select {
		case r := <-s.answers:
			tick.Stop()
			time.Sleep(s.w.latency()) // fake time
			return r, nil
		case <-tick.C:
			s.w.mu.Lock()
			ids := s.w.ever[s.node]
			res := &gatewayv1.DeliverResponse{Confirms: s.w.confirms(s.node, ids)}
			gone := s.w.dead[s.node] || s.w.mute || len(s.answers) > 0
			s.w.mu.Unlock()
			if !gone && len(ids) > 0 {
				return res, nil
			}
		case <-s.ctx.Done():
			tick.Stop()
			return nil, io.EOF
		}
	}
}
func (s *stream) CloseRequest() error  { return nil }
func (s *stream) CloseResponse() error { return nil }
