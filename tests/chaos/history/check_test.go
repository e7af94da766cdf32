package history

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var (
	ann  = Device{"acme", "ann", "phone"}
	bob  = Device{"acme", "bob", "phone"}
	bob2 = Device{"acme", "bob", "laptop"}
	eve  = Device{"other", "eve", "phone"}
)

// tape writes a history, one event a millisecond.
type tape struct{ events []Event }

func (t *tape) add(e Event) {
	e.At = time.Duration(len(t.events)+1) * time.Millisecond
	t.events = append(t.events, e)
}

func (t *tape) connect(d Device, conn int, node string) {
	t.add(Event{Kind: Connect, Device: d, Conn: conn, Node: node})
}
func (t *tape) drop(d Device, code int) {
	t.add(Event{Kind: Disconnect, Device: d, Conn: 1, Code: code})
}
func (t *tape) send(d Device, conn int, msg string, to ...string) {
	t.add(Event{Kind: Send, Device: d, Conn: conn, Msg: msg, Recipients: to})
}
func (t *tape) answer(d Device, conn int, msg, status string) {
	t.add(Event{Kind: Answer, Device: d, Conn: conn, Msg: msg, Status: status, Attempts: 1})
}
func (t *tape) deliver(d Device, msg string) { t.add(Event{Kind: Deliver, Device: d, Msg: msg}) }

// good is a run in which all went well.
func good() *tape {
	t := &tape{}
	for _, d := range []Device{ann, bob, bob2, eve} {
		t.add(Event{Kind: Join, Device: d, V1: d == bob})
		t.connect(d, 1, "gw1")
	}
	t.send(ann, 1, "m1", "bob")
	t.send(ann, 1, "m2", "bob", "ann")
	for _, d := range []Device{bob, bob2} {
		t.deliver(d, "m1")
		t.deliver(d, "m2")
	}
	t.deliver(ann, "m2")
	t.answer(ann, 1, "m1", Sent)
	t.answer(ann, 1, "m2", Sent)
	t.send(ann, 1, "refused", "bob")
	t.answer(ann, 1, "refused", Failed)
	return t
}

func without(events []Event, kind Kind, d Device, msg string) []Event {
	var out []Event
	for _, e := range events {
		if e.Kind != kind || e.Device != d || e.Msg != msg {
			out = append(out, e)
		}
	}
	return out
}

