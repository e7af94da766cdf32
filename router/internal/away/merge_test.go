package away

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/memstore"
	"github.com/mics-im/mics/router/internal/route"
)

func TestJoinIsTheSameInAnyOrder(t *testing.T) {
	var all []route.Record
	for _, d := range []string{"a", "b"} {
		for epoch := range uint64(4) {
			for _, s := range []route.State{route.Live, route.Closing, route.Ghost} {
				all = append(all, route.Record{Device: d, Epoch: epoch, State: s})
			}
		}
	}
	want := []route.Record{{Device: "a", Epoch: 3, State: route.Ghost}, {Device: "b", Epoch: 3, State: route.Ghost}}
	for range 50 {
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		half := join(nil, all[:10]...)
		if got := join(join(nil, all[10:]...), append(half, all[3])...); !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v", got)
		}
	}
}

func TestRebound(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	g1, g2 := route.Location{Node: route.NodeRef{ID: "g1", Incarnation: 1}, Session: 1}, route.Location{Node: route.NodeRef{ID: "g2", Incarnation: 1}, Session: 2}
	at := func(l route.Location, s route.State, until time.Time) *route.Record {
		return &route.Record{Device: "d", State: s, Node: l.Node, Session: l.Session, Epoch: 7, Until: until}
	}
	for name, c := range map[string]struct {
		known *route.Record
		epoch uint64
		prev  bool
	}{
		"unknown":                 {nil, 1_000_000, false},
		"live elsewhere":          {at(g1, route.Live, time.Time{}), 8, true},
		"closing elsewhere":       {at(g1, route.Closing, time.Time{}), 8, true},
		"this very bind":          {at(g2, route.Live, time.Time{}), 1_000_000, false},
		"a ghost":                 {at(g1, route.Ghost, now.Add(1)), 8, true},
		"a ghost of this session": {at(g2, route.Ghost, now.Add(1)), 8, true},
		"a forgotten ghost":       {at(g1, route.Ghost, now), 8, false},
	} {
		r, prev := rebound(c.known, "d", g2, 2, now)
		want := route.Record{Device: "d", State: route.Live, Node: g2.Node, Session: 2, Epoch: c.epoch, Version: 2}
		if r != want || (prev != nil) != c.prev || prev != nil && *prev != *c.known {
			t.Errorf("%s: %+v, replaces %+v", name, r, prev)
		}
	}
}

func TestAStoreThatComesAndGoesMustAnswerLonger(t *testing.T) {
	now := time.Unix(1000, 0)
	var o orderly
	need := func() int {
		o = o.lost(now)
		for n := 1; ; n++ {
			now = now.Add(time.Second)
			if n == 2 {
				if o, _ = o.answered(false, now); o.good != 0 {
					t.Error("a failure does not count")
				}
			}
			var back bool
			if o, back = o.answered(true, now); back {
				return o.need
			}
		}
	}
	var got []int
	for range 6 {
		got = append(got, need())
		now = now.Add(time.Second)
	}
	now = now.Add(time.Minute)
	if got = append(got, need()); !slices.Equal(got, []int{1, 2, 3, 3, 3, 3, 1}) {
		t.Errorf("answers in a row that were needed: %v", got)
	}
}

func counter(t *testing.T) *telemetry.Counter {
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
	return tel.Counter("c", "")
}

func TestTheMirrorIsBounded(t *testing.T) {
	m := newMirror(3, counter(t))
	put := func(user string) {
		m.put(key(user, "d"), route.Record{Device: "d", State: route.Live, Epoch: 1}, nil)
	}
	m.bind(key("unsaved", "d"), route.Location{Session: 1}, 1)
	for _, u := range []string{"a", "b", "c", "d"} {
		put(u)
	}
	if m.device(key("unsaved", "d")) == nil || m.device(key("d", "d")) == nil || m.device(key("a", "d")) != nil || m.len() != 3 {
		t.Error("what is saved goes first, the longest unused before")
	}
	for i := range 3 {
		m.bind(key(fmt.Sprint("more", i), "d"), route.Location{Session: 1}, 1)
	}
	if m.len() != 3 || m.forgotten.Value() != 1 || m.unsavedLen() != 3 {
		t.Errorf("%d users, %d forgotten, %d unsaved", m.len(), m.forgotten.Value(), m.unsavedLen())
	}
}

