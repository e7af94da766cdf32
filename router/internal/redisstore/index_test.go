package redisstore

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/route"
)

// notes counts what is in the sets of a node.
func notes(t *testing.T, s *Store, n route.NodeRef) (all int) {
	t.Helper()
	c := client(t, s)
	for i := range shards {
		members, err := c.Do(t.Context(), c.B().Scard().Key(nodeKey(n, i, "u")).Build()).AsInt64()
		if err != nil {
			t.Fatal(err)
		}
		all += int(members)
	}
	return all
}

func TestSessionsThatEndedOrMovedLeaveNoNote(t *testing.T) {
	s := open(t, testkit.Redis(t))
	other := route.NodeRef{ID: "h", Incarnation: 1}
	for i := range uint64(50) {
		k := route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: fmt.Sprint(i)}, Device: "d"}
		session := 2*i + 1
		for _, at := range []route.Location{{Node: node, Session: session}, {Node: node, Session: session + 1}, {Node: node, Session: session + 1}, {Node: other, Session: session}} {
			epoch, _, err := s.Bind(t.Context(), k, at, 1)
			if err != nil {
				t.Fatal(err)
			}
			if at.Node == other && i%2 == 0 {
				for _, to := range []route.State{route.Closing, route.Ghost} {
					applied, err := s.Change(t.Context(), []route.Change{{Key: k, Node: other, Session: session, Epoch: epoch, To: to, GhostTTL: time.Hour}})
					if err != nil || !applied[0] {
						t.Fatal(applied, err)
					}
				}
			}
		}
	}
	if here, there := notes(t, s, node), notes(t, s, other); here != 0 || there != 25 {
		t.Errorf("%d and %d notes, want 0 and 25", here, there)
	}
}

func TestABindWhoseNoteFailsFails(t *testing.T) {
	server := testkit.StartRedis(t)
	s := open(t, server.Addr)
	key := nodeKey(node, shardOf(phone.UserKey), "u")
	if _, err := server.Do("SET", key, "not a set"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Bind(t.Context(), phone, route.Location{Node: node, Session: 1}, 1); !errors.Is(err, route.ErrUnavailable) {
		t.Errorf("bound without a note: %v", err)
	}
	if n, err := s.Restore(t.Context(), []route.Restored{{Key: phone, Record: route.Record{State: route.Live, Node: node, Session: 1, Epoch: 9}}}); n != 0 || !errors.Is(err, route.ErrUnavailable) {
		t.Errorf("restored %d without a note: %v", n, err)
	}
}

func TestWhatWasNotReapedIsFoundAgain(t *testing.T) {
	server := testkit.StartRedis(t)
	s := open(t, server.Addr)
	bad := route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: "bad"}, Device: "d"}
	for _, k := range []route.DeviceKey{phone, bad} {
		if _, _, err := s.Bind(t.Context(), k, route.Location{Node: node, Session: 1}, 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := server.Do("RENAME", userKey(bad.UserKey), "aside"); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Do("SET", userKey(bad.UserKey), "not a hash"); err != nil {
		t.Fatal(err)
	}
	ttl := func(string) time.Duration { return time.Hour }
	if ended, _, err := s.Reap(t.Context(), node, 100, ttl); len(ended) != 1 || !errors.Is(err, route.ErrUnavailable) {
		t.Errorf("reaped %v, %v", ended, err)
	}
	if _, err := server.Do("RENAME", "aside", userKey(bad.UserKey)); err != nil {
		t.Fatal(err)
	}
	if ended, more, err := s.Reap(t.Context(), node, 100, ttl); len(ended) != 1 || more || err != nil {
		t.Errorf("reaped %v, %v, %v", ended, more, err)
	}
	if n := notes(t, s, node); n != 0 {
		t.Errorf("%d notes", n)
	}
}

func TestMembersAreReadBack(t *testing.T) {
	for _, name := range []string{"a", "a/b", "%", "日本", "a\x00b", "{}", " "} {
		k := route.DeviceKey{UserKey: route.UserKey{Tenant: name, User: name + "1"}, Device: name + "2"}
		if got, err := parseMember((noted{k, route.Location{Session: 1 << 63}}).member()); err != nil || got != k {
			t.Errorf("%+v became %+v, %v", k, got, err)
		}
		if got, err := parseMember((noted{k, route.Location{Session: 1}}).late()); err != nil || got != k {
			t.Errorf("%+v became %+v, %v", k, got, err)
		}
		n := route.NodeRef{ID: name, Incarnation: 1<<64 - 1}
		if got, err := parseDeadField(deadField(n)); err != nil || got != n {
			t.Errorf("%+v became %+v, %v", n, got, err)
		}
	}
	for _, text := range []string{"", "a/b/c", "a/b/c/1/2/3", "%zz/b/c/1", "/b/c/1", "a//c/1", "a/b//1"} {
		if got, err := parseMember(text); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
	for _, text := range []string{"", "a", "a/1", "/0000000000000000000x", "a0000000000000000000001"} {
		if got, err := parseDeadField(text); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
}
