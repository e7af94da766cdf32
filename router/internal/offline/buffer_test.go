package offline

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/router/internal/route"
	"pgregory.net/rapid"
)

var ann = route.UserKey{Tenant: "t", User: "ann"}

type drops map[Drop]int

// take is what the device gets, in order.
func take(b *Buffer, device string) []Message {
	front, rest := b.Take(route.DeviceKey{UserKey: ann, Device: device})
	return append(front, rest...)
}

func newBuffer(l Limits) (*Buffer, drops) {
	d := drops{}
	return New(l, func(_ string, why Drop, n int) { d[why] += n }), d
}

var roomy = Limits{MaxMessagesPerUser: 128, MaxBytesPerUser: 1 << 20, MaxBytes: 1 << 30}

func text(s string) Entry { return Entry{Message: Message{Bytes: []byte(s)}, TTL: time.Minute} }

func texts(ms []Message) []string {
	out := []string{}
	for _, m := range ms {
		out = append(out, string(m.Bytes))
	}
	return out
}

func TestFirstDeviceTakesWhatIsForAnyOne(t *testing.T) {
	b, _ := newBuffer(roomy)
	b.Put(ann, text("1"))
	b.Put(ann, text("2"))
	if got := texts(take(b, "phone")); !slices.Equal(got, []string{"1", "2"}) {
		t.Fatalf("first device got %q", got)
	}
	if got := take(b, "desk"); got != nil {
		t.Fatalf("second device got %q again", texts(got))
	}
	if b.Bytes() != 0 {
		t.Fatalf("%d bytes left in an empty buffer", b.Bytes())
	}
}

func TestEachAbsentDeviceGetsItsCopyOnce(t *testing.T) {
	b, _ := newBuffer(roomy)
	e := text("hello")
	e.Devices = []string{"phone", "desk"}
	b.Put(ann, e)
	for _, d := range []string{"desk", "phone"} {
		if got := texts(take(b, d)); !slices.Equal(got, []string{"hello"}) {
			t.Fatalf("%s got %q", d, got)
		}
		if got := take(b, d); got != nil {
			t.Fatalf("%s got it twice", d)
		}
	}
	if e.Devices[0] != "phone" {
		t.Fatal("the caller's slice was changed")
	}
}

func TestHandedBackComesFirstInItsOrder(t *testing.T) {
	b, _ := newBuffer(roomy)
	b.Put(ann, text("3"))
	for _, s := range []string{"1", "2"} {
		e := text(s)
		e.Front = true
		b.Put(ann, e)
	}
	b.Put(ann, text("4"))
	if got := texts(take(b, "d")); !slices.Equal(got, []string{"1", "2", "3", "4"}) {
		t.Fatalf("order %q", got)
	}
}

func TestOldestGoesAndIsCounted(t *testing.T) {
	b, d := newBuffer(Limits{MaxMessagesPerUser: 2, MaxBytesPerUser: 1 << 20, MaxBytes: 1 << 20})
	for i := range 5 {
		b.Put(ann, text(fmt.Sprint(i)))
	}
	old := text("older")
	old.Front = true
	if _, _, ok := b.Put(ann, old); ok {
		t.Fatal("a handed-back message pushed newer ones out of a full buffer")
	}
	if got := texts(take(b, "d")); !slices.Equal(got, []string{"3", "4"}) {
		t.Fatalf("kept %q", got)
	}
	if d[DropOverflow] != 4 {
		t.Fatalf("counted %d overflows, want 4", d[DropOverflow])
	}
}

func TestRefusals(t *testing.T) {
	b, d := newBuffer(Limits{MaxMessagesPerUser: 9, MaxBytesPerUser: 250, MaxBytes: 300})
	off := text("x")
	off.TTL = 0
	if _, _, ok := b.Put(ann, off); ok || d[DropDisabled] != 1 {
		t.Error("kept although the tenant keeps nothing")
	}
	if _, _, ok := b.Put(ann, text(string(make([]byte, 250)))); ok || d[DropTooLarge] != 1 {
		t.Error("kept although it alone is over the limit")
	}
	if _, _, ok := b.Put(ann, text(string(make([]byte, 100)))); !ok {
		t.Error("refused although there is room")
	}
	if _, _, ok := b.Put(route.UserKey{Tenant: "t", User: "bob"}, text("x")); ok || d[DropFull] != 1 {
		t.Error("kept although the whole buffer is full")
	}
}

func TestTakeBackAndExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, d := newBuffer(roomy)
		id, _, _ := b.Put(ann, text("1"))
		if !b.TakeBack(ann, id) || b.TakeBack(ann, id) {
			t.Fatal("an entry can be taken back exactly once")
		}
		id, _, _ = b.Put(ann, text("2"))
		take(b, "d")
		if b.TakeBack(ann, id) {
			t.Fatal("taken back although a device had it")
		}
		b.Put(ann, text("3"))
		time.Sleep(time.Minute) // fake time
		b.Sweep()
		if take(b, "d") != nil || d[DropExpired] != 1 || b.Bytes() != 0 {
			t.Fatalf("expired entry still there, drops %v", d)
		}
	})
}

// TestAgainstModel holds the buffer against a list per device.
func TestAgainstModel(t *testing.T) {
	devices := []string{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		b, _ := newBuffer(Limits{MaxMessagesPerUser: 1000, MaxBytesPerUser: 1 << 20, MaxBytes: 1 << 20})
		want := map[string][]string{}
		for n := range rapid.IntRange(1, 60).Draw(t, "steps") {
			d := rapid.SampledFrom(devices).Draw(t, "device")
			if rapid.Bool().Draw(t, "take") {
				if got := texts(take(b, d)); !slices.Equal(got, want[d]) {
					t.Fatalf("%s got %q, want %q", d, got, want[d])
				}
				delete(want, d)
				continue
			}
			e := text(fmt.Sprint(n))
			e.Devices = rapid.SliceOfNDistinct(rapid.SampledFrom(devices), 1, 3, rapid.ID[string]).Draw(t, "for")
			b.Put(ann, e)
			for _, d := range e.Devices {
				want[d] = append(want[d], fmt.Sprint(n))
			}
		}
		for _, d := range devices {
			take(b, d)
		}
		if b.Bytes() != 0 {
			t.Fatalf("%d bytes left", b.Bytes())
		}
	})
}

// TestRepeatsAgainstModel: the same message may be put for one device after the
// other, by several senders' routers, and handed back by one of them: each device
// gets what was handed back, then the rest, each once and in the order of its own.
func TestRepeatsAgainstModel(t *testing.T) {
	devices := []string{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		b, _ := newBuffer(Limits{MaxMessagesPerUser: 1000, MaxBytesPerUser: 1 << 20, MaxBytes: 1 << 20})
		front, rest := map[string][]string{}, map[string][]string{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			d := rapid.SampledFrom(devices).Draw(t, "device")
			if rapid.IntRange(0, 9).Draw(t, "take") == 0 {
				if got, want := texts(take(b, d)), slices.Concat(front[d], rest[d]); !slices.Equal(got, want) {
					t.Fatalf("%s got %q, want %q", d, got, want)
				}
				delete(front, d)
				delete(rest, d)
				continue
			}
			n := rapid.IntRange(1, 8).Draw(t, "message")
			e := text(fmt.Sprint(n))
			e.Key = [16]byte{byte(n)}
			e.Devices = rapid.SliceOfNDistinct(rapid.SampledFrom(devices), 1, 3, rapid.ID[string]).Draw(t, "for")
			e.Front = rapid.IntRange(0, 3).Draw(t, "front") == 0
			b.Put(ann, e)
			for _, d := range e.Devices {
				m := fmt.Sprint(n)
				switch {
				case slices.Contains(front[d], m):
				case e.Front:
					rest[d] = slices.DeleteFunc(rest[d], func(o string) bool { return o == m })
					front[d] = append(front[d], m)
				case !slices.Contains(rest[d], m):
					rest[d] = append(rest[d], m)
				}
			}
		}
		for _, d := range devices {
			take(b, d)
		}
		if b.Bytes() != 0 {
			t.Fatalf("%d bytes left", b.Bytes())
		}
	})
}