func TestAUserIsSavedAsAWhole(t *testing.T) {
	m := newMirror(1000, nil)
	for u := range 100 {
		for d := range 3 {
			m.bind(key(fmt.Sprint("user", u), fmt.Sprint("d", d)), route.Location{Session: 1}, 2)
		}
	}
	seen := map[route.DeviceKey]bool{}
	for m.unsavedLen() > 0 {
		part := m.some(10)
		if len(part) < 10 && len(part) != m.unsavedLen() || len(part) > 12 || len(part)%3 != 0 {
			t.Fatalf("%d records of %d", len(part), m.unsavedLen())
		}
		for i, r := range part {
			if r.Key != key(r.Key.User, fmt.Sprint("d", i%3)) || r.Key.User != part[i-i%3].Key.User {
				t.Fatalf("%d: %v", i, r.Key)
			}
			if seen[r.Key] {
				t.Fatalf("%v comes twice", r.Key)
			}
			seen[r.Key] = true
		}
		m.saved(part)
	}
}

func TestTheMirrorFollowsTheRouters(t *testing.T) {
	m := newMirror(10, counter(t))
	ghost := route.Record{Device: "g", State: route.Ghost, Epoch: 1, Until: time.Now().Add(time.Hour)}
	fill := func() {
		for _, u := range []string{"mine", "theirs"} {
			m.put(key(u, "d"), route.Record{Device: "d", State: route.Live, Epoch: 1}, nil)
			m.put(key(u, "g"), ghost, nil)
			m.whole(key(u, "d").UserKey)
		}
	}
	holds := func(user string, devices int, complete bool) {
		t.Helper()
		if r, c := m.records(key(user, "").UserKey); len(r) != devices || c != complete {
			t.Errorf("%s: %v, complete %v", user, r, c)
		}
	}
	fill()
	mine := func(k route.UserKey) bool { return k.User == "mine" }
	m.turn(1, mine)
	holds("mine", 2, true)
	holds("theirs", 1, false)
	fill()
	m.turn(3, mine) // what was between is not known
	holds("mine", 1, false)
}

func TestQuestionsWaitTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls [][]route.UserKey
		var wg sync.WaitGroup
		a := &asker{life: t.Context(), overflow: counter(t), spawn: func(f func()) { wg.Go(f) }, call: func(ctx context.Context, keys []route.UserKey) (map[route.UserKey]answer, error) {
			calls = append(calls, keys)
			time.Sleep(time.Second / 2) // fake time
			return map[route.UserKey]answer{keys[0]: {records: []route.Record{{Device: "d"}}}}, nil
		}}
		ask := func(n int) {
			wg.Go(func() {
				k := key(fmt.Sprint("u", n), "").UserKey
				if got, err := a.ask(t.Context(), []route.UserKey{k}); err != nil || n == 0 && len(got[k].records) != 1 {
					t.Errorf("%d: %v, %v", n, got, err)
				}
			})
		}
		ask(0)
		synctest.Wait()
		for n := range 10 {
			ask(n + 1)
		}
		synctest.Wait()
		many := make([]route.UserKey, maxWaiting)
		if _, err := a.ask(t.Context(), many); !errors.Is(err, route.ErrUnavailable) || a.overflow.Value() != maxWaiting {
			t.Errorf("too many: %v, %d counted", err, a.overflow.Value())
		}
		wg.Wait()
		if len(calls) != 2 || len(calls[1]) != 10 {
			t.Errorf("%d calls", len(calls))
		}
	})
}

func TestWhatOtherRoutersMayNotSay(t *testing.T) {
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tel.Shutdown(context.Background()) }()
	s := New(Options{Store: memstore.New(), Telemetry: tel})
	defer s.Stop()
	for name, req := range map[string]*routerv1.RecordsRequest{
		"an odd record": {Learn: []*routerv1.UserRecords{{TenantId: "t", UserId: "u", Records: []*routerv1.DeviceRecord{{DeviceId: "d", Record: "?"}}}}},
		"no device":     {Learn: []*routerv1.UserRecords{{TenantId: "t", UserId: "u", Records: []*routerv1.DeviceRecord{{Record: "1:1:1:1:1:0:g"}}}}},
		"too many":      {Learn: make([]*routerv1.UserRecords, maxAsked+1)},
	} {
		if _, err := s.ServeRecords(t.Context(), req); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if res, err := s.ServeRecords(t.Context(), &routerv1.RecordsRequest{}); err != nil || !res.Up || res.Settled != (s.markerNow() == "") {
		t.Errorf("%v, %v", res, err)
	}
}
