package tenant

import (
	"fmt"
	"math"
	"testing"
	"time"
)

func newUsers(limit int) *users {
	u := &users{}
	u.init(limit)
	return u
}

func always() bool { return true }

func TestUsersRateIsExact(t *testing.T) {
	for _, rate := range []int{1, 2, 7, 10, 1000} {
		u := newUsers(1000)
		k := userKey{nil, "ann"}
		now := time.Unix(1000, 0)
		burst := 0
		for u.take(k, rate, now, always) {
			burst++
		}
		if burst != rate {
			t.Errorf("rate %d: a burst of %d", rate, burst)
		}
		// Ten seconds of more than he may, in uneven steps.
		took, step := 0, 3*time.Millisecond
		for at := now; at.Before(now.Add(10 * time.Second)); at = at.Add(step) {
			for range 4 {
				if u.take(k, rate, at, always) {
					took++
				}
			}
		}
		if took < 10*rate-rate/100-1 || took > 10*rate {
			t.Errorf("rate %d: %d in ten seconds", rate, took)
		}
		if later := now.Add(time.Hour); !u.take(k, rate, later, always) {
			t.Errorf("rate %d: refused after an hour", rate)
		}
	}
}

func TestUsersDoNotShare(t *testing.T) {
	u := newUsers(1000)
	now := time.Unix(1000, 0)
	a, b := &Tenant{name: "a"}, &Tenant{name: "b"}
	for _, k := range []userKey{{a, "ann"}, {a, "bob"}, {b, "ann"}, {b, "bob"}} {
		if !u.take(k, 1, now, always) || u.take(k, 1, now, always) {
			t.Errorf("%s/%s shares with another", k.tenant.name, k.user)
		}
	}
}

func TestUsersTakeNothingUnlessTheOtherAgrees(t *testing.T) {
	u := newUsers(1000)
	k, now := userKey{nil, "ann"}, time.Unix(1000, 0)
	for range 10 {
		if u.take(k, 1, now, func() bool { return false }) {
			t.Fatal("taken against the other's no")
		}
	}
	if !u.take(k, 1, now, always) {
		t.Fatal("a refusal cost something")
	}
	asked := false
	u.take(k, 1, now, func() bool { asked = true; return true })
	if asked {
		t.Fatal("the other was asked though the user is over his rate")
	}
}

func TestUsersRateMayChange(t *testing.T) {
	u := newUsers(1000)
	k, now := userKey{nil, "ann"}, time.Unix(1000, 0)
	for u.take(k, 1000, now, always) {
	}
	now = now.Add(time.Second)
	if !u.take(k, 1, now, always) || u.take(k, 1, now, always) {
		t.Error("a lower rate does not hold after a second")
	}
	for range 1000 {
		if !u.take(k, math.MaxInt32, now.Add(time.Second), always) {
			t.Fatal("the highest rate refuses")
		}
	}
}

func TestUsersAreForgottenWhenTheirBucketIsFull(t *testing.T) {
	const limit = userShards * 100
	u := newUsers(limit)
	now := time.Unix(1000, 0)
	for second := range 20 {
		for i := range limit / 4 {
			u.take(userKey{nil, fmt.Sprint(second, i)}, 5, now, always)
		}
		now = now.Add(time.Second)
	}
	if n := u.forgotten.Load(); n != 0 {
		t.Errorf("%d users were forgotten before their time", n)
	}
	if n := u.len(); n > limit {
		t.Errorf("%d users are followed", n)
	}
}

func TestUsersAreBounded(t *testing.T) {
	const limit = userShards * 4
	u := newUsers(limit)
	now := time.Unix(1000, 0)
	const n = 20 * limit
	for i := range n {
		if !u.take(userKey{nil, fmt.Sprint(i)}, 5, now, always) {
			t.Fatal("a new user is refused")
		}
	}
	if got, lost := u.len(), u.forgotten.Load(); got > limit || int64(got)+lost != n {
		t.Errorf("%d users are followed, %d forgotten, of %d", got, lost, n)
	}
}

func (u *users) len() int {
	n := 0
	for i := range u.shards {
		u.shards[i].mu.Lock()
		n += len(u.shards[i].fullAt)
		u.shards[i].mu.Unlock()
	}
	return n
}
