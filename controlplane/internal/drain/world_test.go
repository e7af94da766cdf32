package drain

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/controlplane/internal/pace"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const (
	serving  = gatewayv1.Phase_PHASE_SERVING
	draining = gatewayv1.Phase_PHASE_DRAINING
	drained  = gatewayv1.Phase_PHASE_DRAINED
)

var bounds = []float64{1, 5, 10, 50, 100, 500}

// world is a cluster that does as it is told, a second at a time.
type world struct {
	t     *testing.T
	rules Rules
	now   time.Time
	gates []*gate
	ops   []Operation
	over  []Operation // have ended
	// answers wait for the next tick.
	answers map[string]Answer
	before  []fleet.Node
	blind   bool // no router answers
}

// gate is a gateway.
type gate struct {
	fleet.Node
	op       string
	progress gatewayv1.DrainProgress
	rate     float64
	paused   bool
	refuses  string
	slow     bool   // its connects take long
	crowded  uint64 // above so many moves a second its gaps are long; 0: never
	loses    uint64
	stuck    bool // does not empty itself
	accept   []uint64
	arrivals map[string]*gatewayv1.Arrivals
	drains   int // calls
	max      uint64
}

func newWorld(t *testing.T, gates ...*gate) *world {
	t.Helper()
	return &world{t: t, rules: Rules{Budget: 1, MaxRate: 2000}, now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), gates: gates, answers: map[string]Answer{}}
}

func newGate(id string, sessions uint64) *gate {
	return &gate{
		Node: fleet.Node{Kind: fleet.Gateway, ID: id, Incarnation: 7, Endpoint: "http://" + id, Phase: serving, Sessions: sessions,
			Track: "stable", Version: "v1", ClientURL: "ws://" + id + "/ws", StartedAtMS: 1},
		accept: make([]uint64, len(bounds)+1), arrivals: map[string]*gatewayv1.Arrivals{}, max: 100_000,
	}
}

func (w *world) gate(id string) *gate {
	for _, g := range w.gates {
		if g.ID == id {
			return g
		}
	}
	return nil
}

// end takes the gateway a away.
func (w *world) end() {
	for i, g := range w.gates {
		if g.ID == "a" {
			w.gates = append(w.gates[:i:i], w.gates[i+1:]...)
			return
		}
	}
}

func (w *world) inventory() (out []fleet.Node) {
	for _, g := range w.gates {
		n := g.Node
		if !n.Unreachable {
			st := &gatewayv1.StatusResponse{
				SessionsMax: g.max, Sessions: g.Sessions, AcceptMs: &gatewayv1.Histogram{Bounds: bounds, Counts: append([]uint64{}, g.accept...)},
			}
			if g.op != "" {
				st.Drain = &gatewayv1.DrainProgress{OperationId: g.op, Left: g.Sessions, Sessions: g.progress.GetSessions(), Moved: g.progress.GetMoved(), Done: g.progress.GetDone(), HandedOver: 3}
			}
			for _, from := range slices.Sorted(maps.Keys(g.arrivals)) {
				st.Arrivals = append(st.Arrivals, proto.CloneOf(g.arrivals[from]))
			}
			n.Status, n.StatusAt = st, w.now
			g.Status, g.StatusAt = n.Status, n.StatusAt
		}
		out = append(out, n)
	}
	return out
}

// add takes an operation down.
func (w *world) add(op Operation) {
	g := w.gate(op.Node)
	op.ID = "op-" + op.Node
	if op.State == "" {
		op.State = Waiting
	}
	if op.Timeout == 0 {
		op.Timeout = 5 * time.Minute
	}
	op.Incarnation, op.Sessions = g.Incarnation, g.Sessions
	op.Created, op.Since, op.Asked = w.now.Add(time.Duration(len(w.ops))*time.Millisecond), w.now, w.now.Add(time.Hour)
	w.ops = append(w.ops, op)
}

