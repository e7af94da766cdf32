package ring

import (
	"fmt"
	"slices"
	"testing"
)

func TestOnlyTheLeaversShareMoves(t *testing.T) {
	nodes := []string{"r1", "r2", "r3", "r4"}
	share := map[string]int{}
	const users = 10000
	for u := range users {
		user := fmt.Sprint("user", u)
		home := nodes[Pick(nodes, "t", user)]
		share[home]++
		shuffled := []string{"r3", "r1", "r4", "r2"}
		if got := shuffled[Pick(shuffled, "t", user)]; got != home {
			t.Fatalf("%s: %s in one order, %s in another", user, home, got)
		}
		left := slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return n == "r4" })
		if home != "r4" && left[Pick(left, "t", user)] != home {
			t.Fatalf("%s moved although its home stayed", user)
		}
	}
	for n, c := range share {
		if c < users/4*8/10 || c > users/4*12/10 {
			t.Errorf("%s has %d of %d users", n, c, users)
		}
	}
	if Pick(nil, "t", "u") != -1 {
		t.Error("no nodes, yet a home")
	}
}

func TestTheBackupIsTheNextHome(t *testing.T) {
	nodes := []string{"r1", "r2", "r3", "r4", "r5"}
	for u := range 1000 {
		h := Hash("t", fmt.Sprint("user", u))
		home, backup := Pair(nodes, h)
		if home != PickHash(nodes, h) || home == backup {
			t.Fatalf("user %d: home %d, backup %d", u, home, backup)
		}
		left := slices.Delete(slices.Clone(nodes), home, home+1)
		if next := left[PickHash(left, h)]; next != nodes[backup] {
			t.Fatalf("user %d: backup %s, and without its home %s", u, nodes[backup], next)
		}
	}
	if home, backup := Pair([]string{"r1"}, 7); home != 0 || backup != -1 {
		t.Errorf("one node: home %d, backup %d", home, backup)
	}
	if home, backup := Pair(nil, 7); home != -1 || backup != -1 {
		t.Errorf("no nodes: home %d, backup %d", home, backup)
	}
}

func TestHints(t *testing.T) {
	for _, h := range []uint64{1, 0xc0ffee, 1<<64 - 1, Hash("t", "ann")} {
		if got := ParseHint(Hint(h)); got != h {
			t.Errorf("%x became %x", h, got)
		}
	}
	for _, s := range []string{"", "router-1", "-1", "10000000000000000", "0x1"} {
		if got := ParseHint(s); got != 0 {
			t.Errorf("%q became %x", s, got)
		}
	}
}
