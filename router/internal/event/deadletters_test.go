package event

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

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
			if r.seq() != uint64(i+1) || !r.signed || r.msg() != fmt.Sprint(i) || r.key != "ann:bob" {
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