func (w *world) tick() []Action {
	w.now = w.now.Add(time.Second)
	inv := w.inventory()
	o := Observation{Now: w.now, Gateways: inv, At: w.now, Complete: !w.blind, Answers: w.answers}
	o.Load = pace.LoadOf(w.before, inv, func(g fleet.Node) bool { _, is := w.find(g.ID); return !is })
	w.before = inv
	ops, actions := w.rules.Next(w.ops, o)
	w.answers, w.ops = map[string]Answer{}, nil
	for _, op := range ops {
		if op.State.Final() {
			w.over = append(w.over, op)
		} else {
			w.ops = append(w.ops, op)
		}
	}
	for _, a := range actions {
		w.answers[a.Operation] = w.act(a)
	}
	w.move()
	return actions
}

func (w *world) find(node string) (Operation, bool) {
	for _, op := range w.ops {
		if op.Node == node {
			return op, true
		}
	}
	return Operation{}, false
}

// act is what a gateway answers.
func (w *world) act(a Action) Answer {
	g := w.gate(a.Node)
	switch {
	case g == nil || g.Unreachable:
		return Answer{Failed: "no answer in time"}
	case g.refuses != "":
		return Answer{Refused: g.refuses}
	case a.Undrain != nil:
		g.Phase, g.op = serving, ""
		return Answer{Undrained: true}
	}
	g.drains++
	if g.op == "" {
		g.op, g.Phase = a.Operation, draining
		g.progress.Sessions = g.Sessions
	}
	g.rate, g.paused = a.Drain.GetSessionsPerSecond(), a.Drain.GetPaused()
	return Answer{Progress: &gatewayv1.DrainProgress{
		OperationId: g.op, Sessions: g.progress.GetSessions(), Left: g.Sessions, Moved: g.progress.GetMoved(), Done: g.progress.GetDone(), HandedOver: 3,
	}}
}

// move is what a second changes: sessions go to the gateways that serve, in turn.
func (w *world) move() {
	for _, g := range w.gates {
		if g.op == "" || g.paused || g.stuck || g.Unreachable {
			continue
		}
		n := min(uint64(max(g.rate, 1)), g.Sessions)
		var to []*gate
		for _, o := range w.gates {
			if o.Phase == serving {
				to = append(to, o)
			}
		}
		g.Sessions -= n
		g.progress.Moved += n
		for i := range n {
			if len(to) == 0 {
				break
			}
			o := to[i%uint64(len(to))]
			o.Sessions++
			at := 1
			if o.slow {
				at = 5
			}
			o.accept[at]++
			in := o.arrivals[g.ID]
			if in == nil {
				in = &gatewayv1.Arrivals{
					FromNodeId: g.ID, FromIncarnation: g.Incarnation, GapMaxMs: 8,
					GapMs: &gatewayv1.Histogram{Bounds: bounds, Counts: make([]uint64, len(bounds)+1)},
				}
				o.arrivals[g.ID] = in
			}
			gap := 2
			if o.crowded > 0 && n > o.crowded {
				gap = 3
			}
			in.GapMs.Counts[gap]++
			in.Migrated++
			in.Lost, o.loses = in.Lost+o.loses, 0
		}
		if g.Sessions == 0 {
			g.progress.Done, g.Phase = true, drained
		}
	}
}

// until ticks until the operation of node is as wanted.
func (w *world) until(what string, cond func() bool) {
	w.t.Helper()
	for range 5000 {
		if cond() {
			return
		}
		w.tick()
	}
	w.t.Fatalf("never: %s; under way %s, over %s", what, brief(w.ops), brief(w.over))
}

func brief(ops []Operation) (s string) {
	for _, op := range ops {
		s += fmt.Sprintf("[%s %s %q left %d]", op.Node, op.State, op.Reason, op.left())
	}
	return s
}

func (w *world) ended(node string) func() bool {
	return func() bool { _, ok := w.result(node); return ok }
}

func (w *world) result(node string) (Operation, bool) {
	for _, op := range w.over {
		if op.Node == node {
			return op, true
		}
	}
	return Operation{}, false
}
