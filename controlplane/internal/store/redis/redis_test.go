package redis

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/controlplane/internal/store/storetest"
	"github.com/mics-im/mics/internal/testkit"
)

func TestMain(m *testing.M) {
	// rueidis closes what a cluster client did not need five seconds later.
	testkit.MainWithin(m, 20*time.Second)
}

func open(t *testing.T, connection string) *Store {
	t.Helper()
	s, err := Open(connection, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestContract(t *testing.T) {
	server := testkit.StartRedis(t)
	storetest.Run(t, func(t *testing.T) store.Store {
		if _, err := server.Do("FLUSHALL"); err != nil {
			t.Fatal(err)
		}
		return open(t, server.Addr)
	})
}

func TestCluster(t *testing.T) {
	masters := testkit.RedisCluster(t, 3)
	var addrs []string
	for _, m := range masters {
		addrs = append(addrs, m.Addr)
	}
	s := open(t, strings.Join(addrs, ","))
	l, err := s.Campaign(t.Context(), store.Candidate{Instance: "a"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Commit(t.Context(), l.Term, store.Batch{
		Changes: []store.Change{{Key: "a", Value: []byte("1")}}, Entries: []store.Entry{{Log: "x", Keep: 1}, {Log: "y", Keep: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := s.List(t.Context(), ""); err != nil || len(list) != 1 {
		t.Errorf("list %v, %v", list, err)
	}
}

func TestTermsRiseOverAnEmptiedRedis(t *testing.T) {
	server := testkit.StartRedis(t)
	s := open(t, server.Addr)
	before, err := s.Campaign(t.Context(), store.Candidate{Instance: "a"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.Do("FLUSHALL"); err != nil {
		t.Fatal(err)
	}
	after, err := s.Campaign(t.Context(), store.Candidate{Instance: "b"}, time.Minute)
	if err != nil || after.Term <= before.Term {
		t.Fatalf("term %d after %d, %v", after.Term, before.Term, err)
	}
	if _, err := s.Commit(t.Context(), before.Term, store.Batch{Changes: []store.Change{{Key: "a"}}}); !errors.Is(err, store.ErrDeposed) {
		t.Errorf("the old leader: %v", err)
	}
}

func TestAwayIsUnavailableAndHeals(t *testing.T) {
	server := testkit.StartRedis(t)
	server.Kill()
	s := open(t, server.Addr)
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("without Redis: %v", err)
	}
	server.Restart(t)
	testkit.Eventually(t, "the store is back", func() bool {
		_, err := s.Get(t.Context(), "a")
		return err == nil
	})
	s.Close()
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("closed: %v", err)
	}
}

func TestRefusesWhatIsNoConnection(t *testing.T) {
	if _, err := Open("ftp://x", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "REDIS__CONNECTION") {
		t.Errorf("got %v", err)
	}
}
