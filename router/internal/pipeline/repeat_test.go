package pipeline

import (
	"testing"
	"testing/synctest"
	"time"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
)

func TestARepeatIsDeliveredOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		version uint32
		window  time.Duration
	}{"V1": {1, time.Minute}, "V2": {2, 10 * time.Minute}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				defer w.close()
				in := w.intake()
				ref := uint64(0)
				send := func() uint64 {
					ref++
					i := chat(ref, 1, "hi")
					i.Version = tc.version
					in.Publish(batch(i))
					synctest.Wait()
					return ref
				}
				w.wants(send(), sent, "")
				settle(tc.window - time.Second)
				w.wants(send(), sent, "duplicate")
				settle(12 * time.Second) // the window, to its precision
				w.wants(send(), sent, "")
				if n := len(w.order()); n != 2 || w.stats.DedupHits.Value() != 1 {
					t.Errorf("dispatched %d times, %d repeats", n, w.stats.DedupHits.Value())
				}
			})
		})
	}
}

func TestARepeatOfAMessageUnderWayGetsItsOutcome(t *testing.T) {
	for name, tc := range map[string]struct {
		body   string
		status messagev1.AckStatus
		reason string
	}{"sent": {"hi/100ms", sent, ""}, "failed": {"bad/100ms", failed, "bad words"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				defer w.close()
				w.check = slow
				in := w.intake()
				in.Publish(batch(chat(1, 1, tc.body)))
				settle(10 * time.Millisecond)
				// On another connection, and what follows there comes behind it.
				w.intake().Publish(batch(chat(2, 2, tc.body), chat(3, 2, "next")))
				synctest.Wait()
				if w.ack(2) != nil || w.ack(3) != nil {
					t.Error("answered before the outcome")
				}
				settle(100 * time.Millisecond)
				w.wants(1, tc.status, tc.reason)
				w.wants(2, tc.status, tc.reason)
				w.wants(3, sent, "")
				if got := w.order(); got[len(got)-1] != "next" {
					t.Errorf("dispatched %q", got)
				}
			})
		})
	}
}

func TestARepeatHoldsItsConnectionUpOnlyForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		w.config(noCheck)
		var late func(dispatch.Result)
		w.send = func(j dispatch.Job) { late = j.Done }
		w.intake().Publish(batch(chat(1, 1, "hi")))
		w.send = func(j dispatch.Job) { j.Done(dispatch.Result{Delivered: 1}) }
		w.intake().Publish(batch(chat(2, 2, "hi"), chat(3, 2, "next")))
		settle(repeatPatience - time.Millisecond)
		if w.ack(3) != nil {
			t.Error("overtook the repeat at once")
		}
		settle(time.Millisecond)
		w.wants(3, sent, "")
		late(dispatch.Result{Delivered: 1})
		w.wants(1, sent, "")
		w.wants(2, sent, "")
	})
}

func TestARefusedMessageCanBeSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		over := true
		w.limited = func(string) bool { return over }
		in := w.intake()
		in.Publish(batch(chat(1, 1, "hi")))
		over = false
		in.Publish(batch(chat(2, 1, "hi")))
		synctest.Wait()
		w.wants(1, failed, "tenant qps limited")
		w.wants(2, sent, "")
		if n := w.stats.RateLimited.With("message_qps").Value(); n != 1 {
			t.Errorf("counted %d times", n)
		}
	})
}