func TestARepeatIsKeptOnce(t *testing.T) {
	b := New(Limits{MaxMessagesPerUser: 10, MaxBytesPerUser: 1 << 20, MaxBytes: 1 << 20}, func(string, Drop, int) {})
	key := route.UserKey{Tenant: "t", User: "ann"}
	m := Message{Bytes: []byte("hi"), Key: [16]byte{1}}
	var first uint64
	var before int64
	for i, devices := range [][]string{{"phone"}, {"phone", "desk"}, {"desk"}} {
		id, known, ok := b.Put(key, Entry{Message: m, Devices: devices, TTL: time.Minute})
		if i == 0 {
			first, before = id, b.Bytes()
		}
		if !ok || id != first || b.Bytes() != before || known != (i == 2) {
			t.Fatalf("%v: kept as %d and %d, %d bytes, then %d, known %v", devices, first, id, before, b.Bytes(), known)
		}
	}
	for _, device := range []string{"phone", "desk", "phone"} {
		got := take(b, device)
		if want := map[bool]int{true: 0, false: 1}[b.Bytes() == 0 && device == "phone"]; len(got) != want {
			t.Errorf("%s got %d", device, len(got))
		}
	}
}

func TestWhatIsTakenBackLeavesOtherDevicesTheirs(t *testing.T) {
	b, _ := newBuffer(roomy)
	m := Message{Bytes: []byte("hi"), Key: [16]byte{1}}
	b.Put(ann, Entry{Message: m, Devices: []string{"phone"}, TTL: time.Minute, Front: true})
	id, _, _ := b.Put(ann, Entry{Message: m, Devices: []string{"desk"}, TTL: time.Minute, Front: true})
	desk := []Back{{ID: id, Devices: []string{"desk"}}}
	if !b.TakeBackAll(ann, desk)[0] || b.TakeBackAll(ann, desk)[0] {
		t.Fatal("the second put can be taken back exactly once")
	}
	if got := texts(take(b, "phone")); !slices.Equal(got, []string{"hi"}) {
		t.Fatalf("phone got %q", got)
	}
}

func TestWhatWasElsewhereComesInItsPlace(t *testing.T) {
	b, _ := newBuffer(roomy)
	put := func(s string, at int64, front, moved bool) {
		e := text(s)
		e.At, e.Front, e.Moved, e.Key = at, front, moved, [16]byte{s[0]}
		b.Put(ann, e)
	}
	put("8", 0, false, false)
	put("5", 50, false, true)
	put("4", 40, false, true)
	put("2", 20, true, true)
	put("9", 0, false, false)
	put("7", 0, false, false) // a repeat of one that another router had, too
	put("7", 70, false, true)
	put("1", 10, true, true)
	put("6", 60, false, true)
	put("4", 40, false, true)
	front, rest := b.Take(route.DeviceKey{UserKey: ann, Device: "phone"})
	if !slices.Equal(texts(front), []string{"1", "2"}) || !slices.Equal(texts(rest), []string{"4", "5", "6", "7", "8", "9"}) {
		t.Fatalf("front %q, rest %q", texts(front), texts(rest))
	}
	if b.Bytes() != 0 {
		t.Fatalf("%d bytes left", b.Bytes())
	}
}

func TestWhatIsLentIsKeptUntilItIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := newBuffer(roomy)
		changes := 0
		b.OnChange(func(route.UserKey) { changes++ })
		phone := route.DeviceKey{UserKey: ann, Device: "phone"}
		desk := route.DeviceKey{UserKey: ann, Device: "desk"}
		any, _, _ := b.Put(ann, text("any"))
		e := text("both")
		e.Devices = []string{"phone", "desk"}
		b.Put(ann, e)
		lent := b.Lend(phone, time.Second, 1<<20)
		if len(lent) != 2 || changes != 0 {
			t.Fatalf("lent %v, %d changes", lent, changes)
		}
		if got := b.Lend(desk, time.Second, 1<<20); len(got) != 1 || string(got[0].Bytes) != "both" {
			t.Fatalf("lent to desk: %v", got)
		}
		if b.TakeBack(ann, any) || len(b.TakeFree(phone)) != 0 {
			t.Fatal("what is lent was taken back")
		}
		if held, more := b.Movable(ann); len(held) != 0 || !more {
			t.Fatalf("movable %v", held)
		}
		time.Sleep(time.Second) // fake time: the loan is over
		if held, more := b.Movable(ann); len(held) != 2 || more {
			t.Fatalf("movable %v", held)
		}
		b.Taken(phone, []uint64{lent[0].ID, lent[1].ID})
		if b.Drop(ann, lent[1]) || changes != 1 {
			t.Fatalf("dropped although desk has not got it, %d changes", changes)
		}
		if got := texts(take(b, "desk")); !slices.Equal(got, []string{"both"}) {
			t.Fatalf("desk got %q", got)
		}
		// No copy was made yet of what they took.
		left, _ := b.Snapshot(ann, 7, 1<<20)
		if len(left) != 3 || !left[0].Taken || !left[2].Taken {
			t.Fatalf("lingering: %+v", left)
		}
		b.Copied(ann, left[:1], 7)
		if left, _ = b.Snapshot(ann, 7, 1<<20); len(left) != 2 {
			t.Fatalf("lingering after a copy: %+v", left)
		}
		time.Sleep(linger) // fake time
		b.Sweep()
		if b.Bytes() != 0 {
			t.Fatalf("%d bytes left", b.Bytes())
		}
	})
}

func TestASnapshotTellsWhatHasNoCopy(t *testing.T) {
	b, _ := newBuffer(roomy)
	for i := range 3 {
		e := text(fmt.Sprint(i))
		e.Devices = []string{"phone", "desk"}
		b.Put(ann, e)
	}
	first, more := b.Snapshot(ann, 7, 2*entryOverhead+10)
	if len(first) != 2 || !more || b.HasCopies(ann, 7) {
		t.Fatalf("%d entries, more %v", len(first), more)
	}
	b.Copied(ann, first, 7)
	known := func(stream uint64) (out []bool) {
		all, _ := b.Snapshot(ann, stream, 1<<20)
		for _, h := range all {
			out = append(out, h.Known)
		}
		return out
	}
	if got := known(7); !slices.Equal(got, []bool{true, true, false}) {
		t.Fatalf("known %v", got)
	}
	all, _ := b.Snapshot(ann, 7, 1<<20)
	b.Taken(route.DeviceKey{UserKey: ann, Device: "phone"}, []uint64{all[2].ID})
	b.Copied(ann, all, 7) // of what was before
	if got := known(7); !slices.Equal(got, []bool{true, true, false}) {
		t.Fatalf("after a change: known %v", got)
	}
	all, _ = b.Snapshot(ann, 8, 1<<20)
	b.Copied(ann, all, 8)
	if !b.HasCopies(ann, 8) || b.HasCopies(ann, 7) {
		t.Fatal("copies over the new stream are not known")
	}
	b.Uncopied(ann, 8)
	if b.HasCopies(ann, 8) {
		t.Fatal("copies that are gone are known")
	}
}

// What another router kept because it could not reach this one, the home, is no older
// than what is here.
func TestWhatWasKeptElsewhereMeanwhileComesInItsPlace(t *testing.T) {
	b, _ := newBuffer(roomy)
	start := time.Now().UnixNano()
	put := func(s string, at int64, elsewhere bool) {
		e := text(s)
		e.Devices, e.At, e.Moved = []string{"phone"}, at, elsewhere
		b.Put(ann, e)
	}
	put("2", 0, false)
	b.Begin()
	time.Sleep(time.Millisecond) // the clock goes on
	put("3", 0, false)
	between := time.Now().UnixNano()
	time.Sleep(time.Millisecond) // the clock goes on
	put("5", 0, false)
	put("4", between, true)
	put("1", start-1, true)
	put("6", 0, false)
	if got := texts(take(b, "phone")); !slices.Equal(got, []string{"1", "2", "3", "4", "5", "6"}) {
		t.Errorf("got %q", got)
	}
}