func TestCheck(t *testing.T) {
	killed := func(tp *tape, node string) {
		tp.add(Event{Kind: Fault, Node: node, Reason: Killed})
	}
	later := func(tp *tape) { // than what a gateway may not have told
		for range int(unconfirmed/time.Millisecond) + 1 {
			tp.add(Event{Kind: Heal})
		}
	}
	// moved sees m3 at gw2, to which its connection has moved, and again after a kill.
	moved := func(tp *tape, node string) {
		tp.add(Event{Kind: Move, Device: bob2, Conn: 1, Node: "gw2"})
		later(tp)
		tp.send(ann, 1, "m3", "bob")
		tp.deliver(bob, "m3")
		tp.deliver(bob2, "m3")
		tp.answer(ann, 1, "m3", Sent)
		killed(tp, node)
		tp.drop(bob2, 1006)
		tp.add(Event{Kind: Connect, Device: bob2, Conn: 2, Node: "gw3", Start: 1})
		tp.deliver(bob2, "m3")
	}
	for name, c := range map[string]struct {
		plant func(*tape)
		want  []Rule
	}{
		"nothing planted":            {func(*tape) {}, nil},
		"loss at one of two devices": {func(tp *tape) { tp.events = without(tp.events, Deliver, bob2, "m2") }, []Rule{Lost}},
		"loss while away": {func(tp *tape) {
			tp.drop(bob, 4200)
			tp.send(ann, 1, "m3", "bob")
			tp.answer(ann, 1, "m3", Sent)
			tp.deliver(bob2, "m3")
			tp.connect(bob, 2, "gw2")
		}, []Rule{Lost}},
		"repeat on one connection":    {func(tp *tape) { tp.deliver(bob, "m1") }, []Rule{Repeated}},
		"repeat after an orderly end": {func(tp *tape) { tp.drop(bob, 4200); tp.connect(bob, 2, "gw2"); tp.deliver(bob, "m1") }, []Rule{Repeated}},
		"repeat at a V1 client after its gateway was killed": {func(tp *tape) {
			killed(tp, "gw1")
			tp.drop(bob, 1006)
			tp.connect(bob, 2, "gw2")
			tp.deliver(bob, "m1")
		}, nil},
		"repeat at a V1 client whose gateway was stopped": {func(tp *tape) {
			tp.add(Event{Kind: Fault, Node: "gw1", Reason: Frozen})
			tp.drop(bob, 1006)
			tp.connect(bob, 2, "gw2")
			tp.deliver(bob, "m1")
		}, nil},
		"repeat at a V2 client that was started anew after its gateway was cut off": {func(tp *tape) {
			tp.add(Event{Kind: Fault, Node: "gw1", Reason: CutOff})
			tp.drop(bob2, 1000)
			tp.add(Event{Kind: Connect, Device: bob2, Conn: 2, Node: "gw2", Start: 1})
			tp.deliver(bob2, "m1")
		}, nil},
		"repeat at the same V2 client after its gateway was cut off": {func(tp *tape) {
			tp.add(Event{Kind: Fault, Node: "gw1", Reason: CutOff})
			tp.drop(bob2, 1006)
			tp.connect(bob2, 2, "gw2")
			tp.deliver(bob2, "m1")
		}, []Rule{Repeated}},
		"repeat of what was seen long before a kill": {func(tp *tape) {
			later(tp)
			killed(tp, "gw1")
			tp.drop(bob, 1006)
			tp.connect(bob, 2, "gw2")
			tp.deliver(bob, "m1")
		}, []Rule{Repeated}},
		"repeat after the gateway was killed to which it had moved":   {func(tp *tape) { moved(tp, "gw2") }, nil},
		"repeat after the gateway was killed that it had left before": {func(tp *tape) { moved(tp, "gw1") }, []Rule{Repeated}},
		"repeat at a V1 client after another gateway was killed": {func(tp *tape) {
			killed(tp, "gw2")
			tp.drop(bob, 1006)
			tp.connect(bob, 2, "gw2")
			tp.deliver(bob, "m1")
		}, []Rule{Repeated}},
		"repeat at a V2 client after its gateway was killed": {func(tp *tape) {
			killed(tp, "gw1")
			tp.drop(bob2, 1006)
			tp.connect(bob2, 2, "gw2")
			tp.deliver(bob2, "m1")
		}, []Rule{Repeated}},
		"repeat at a V2 client that was started anew after its gateway was killed": {func(tp *tape) {
			killed(tp, "gw1")
			tp.drop(bob2, 1006)
			tp.add(Event{Kind: Connect, Device: bob2, Conn: 2, Node: "gw2", Start: 1})
			tp.deliver(bob2, "m1")
		}, nil},
		"repeat at a V2 client that was started anew, and nothing was killed": {func(tp *tape) {
			tp.drop(bob2, 1000)
			tp.add(Event{Kind: Connect, Device: bob2, Conn: 2, Node: "gw2", Start: 1})
			tp.deliver(bob2, "m1")
		}, []Rule{Repeated}},
		"reorder": {func(tp *tape) {
			tp.send(ann, 1, "m3", "bob")
			tp.send(ann, 1, "m4", "bob")
			for _, d := range []Device{bob, bob2} {
				tp.deliver(d, "m4")
				tp.deliver(d, "m3")
			}
			tp.answer(ann, 1, "m3", Sent)
			tp.answer(ann, 1, "m4", Sent)
		}, []Rule{Reordered, Reordered}},
		"other way round over two connections": {func(tp *tape) {
			tp.send(ann, 1, "m3", "bob")
			tp.drop(ann, 1006)
			tp.connect(ann, 2, "gw2")
			tp.send(ann, 2, "m4", "bob")
			for _, d := range []Device{bob, bob2} {
				tp.deliver(d, "m4")
				tp.deliver(d, "m3")
			}
			tp.answer(ann, 2, "m3", Sent)
			tp.answer(ann, 2, "m4", Sent)
		}, nil},
		"leak to another user":   {func(tp *tape) { tp.deliver(ann, "m1") }, []Rule{Leaked}},
		"leak to another tenant": {func(tp *tape) { tp.deliver(eve, "m1") }, []Rule{Leaked}},
		"phantom":                {func(tp *tape) { tp.deliver(bob, "m0") }, []Rule{Leaked}},
		"somebody else's answer": {func(tp *tape) { tp.answer(bob, 1, "m1", Sent) }, []Rule{Leaked}},
		"unanswered":             {func(tp *tape) { tp.events = without(tp.events, Answer, ann, "m1") }, []Rule{Unanswered}},
		"given up on":            {func(tp *tape) { tp.send(ann, 1, "m3", "bob"); tp.answer(ann, 1, "m3", Unknown) }, []Rule{Unanswered}},
		"abandoned": {func(tp *tape) {
			tp.send(ann, 1, "m3", "bob")
			tp.answer(ann, 1, "m3", Abandoned)
			tp.deliver(bob, "m3")
		}, nil},
		"failed but delivered": {func(tp *tape) { tp.deliver(bob, "refused") }, []Rule{FailedButDelivered}},
		"failed, then sent": {func(tp *tape) {
			tp.answer(ann, 1, "refused", Sent)
			tp.deliver(bob, "refused")
			tp.deliver(bob2, "refused")
		}, nil},
		"stopped for good": {func(tp *tape) { tp.add(Event{Kind: Gone, Device: bob, Reason: "replaced"}) }, []Rule{Ended}},
		"away at the end":  {func(tp *tape) { tp.drop(bob, 4200) }, []Rule{Ended}},
		"first device of a user": {func(tp *tape) {
			dan := Device{"acme", "dan", "phone"}
			tp.send(ann, 1, "m3", "dan")
			tp.answer(ann, 1, "m3", Sent)
			tp.connect(dan, 1, "gw1")
		}, []Rule{Lost}},
		"device that came later owes nothing": {func(tp *tape) { tp.connect(Device{"acme", "bob", "tablet"}, 1, "gw1") }, nil},
	} {
		tp := good()
		c.plant(tp)
		r := Check(tp.events)
		var got []Rule
		for _, v := range r.Violations {
			got = append(got, v.Rule)
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", name, r.Violations, c.want)
		}
	}
}

func TestCountsOfAReport(t *testing.T) {
	tp := good()
	tp.add(Event{Kind: Fault, Node: "gw1", Reason: Killed})
	tp.drop(bob, 1006)
	tp.connect(bob, 2, "gw2")
	tp.deliver(bob, "m2")
	r := Check(tp.events)
	if r.Messages != 3 || r.Sent != 2 || r.Failed != 1 || r.Deliveries != 6 || r.V1Ambiguous != 1 || r.Connects != 5 || r.LongestGap != time.Millisecond {
		t.Errorf("%+v", r)
	}
}

func TestHistoriesSurviveAFile(t *testing.T) {
	want := good().events
	var b bytes.Buffer
	if err := Write(&b, want); err != nil {
		t.Fatal(err)
	}
	got, err := Read(&b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := Read(bytes.NewBufferString("{\"At\":1}\n{")); err == nil {
		t.Fatal("half a line was read")
	}
}
