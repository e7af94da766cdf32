package event

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/router/internal/memstore"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// withLetters makes n dead letters, message ids from 0 on, and returns what
// happened to the publisher then.
func withLetters(t *testing.T, f *fake, w *world, n int) {
	t.Helper()
	broken := f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: Topic(tenant), Count: -1, Err: kerr.TopicAuthorizationFailed})
	before := w.metrics.dead.Value()
	for i := range n {
		w.Publish(tenant, chat(fmt.Sprint(i), "ann", "bob"))
	}
	time.Sleep(5 * time.Second)
	broken.Remove()
	if got := w.metrics.dead.Value() - before; got != int64(n) {
		t.Fatalf("%d dead letters of %d", got, n)
	}
}

func (w *world) letters(t *testing.T, filter LetterFilter) (ids []string) {
	t.Helper()
	err := w.Letters(t.Context(), tenant, filter, func(l Letter) error {
		if l.Event == nil || l.Reason == "" || l.Node != "router-1@7" || l.Key != "ann:bob" {
			t.Errorf("%+v", l)
		}
		ids = append(ids, l.Event.GetMsgId())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestDeadLettersAreListedAndRedrivenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := f.world(t, nil)
		if err := w.Letters(t.Context(), tenant, LetterFilter{}, nil); !errors.Is(err, ErrNoDeadLetters) {
			t.Errorf("without a topic: %v", err)
		}
		withLetters(t, f, w, 30)
		if got := w.letters(t, LetterFilter{}); len(got) != 30 || got[29] != "29" {
			t.Fatalf("listed %v", got)
		}
		if got := w.letters(t, LetterFilter{Since: time.Now().Add(-time.Millisecond)}); len(got) != 0 {
			t.Errorf("since now: %v", got)
		}
		var dry, last Redriven
		note := func(r *Redriven) func(Redriven) error { return func(got Redriven) error { *r = got; return nil } }
		if err := w.Redrive(t.Context(), tenant, LetterFilter{}, true, note(&dry)); err != nil || dry != (Redriven{Total: 30, Read: 30}) {
			t.Errorf("dry: %+v, %v", dry, err)
		}
		if err := w.Redrive(t.Context(), tenant, LetterFilter{}, false, note(&last)); err != nil || last != (Redriven{Total: 30, Read: 30, Sent: 30}) {
			t.Errorf("%+v, %v", last, err)
		}
		rs := f.topic(t, Topic(tenant))
		for i, r := range rs {
			if r.seq() != uint64(i+1) || !r.Signed || r.msg() != fmt.Sprint(i) || r.key != "ann:bob" {
				t.Errorf("place %d: %+v", i, r)
			}
		}
		if len(rs) != 30 {
			t.Errorf("%d records", len(rs))
		}
		if err := w.Redrive(t.Context(), tenant, LetterFilter{}, false, note(&last)); err != nil || last != (Redriven{}) {
			t.Errorf("the second time: %+v, %v", last, err)
		}
		if got := w.letters(t, LetterFilter{}); len(got) != 0 {
			t.Errorf("still listed: %v", got)
		}
		if got := w.letters(t, LetterFilter{All: true}); len(got) != 30 {
			t.Errorf("of all: %v", got)
		}
		// New events go on behind: the numbers of old ones are not given again.
		w.Publish(tenant, chat("new", "ann", "bob"))
		time.Sleep(time.Second)
		if rs := f.topic(t, Topic(tenant)); rs[len(rs)-1].seq() != 31 {
			t.Errorf("the next number is %d", rs[len(rs)-1].seq())
		}
	})
}

func TestARedriveOfMoreThanALaneHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := f.world(t, func(o *Options) { o.MaxPendingPerTenant = 50 })
		for range 4 {
			withLetters(t, f, w, 50)
		}
		var last Redriven
		err := w.Redrive(t.Context(), tenant, LetterFilter{}, false, func(r Redriven) error { last = r; return nil })
		if err != nil || last.Sent != 200 {
			t.Errorf("%+v, %v", last, err)
		}
		if w.dropped() != 0 {
			t.Errorf("%d counted as dropped", w.dropped())
		}
	})
}

func TestWhatIsStillRefusedIsADeadLetterAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := f.world(t, nil)
		withLetters(t, f, w, 10)
		broken := f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: Topic(tenant), Count: -1, Err: kerr.TopicAuthorizationFailed})
		var last Redriven
		note := func(r Redriven) error { last = r; return nil }
		if err := w.Redrive(t.Context(), tenant, LetterFilter{}, false, note); err != nil || last.Dead != 10 || last.Sent != 0 {
			t.Errorf("%+v, %v", last, err)
		}
		broken.Remove()
		if err := w.Redrive(t.Context(), tenant, LetterFilter{}, false, note); err != nil || last != (Redriven{Total: 10, Read: 10, Sent: 10}) {
			t.Errorf("%+v, %v", last, err)
		}
	})
}

