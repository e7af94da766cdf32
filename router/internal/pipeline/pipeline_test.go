package pipeline

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	sent   = messagev1.AckStatus_SENT
	failed = messagev1.AckStatus_FAILED
)

var errDown = errors.New("down")

// slow makes the check of a message take as long as its body says.
func slow(m *messagev1.MessageRequest) (*hookv1.CheckMessageResponse, error) {
	_, took, _ := strings.Cut(string(m.MsgBody), "/")
	if d, err := time.ParseDuration(took); err == nil {
		time.Sleep(d) // fake time
	}
	return &hookv1.CheckMessageResponse{Allow: !strings.HasPrefix(string(m.MsgBody), "bad"), Reason: "bad words"}, nil
}

// settle lets fake time pass and everything come to rest.
func settle(d time.Duration) {
	time.Sleep(d) // fake time
	synctest.Wait()
}

func TestHooksOverlapAndOrderIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		w.check = slow
		in := w.intake()
		start := time.Now()
		in.Publish(batch(chat(1, 7, "a/100ms"), chat(2, 7, "bad/50ms"), chat(3, 7, "b/10ms"), chat(4, 8, "x/20ms")))
		in.Publish(batch(chat(5, 7, "c/120ms"), chat(6, 7, "d/1ms")))
		settle(time.Second)
		if got, want := w.order(), []string{"x/20ms", "a/100ms", "b/10ms", "c/120ms", "d/1ms"}; !slices.Equal(got, want) {
			t.Errorf("dispatched %q, want %q", got, want)
		}
		w.wants(2, failed, "bad words")
		for ref, want := range map[uint64]time.Duration{1: 100, 3: 100, 4: 20, 5: 120, 6: 120} {
			if got := w.when[ref].Sub(start); got != want*time.Millisecond {
				t.Errorf("message %d is answered after %v, want %v ms: hooks overlap, order is kept", ref, got, int64(want))
			}
		}
		for i := range w.p.lanes.shards {
			if n := len(w.p.lanes.shards[i].lanes); n != 0 {
				t.Errorf("%d lanes are left", n)
			}
		}
	})
}

func TestWithoutAHookABatchIsOneLookUpAndDispatchedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		w.config(noCheck)
		w.members = func(string) ([]string, error) {
			time.Sleep(time.Second) // fake time
			return []string{"u"}, nil
		}
		w.intake().Publish(batch(chat(1, 7, "a"), chat(2, 8, "b"), chat(3, 7, "c"), chat(4, 7, "group", toGroup), chat(5, 7, "behind"), chat(6, 8, "other")))
		if got, want := w.order(), []string{"a", "b", "c", "other"}; !slices.Equal(got, want) {
			t.Errorf("dispatched when Publish returned: %q, want %q", got, want)
		}
		if got := w.looked(); len(got[0]) != 3 {
			t.Errorf("look-ups %v", got)
		}
		settle(2 * time.Second)
		if got, want := w.order()[4:], []string{"group", "behind"}; !slices.Equal(got, want) {
			t.Errorf("then %q, want %q", got, want)
		}
	})
}

