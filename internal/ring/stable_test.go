package ring

import (
	"strings"
	"testing"
)

// Routers and gateways of different versions work side by side during a
// rolling update: the answer may never change.
func TestTheAnswerIsTheSameInEveryVersion(t *testing.T) {
	nodes := []string{"mics-router-0", "mics-router-1", "mics-router-2"}
	for _, c := range []struct {
		tenant, user string
		want         int
	}{
		{"", "", 2}, {"demo", "ann", 2}, {"demo", "bob", 0}, {"acme", "ann", 0}, {"acme", "üñí", 2},
		{"acme", strings.Repeat("long", 200), 1}, {"demo", "eve", 2},
	} {
		if got := Pick(nodes, c.tenant, c.user); got != c.want {
			t.Errorf("the home of %.20q/%.20q is %d, was %d", c.tenant, c.user, got, c.want)
		}
	}
}

func TestPickDoesNotAllocate(t *testing.T) {
	nodes := []string{"mics-router-0", "mics-router-1", "mics-router-2"}
	if n := testing.AllocsPerRun(100, func() { _ = Pick(nodes, "tenant-1", "user-123") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPick(b *testing.B) {
	nodes := []string{"mics-router-0", "mics-router-1", "mics-router-2"}
	b.ReportAllocs()
	for b.Loop() {
		_ = Pick(nodes, "tenant-1", "user-123")
	}
}
