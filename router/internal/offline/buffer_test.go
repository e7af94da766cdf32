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

func device(name string) route.DeviceKey { return route.DeviceKey{UserKey: ann, Device: name} }

type drops map[Drop]int

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
	if got := texts(b.Take(device("phone"))); !slices.Equal(got, []string{"1", "2"}) {
		t.Fatalf("first device got %q", got)
	}
	if got := b.Take(device("desk")); got != nil {
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
		if got := texts(b.Take(device(d))); !slices.Equal(got, []string{"hello"}) {
			t.Fatalf("%s got %q", d, got)
		}
		if got := b.Take(device(d)); got != nil {
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
	if got := texts(b.Take(device("d"))); !slices.Equal(got, []string{"1", "2", "3", "4"}) {
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
	if _, ok := b.Put(ann, old); ok {
		t.Fatal("a handed-back message pushed newer ones out of a full buffer")
	}
	if got := texts(b.Take(device("d"))); !slices.Equal(got, []string{"3", "4"}) {
		t.Fatalf("kept %q", got)
	}
	if d[DropOverflow] != 4 {
		t.Fatalf("counted %d overflows, want 4", d[DropOverflow])
	}
}

func TestRefusals(t *testing.T) {
	b, d := newBuffer(Limits{MaxMessagesPerUser: 9, MaxBytesPerUser: 200, MaxBytes: 250})
	off := text("x")
	off.TTL = 0
	if _, ok := b.Put(ann, off); ok || d[DropDisabled] != 1 {
		t.Error("kept although the tenant keeps nothing")
	}
	if _, ok := b.Put(ann, text(string(make([]byte, 200)))); ok || d[DropTooLarge] != 1 {
		t.Error("kept although it alone is over the limit")
	}
	if _, ok := b.Put(ann, text(string(make([]byte, 100)))); !ok {
		t.Error("refused although there is room")
	}
	if _, ok := b.Put(route.UserKey{Tenant: "t", User: "bob"}, text("x")); ok || d[DropFull] != 1 {
		t.Error("kept although the whole buffer is full")
	}
}

func TestTakeBackAndExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, d := newBuffer(roomy)
		id, _ := b.Put(ann, text("1"))
		if !b.TakeBack(ann, id) || b.TakeBack(ann, id) {
			t.Fatal("an entry can be taken back exactly once")
		}
		id, _ = b.Put(ann, text("2"))
		b.Take(device("d"))
		if b.TakeBack(ann, id) {
			t.Fatal("taken back although a device had it")
		}
		b.Put(ann, text("3"))
		time.Sleep(time.Minute) // fake time
		b.Sweep()
		if b.Take(device("d")) != nil || d[DropExpired] != 1 || b.Bytes() != 0 {
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
				if got := texts(b.Take(device(d))); !slices.Equal(got, want[d]) {
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
			b.Take(device(d))
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
	first, _ := b.Put(key, Entry{Message: m, Devices: []string{"phone"}, TTL: time.Minute})
	before := b.Bytes()
	again, ok := b.Put(key, Entry{Message: m, Devices: []string{"phone", "desk"}, TTL: time.Minute})
	if !ok || again != first || b.Bytes() != before {
		t.Fatalf("kept as %d and %d, %d bytes, then %d", first, again, before, b.Bytes())
	}
	for _, device := range []string{"phone", "desk", "phone"} {
		got := b.Take(route.DeviceKey{UserKey: key, Device: device})
		if want := map[bool]int{true: 0, false: 1}[b.Bytes() == 0 && device == "phone"]; len(got) != want {
			t.Errorf("%s got %d", device, len(got))
		}
	}
}
