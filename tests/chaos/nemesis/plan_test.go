package nemesis

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var whole = Topology{Gateways: []string{"gw1", "gw2", "gw3"}, Routers: []string{"r1", "r2"}, ControlPlane: true, Redis: true, Links: true}

func bounds(atOnce int) Bounds {
	return Bounds{Within: 12 * time.Second, AtOnce: atOnce, Shortest: 200 * time.Millisecond, Longest: 4 * time.Second, Rest: 2 * time.Second}
}

func TestPlansKeepTheirBounds(t *testing.T) {
	classes := map[string]int{}
	overlaps := 0
	for seed := range uint64(2000) {
		for atOnce := 1; atOnce <= 2; atOnce++ {
			b := bounds(atOnce)
			plan := Plan(seed, whole, b)
			if len(plan) == 0 {
				t.Fatalf("seed %d: nothing goes wrong", seed)
			}
			for i, f := range plan {
				classes[f.Class()]++
				if f.At < 0 || f.At+f.For > b.Within || f.Kind != Flush && (f.For < b.Shortest || f.For > b.Longest) {
					t.Fatalf("seed %d: %v is out of bounds", seed, f)
				}
				if i > 0 && f.At < plan[i-1].At {
					t.Fatalf("seed %d: %v comes after %v", seed, f, plan[i-1])
				}
				during := 0
				for _, o := range plan[:i] {
					if o.At+o.For <= f.At {
						continue
					}
					during++
					if o.touches(f.Target) || f.touches(o.Target) {
						t.Fatalf("seed %d: %v and %v touch the same process", seed, o, f)
					}
				}
				if during >= atOnce {
					t.Fatalf("seed %d: %v is one too many", seed, f)
				}
				overlaps += during
			}
		}
	}
	if overlaps == 0 {
		t.Error("two at once never happened")
	}
	for _, c := range []string{
		"kill gateway", "kill router", "kill control plane", "kill redis", "pause redis", "flush redis",
		"pause gateway", "terminate gateway", "terminate router", "cut router", "cut gateway", "blackhole redis", "delay router",
	} {
		if classes[c] < 10 {
			t.Errorf("%s happened %d times", c, classes[c])
		}
	}
}

func TestTheSameSeedGivesTheSamePlan(t *testing.T) {
	if a, b := Plan(7, whole, bounds(2)), Plan(7, whole, bounds(2)); !reflect.DeepEqual(a, b) {
		t.Errorf("%v\n%v", a, b)
	}
	if a, b := Plan(7, whole, bounds(2)), Plan(8, whole, bounds(2)); reflect.DeepEqual(a, b) {
		t.Error("another seed gives the same plan")
	}
}

func TestPlansHitOnlyWhatThereIs(t *testing.T) {
	top := Topology{Gateways: []string{"gw1"}, Routers: []string{"r1"}}
	for seed := range uint64(200) {
		for _, f := range Plan(seed, top, bounds(1)) {
			if f.From != "" || !slices.Contains([]string{"gw1", "r1"}, f.Target) {
				t.Fatalf("%v", f)
			}
		}
	}
	b := bounds(1)
	b.Only = []string{"kill gateway"}
	for _, f := range Plan(1, whole, b) {
		if f.Class() != "kill gateway" {
			t.Errorf("%v", f)
		}
	}
	if b.Only = []string{"no such thing"}; Plan(1, whole, b) != nil {
		t.Error("a plan out of nothing")
	}
}
