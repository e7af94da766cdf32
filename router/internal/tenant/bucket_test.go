package tenant

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestBucketAdmitsAheadOnlyItsShare(t *testing.T) {
	for _, tc := range []struct{ rate, routers, ahead int }{{100, 1, 100}, {100, 4, 25}, {10, 3, 4}, {1, 1, 1}, {1, 5, 1}} {
		var b bucket
		now := time.Unix(1000, 0)
		admitted, wanted := 0, 0
		for range 3 * tc.rate {
			ok, want := b.take(tc.rate, tc.routers, now)
			if ok {
				admitted++
			}
			if want > 0 {
				wanted++
			}
		}
		if admitted != tc.ahead || wanted != 1 {
			t.Errorf("rate %d over %d routers: %d admitted, %d leases", tc.rate, tc.routers, admitted, wanted)
		}
		// What was admitted ahead is paid from the lease.
		b.granted(tc.ahead, tc.ahead, now)
		if b.tokens != 0 {
			t.Errorf("rate %d over %d routers: %v tokens after paying back", tc.rate, tc.routers, b.tokens)
		}
	}
}

func TestBucketLeasesATenthOfASecond(t *testing.T) {
	for rate, chunk := range map[int]int{1: 1, 10: 1, 11: 2, 100: 10, 1000: 100} {
		var b bucket
		now := time.Unix(1000, 0)
		_, want := b.take(rate, 1, now)
		if want != chunk+1 { // one was admitted ahead
			t.Errorf("rate %d: first lease %d", rate, want)
		}
		b.granted(want, want, now)
		taken := 0
		for want = 0; want == 0; taken++ {
			var ok bool
			if ok, want = b.take(rate, 1, now); !ok {
				t.Fatalf("rate %d: refused before the lease", rate)
			}
		}
		if want != chunk || taken != chunk-chunk/2 {
			t.Errorf("rate %d: a lease of %d after %d", rate, want, taken)
		}
	}
}

func TestBucketThatIsDryRefusesAtOnce(t *testing.T) {
	var b bucket
	now := time.Unix(1000, 0)
	_, want := b.take(100, 1, now)
	b.granted(5, want, now) // not in full
	if b.tokens != 4 {
		t.Fatalf("%v tokens", b.tokens)
	}
	for range 4 {
		if ok, want := b.take(100, 1, now); !ok || want != 0 {
			t.Fatalf("%v, lease of %d", ok, want)
		}
	}
	if ok, want := b.take(100, 1, now); ok || want != 0 {
		t.Fatalf("empty: %v, lease of %d", ok, want)
	}
	if ok, want := b.take(100, 1, now.Add(retryLease)); ok || want != 10 {
		t.Fatalf("after a while: %v, lease of %d", ok, want)
	}
	b.granted(0, 10, now.Add(retryLease))
	if ok, _ := b.take(100, 1, now.Add(retryLease+dryFor)); !ok {
		t.Fatal("dry for ever")
	}
}

func TestBucketIsLocalWhileTheStoreIsAway(t *testing.T) {
	var b bucket
	now := time.Unix(1000, 0)
	if ok, want := b.take(100, 4, now); !ok || want == 0 {
		t.Fatal("no lease")
	}
	b.failed(now)
	for i := range 99 {
		if ok, _ := b.take(100, 4, now); !ok {
			t.Fatalf("refused at %d of the whole rate", i)
		}
	}
	if ok, want := b.take(100, 4, now); ok || want != 0 {
		t.Fatalf("over the rate: %v, lease of %d", ok, want)
	}
	now = now.Add(storeRetry / 2)
	if ok, want := b.take(100, 4, now); !ok || want != 0 {
		t.Fatalf("it does not refill: %v, lease of %d", ok, want)
	}
	now = now.Add(storeRetry / 2)
	_, want := b.take(100, 4, now)
	if want != 10 {
		t.Fatalf("a lease of %d when the store may be back", want)
	}
	b.granted(7, 10, now)
	if b.local || b.tokens != 7 {
		t.Fatalf("back: local %v, %v tokens", b.local, b.tokens)
	}
}

func TestBucketForgetsWhatAnotherRateSaid(t *testing.T) {
	var b bucket
	now := time.Unix(1000, 0)
	_, want := b.take(1000, 1, now)
	b.granted(want, want, now)
	if ok, _ := b.take(10, 1, now); !ok || b.tokens > 1 {
		t.Fatalf("%v tokens of a rate of 10", b.tokens)
	}
	b.take(10, 1, now)
	b.granted(0, 1, now)
	if ok, _ := b.take(1000, 1, now); !ok {
		t.Fatal("dry under a rate that was never asked for")
	}
}

// TestBucketNeverGivesMoreThanLeasedAndAhead drives a bucket with any store.
func TestBucketNeverGivesMoreThanLeasedAndAhead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b bucket
		rate, routers := rapid.IntRange(1, 200).Draw(t, "rate"), rapid.IntRange(1, 4).Draw(t, "routers")
		share := (rate + routers - 1) / routers
		now := time.Unix(1000, 0)
		admitted, granted, pending := 0, 0, 0
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 50).Draw(t, "ms")) * time.Millisecond)
			if pending > 0 && rapid.Bool().Draw(t, "answered") {
				n := rapid.IntRange(0, pending).Draw(t, "granted")
				b.granted(n, pending, now)
				granted, pending = granted+n, 0
			}
			ok, want := b.take(rate, routers, now)
			if ok {
				admitted++
			}
			if want > 0 && pending > 0 {
				t.Fatal("two leases at once")
			}
			pending += want
			if admitted > granted+share {
				t.Fatalf("%d admitted, %d granted, share %d", admitted, granted, share)
			}
		}
	})
}