func TestReasons(t *testing.T) {
	set := func(f func(*messagev1.MessageRequest)) func(*messagev1.MessageRequest) { return f }
	long := strings.Repeat("x", maxID+1)
	for name, tc := range map[string]struct {
		edit   func(*messagev1.MessageRequest)
		world  func(*world)
		reason string
	}{
		"no recipient":     {edit: set(func(m *messagev1.MessageRequest) { m.ToUserId = "" }), reason: "missing to_user_id"},
		"no group":         {edit: set(func(m *messagev1.MessageRequest) { m.MsgType = 1 }), reason: "missing group_id"},
		"type":             {edit: set(func(m *messagev1.MessageRequest) { m.MsgType = 2 }), reason: "invalid msg_type"},
		"body":             {edit: set(func(m *messagev1.MessageRequest) { m.MsgBody = make([]byte, 1001) }), reason: "msg_body_too_large"},
		"tenant":           {edit: set(func(m *messagev1.MessageRequest) { m.TenantId = "c" }), reason: "invalid tenant"},
		"no sender":        {edit: set(func(m *messagev1.MessageRequest) { m.UserId = "" }), reason: "malformed message"},
		"separator":        {edit: set(func(m *messagev1.MessageRequest) { m.ToUserId = "a\x00b" }), reason: "invalid to_user_id"},
		"long recipient":   {edit: set(func(m *messagev1.MessageRequest) { m.ToUserId = long }), reason: "to_user_id too long"},
		"long id":          {edit: set(func(m *messagev1.MessageRequest) { m.MsgId = long }), reason: "msg_id too long"},
		"bad id":           {edit: set(func(m *messagev1.MessageRequest) { m.MsgId = "\x00" }), reason: "invalid msg_id"},
		"long group":       {edit: set(func(m *messagev1.MessageRequest) { toGroup(m); m.GroupId = long }), reason: "group_id too long"},
		"bad group":        {edit: set(func(m *messagev1.MessageRequest) { toGroup(m); m.GroupId = "\x00" }), reason: "invalid group_id"},
		"rate":             {world: func(w *world) { w.limited = func(string) bool { return true } }, reason: "tenant qps limited"},
		"denied":           {world: func(w *world) { w.check = deny("no spam") }, reason: "no spam"},
		"denied, no word":  {world: func(w *world) { w.check = deny("") }, reason: "rejected"},
		"denied at length": {world: func(w *world) { w.check = deny(strings.Repeat("é", maxReason)) }, reason: strings.Repeat("é", maxReason/2)},
		"store":            {world: func(w *world) { w.lookup = func([]route.UserKey) error { return errDown } }, reason: "internal error"},
		"store, direct": {world: func(w *world) {
			w.config(noCheck)
			w.lookup = func([]route.UserKey) error { return errDown }
		}, reason: "internal error"},
		"nobody served": {world: func(w *world) {
			w.send = func(j dispatch.Job) { j.Done(dispatch.Result{Skipped: 1}) }
		}, reason: "delivery failed"},
		"members hook": {edit: toGroup, world: func(w *world) { w.members = func(string) ([]string, error) { return nil, errDown } }, reason: "group members unavailable"},
		"empty group":  {edit: toGroup, world: func(w *world) { w.members = func(string) ([]string, error) { return nil, nil } }, reason: "group members empty"},
		"large group":  {edit: toGroup, world: func(w *world) { w.members = func(string) ([]string, error) { return make([]string, 6), nil } }, reason: "group too large"},
		"group, store": {edit: toGroup, world: func(w *world) { w.lookup = func([]route.UserKey) error { return errDown } }, reason: "internal error"},
		"a denial says more than a failure": {edit: toGroup, world: func(w *world) {
			w.members, w.check = func(string) ([]string, error) { return nil, errDown }, deny("no spam")
		}, reason: "no spam"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				defer w.close()
				if tc.world != nil {
					tc.world(w)
				}
				edit := tc.edit
				if edit == nil {
					edit = func(*messagev1.MessageRequest) {}
				}
				in := w.intake()
				in.Publish(batch(chat(1, 1, "hi", edit)))
				synctest.Wait()
				w.wants(1, failed, tc.reason)
				var counted int64
				for _, r := range rejections {
					counted += w.stats.Rejected.With(r).Value()
				}
				if counted += w.stats.Failed.Value(); counted != 1 {
					t.Errorf("counted %d times", counted)
				}
				// None of these is an outcome that a repeat would be answered with.
				in.Publish(batch(chat(2, 1, "hi", edit)))
				synctest.Wait()
				w.wants(2, failed, tc.reason)
				tn, _ := w.tenants.Get("a")
				if n := w.p.share(tn).inFlight.Load(); n != 0 {
					t.Errorf("%d messages under way", n)
				}
			})
		})
	}
}

func deny(reason string) func(*messagev1.MessageRequest) (*hookv1.CheckMessageResponse, error) {
	return func(*messagev1.MessageRequest) (*hookv1.CheckMessageResponse, error) {
		return &hookv1.CheckMessageResponse{Reason: reason}, nil
	}
}

// TestATenantsHungHookIsItsOwnTrouble: tenant a's hook hangs and a floods; b's
// messages on the same stream are answered without any delay.
func TestATenantsHungHookIsItsOwnTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 50
		w := newWorld(t, func(l *Limits) { l.TenantMaxInFlight = most })
		defer w.close()
		w.check = func(m *messagev1.MessageRequest) (*hookv1.CheckMessageResponse, error) {
			d := time.Millisecond
			if m.TenantId == "a" {
				d = time.Hour
			}
			time.Sleep(d) // fake time
			return &hookv1.CheckMessageResponse{Allow: true}, nil
		}
		in := w.intake()
		start := time.Now()
		for i := range uint64(2 * most) {
			in.Publish(batch(chat(i+1, i%5, string(rune('A'+i)))))
		}
		in.Publish(batch(chat(1000, 9, "hi", func(m *messagev1.MessageRequest) { m.TenantId = "b" })))
		if took := time.Since(start); took != 0 {
			t.Errorf("Publish waited %v", took)
		}
		settle(time.Millisecond)
		w.wants(1000, sent, "")
		for i := range uint64(most) {
			if a := w.ack(i + 1); a != nil {
				t.Fatalf("message %d is answered: %v", i+1, a)
			}
			w.wants(most+i+1, failed, "overloaded")
		}
		settle(2 * time.Hour)
		for i := range uint64(most) {
			w.wants(i+1, sent, "")
		}
	})
}

