package store_test

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/internal/telemetry"
)

// flaky is a memory store that can be away.
type flaky struct {
	*store.Memory
	away atomic.Bool
}

func (f *flaky) Campaign(ctx context.Context, c store.Candidate, ttl time.Duration) (store.Leader, error) {
	if f.away.Load() {
		return store.Leader{}, store.ErrUnavailable
	}
	return f.Memory.Campaign(ctx, c, ttl)
}

// plane is one elector with a duty that tells what it sees.
type plane struct {
	*store.Elector
	leads atomic.Int64 // duties that run
	term  atomic.Uint64
	stop  context.CancelFunc
	done  chan struct{}
}

func start(t *testing.T, s store.Store, name string) *plane {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{Elector: store.NewElector(store.ElectorConfig{Store: s, Name: name, Address: "http://" + name, Telemetry: tel}), done: make(chan struct{})}
	ctx, stop := context.WithCancel(t.Context())
	p.stop = stop
	go func() {
		defer close(p.done)
		p.Run(ctx, func(ctx context.Context, tenure *store.Tenure) {
			p.leads.Add(1)
			defer p.leads.Add(-1)
			p.term.Store(tenure.Term())
			<-ctx.Done()
		})
	}()
	t.Cleanup(func() {
		stop()
		<-p.done
		_ = tel.Shutdown(context.Background())
	})
	return p
}

func TestOneOfTwoLeadsAndTheOtherGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.NewMemory()
		a := start(t, s, "a")
		synctest.Wait()
		b := start(t, s, "b")
		synctest.Wait()
		if a.leads.Load() != 1 || b.leads.Load() != 0 {
			t.Fatalf("a leads %d, b %d", a.leads.Load(), b.leads.Load())
		}
		if l, mine := b.Leader(); mine || l.Name != "a" || l.Address != "http://a" {
			t.Errorf("b knows %+v, %t", l, mine)
		}
		time.Sleep(time.Hour) // the lease is prolonged all the while
		if a.leads.Load() != 1 || b.leads.Load() != 0 {
			t.Fatalf("after an hour a leads %d, b %d", a.leads.Load(), b.leads.Load())
		}
		a.stop()
		<-a.done
		time.Sleep(store.DefaultLease/3 + time.Millisecond) // it resigned: no lease to wait for
		synctest.Wait()
		if b.leads.Load() != 1 || b.term.Load() <= a.term.Load() {
			t.Errorf("b leads %d under term %d, after %d", b.leads.Load(), b.term.Load(), a.term.Load())
		}
	})
}

func TestOneThatCannotProlongStopsBeforeItsLeaseEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.NewMemory()
		f := &flaky{Memory: s}
		a := start(t, f, "a")
		synctest.Wait()
		f.away.Store(true)
		time.Sleep(store.DefaultLease - time.Millisecond) // fake time
		synctest.Wait()
		if l, _ := s.Leader(t.Context()); l.Name == "a" && a.leads.Load() != 0 {
			t.Error("it leads to the end of its lease")
		}
		if l, mine := a.Leader(); mine || l.Term != 0 {
			t.Errorf("it believes %+v, %t", l, mine)
		}
		f.away.Store(false)
		time.Sleep(store.DefaultLease) // fake time
		synctest.Wait()
		if a.leads.Load() != 1 {
			t.Error("it does not lead again")
		}
	})
}

func TestAnEmptiedStoreDoesNotEndATenure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := store.NewMemory()
		a := start(t, s, "a")
		synctest.Wait()
		l, _ := a.Leader()
		if err := s.Resign(t.Context(), l.Instance); err != nil { // as a flush does
			t.Fatal(err)
		}
		time.Sleep(store.DefaultLease) // fake time
		synctest.Wait()
		if now, mine := a.Leader(); !mine || now.Term <= l.Term || a.leads.Load() != 1 || a.term.Load() != l.Term {
			t.Errorf("leader %+v, mine %t, duties %d begun under term %d", now, mine, a.leads.Load(), a.term.Load())
		}
	})
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &flaky{Memory: store.NewMemory()}
		f.away.Store(true)
		a := start(t, f, "a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, _, err := a.Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with nobody: %v", err)
		}
		f.away.Store(false)
		if l, mine, err := a.Await(t.Context()); err != nil || !mine || l.Name != "a" {
			t.Errorf("%+v, %t, %v", l, mine, err)
		}
	})
}