func TestARedriveThatIsGivenUpGoesOnWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w := f.world(t, nil)
		withLetters(t, f, w, 600)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stop := errors.New("enough")
		err := w.Redrive(ctx, tenant, LetterFilter{}, false, func(r Redriven) error {
			cancel()
			return stop
		})
		if !errors.Is(err, stop) && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		var last Redriven
		if err := w.Redrive(t.Context(), tenant, LetterFilter{}, false, func(r Redriven) error { last = r; return nil }); err != nil {
			t.Fatal(err)
		}
		if got := len(f.topic(t, Topic(tenant))); got != 600 || last.Total == 600 {
			t.Errorf("%d records, %d of them at the second time", got, last.Total)
		}
	})
}

func TestTwoRedrivesAreOneThroughAnyRouters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		locks := memstore.New()
		shared := func(o *Options) { o.Locks = locks }
		w, other := f.world(t, shared), f.world(t, shared)
		withLetters(t, f, w, 300)
		hanging := f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: Topic(tenant), Count: -1, Err: kerr.NotEnoughReplicas})
		first := make(chan error)
		var sent Redriven
		go func() {
			first <- w.Redrive(t.Context(), tenant, LetterFilter{}, false, func(r Redriven) error { sent = r; return nil })
		}()
		time.Sleep(100 * time.Millisecond) // it has begun, and the topic takes nothing yet
		for _, again := range []*world{w, other} {
			if err := again.Redrive(t.Context(), tenant, LetterFilter{}, false, nil); !errors.Is(err, ErrRedriving) {
				t.Errorf("at the same time: %v", err)
			}
		}
		var dry Redriven
		if err := other.Redrive(t.Context(), tenant, LetterFilter{}, true, func(r Redriven) error { dry = r; return nil }); err != nil || dry.Total != 300 {
			t.Errorf("a dry one waits for nobody: %+v, %v", dry, err)
		}
		hanging.Remove()
		if err := <-first; err != nil {
			t.Error(err)
		}
		var rest Redriven
		if err := other.Redrive(t.Context(), tenant, LetterFilter{}, false, func(r Redriven) error { rest = r; return nil }); err != nil {
			t.Error(err)
		}
		// What had used up its attempts became a dead letter again.
		if got := len(f.topic(t, Topic(tenant))); got != 300 || sent.Sent+rest.Sent != 300 || rest.Sent != sent.Dead {
			t.Errorf("%d records; %+v, then %+v", got, sent, rest)
		}
	})
}

// faultyLocks are locks whose keeper may be away.
type faultyLocks struct {
	Locks
	away atomic.Bool
}

func (l *faultyLocks) Lock(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	if l.away.Load() {
		return false, errors.New("away")
	}
	return l.Locks.Lock(ctx, name, owner, ttl)
}

func TestARedriveWithoutItsLockEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		locks := &faultyLocks{Locks: memstore.New()}
		w, other := f.world(t, func(o *Options) { o.Locks = locks }), f.world(t, func(o *Options) { o.Locks = locks.Locks })
		withLetters(t, f, w, 1000)
		hanging := f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Count: -1, Err: kerr.NotEnoughReplicas})
		locks.away.Store(true)
		if err := w.Redrive(t.Context(), tenant, LetterFilter{}, false, nil); !errors.Is(err, ErrNoLock) {
			t.Errorf("without a lock: %v", err)
		}
		locks.away.Store(false)
		ended := make(chan error)
		var sent Redriven
		go func() {
			ended <- w.Redrive(t.Context(), tenant, LetterFilter{}, false, func(r Redriven) error { sent = r; return nil })
		}()
		time.Sleep(time.Second)
		locks.away.Store(true)
		time.Sleep(redriveLease)
		// The next one may begin, and the first one begins nothing more.
		if ok, err := locks.Locks.Lock(t.Context(), "redrive/"+tenant, "next", redriveLease); !ok || err != nil {
			t.Errorf("the lock is still held: %v", err)
		}
		hanging.Remove()
		if err := <-ended; !errors.Is(err, ErrLeaseLost) {
			t.Errorf("it ended with %v", err)
		}
		if sent.Read != redriveWindow {
			t.Errorf("it went on without its lock: %+v", sent)
		}
		_ = locks.Unlock(t.Context(), "redrive/"+tenant, "next")
		if err := other.Redrive(t.Context(), tenant, LetterFilter{}, false, func(r Redriven) error { sent = r; return nil }); err != nil {
			t.Error(err)
		}
		// It goes on from what was remembered last: nothing is missing.
		if got := len(ids(f.topic(t, Topic(tenant)))); got != 1000 {
			t.Errorf("%d events of 1000", got)
		}
	})
}
