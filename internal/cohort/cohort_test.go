package cohort

import (
	"fmt"
	"strings"
	"testing"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"pgregory.net/rapid"
)

func rule(weight uint32) *gatewayv1.CanaryRule {
	return &gatewayv1.CanaryRule{Generation: 1, Salt: "c-1", Weight: weight}
}

func TestRaisingTheWeightOnlyAddsUsers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-zA-Z0-9äöü_.@-]{0,40}`)
		salt, tenant, user := name.Draw(t, "salt"), name.Draw(t, "tenant"), name.Draw(t, "user")
		low := rapid.Uint32Range(0, Full).Draw(t, "low")
		high := rapid.Uint32Range(low, Full).Draw(t, "high")
		in := func(w uint32) bool {
			return Compile(&gatewayv1.CanaryRule{Generation: 1, Salt: salt, Weight: w}).Canary(tenant, user)
		}
		if in(low) && !in(high) {
			t.Fatalf("in at %d, out at %d", low, high)
		}
		if in(0) || !in(Full) {
			t.Fatal("0 takes nobody, Full everybody")
		}
	})
}

// TestUsersSpreadEvenly counts users in 100 equal classes and compares with the
// uniform distribution: Pearson's chi-square with 99 degrees of freedom is above
// 148.2 in one of 1,000 samples. The names are fixed, so the outcome is too.
func TestUsersSpreadEvenly(t *testing.T) {
	const classes, users, limit = 100, 100_000, 148.2
	for _, names := range []string{"user-%d", "u%08x", "%d@example.org"} {
		for _, salt := range []string{"", "c-1", "canary-2026-01"} {
			var n [classes]float64
			for i := range users {
				n[place(salt, "acme", fmt.Sprintf(names, i))*classes/Full]++
			}
			chi, want := 0.0, float64(users)/classes
			for _, got := range n {
				chi += (got - want) * (got - want) / want
			}
			if chi > limit {
				t.Errorf("%q, salt %q: chi-square %.1f, at most %.1f", names, salt, chi, limit)
			}
		}
	}
}

// TestSaltsAreIndependent: two canaries in a row must not always try the same
// users. Of those in one canary the share in the next is the weight. Each of 50
// pairs of salts gives a normal deviate; the sum of their squares is above 86.7 in
// one of 1,000 samples (chi-square, 50 degrees of freedom).
func TestSaltsAreIndependent(t *testing.T) {
	const pairs, users, weight, limit = 50, 20_000, 0.2, 86.7
	var chi float64
	for p := range pairs {
		r := rule(weight * Full)
		r.Salt = fmt.Sprint("c-", 2*p)
		a := Compile(r)
		r.Salt = fmt.Sprint("c-", 2*p+1)
		b := Compile(r)
		first, both := 0.0, 0.0
		for i := range users {
			if u := fmt.Sprint("user-", i); a.Canary("acme", u) {
				first++
				if b.Canary("acme", u) {
					both++
				}
			}
		}
		d := both - weight*first
		chi += d * d / (first * weight * (1 - weight))
	}
	if chi > limit {
		t.Errorf("chi-square %.1f, at most %.1f", chi, limit)
	}
}

func TestTenantLists(t *testing.T) {
	r := rule(Full)
	r.Tenants, r.TenantsDenied = []string{"acme", "umbrella"}, []string{"umbrella"}
	c := Compile(r)
	for tenant, want := range map[string]string{"acme": Canary, "umbrella": Stable, "initech": Stable, "": Stable} {
		if got := c.Track(tenant, "ann"); got != want {
			t.Errorf("%q belongs to %q, want %q", tenant, got, want)
		}
	}
	r.Tenants = nil
	if c := Compile(r); c.Track("initech", "ann") != Canary || c.Track("umbrella", "ann") != Stable {
		t.Error("without an allow list all but the denied take part")
	}
}

func TestNoRule(t *testing.T) {
	for _, r := range []*gatewayv1.CanaryRule{nil, {}, {Weight: Full, Salt: "s"}} {
		if c := Compile(r); c.Track("acme", "ann") != "" || c.Canary("acme", "ann") || c.Generation() != 0 {
			t.Errorf("%v is a rule", r)
		}
	}
	if c := Compile(&gatewayv1.CanaryRule{Generation: 3}); c.Track("acme", "ann") != Stable {
		t.Error("at weight 0 everybody belongs to stable")
	}
	if c := Compile(rule(Full + 1)); !c.Canary("acme", "ann") {
		t.Error("a weight above Full is Full")
	}
}

// Gateways of two versions and the control plane must agree: the answer may never
// change.
func TestTheAnswerIsTheSameInEveryVersion(t *testing.T) {
	for _, c := range []struct {
		salt, tenant, user string
		want               uint64
	}{
		{"", "", "", 6041}, {"c-1", "demo", "ann", 381}, {"c-1", "demo", "bob", 4394}, {"c-2", "demo", "ann", 3276},
		{"c-1", "acme", "üñí", 7267}, {"c-1", "de", "moann", 8949}, {"c-1", "acme", strings.Repeat("long", 200), 2454},
	} {
		if got := place(c.salt, c.tenant, c.user); got != c.want {
			t.Errorf("the place of %q/%q/%.20q is %d, was %d", c.salt, c.tenant, c.user, got, c.want)
		}
	}
}

func TestCanaryDoesNotAllocate(t *testing.T) {
	c := Compile(rule(5000))
	if n := testing.AllocsPerRun(100, func() { _ = c.Canary("tenant-1", "user-123") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCanary(b *testing.B) {
	c := Compile(rule(5000))
	b.ReportAllocs()
	for b.Loop() {
		_ = c.Canary("tenant-1", "user-123")
	}
}