func TestCheckMessage(t *testing.T) {
	for name, tc := range map[string]struct {
		world       func(*world)
		result      string
		unmoderated bool
	}{
		"allowed": {func(*world) {}, "allow", false},
		"unavailable": {func(w *world) {
			w.check = func(*messagev1.MessageRequest) (*hookv1.CheckMessageResponse, error) { return nil, errDown }
		}, "degraded", true},
		"switched off": {func(w *world) {
			w.config(noCheck)
			w.check = func(*messagev1.MessageRequest) (*hookv1.CheckMessageResponse, error) { panic("called") }
		}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				defer w.close()
				tc.world(w)
				w.intake().Publish(batch(chat(1, 1, "hi")))
				synctest.Wait()
				w.wants(1, sent, "")
				if m := w.sent[0].Message; m.Unmoderated != tc.unmoderated || m.Key == [16]byte{} {
					t.Errorf("dispatched %+v", m)
				}
				for _, result := range []string{"allow", "deny", "degraded"} {
					want := int64(0)
					if result == tc.result {
						want = 1
					}
					if got := w.stats.Check.With(result).Value(); got != want {
						t.Errorf("%s counted %d times", result, got)
					}
				}
			})
		})
	}
}

func TestGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		w.members = func(string) ([]string, error) { return []string{"u1", "a\x00b", "u2", "u3", "u4"}, nil }
		w.send = func(j dispatch.Job) { j.Done(dispatch.Result{Delivered: 1, Buffered: 2, Skipped: 1}) }
		w.intake().Publish(batch(chat(1, 1, "hi", toGroup)))
		synctest.Wait()
		a := w.ack(1)
		if a.Status != sent || !a.PartialDelivery || a.OfflineBufferedUsers != 2 || a.OfflineSkippedUsers != 2 {
			t.Errorf("ack %v", a)
		}
		if j := w.sent[0]; len(j.Recipients) != 4 || j.MaxBuffered != 3 || j.Recipients[3].Key != (route.UserKey{Tenant: "a", User: "u4"}) {
			t.Errorf("job %+v", j)
		}
		if got := w.looked(); len(got) != 3 || len(got[0]) != 1 || len(got[1]) != 2 {
			t.Errorf("look-ups %v", got)
		}
		for what, got := range map[string]int64{
			"messages": w.stats.GroupMessages.Value() - 1, "members": w.stats.GroupMembers.Value() - 5,
			"nodes": w.stats.GroupNodes.Value() - 1, "buffered": w.stats.GroupBuffered.Value() - 2,
		} {
			if got != 0 {
				t.Errorf("%s are off by %d", what, got)
			}
		}
	})
}

// TestATenantThatKeepsMessagesItself: what is sent for the first time is not
// buffered, what comes back later is.
func TestATenantThatKeepsMessagesItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		yes := true
		w.config(func(c *hookv1.TenantRuntimeConfig) { c.OfflineUseHookPull = &yes })
		w.members = func(string) ([]string, error) { return []string{"u1", "u2", "u3", "u4"}, nil }
		results := make(chan dispatch.BufferResult, 10)
		w.send = func(j dispatch.Job) {
			for _, to := range j.Recipients[:2] {
				w.absent.Put(dispatch.BufferEntry{Key: to.Key, Message: j.Message, Done: func(r dispatch.BufferResult) { results <- r }})
			}
			w.p.wg.Go(func() {
				for range 2 {
					if r := <-results; r != dispatch.NotKept {
						t.Errorf("result %v", r)
					}
				}
				j.Done(dispatch.Result{Delivered: 1, Skipped: 3}) // the third was not served for another reason
			})
		}
		w.intake().Publish(batch(chat(1, 1, "hi", toGroup)))
		synctest.Wait()
		a := w.ack(1)
		if a.Status != sent || a.OfflineNotifiedUsers != 2 || a.OfflineSkippedUsers != 1 || !a.PartialDelivery || a.OfflineBufferedUsers != 0 {
			t.Errorf("ack %v", a)
		}
		if n := w.stats.Notified.Value(); n != 2 || w.sent[0].MaxBuffered != 0 {
			t.Errorf("%d notified, %d may be buffered", n, w.sent[0].MaxBuffered)
		}
		kept := false
		w.absent.next = putFunc(func(dispatch.BufferEntry) { kept = true })
		w.absent.Put(dispatch.BufferEntry{Message: w.sent[0].Message, Done: func(dispatch.BufferResult) {}})
		if !kept {
			t.Error("what was SENT as delivered and came back is not kept")
		}
	})
}

type putFunc func(dispatch.BufferEntry)

func (f putFunc) Put(e dispatch.BufferEntry) { f(e) }

func TestCloseGivesHooksUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.check = func(*messagev1.MessageRequest) (*hookv1.CheckMessageResponse, error) {
			<-w.p.ctx.Done()
			return nil, errDown
		}
		w.intake().Publish(batch(chat(1, 1, "hi")))
		w.close()
		w.wants(1, sent, "")
	})
}
